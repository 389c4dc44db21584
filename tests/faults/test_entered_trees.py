"""A tree that its user has once been able to enter is never removed by root: it could hold somebody else's files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.storage import _files, _homes, _state, _system_homes
from ansible_bootstrap.storage._mkhomedir_helper import Options
from ansible_bootstrap.storage._state import identity
from tests.faults.test_full_disk_helper import skeleton
from tests.unit.storage.conftest import MakeUser
from tests.unit.storage.test_system_homes import Ensure, ensure

__all__ = ["ensure", "skeleton"]

pytestmark = pytest.mark.root


def _stage(user: dict[str, Any]) -> str:
    return f"{identity([user['name']])}-{user['uid']}"


@pytest.fixture
def project(root: Path, make_user: MakeUser) -> Path:
    """A directory of alice's own in which bob has a private one."""
    alice, bob = make_user("alice"), make_user("bob")
    made = root / "shared/project"
    (made / "bobs").mkdir(parents=True)
    (made / "bobs/thesis.txt").write_text("years of work\n")
    for path in (root / "shared", made):
        os.chown(path, alice["uid"], alice["gid"])
    for path in (made / "bobs", made / "bobs/thesis.txt"):
        os.chown(path, bob["uid"], bob["gid"])
    (made / "bobs").chmod(0o700)
    return made


@contextlib.contextmanager
def intruder(user: dict[str, Any], directory: Path, project: Path) -> Iterator[Callable[[], None]]:
    """A process of the user's with its working directory in there; when called it moves the project to where it is."""
    asked, ask = os.pipe()
    answered, answer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(directory)
            os.setgroups([])
            os.setresgid(*[user["gid"]] * 3)
            os.setresuid(*[user["uid"]] * 3)
            os.write(answer, b"!")
            os.read(asked, 1)
            with contextlib.suppress(OSError):
                os.rename(project, "project")
                os.write(answer, b"+")
            os.write(answer, b"-")
            signal.pause()
        finally:
            os._exit(0)
    assert os.read(answered, 1) == b"!"

    def move() -> None:
        os.write(ask, b".")
        assert os.read(answered, 1) == b"+", "the user could not move it"

    try:
        yield move
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for pipe in (ask, asked, answered, answer):
            os.close(pipe)


def _thesis(root: Path) -> str:
    (found,) = root.rglob("thesis.txt")
    return found.read_text()


@pytest.mark.parametrize("moment", ["it is moved away", "it is being removed"])
def test_a_half_made_home_that_is_taken_back(
    root: Path,
    make_user: MakeUser,
    ensure: Ensure,
    skeleton: Path,
    project: Path,
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alice, options = make_user("alice"), Options("0022", str(skeleton))
    assert not ensure(alice, options=options)[0]["failed"]
    home = root / "alice"
    shutil.rmtree(home / "course3")
    record = root / f".ansible_bootstrap/records/{identity(['alice'])}.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "mkhomedir": {"began": True}}))

    with intruder(alice, home / "course0", project) as move:
        acted: list[bool] = []

        def then(holder: Any, name: str, comes: Callable[..., bool], *, before: bool) -> None:
            original = getattr(holder, name)

            def wrapped(*arguments: Any, **named: Any) -> Any:
                due = not acted and comes(*arguments)
                if due and before:
                    acted.append(True)
                    move()
                result = original(*arguments, **named)
                if due and not before:
                    acted.append(True)
                    move()
                return result

            monkeypatch.setattr(holder, name, wrapped)

        into_stage = {"moved": False}

        def is_move(_source: int, name: str, *_: Any) -> bool:
            into_stage["moved"] = into_stage["moved"] or name == "alice"
            return name == "alice"

        if moment == "it is moved away":
            then(_files, "_renameat2", is_move, before=False)
        else:
            then(_files, "_renameat2", lambda *arguments: is_move(*arguments) and False, before=False)
            then(os, "unlink", lambda *_: into_stage["moved"], before=True)
        (first,) = ensure(alice, options=options)
        assert _thesis(root) == "years of work\n"
    monkeypatch.undo()
    (second,) = ensure(alice, options=options)
    assert _thesis(root) == "years of work\n"
    if moment == "it is being removed":
        assert not first["failed"], first
        assert "something is left" in " ".join(first["notes"]), first
        assert not second["failed"] and not second["changed"], second
        assert sorted(os.listdir(home)) == sorted(os.listdir(skeleton))
    else:
        assert "run again" in first["msg"], first
        assert not second["failed"] and "given back" in " ".join(second["notes"]), second
        assert home.stat().st_uid == alice["uid"]
        assert not ensure(alice, options=options)[0]["changed"]


@pytest.mark.parametrize("whose", ["alice", "bob"])
def test_a_stage_that_is_swept(root: Path, make_user: MakeUser, project: Path, whose: str) -> None:
    """The sweep has the rights of the stage's user, no matter which user owns what was moved into it."""
    alice = make_user("alice")
    _homes.ensure([make_user("carol")], str(root), 1000, _homes.Options(), check=False)
    stage = root / ".ansible_bootstrap/stage" / _stage(alice)
    stage.mkdir()
    (stage / "rest").write_text("")
    os.chown(stage, alice["uid"], alice["gid"])
    project.rename(stage / "project")
    owner = make_user(whose)
    os.chown(stage / "project", owner["uid"], owner["gid"])
    (stage / "project").chmod(0o777)

    for _ in range(2):
        report = _homes.ensure([make_user("dave")], str(root), 1000, _homes.Options(), check=False)
        assert not report.users[0]["failed"], report.users
        assert _thesis(root) == "years of work\n"
        assert not (stage / "rest").exists()

    report = _homes.ensure([alice], str(root), 1000, _homes.Options(), check=False)
    assert not report.users[0]["failed"], report.users
    assert "something is left" in report.users[0]["notes"][0]
    assert (root / "alice").stat().st_uid == alice["uid"]
    assert _thesis(root) == "years of work\n"


def test_a_stage_with_a_great_many_names_holds_up_nobody(
    root: Path, make_user: MakeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = make_user("alice")
    _homes.ensure([make_user("carol")], str(root), 1000, _homes.Options(), check=False)
    stage = root / ".ansible_bootstrap/stage" / _stage(alice)
    (stage / "many").mkdir(parents=True)
    for number in range(30_000):
        os.close(os.open(stage / f"many/{number}", os.O_CREAT))
    for path in (stage, stage / "many"):
        os.chown(path, alice["uid"], alice["gid"])
    monkeypatch.setattr(_state, "SWEEP_SECONDS", 0.05)
    report = _homes.ensure([alice], str(root), 1000, _homes.Options(), check=False)
    assert not report.users[0]["failed"], report.users
    assert "something is left" in report.users[0]["notes"][0], "all was removed before alice was served"
    (stage,) = stage.parent.iterdir()
    runs = 0
    while stage.exists():
        runs += 1
        name = f"user{runs}"
        report = _homes.ensure([make_user(name)], str(root), 1000, _homes.Options(), check=False)
        assert not report.users[0]["failed"], report.users
        assert runs < 1000, "the sweep does not get any further"
    assert runs > 1, "one sweep removed everything, so nothing was shown"


@pytest.mark.parametrize("killed", [False, True])
def test_what_a_user_does_in_a_home_that_was_moved_away_is_kept(
    root: Path,
    make_user: MakeUser,
    ensure: Ensure,
    skeleton: Path,
    killed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process with its working directory in it works on, also between two runs of which the first was killed."""
    alice, options = make_user("alice"), Options("0022", str(skeleton))
    assert not ensure(alice, options=options)[0]["failed"]
    shutil.rmtree(root / "alice/course3")
    record = root / f".ansible_bootstrap/records/{identity(['alice'])}.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "mkhomedir": {"began": True}}))
    inside = os.open(root / "alice/course0", os.O_RDONLY)
    real = _system_homes.run_helper

    def run_helper(*arguments: Any) -> None:
        with open(os.open("thesis.txt", os.O_CREAT | os.O_WRONLY, dir_fd=inside), "w") as file:
            file.write("years of work\n")
            os.fchown(file.fileno(), alice["uid"], alice["gid"])
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*arguments)

    monkeypatch.setattr(_system_homes, "run_helper", run_helper)
    users = ensure(alice, options=options)
    monkeypatch.setattr(_system_homes, "run_helper", real)
    if killed:
        assert users[0]["failed"]
        ensure(make_user("bob"), options=options)
        users = ensure(alice, options=options)
    os.close(inside)
    assert _thesis(root) == "years of work\n"
    assert "give its user what is theirs" in users[0]["notes"][0] and not users[0]["failed"], users
    assert sorted(os.listdir(root / "alice")) == sorted(os.listdir(skeleton))
