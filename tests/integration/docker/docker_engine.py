"""A Docker engine of the tests' own: its data, sockets and containers are below one directory, and end with it.

The image borrows the machine's ``/usr`` and the interpreter's directories read-only, so nothing is
downloaded, and what runs in a container is the very ``jupyterhub-singleuser`` that is installed here.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import docker

IMAGE = "skeleton:1"
USER = "1000:100"
REFUSALS = re.compile(
    r"not permitted|permission denied|not supported|cgroup|read-only file system|no such device|failed to mount",
    re.IGNORECASE,
)
"""What a kernel, or a container that we are in ourselves, says to a daemon that it does not let start."""


class CannotRunHereError(Exception):
    """This machine does not let the part run. That is no fault of what is tested."""


def read_only() -> list[str]:
    """The directories in which the interpreter and what it imports are; for a venv also the Python it is made of."""
    real = Path(sys.executable).resolve().parents[1]
    found = {"/usr", str(Path(sys.prefix)), str(Path(sys.base_prefix)), str(real)}
    return sorted(path for path in found if not path.startswith("/usr/"))


class Engine:
    """``dockerd``, without networks: containers use the machine's."""

    def __init__(self) -> None:
        # Not pytest's directory: a socket's path has at most 107 characters.
        self.path = Path(tempfile.mkdtemp(prefix="engine-", dir="/tmp"))
        self.url = f"unix://{self.path}/docker.sock"
        self.client = docker.DockerClient(base_url=self.url, version="1.40", timeout=30)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and make sure that it can run a container.

        Raises:
            CannotRunHereError: this machine does not let it. Anything else is a failure.
        """
        try:
            # overlay2 refuses a directory that is itself on an overlay, as in a CI job's container.
            self._start("overlay2")
        except CannotRunHereError:
            self.end_daemon()
            self._start("vfs")
        try:
            self.client.api.import_image_from_data(
                self._skeleton(), repository="skeleton", tag="1", changes=["WORKDIR /home/jovyan"]
            )
            said = self.run("id", "-u")
        except docker.errors.APIError as error:
            if REFUSALS.search(str(error)):
                raise CannotRunHereError(f"a container: {error}") from None
            raise
        assert said.strip() == b"1000", said

    def _start(self, storage_driver: str) -> None:
        config = self.path / "daemon.json"
        config.write_text(
            json.dumps(
                {
                    "data-root": f"{self.path}/data",
                    "exec-root": f"{self.path}/exec",
                    "pidfile": f"{self.path}/pid",
                    "hosts": [self.url],
                    "storage-driver": storage_driver,
                    # The machine's network and firewall stay as they are.
                    "bridge": "none",
                    "iptables": False,
                    "ip6tables": False,
                    "ip-masq": False,
                    "userland-proxy": False,
                }
            )
        )
        log = self.path / f"{storage_driver}.log"
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                # Should the tests themselves be killed, it ends too.
                ["setpriv", "--pdeathsig", "TERM", "dockerd", "--config-file", str(config)],
                env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        end = time.monotonic() + 30
        while not self._answers():
            said = log.read_text("utf-8", "replace")
            if self._process.poll() is not None:
                last = said.strip().rpartition("\n")[2]
                if REFUSALS.search(last):
                    raise CannotRunHereError(f"dockerd with {storage_driver}: {last}")
                raise AssertionError(f"dockerd ended: {said[-3000:]}")
            assert time.monotonic() < end, f"dockerd does not answer: {said[-3000:]}"
            time.sleep(0.05)

    def _answers(self) -> bool:
        with contextlib.suppress(docker.errors.DockerException, OSError):
            return bool(self.client.ping())
        return False

    def _skeleton(self) -> bytes:
        """An image of a few directories and links; its content is mounted."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as image:

            def add(name: str, kind: bytes, mode: int = 0o755, link: str = "", content: bytes = b"") -> None:
                member = tarfile.TarInfo(name)
                member.type, member.mode, member.linkname, member.size = kind, mode, link, len(content)
                image.addfile(member, io.BytesIO(content))

            for name in ("sbin", "usr", "etc", "proc", "sys", "dev", "home", "home/jovyan"):
                add(name, tarfile.DIRTYPE)
            add("tmp", tarfile.DIRTYPE, 0o1777)
            for name in ("bin", "lib", "lib64"):
                add(name, tarfile.SYMTYPE, link=f"usr/{name}")
            users = b"root:x:0:0::/root:/bin/sh\njovyan:x:1000:100::/home/jovyan:/bin/sh\n"
            add("etc/passwd", tarfile.REGTYPE, 0o644, content=users)
            add("etc/group", tarfile.REGTYPE, 0o644, content=b"root:x:0:\nusers:x:100:\n")
        return packed.getvalue()

    def run(self, *command: str, volumes: tuple[str, ...] = ()) -> bytes:
        """Run a command to its end in a container, as the user that servers run as; return what it printed."""
        mounts = [f"{path}:{path}:ro" for path in read_only()]
        said: bytes = self.client.containers.run(
            IMAGE, list(command), user=USER, network_mode="host", remove=True, volumes=[*mounts, *volumes]
        )
        return said

    def inside(self, slug: str, *command: str) -> tuple[int, str]:
        """Run a command in a user's running container; return its status, and what it printed."""
        status, said = self.client.containers.get(f"jupyter-{slug}").exec_run(list(command))
        return status, said.decode()

    def container(self, slug: str) -> str:
        """The id of the user's container; empty if there is none."""
        found = self.client.containers.list(all=True, filters={"name": f"^/?jupyter-{slug}$"})
        return str(found[0].id) if found else ""

    def end_daemon(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def remove(self) -> None:
        """End all of it, and leave nothing behind."""
        with contextlib.suppress(docker.errors.DockerException, OSError):
            for container in self.client.containers.list(all=True):
                container.remove(force=True)
        self.client.close()
        self.end_daemon()
        mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in reversed([mount for mount in mounted if mount.startswith(f"{self.path}/")]):
            subprocess.run(["umount", "--lazy", mount], check=False)
        shutil.rmtree(self.path, ignore_errors=True)
