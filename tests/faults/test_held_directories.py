"""Who lists a directory into memory that never comes holds the kernel's lock of it, and costs nobody else more."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_bootstrap.storage import _homes
from tests.unit.storage.conftest import MakeUser

pytestmark = pytest.mark.root

Hold = Callable[[Path | int], None]


@pytest.mark.parametrize("inside", ["", "class/"])
def test_the_storage_root_costs_none_who_has_a_home(
    root: Path, make_user: MakeUser, hold: Hold, inside: str
) -> None:
    alice, bob, new = [
        make_user(name, directory=f"{root}/{inside}{name}") for name in ("alice", "bob", "carol")
    ]
    _homes.ensure([alice, bob], str(root), 1000, _homes.Options(), check=False)
    hold(root)
    started = time.monotonic()
    users = _homes.ensure([alice, bob], str(root), 1000, _homes.Options(), check=False).users
    assert not any(user["failed"] for user in users), users
    assert time.monotonic() - started < 8, "somebody waited for the lock"
    if not inside:  # a new name needs the lock: that user fails alone
        users = _homes.ensure([alice, bob, new], str(root), 1000, _homes.Options(), check=False).users
    else:
        users = _homes.ensure([new], str(root), 1000, _homes.Options(), check=False).users
    assert [user["failed"] for user in users] == ([False, False, True] if not inside else [False]), users


def test_homes_whose_mode_is_enforced_cost_their_users_alone(
    root: Path, make_user: MakeUser, hold: Hold
) -> None:
    """Two of them count for the whole storage where root itself changes the mode."""
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
