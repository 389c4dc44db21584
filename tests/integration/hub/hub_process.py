"""A real hub in a process of its own, and an admin's client of its API."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx

from ansible_bootstrap.state.pending_cleanups import CleanupFile

HERE = Path(__file__).parent


class RunningHub:
    """A hub, and an admin's client of its API.

    Args:
        more: lines for the end of the configuration, after ``setup(c)``.
    """

    def __init__(
        self,
        path: Path,
        *,
        bootstrapped: bool = False,
        profiles: bool = False,
        embedded: bool = False,
        remote_root: str = "",
        more: str = "",
        **settings: Any,
    ) -> None:
        self.path = path
        self.log_file = path / "hub.log"
        (path / "storage").mkdir(mode=0o755)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/hub"
        self.token = secrets.token_hex(16)
        if embedded:
            settings["storage_root"] = str(path / "storage")
        test = path / "test.json"
        test.write_text(
            json.dumps(
                {
                    "path": str(path),
                    "port": port,
                    "token": self.token,
                    "bootstrapped": bootstrapped,
                    "profiles": profiles,
                    "remote_root": remote_root,
                    "more": more,
                    "settings": settings,
                }
            )
        )
        self.process = self._start()

    # The process

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(HERE / "hub_config.py")],
                cwd=self.path,
                env={**os.environ, "HUB_TEST": str(self.path / "test.json")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def restart(self, **settings: Any) -> None:
        """With the same database and settings but for these, after the process has ended."""
        self.process.wait(5)
        file = self.path / "test.json"
        test = json.loads(file.read_text())
        test["settings"].update(settings)
        file.write_text(json.dumps(test))
        self.process = self._start()
        self.wait_until_up()

    def wait_until_up(self) -> None:
        end = time.monotonic() + 30
        while True:
            assert self.process.poll() is None, self.log
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=2).is_success:
                    return
            assert time.monotonic() < end, self.log
            time.sleep(0.05)

    @property
    def log(self) -> str:
        return self.log_file.read_text("utf-8", "replace")

    @property
    def hooks(self) -> list[str]:
        """What the admin's own hooks have noted."""
        file = self.path / "hooks.log"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def to_clean_up(self) -> set[str]:
        """The users whose clean-up has no outcome yet, as the hub has written it down for the next one."""
        return {place.name for place in CleanupFile(self.path / "state").read().values()}

    def terminate(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    # The API

    @contextlib.asynccontextmanager
    async def api(self) -> AsyncIterator[Api]:
        headers = {"Authorization": f"token {self.token}"}
        async with httpx.AsyncClient(base_url=f"{self.url}/api", headers=headers, timeout=60) as client:
            yield Api(client)


def scrape(hub: RunningHub) -> dict[str, float]:
    """Our numbers, as Prometheus gets them."""
    answer = httpx.get(f"{hub.url}/metrics", headers={"Authorization": f"token {hub.token}"}, timeout=10)
    answer.raise_for_status()
    lines = re.findall(r"^(ansible_bootstrap_\S+) (\S+)$", answer.text, re.MULTILINE)
    return {name: float(value) for name, value in lines}


class Api:
    """What an admin's script does."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def create(self, *names: str) -> None:
        answer = await self.client.post("/users", json={"usernames": list(names)})
        assert answer.status_code in {201, 409}, answer.text

    def spawn(self, name: str, server: str = "", **options: Any) -> asyncio.Task[httpx.Response]:
        """Press Start; the answer comes when the server is ready, has failed, or is slow."""
        return asyncio.create_task(self.client.post(self._url(name, server), json=options or None))

    async def stop(self, name: str, server: str = "") -> httpx.Response:
        return await self.client.delete(self._url(name, server))

    async def user(self, name: str) -> dict[str, Any]:
        answer = await self.client.get(f"/users/{name}")
        user: dict[str, Any] = answer.json()
        return user

    async def progress(
        self, name: str, server: str = "", *, begun: Callable[[], None] = lambda: None
    ) -> list[dict[str, Any]]:
        """Everything the spawn page shows, to its end; ``begun`` is called when it shows something."""
        events: list[dict[str, Any]] = []
        url = self._url(name, server) + "/progress"
        async with self.client.stream("GET", url) as stream:
            assert stream.status_code == 200, await stream.aread()
            async for line in stream.aiter_lines():
                if line.startswith("data:"):
                    events.append(json.loads(line[5:]))
                    begun()
        return events

    async def until(self, name: str, condition: Callable[[dict[str, Any]], Any], seconds: float = 10) -> None:
        """Wait until the condition holds for the user's servers."""
        end = time.monotonic() + seconds
        while not condition((await self.user(name))["servers"]):
            assert time.monotonic() < end, await self.user(name)
            await asyncio.sleep(0.05)

    def _url(self, name: str, server: str) -> str:
        return f"/users/{name}/servers/{server}" if server else f"/users/{name}/server"
