"""A login at a real hub whose storage is on a real storage host, over ssh."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

from hub_process import RunningHub

UID, GID = 20_001, 100


@pytest.fixture
def hub(storage_hosts: Any, tmp_path: Path) -> Iterator[RunningHub]:
    """A hub on this machine, whose ssh goes out from the control node's network."""
    tmp_path.chmod(0o755)
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\nexec {" ".join(storage_hosts.controller)} ssh "$@"\n')
    ssh.chmod(0o755)
    inventory = tmp_path / "storage.ini"
    inventory.write_text(storage_hosts.impatient.read_text() + f"ansible_ssh_executable={ssh}\n")
    hub = RunningHub(
        tmp_path,
        remote_root="/volumes/students",
        storage_root="/volumes/students",
        storage_host="store1",
        inventory=str(inventory),
        uid=UID,
        gid=GID,
    )
    try:
        hub.wait_until_up()
        yield hub
    finally:
        hub.kill()


async def test_a_login_waits_for_its_storage_host_and_says_so_when_that_is_down(
    hub: RunningHub, storage_hosts: Any
) -> None:
    store = storage_hosts["store1"]
    students = store.path("/volumes/students")
    students.mkdir(mode=0o755)
    async with hub.api() as api:
        await api.create("alice", "bob")
        assert (await api.spawn("alice")).status_code == 201, hub.log
        home = (students / "alice").stat()
        assert (home.st_uid, home.st_gid) == (UID, GID)
        assert not Path("/volumes/students").exists()  # nothing of it on the hub's own disk

        with store.down():
            spawn = api.spawn("bob")
            await api.until("bob", lambda servers: servers)  # the page opens, and its progress tells
            last = (await api.progress("bob"))[-1]
            assert last["failed"]
            assert "Your storage cannot be reached at the moment" in last["message"]
            await spawn
            assert "bob not started (unreachable)" in hub.log
            await api.spawn("bob")  # At once: the hub remembers.
            assert "storage host store1 has been down since" in hub.log
            assert hub.log.count("operation=bootstrap user=bob") == 1
        assert not (students / "bob").exists()

        end = time.monotonic() + 30
        while (await api.spawn("bob")).status_code != 201:
            assert time.monotonic() < end, hub.log
        assert (students / "bob").stat().st_uid == UID
