"""A user who lists a directory into memory that never comes holds the kernel's lock of it, and delays no other user."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_bootstrap.storage import _homes
from ansible_bootstrap.storage._state import identity
from tests.unit.storage.conftest import MakeUser

pytestmark = pytest.mark.root

Hold = Callable[[Path | int], None]


@pytest.mark.parametrize("inside", ["", "class/"])
def test_a_held_storage_root_does_not_affect_users_with_a_home(
    root: Path, make_user: MakeUser, hold: Hold, inside: str
) -> None:
    alice, bob, new = [
        make_user(name, directory=f"{root}/{inside}{name}") for name in ("alice", "bob", "carol")
    ]
    _homes.ensure([alice, bob], str(root), 1000, _homes.Options(), check=False)
    hold(root)
    started = time.monotonic()
    users = _homes.ensure([alice, bob], str(root), 1000, _homes.Options(), check=False).users
    assert {user["failed"] for user in users} == {False}, users
    assert time.monotonic() - started < 8, "somebody waited for the lock"
    if not inside:  # a new name needs the lock: that user fails alone
        users = _homes.ensure([alice, bob, new], str(root), 1000, _homes.Options(), check=False).users
    else:
        users = _homes.ensure([new], str(root), 1000, _homes.Options(), check=False).users
    assert [user["failed"] for user in users] == ([False, False, True] if not inside else [False]), users


def test_held_homes_with_an_enforced_mode_affect_only_their_users(
    root: Path, make_user: MakeUser, hold: Hold
) -> None:
    """Two such homes count for the whole storage where root itself changes the mode."""
    alice, bob, dave = [make_user(name, home=True) for name in ("alice", "bob", "dave")]
    for name in ("alice", "bob"):
        hold(root / name)
    options = _homes.Options(mode="0700", enforce_mode=True)
    users = _homes.ensure([alice, bob, dave], str(root), 1000, options, check=False, patience=1).users
    assert [(user["failed"], user["changed"]) for user in users] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    assert (root / "dave").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("moved_away", [False, True], ids=["a directory in it", "the home itself"])
def test_a_stage_that_its_user_holds_is_left_alone_while_it_is_held(
    root: Path, make_user: MakeUser, hold: Hold, moved_away: bool
) -> None:
    alice, others = make_user("alice"), [make_user(name) for name in ("bob", "carol")]
    _homes.ensure(others[:1], str(root), 1000, _homes.Options(), check=False)
    stage = root / f".ansible_bootstrap/stage/{identity(['alice'])}-{alice['uid']}"
    stage = stage.with_name(f"{stage.name}-0123abcd") if moved_away else stage
    held = stage / ("home" if moved_away else ".config")
    held.mkdir(mode=0o700, parents=True)
    os.chown(held, alice["uid"], alice["gid"])
    hold(held)
    for _ in range(3):
        users = _homes.ensure(others, str(root), 1000, _homes.Options(), check=False).users
        assert {user["failed"] for user in users} == {False}, users
    waiting = {path.parent for path in Path("/proc").glob("[0-9]*/fd") if _has_open(path, stage)}
    assert len(waiting) == 1, "each run leaves another process that waits"


def _has_open(descriptors: Path, directory: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(os.readlink(each) == str(directory) for each in descriptors.iterdir())
    return False
