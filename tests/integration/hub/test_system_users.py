"""Users whom the name service knows and /etc/passwd does not: mkhomedir, then LocalProcessSpawner, then a clean-up."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_process import HERE, RunningHub

UID = 20088


class NamespacedHub(RunningHub):
    """In a mount namespace in which NSS also asks libnss-extrausers."""

    def _start(self) -> subprocess.Popen[bytes]:
        extra = self.path / "extrausers"
        extra.mkdir(exist_ok=True)
        home = self.path / "storage/erin"
        (extra / "passwd").write_text(f"erin:x:{UID}:{UID}::{home}:/bin/sh\n")
        (extra / "group").write_text(f"erin:x:{UID}:\n")
        (extra / "shadow").write_text("")
        switch = self.path / "nsswitch.conf"
        switch.write_text("passwd: files extrausers\ngroup: files extrausers\nshadow: files\nhosts: files\n")
        shutil.copy(HERE / "system_users_server.py", self.path)
        script = (
            'mount --bind "$0/nsswitch.conf" /etc/nsswitch.conf && '
            'mount --bind "$0/extrausers" /var/lib/extrausers && exec "$@"'
        )
        hub = (sys.executable, "-m", "jupyterhub", "-f", str(HERE / "system_users_config.py"))
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", script, str(self.path), *hub],
                cwd=self.path,
                env={
                    **os.environ,
                    "HUB_TEST": str(self.path / "test.json"),
                    "HUB_CONFIG": str(HERE / "hub_config.py"),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


@pytest.fixture
def hub(needs: Callable[..., None]) -> Iterator[RunningHub]:
    needs(root=True, programs=("unshare", "mkhomedir_helper", "/usr/bin/python3"))
    if not Path("/var/lib/extrausers").is_dir():
        needs(programs=("libnss-extrausers",))
    # Not below tmp_path: the user must be able to reach the home.
    path = Path(tempfile.mkdtemp(prefix="ansible_bootstrap_", dir="/tmp"))
    path.chmod(0o755)
    hub = NamespacedHub(
        path,
        embedded=True,
        roles=["mkhomedir"],
        cleanup_roles=["cleanup"],
        extra_vars={"cleanup_paths": ["scratch/*.tmp"]},
        cleanup_delay=0.1,
    )
    try:
        hub.wait_until_up()
        yield hub
    finally:
        hub.kill()
        shutil.rmtree(path)


@pytest.mark.root
async def test_a_system_user_without_a_line_in_passwd_gets_a_home_and_works_in_it(hub: RunningHub) -> None:
    assert "erin:" not in Path("/etc/passwd").read_text()
    home = hub.path / "storage/erin"
    async with hub.api() as api:
        await api.create("erin")
        for starts in (1, 2):
            answer = await api.spawn("erin")
            assert answer.status_code in {201, 202}, answer.text + hub.log
            await api.until("erin", lambda servers: servers.get("", {}).get("ready"), 30)
            status = home.stat()
            assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (UID, UID, 0o700)
            assert (home / "starts.txt").read_text() == f"{UID} {home}\n" * starts
            assert (home / ".profile").is_file()
            await api.stop("erin")
            await api.until("erin", lambda servers: not servers)
            end = time.monotonic() + 30
            while (home / "scratch/big.tmp").exists():
                assert time.monotonic() < end, hub.log
                await asyncio.sleep(0.05)
            assert os.listdir(home / "scratch") == ["kept.txt"]
