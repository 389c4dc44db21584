"""Starts a real hub with its proxy and everybody's server, and ends them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

# The demo's hub needs the same proxy.
from ansible_bootstrap.demo import _node_directory, _path, _proxy

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
START_SECONDS = 60.0


class Hub:
    """One hub, for one variant.

    Args:
        path: a directory of its own; holds database and logs.
        variant: one of ``variants.VARIANTS``.
        archive: the course.
        tools: where the proxy is installed if it is nowhere; None to do without a proxy.
        storage: an empty directory for the users' storage; by default below ``path``.
        settings: more of ``c.AnsibleBootstrap``.
        spawn_limit: the hub's ``concurrent_spawn_limit``; 0 is none.
    """

    def __init__(
        self,
        path: Path,
        variant: str,
        archive: Path,
        *,
        tools: Path | None,
        storage: Path | None = None,
        settings: dict[str, Any] | None = None,
        spawn_limit: int = 0,
    ) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.storage = storage or path / "storage"
        self.storage.mkdir(mode=0o755, exist_ok=True)
        self.password = secrets.token_hex(8)
        self.token = secrets.token_hex(16)
        self.log = path / "hub.log"
        port, hub_port, proxy_port, self._server_port = _free_ports(4)
        self.hub_url = f"http://127.0.0.1:{hub_port}"
        self.url = f"http://127.0.0.1:{port}" if tools else self.hub_url
        self.servers_url = self.url if tools else f"http://127.0.0.1:{self._server_port}"
        (path / "storm.json").write_text(
            json.dumps(
                {
                    "path": str(path),
                    "storage": str(self.storage),
                    "variant": variant,
                    "archive": str(archive),
                    "port": port,
                    "hub_port": hub_port,
                    "proxy_port": proxy_port,
                    "server_port": self._server_port,
                    "proxy": _proxy(tools) if tools else "",
                    "password": self.password,
                    "token": self.token,
                    "settings": settings or {},
                    "spawn_limit": spawn_limit,
                }
            )
        )
        self.process: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start what does not run, and return when it answers."""
        try:
            if self._server is None:
                self._server = self._popen("-m", "benchmarks.storm.shared_server", str(self._server_port))
            self.process = self._popen("-m", "jupyterhub", "-f", str(HERE / "hub_config.py"))
            for url in (f"{self.hub_url}/hub/health", f"{self.url}/hub/health", self.servers_url):
                self._wait_for(url)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """End hub, proxy and server; what does not end within 20 s is killed."""
        for process in (self.process, self._server):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in (self.process, self._server):
            if process is not None:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        self.process = self._server = None

    def hooks(self) -> list[tuple[str, float, float]]:
        """Return each hook's user, begin and end."""
        notes = self.path / "hooks.txt"
        lines = [line.split() for line in notes.read_text().splitlines()] if notes.exists() else []
        return [(name, float(begin), float(end)) for name, begin, end in lines]

    def _popen(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.path,
                env={
                    **os.environ,
                    "STORM": str(self.path / "storm.json"),
                    "PYTHONPATH": str(CHECKOUT),
                    "PATH": f"{_node_directory()}{_path()}",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_for(self, url: str) -> None:
        end = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                urllib.request.urlopen(url, timeout=5).close()
                return
            if (self.process and self.process.poll() is not None) or time.monotonic() > end:
                tail = self.log.read_text("utf-8", "replace")[-2000:]
                raise RuntimeError(f"{url} does not answer; {self.log} ends with:\n{tail}")
            time.sleep(0.05)


def end_with_everything() -> None:
    """Let SIGTERM end this program as Ctrl-C does, with the hub that it has started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
