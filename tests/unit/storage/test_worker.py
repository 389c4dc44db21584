"""The worker that does the work of a batch: what it returns, how it ends, and when it counts as silent."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.storage import _batch, _homes, _tutorials, _worker
from ansible_bootstrap.storage._batch import Claim
from ansible_bootstrap.storage._errors import StorageError
from ansible_bootstrap.storage._storage import Storage
from tests import hanging
from tests.unit.storage.conftest import MakeUser

pytestmark = pytest.mark.filterwarnings("ignore:.*fork")


@pytest.fixture
def nothing() -> Iterator[int]:
    """A pipe from which nothing comes: to read from it is to wait in one system call."""
    reader, writer = os.pipe()
    yield reader
    os.close(reader)
    os.close(writer)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker, "SILENCE", 1.0)
    monkeypatch.setattr(_worker, "_LOOK", 0.1)


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_what_the_work_returns_comes_back_however_long_it_is() -> None:
    assert _worker.apart(lambda: ["x" * 3_000_000, os.getpid()]).said[0] == "x" * 3_000_000
    assert _worker.apart(os.getpid).said != os.getpid()


def test_what_it_raises_is_raised_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*in <lambda>.*ValueError: a fault"):
        _worker.apart(lambda: (_ for _ in ()).throw(ValueError("a fault")))


def test_a_worker_that_is_killed_is_said_to_be() -> None:
    with pytest.raises(StorageError, match=r"was killed \(signal 9\): run again"):
        _worker.apart(lambda: os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.usefixtures("soon")
def test_one_system_call_that_does_not_end_is_silence(nothing: int) -> None:
    pids = os.pipe()

    def hang() -> None:
        _worker.at(7)
        os.write(pids[1], b"%d" % os.getpid())
        os.read(nothing, 1)

    assert _worker.apart(hang).silent_at == 7
    assert not Path(f"/proc/{os.read(pids[0], 20).decode()}").exists()


@pytest.mark.usefixtures("soon")
def test_a_worker_that_gets_on_is_not_silent_and_an_announced_pause_is_allowed(nothing: int) -> None:
    def steps() -> str:
        for _ in range(30):
            time.sleep(0.1)
        return "done"

    def expected() -> str:
        with _worker.expecting(60):
            time.sleep(3)
        return "done"

    def exceeded() -> None:
        with _worker.expecting(2):
            os.read(nothing, 1)

    assert _worker.apart(steps).said == "done"
    assert _worker.apart(expected).said == "done"
    assert _worker.apart(exceeded).silent_at == _worker.NOWHERE


def test_a_worker_holds_no_pipe_of_its_modules(nothing: int) -> None:
    targets = _worker.apart(lambda: [os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)]).said
    assert targets == ["/dev/null"] * 3


def test_without_a_process_to_spare_everybody_is_told_so(
    root: Path, make_user: MakeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refuse)
    (result,) = _homes.ensure([make_user("alice")], str(root), 1000, _homes.Options(), check=False).users
    assert result["msg"] == "too many processes are running on this host"


_MODULE = """
import os, sys, time
from ansible_bootstrap.storage import _batch
user, root, told = eval(sys.argv[1])
def work(storage, claims):
    open(told, "w").write(str(os.getpid()))
    time.sleep(600)
_batch.run([user], root, 1000, work, check=False)
"""


@pytest.mark.parametrize("victim_is", ["the module", "the worker"])
def test_killed_it_leaves_nothing_that_goes_on_and_the_next_run_completes(
    root: Path, make_user: MakeUser, tmp_path: Path, victim_is: str
) -> None:
    alice, told = make_user("alice"), tmp_path / "told"
    arguments = repr((alice, str(root), str(told)))
    module = subprocess.Popen([sys.executable, "-c", _MODULE, arguments], stdout=subprocess.PIPE)
    wait_until(lambda: told.exists() and told.read_text())
    worker = int(told.read_text())
    os.kill(worker if victim_is == "the worker" else module.pid, signal.SIGKILL)
    assert module.communicate(timeout=10)[0] == b""
    wait_until(lambda: not _alive(worker))
    (result,) = _homes.ensure([alice], str(root), 1000, _homes.Options(), check=False).users
    assert result["changed"]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _ensure(root: Path, *users: Any, **more: Any) -> list[dict[str, Any]]:
    return _homes.ensure(list(users), str(root), 1000, _homes.Options(), **{"check": False, **more}).users


@pytest.mark.root
@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("reads", [False, True], ids=["killable", "beyond SIGKILL"])
@pytest.mark.parametrize("check", [False, True], ids=["converge", "predict"])
def test_a_home_that_does_not_answer_root_costs_its_user_alone(
    root: Path, make_user: MakeUser, reads: bool, check: bool
) -> None:
    """A FUSE file system with allow_other in the home's place; its server sleeps."""
    users = [make_user(f"u{number}", home=number == 3) for number in range(6)]
    with hanging.fuse(root / "u3", users[3]["uid"], reads=reads, for_all=True):
        results = _ensure(root, *users, check=check)
        assert [user["key"] for user in results if user["hangs"]] == ["u3"]
        assert "this directory does not answer" in results[3]["msg"]
        assert [user["changed"] for user in results] == [number != 3 for number in range(6)]
        others = [user for user in users if user is not users[3]]
        # Though the first worker may be there still, and hold what locks it had.
        again = _ensure(root, *others)
        assert [(user["failed"], user["changed"]) for user in again] == [(False, check)] * 5
        if not reads:
            (alone,) = _ensure(root, users[3])
            assert alone["hangs"] and not alone["changed"]
    assert not _ensure(root, users[3])[0]["failed"]


@pytest.mark.root
@pytest.mark.usefixtures("soon")
def test_two_homes_that_do_not_answer_are_taken_for_the_storage(root: Path, make_user: MakeUser) -> None:
    users = [make_user(f"u{number}", home=number < 2) for number in range(3)]
    with hanging.fuse(root / "u0", 20001, for_all=True), hanging.fuse(root / "u1", 20002, for_all=True):
        results = _ensure(root, *users)
    assert {user["hangs"] for user in results} == {True}
    assert "this directory does not answer" in results[0]["msg"]
    assert all(f"the storage {root} does not answer" in user["msg"] for user in results[1:])
    assert {user["failed"] for user in _ensure(root, *users)} == {False}


@pytest.mark.root
@pytest.mark.usefixtures("soon")
def test_a_frozen_disk_is_told_to_everybody_and_thawed_it_is_as_ever(
    root: Path, make_user: MakeUser, tmp_path: Path
) -> None:
    users = [make_user(f"u{number}") for number in range(3)]
    with hanging.ext4(tmp_path / "disk", root):
        _ensure(root, users[0])
        with hanging.frozen(root):
            assert {user["failed"] for user in _ensure(root, *users, check=True)} == {False}, (
                "reading is possible"
            )
            results = _ensure(root, *users)
            assert [user["hangs"] for user in results] == [True] * 3
            assert all(f"the storage {root} does not answer" in user["msg"] for user in results)
        results = _ensure(root, *users)
        assert [(user["failed"], user["changed"]) for user in results] == [
            (False, False),
            *[(False, True)] * 2,
        ]


@pytest.mark.root
@pytest.mark.parametrize("reads", [False, True], ids=["killable", "beyond SIGKILL"])
@pytest.mark.parametrize("check", [False, True], ids=["converge", "predict"])
def test_a_file_system_of_a_users_that_does_not_answer_holds_up_nobody(
    root: Path, make_user: MakeUser, tmp_path: Path, reads: bool, check: bool
) -> None:
    """Where root may not look, the child that works for the user hangs; and a user who was late in a phase is left out of the next."""
    (tmp_path / "course").mkdir(mode=0o755)
    options = _tutorials.Options([{"name": "course", "path": str(tmp_path / "course")}])
    users = [make_user(f"u{number}", home=True) for number in range(6)]
    place = root / "u3/course"
    place.mkdir()
    os.chown(place, users[3]["uid"], users[3]["gid"])

    def bring(*some: Any, check: bool = False) -> list[dict[str, Any]]:
        return _tutorials.place(list(some), str(root), 1000, options, check=check, patience=0.3).users

    started = time.monotonic()
    with hanging.fuse(place, users[3]["uid"], reads=reads):
        results = bring(*users, check=check)
        assert time.monotonic() - started < 30
        assert [user["key"] for user in results if user["hangs"]] == ["u3"]
        assert "took much longer than the others" in results[3]["msg"]
        assert [user["changed"] for user in results] == [number != 3 for number in range(6)]
        if reads and not check:  # its child is still there, and keeps others out of this one home
            again = bring(*users)
            assert [user["key"] for user in again if user["failed"]] == ["u3"]
            assert "another run is still at work" in again[3]["msg"] and again[3]["hangs"]
    place.rmdir()
    assert {user["failed"] for user in bring(*users)} == {False}
    assert (root / "u3/course").is_dir()


def test_one_user_alone_has_all_the_time(root: Path, make_user: MakeUser) -> None:
    """However many servers of theirs are in the batch."""

    def work(storage: Storage, claims: list[Claim]) -> None:
        claims[0].notes.append(json.dumps(storage.patience.seconds))

    alice, bob = make_user("alice"), make_user("bob")
    for users, patience in (([alice], 0), ([alice, {**alice, "key": "alice/gpu"}], 0), ([alice, bob], 2)):
        report = _batch.run(users, str(root), 1000, partial(work), check=True, patience=2)
        assert json.loads(report.users[0]["notes"][0]) == patience
