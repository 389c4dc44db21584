"""The disk is full when ``mkhomedir_helper`` makes a home: nobody has half of one, and room is all that is wanting."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest

from ansible_bootstrap.storage._mkhomedir_helper import Options
from ansible_bootstrap.storage._state import identity
from tests.faults import killing
from tests.faults.conftest import small
from tests.unit.storage.conftest import MakeUser
from tests.unit.storage.test_system_homes import Ensure, ensure, is_whole

__all__ = ["ensure"]

BLOCK = 4096


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    """Eight blocks of content, in files and directories."""
    made = tmp_path / "skel"
    for number in range(4):
        (made / f"course{number}").mkdir(parents=True)
        (made / f"course{number}" / "data").write_bytes(bytes([number]) * BLOCK * 2)
    return made


@pytest.mark.root
@pytest.mark.parametrize("spare", range(0, 9, 2))
def test_a_full_disk_gives_nobody_half_a_home(
    root: Path, make_user: MakeUser, ensure: Ensure, skeleton: Path, spare: int
) -> None:
    """With room for so many blocks, from none to too few for the last."""
    alice, bob = make_user("alice"), make_user("bob")
    options = Options("0022", str(skeleton))
    with small(root, "size=1m"):
        assert ensure(bob, options=options)[0]["changed"]
        before = killing.tree(root / "bob", times=True)
        full = root / "full"
        with contextlib.suppress(OSError), full.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * BLOCK)
        os.truncate(full, full.stat().st_size - spare * BLOCK)

        for _ in range(2):
            bad, good = ensure(alice, bob, options=options)
            assert bad["failed"] and not bad["changed"]
            assert not good["failed"] and not good["changed"], good
            home = root / "alice"
            if home.exists():  # and then nobody but root gets at it
                status = home.stat()
                assert (status.st_uid, status.st_mode & 0o777) == (0, 0o700)
        assert killing.tree(root / "bob", times=True) == before

        full.unlink()
        assert ensure(alice, options=options)[0]["changed"]
        is_whole(root, alice, skeleton, 0o755)
        assert not ensure(alice, options=options)[0]["changed"]


@pytest.mark.root
@pytest.mark.parametrize("since", ["nothing", "a file", "a FIFO", "a link", "a change"])
def test_killed_before_it_could_be_taken_back(
    root: Path, make_user: MakeUser, ensure: Ensure, skeleton: Path, victim: Path, since: str
) -> None:
    """The user was given a part, and the module was killed at that moment: what they did since is kept."""
    alice, options = make_user("alice"), Options("0022", str(skeleton))
    assert not ensure(alice, options=options)[0]["failed"]
    home = root / "alice"
    shutil.rmtree(home / "course3")
    os.truncate(home / "course0/data", 100)
    os.chown(home / "course1", 0, 0)
    record = root / f".ansible_bootstrap/records/{identity(['alice'])}.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "mkhomedir": {"began": True}}))
    if since == "a file":
        (home / "mine").write_text("mine")
    elif since == "a FIFO":
        (home / "course2/data").unlink()
        os.mkfifo(home / "course2/data")
    elif since == "a link":
        (home / "course2/data").unlink()
        (home / "course2/data").symlink_to(victim / "secret")
    elif since == "a change":
        (home / "course2/data").write_text("mine")
    before = killing.tree(home)
    assert ensure(alice, check=True, options=options)[0]["changed"] == (since == "nothing")
    (result,) = ensure(alice, options=options)
    assert not result["failed"], result
    assert result["changed"] == (since == "nothing")
    if since == "nothing":
        is_whole(root, alice, skeleton, 0o755)
    else:
        assert killing.tree(home) == before
