"""kill -9 from outside: the library by strace at a system call, and a module of a run of the real apply program."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.storage import _homes, _tutorials
from tests.faults import killing
from tests.integration.conftest import ApplyProgram, Site, apply_program, site
from tests.unit.storage.conftest import MakeUser

__all__ = ["apply_program", "site"]

pytestmark = pytest.mark.root

_PROGRAM = """
import sys
from ansible_bootstrap.storage import _homes, _tutorials
user, root, course = eval(sys.argv[1])
users = _homes.ensure([user], root, 1000, _homes.Options(skeleton=course), check=False).users
users += _tutorials.place([user], root, 1000, _tutorials.Options([{"name": "course", "path": course}]), check=False).users
assert {user["failed"] for user in users} == {False}, users
"""


@pytest.fixture
def course(root: Path) -> Path:
    tree = root.parent / "course"
    (tree / "data").mkdir(parents=True)
    (tree / "01.ipynb").write_text("{}")
    (tree / "data/a.csv").write_text("1,2\n")
    return tree


# Counted by strace for each process: the home's worker, the tutorial's, and each child of a user's.
@pytest.mark.parametrize(
    "call",
    [
        *("mkdirat:when=4", "mkdirat:when=6", "fchown:when=1", "copy_file_range:when=2", "utimensat:when=2"),
        *("syncfs:when=1", "renameat2:when=1", "renameat:when=1", "syncfs:when=2", "renameat:when=3"),
    ],
)
def test_killed_at_a_system_call(
    call: str,
    root: Path,
    make_user: MakeUser,
    course: Path,
    needs: Callable[..., None],
    counted: Counter[str],
) -> None:
    needs(root=True, programs=("strace",))
    alice = make_user("alice")
    name, _, when = call.partition(":")
    done = subprocess.run(
        [
            *("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={name}"),
            *("-e", f"inject={name}:signal=KILL:{when}"),
            *(sys.executable, "-c", _PROGRAM, repr((alice, str(root), str(course)))),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0, f"nothing was killed at {call}"
    for place, names in (
        (root / "alice", {"01.ipynb", "data"}),
        (root / "alice/course", {"01.ipynb", "data"}),
    ):
        if place.exists():
            assert {path.name for path in place.iterdir() if not path.name.startswith(".ansible")} >= names
    counted["steps"] += 1

    subprocess.run(
        [sys.executable, "-c", _PROGRAM, repr((alice, str(root), str(course)))], check=True, timeout=60
    )
    assert sorted(os.listdir(root / "alice")) == ["01.ipynb", "course", "data"]
    assert sorted(os.listdir(root / "alice/course")) == ["01.ipynb", "data"]
    before = killing.tree(root, times=True)
    for users in (
        _homes.ensure([alice], str(root), 1000, _homes.Options(skeleton=str(course)), check=False).users,
        _tutorials.place(
            [alice],
            str(root),
            1000,
            _tutorials.Options([{"name": "course", "path": str(course)}]),
            check=False,
        ).users,
    ):
        assert {user["changed"] for user in users} == {False}
    assert killing.tree(root, times=True) == before


@pytest.fixture
def big(tmp_path: Path) -> Path:
    tree = tmp_path / "big"
    tree.mkdir()
    for number in range(4000):
        (tree / f"{number}.txt").write_text("x")
    return tree


@pytest.mark.parametrize("role", ["user_dir", "tutorials"])
def test_the_module_of_a_whole_run(
    role: str, site: Site, apply_program: ApplyProgram, big: Path, counted: Counter[str]
) -> None:
    extra: dict[str, Any] = {}
    if role == "tutorials":
        apply_program(["alice", "bob"], "user_dir")
        extra["tutorials_sources"] = [{"name": "course", "path": str(big)}]
    else:
        extra["user_dir_skeleton"] = str(big)
    settings = site.settings(roles=["user_dir", role][role == "user_dir" :], extra_vars=extra)
    halfway = {
        "user_dir": ".ansible_bootstrap/stage/*/*.txt",
        "tutorials": "*/.ansible_bootstrap-*/*.txt",
    }[role]

    running = apply_program.start(["alice", "bob"], settings=settings)
    running.wait_for(lambda: any(site.root.glob(halfway)))
    os.kill(min(_holders(site.root / ".ansible_bootstrap/locks")), 9)
    answer = running.answer()

    assert answer.status == 1
    assert answer.ok == set(), answer
    assert {outcome["failed_role"] for outcome in answer.outcomes.values()} == {role}
    shown = [site.root / name / ("course" if role == "tutorials" else "") for name in ("alice", "bob")]
    assert not any(path.exists() for path in shown)
    counted["steps"] += 1

    until = time.monotonic() + 10
    while list(_holders(site.root / ".ansible_bootstrap/locks")):
        assert time.monotonic() < until, "a child outlived the module"
        time.sleep(0.02)
    answer = apply_program(["alice", "bob"], settings=settings)
    assert answer.ok == {"alice", "bob"}, answer
    for path in shown:
        assert len([name for name in os.listdir(path) if name.endswith(".txt")]) == 4000
        assert stat.S_ISDIR(path.lstat().st_mode)
    assert list(site.root.glob("*/.ansible_bootstrap-*")) == []
    assert os.listdir(site.root / ".ansible_bootstrap/stage") == []
    again = apply_program(["alice", "bob"], settings=settings)
    assert [outcome["changed"] for outcome in again.outcomes.values()] == [[], []]


def _holders(locks: Path) -> Iterator[int]:
    """Processes that have a user's lock open: the module, and its children."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(link).startswith(f"{locks}/") for link in (process / "fd").iterdir()):
                yield int(process.name)
        except OSError:
            continue
