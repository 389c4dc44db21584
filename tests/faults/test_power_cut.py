"""The power fails: what a disk shows afterwards, and in which order things are brought onto it.

A rename that reaches the disk before the data it shows would be a home full of empty files. So data, owners,
modes and records come first, then one syncfs(2), then the rename. The first tests cut the power for real, as far as
one machine can: the disk is a file, and a copy of that file holds what had reached the disk by then, not what
the kernel still kept in memory. The worst case is asked for: the journal is committed right
before the cut, so that every rename is on the disk and no data is that was not brought there on purpose.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.storage import _files, _homes, _tutorials
from tests.faults import killing
from tests.faults.conftest import mounted
from tests.unit.storage.conftest import MakeUser


@pytest.fixture
def course(root: Path) -> dict[str, Any]:
    tree = root.parent / "course"
    (tree / "data").mkdir(parents=True)
    (tree / "01.ipynb").write_text("{}" * 3000)
    (tree / "data/a.csv").write_text("1,2\n")
    return {"name": "course", "path": str(tree)}


@pytest.fixture
def image(root: Path, needs: Callable[..., None]) -> Path:
    """An empty ext4 file system in a file."""
    needs(root=True, programs=("mkfs.ext4", "losetup"))
    path = root.parent / "disk.img"
    with path.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(
        [
            "mkfs.ext4",
            "-q",
            "-F",
            "-m0",
            "-I",
            "256",
            "-J",
            "size=4",
            "-E",
            "nodiscard,lazy_itable_init=0",
            path,
        ],
        check=True,
    )
    return path


@contextlib.contextmanager
def _mounted(image: Path, root: Path, options: str) -> Iterator[None]:
    # With its default of five seconds the journal may be written while the disk is copied: half of a commit in the copy.
    with mounted(root, "-o", f"loop,commit=300,{options}", str(image)):
        root.chmod(0o755)
        if (root / "lost+found").exists():
            (root / "lost+found").rmdir()
        yield
        # Where a mount namespace of another test has a copy of this mount, umount(8) alone writes nothing.
        subprocess.run(["sync", "-f", str(root)], check=True)


def _commit(root: Path) -> None:
    """Have the journal written: names, sizes and records of everything, and data of this one file only."""
    fd = os.open(root / "unrelated", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, b"x")
    os.fsync(fd)
    os.close(fd)


# noauto_da_alloc: ext4 then gives a file that is renamed over another no special care, as XFS does not either.
@pytest.mark.root
@pytest.mark.parametrize("options", ["noauto_da_alloc", pytest.param("defaults", marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["home", "tutorial", pytest.param("zip", marks=pytest.mark.slow)])
def test_the_power_fails_at_every_step(
    what: str,
    options: str,
    root: Path,
    image: Path,
    make_user: MakeUser,
    course: dict[str, Any],
    counted: Counter[str],
    request: pytest.FixtureRequest,
) -> None:
    alice = make_user("alice")
    home = _homes.Options(skeleton=course["path"])
    place = root / ("alice" if what == "home" else "alice/course")

    if what == "zip":
        course = {"name": "course", "path": shutil.make_archive(course["path"], "zip", course["path"])}

    def make_home() -> list[dict[str, Any]]:
        return _homes.ensure([alice], str(root), 1000, home, check=False).users

    def work() -> list[dict[str, Any]]:
        if what == "home":
            return make_home()
        return _tutorials.place([alice], str(root), 1000, _tutorials.Options([course]), check=False).users

    with _mounted(image, root, options):
        if what != "home":
            make_home()
    pristine, cut = image.with_suffix(".pristine"), image.with_suffix(".cut")
    shutil.copy(image, pristine)
    with _mounted(image, root, options):
        steps = killing.run(work, 0).steps
        whole = killing.tree(place)

    for at in (*killing.chosen(steps, request.node.name), steps + 1):
        _copy(pristine, image)
        with _mounted(image, root, options):
            killing.run(work, at)
            _commit(root)
            _copy(image, cut)
        with _mounted(cut, root, options):
            counted["cuts"] += 1
            shown = killing.tree(place)
            if shown not in ({}, whole):
                counted["cut partial"] += 1
            assert shown in ({}, whole), f"the power failed at step {at} of {steps}"
            done = work()
            assert {user["failed"] for user in done} == {False}, f"step {at} of {steps}: {done}"
            assert killing.tree(place) == whole
            assert {user["changed"] for user in work()} == {False}


def _copy(source: Path, target: Path) -> None:
    """Write a new file: mount(8) would take the loop device, and what it remembers, of an old one that is not yet gone."""
    subprocess.run(["cp", "--remove-destination", "--sparse=always", str(source), str(target)], check=True)


@pytest.mark.parametrize("what", ["home", "tutorial"])
def test_everything_is_on_the_disk_before_it_shows(
    what: str, root: Path, make_user: MakeUser, course: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order by itself: after the sync nothing is written into what is shown; the names only are moved."""
    alice, bob = make_user("alice", home=what == "tutorial"), make_user("bob", home=what == "tutorial")
    order = root.parent / "order"
    order.touch(0o666)
    order.chmod(0o666)
    for holder, name in (
        *((os, name) for name in ("write", "copy_file_range", "fchmod", "fchown", "utime", "symlink")),
        (_files, "_renameat2"),
        (_files._libc, "syncfs"),
    ):
        monkeypatch.setattr(holder, name, _noting(order, name, getattr(holder, name)))

    if what == "home":
        options = _homes.Options(skeleton=course["path"])
        results = _homes.ensure([alice, bob], str(root), 1000, options, check=False).users
    else:
        tutorials = _tutorials.Options([course])
        results = _tutorials.place([alice, bob], str(root), 1000, tutorials, check=False).users
    monkeypatch.undo()

    assert {user["changed"] for user in results} == {True}
    calls = order.read_text().split()
    assert calls.count("_renameat2") == 2
    shown = calls.index("_renameat2")
    content = max(place for place, call in enumerate(calls) if call == "copy_file_range")
    assert content < shown
    assert "syncfs" in calls[content:shown]
    # What is written after that is records alone. Those of tutorials are synced before they count, too.
    assert set(calls[shown:]) <= {"_renameat2", "write", "syncfs"}
    assert calls.count("syncfs") == (1 if what == "home" else 3), "for the whole batch, however many users"


def _noting(order: Path, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    write = os.write

    def noting(*arguments: Any, **named: Any) -> Any:
        if name != "write" or stat.S_ISREG(os.fstat(arguments[0]).st_mode):
            fd = os.open(order, os.O_WRONLY | os.O_APPEND)
            (write if name != "write" else original)(fd, f"{name}\n".encode())
            os.close(fd)
        return original(*arguments, **named)

    return noting


# Not "defaults": there ext4 itself brings a file's content onto the disk before it is renamed over another.
@pytest.mark.root
def test_what_a_user_deleted_does_not_come_back(
    root: Path,
    image: Path,
    make_user: MakeUser,
    course: dict[str, Any],
    counted: Counter[str],
    request: pytest.FixtureRequest,
) -> None:
    """Alice has thrown away one tutorial; the power fails while she gets another."""
    alice = make_user("alice")
    pristine, cut = image.with_suffix(".pristine"), image.with_suffix(".cut")

    def place(*names: str) -> list[dict[str, Any]]:
        options = _tutorials.Options([{**course, "name": name} for name in names])
        return _tutorials.place([alice], str(root), 1000, options, check=False).users

    with _mounted(image, root, "noauto_da_alloc"):
        _homes.ensure([alice], str(root), 1000, _homes.Options(), check=False)
        place("old")
        shutil.rmtree(root / "alice/old")
    shutil.copy(image, pristine)
    with _mounted(image, root, "noauto_da_alloc"):
        steps = killing.run(lambda: place("old", "new"), 0).steps

    for at in (*killing.chosen(steps, request.node.name), steps + 1):
        _copy(pristine, image)
        with _mounted(image, root, "noauto_da_alloc"):
            killing.run(lambda: place("old", "new"), at)
            _commit(root)
            _copy(image, cut)
        with _mounted(cut, root, "noauto_da_alloc"):
            counted["cuts"] += 1
            (result,) = place("old", "new")
            assert not result["failed"], result
            assert os.listdir(root / "alice") == ["new"], f"the power failed at step {at} of {steps}"
