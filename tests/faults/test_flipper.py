"""A user exchanges a name in their home for a link to somebody else's files, as fast as they can, while root works there.

30 rounds of everything the file library does in a home, and 100 in ``make test-full``. The victims belong to root and to another user; they
are readable by all and writable by nobody but their owner, so that whatever root touched would show.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.storage import _as_user, _homes, _placing, _trees, _tutorials
from ansible_bootstrap.storage._descriptors import DIRECTORY
from tests.faults import killing
from tests.faults.conftest import Flipper
from tests.roles.conftest import Playbook
from tests.unit.storage.conftest import MakeUser

ROUNDS = killing.rounds(30, 100)

pytestmark = pytest.mark.root
Flip = Callable[..., Flipper]


@pytest.fixture
def home(root: Path, make_user: MakeUser) -> dict[str, Any]:
    """Alice, and in her home: `work`, a directory, and `trap`, a link to the victims, to be exchanged."""
    return make_user("alice", home=True)


@pytest.fixture
def victims(root: Path, make_user: MakeUser, counted: Counter[str]) -> Iterator[Path]:
    top = root.parent / "victims"
    for owner in ("root", "bob"):
        place = top / owner
        (place / "deep").mkdir(parents=True)
        (place / "secret").write_text(f"{owner}'s\n")
        (place / "secret").chmod(0o644)
        (place / "deep/file").write_text("deep\n")
    bob = make_user("bob")
    for path in (top / "bob", *(top / "bob").rglob("*")):
        os.chown(path, bob["uid"], bob["gid"])
    before = killing.tree(top, times=True)
    yield top
    after = killing.tree(top, times=True)
    counted["victims"] += sum(after.get(name) != entry for name, entry in before.items())
    assert after == before


def _plant(user: dict[str, Any], name: str, target: Path) -> None:
    """A link of the user's beside what it is exchanged with."""
    path = Path(user["directory"], name)
    path.symlink_to(target)
    os.chown(path, user["uid"], user["gid"], follow_symlinks=False)


def _directory(user: dict[str, Any], name: str) -> Path:
    path = Path(user["directory"], name)
    path.mkdir()
    os.chown(path, user["uid"], user["gid"])
    return path


def _as(user: dict[str, Any], work: Callable[[int], Any], *keep: int) -> _as_user.Answer:
    """Do it as the roles do: by a child with the user's rights, from a checked descriptor of the home."""
    home = os.open(user["directory"], DIRECTORY)
    try:
        return _as_user.run(
            _as_user.Task(user["uid"], user["gid"], home, partial(work, home), keep), timeout=20
        )
    finally:
        os.close(home)


@pytest.fixture
def content(root: Path) -> Path:
    tree = root.parent / "content"
    for name in ("a", "b", "deep/c"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name * 100)
    return tree


@pytest.mark.parametrize("whose", ["root", "bob"])
@pytest.mark.parametrize("enforce", [False, True], ids=["look", "compare and repair"])
def test_looking_at_a_home(
    enforce: bool,
    whose: str,
    root: Path,
    home: dict[str, Any],
    victims: Path,
    flipper: Flip,
    counted: Counter[str],
) -> None:
    _directory(home, "work")
    _plant(home, "trap", victims / whose)
    hostile = flipper(home["uid"], Path(home["directory"]), "work", "trap")
    for number in range(ROUNDS):
        mode = ("0755", "0700")[number % 2]
        hostile.wait_for_flips()
        options = _homes.Options(mode=mode, enforce_mode=enforce)
        (result,) = _homes.ensure([home], str(root), 1000, options, check=False).users
        assert not result["failed"], result
        assert result["changed"] == (
            enforce and os.stat(home["directory"]).st_mode & 0o777 == int(mode, 8) and number > 0
        )
    counted["rounds"] += ROUNDS


@pytest.mark.parametrize("whose", ["root", "bob"])
@pytest.mark.parametrize("operation", ["stage", "stage itself", "reveal", "remove", "copy"])
def test_working_in_a_home(
    operation: str,
    whose: str,
    home: dict[str, Any],
    victims: Path,
    content: Path,
    flipper: Flip,
    counted: Counter[str],
) -> None:
    flipped = {"stage": "work", "reveal": "work", "remove": ".stage/deep"}.get(operation, ".stage")
    hostile = flipper(home["uid"], Path(home["directory"]), flipped, "trap")
    tree = os.open(content, DIRECTORY)
    try:
        for _ in range(ROUNDS):
            with hostile.paused():
                _begin(operation, home, victims / whose, content)
            if operation != "stage itself":  # that is not there yet
                hostile.wait_for_flips()
            _as(home, partial(_work, operation, tree), tree)
    finally:
        os.close(tree)
    assert hostile.flips >= ROUNDS / 10, "it had a chance"
    counted["rounds"] += ROUNDS


def _begin(operation: str, home: dict[str, Any], target: Path, content: Path) -> None:
    """Put the home in order for a round."""
    place = Path(home["directory"])
    for path in place.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    _plant(home, "trap", target)
    if operation in ("stage", "reveal"):
        _directory(home, "work")
    if operation in ("reveal", "copy"):
        _directory(home, ".stage")
    if operation == "remove":
        shutil.copytree(content, place / ".stage")
        for path in (place / ".stage", *(place / ".stage").rglob("*")):
            os.chown(path, home["uid"], home["gid"])


def _work(operation: str, tree: int, home: int) -> Any:
    placings = [_placing.Placing("x", ("work", "deep", "x"), ".stage", tree, "content")]
    if operation == "reveal":
        return _placing.reveal(home, placings)
    if operation == "remove":
        return _trees.remove_tree(home, ".stage")
    if operation == "copy":
        # Wherever the name leads at this moment, which nothing of ours does: even so the user's rights hold.
        return _trees.copy_tree(tree, os.open(".stage", os.O_RDONLY | os.O_DIRECTORY, dir_fd=home), "content")
    return _placing.stage(home, placings)


def test_what_a_user_may_write_elsewhere_is_not_reached_through_the_home(
    home: dict[str, Any], root: Path, content: Path, flipper: Flip, counted: Counter[str]
) -> None:
    """The user's rights alone would allow it: that no link is followed must keep it."""
    outside = root.parent / "outside"
    outside.mkdir()
    outside.chmod(0o777)
    hostile = flipper(home["uid"], Path(home["directory"]), "work", "trap")
    tree = os.open(content, DIRECTORY)
    met = Counter[str]()
    try:
        for _ in range(100):
            with hostile.paused():
                _begin("reveal", home, outside, content)
            hostile.wait_for_flips()
            found = _as(home, partial(_work, "reveal", tree), tree).value["x"]
            met["a link" if "links are not followed" in found.get("error", "") else "the directory"] += 1
            assert not list(outside.iterdir())
    finally:
        os.close(tree)
    assert min(met["a link"], met["the directory"]) > 0, f"the exchange was never met: {met}"
    counted["rounds"] += met.total()


def test_a_home_itself_cannot_be_exchanged(root: Path, make_user: MakeUser, victims: Path) -> None:
    """A user who could exchange it would own the directory above, and below such a directory nothing is done."""
    alice = make_user("alice", directory=str(root / "students/alice"))
    (root / "students").mkdir()
    for uid, mode in ((alice["uid"], 0o755), (0, 0o775), (0, 0o777), (0, 0o1777)):
        os.chown(root / "students", uid, alice["gid"])
        (root / "students").chmod(mode)
        before = killing.tree(root / "students", times=True)
        for enforce in (False, True):
            options = _homes.Options(enforce_mode=enforce)
            (result,) = _homes.ensure([alice], str(root), 1000, options, check=False).users
            assert "students, below the storage root, " in result["msg"]
        source = {"name": "course", "path": str(victims)}
        (result,) = _tutorials.place(
            [alice], str(root), 1000, _tutorials.Options([source]), check=False
        ).users
        assert "students, below the storage root, " in result["msg"]
        assert killing.tree(root / "students", times=True) == before


@pytest.mark.parametrize("role", ["user_dir", "tutorials"])
def test_through_the_role(
    role: str,
    root: Path,
    home: dict[str, Any],
    victims: Path,
    content: Path,
    flipper: Flip,
    counted: Counter[str],
    tmp_path: Path,
) -> None:
    assert Path(sys.executable).with_name("ansible-playbook").exists()
    _directory(home, "work")
    _plant(home, "trap", victims / "root")
    hostile = flipper(home["uid"], Path(home["directory"]), "work", "trap")
    hostile.wait_for_flips()
    variables: dict[str, Any] = {"bootstrap_users": [home], "bootstrap_root": str(root)}
    if role == "user_dir":
        variables |= {"user_dir_mode": "0700", "user_dir_enforce_mode": True}
    else:
        variables["tutorials_sources"] = [
            {"name": f"course{number}", "path": str(content), "dest": f"work/{number}/x"}
            for number in range(50)
        ]
    run = Playbook(tmp_path, role, variables).run()
    (user,) = run.result["users"]
    if role == "user_dir":
        assert user["changed"], run.output
    else:  # some by luck, the others refused: the user's own doing
        assert user["changed"] or "links are not followed" in user["msg"], run.output
    counted["rounds"] += 1
