from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import resource
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.apply.inherited import replace_share
from ansible_bootstrap.storage import _as_user, _rights
from ansible_bootstrap.storage._as_user import Patience, Task
from ansible_bootstrap.storage._errors import LateError, StorageError
from tests import hanging
from tests.unit.storage.conftest import MakeUser


@pytest.fixture
def here(tmp_path: Path) -> Iterator[int]:
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield directory
    os.close(directory)


def _status() -> dict[str, str]:
    with open("/proc/self/status") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def _own(directory: int, work: Callable[[], Any], **more: Any) -> Task:
    return Task(os.geteuid(), os.getegid(), directory, work, **more)


@pytest.mark.root
def test_the_child_has_given_up_everything(here: int) -> None:
    answer = _as_user.run(Task(20001, 20002, here, _status), 5).unwrap()
    assert answer["Uid"].split() == ["20001"] * 4
    assert answer["Gid"].split() == ["20002"] * 4
    assert answer["Groups"].strip() == ""
    assert answer["NoNewPrivs"] == "1"
    assert {int(answer[name], 16) for name in ("CapPrm", "CapEff")} == {0}
    assert _as_user.run(Task(20001, 20002, here, os.getcwd), 5).value == "/"


@pytest.mark.root
def test_the_child_is_in_no_group_of_its_parents(here: int) -> None:
    before = os.getgroups()
    os.setgroups([20003, 20004])
    try:
        assert _as_user.run(Task(20001, 20002, here, os.getgroups), 5).unwrap() == []
    finally:
        os.setgroups(before)


@pytest.mark.root
def test_a_child_that_reads_untrusted_data_leaves_no_process(here: int) -> None:
    """A fault in what reads an archive cannot keep a process that changes the tree later."""
    answer = _as_user.run(
        Task(_as_user.NOBODY, _as_user.NOBODY, here, partial(subprocess.call, ["/bin/true"])), 5
    )
    assert "too many processes" in str(answer.error), answer


@pytest.mark.root
def test_the_users_own_processes_cannot_take_over_the_child(here: int, as_user: Callable[..., Any]) -> None:
    ready, tell = os.pipe()

    def sleep() -> None:
        os.write(tell, str(os.getpid()).encode())
        time.sleep(5)

    def spy() -> str:
        pid = int(os.read(ready, 20))
        try:
            os.listdir(f"/proc/{pid}/fd")
        except PermissionError:
            return "kept out"
        finally:
            os.kill(pid, signal.SIGKILL)
        return "got in"

    tasks = [Task(20001, 20001, here, sleep, (tell,)), Task(20001, 20001, here, spy, (ready,))]
    victim, attacker = _as_user.run_all(tasks, 5)
    assert attacker.value == "kept out"
    assert victim.error is not None
    assert "killed (signal 9)" in victim.error
    os.close(ready)
    os.close(tell)


@pytest.mark.root
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of system calls are those of x86_64")
def test_keys_of_the_caller_and_of_the_user_before_are_in_no_childs_session_keyring(here: int) -> None:
    """A process with a session keyring may read and replace the keys in it, whatever its uid; pam_keyinit makes root one."""

    def keyctl(*arguments: int | bytes, call: int = 250) -> int:
        types = {int: ctypes.c_long, bytes: ctypes.c_char_p}
        libc = ctypes.CDLL(None, use_errno=True)
        return int(libc.syscall(ctypes.c_long(call), *(types[type(item)](item) for item in arguments)))  # type: ignore[arg-type]

    def plant() -> list[int]:
        """Say how many of the keys that others may have planted are there, and plant one."""
        found = [keyctl(10, -3, b"user", b"%d" % uid, 0) > 0 for uid in (0, 20001, 20002)]
        key = keyctl(b"user", b"%d" % os.geteuid(), b"secret", 6, -3, call=248)
        assert key > 0 and keyctl(5, key, 0x3F3F3F3F) == 0
        return [sum(found)]

    def caller() -> list[Any]:
        keyctl(1, b"of root")
        plant()
        tasks = [Task(uid, uid, here, plant) for uid in (20001, 20002)]
        said = [_as_user.run(task, 10).unwrap() for task in tasks]
        replace_share()  # what the program before the boundary does with what its caller left it
        return [*said, plant()]

    assert _as_user.run(Task(0, 0, here, caller, keeps_rights=True), 20).unwrap() == [[0], [0], [0]]


def test_a_child_holds_no_descriptor_but_those_it_was_given(here: int) -> None:
    other, kept = os.open("/", os.O_RDONLY), os.open("/", os.O_RDONLY)

    def descriptors() -> list[bool]:
        return [os.path.exists(f"/proc/self/fd/{fd}") for fd in (other, kept)]

    assert _as_user.run(_own(here, descriptors, keep=(kept,)), 5).value == [False, True]
    os.close(other)
    os.close(kept)


def test_tasks_of_one_identity_share_children_and_each_holds_only_its_own(here: int, tmp_path: Path) -> None:
    """A process that works in one home must not hold a lock or a directory of another."""
    own = [os.open(tmp_path, os.O_RDONLY) for _ in range(20)]

    def held(mine: int) -> tuple[int, list[bool]]:
        return os.getpid(), [number == mine for number in own if os.path.exists(f"/proc/self/fd/{number}")]

    answers = _as_user.run_all([_own(here, partial(held, number), keep=(number,)) for number in own], 5)
    said = [answer.unwrap() for answer in answers]
    assert [mine for _, mine in said] == [[True]] * 20
    assert len({pid for pid, _ in said}) <= len(os.sched_getaffinity(0))
    for number in own:
        os.close(number)


def test_descriptors_have_the_numbers_that_the_work_knows(here: int, tmp_path: Path) -> None:
    """Whatever else was opened before, and in whatever order they are named."""
    for name in "abc":
        (tmp_path / name).write_text(name)
    numbers = [os.open(tmp_path / name, os.O_RDONLY) for name in "abc"]

    def read() -> str:
        return "".join(os.pread(number, 1, 0).decode() for number in numbers)

    orders = [numbers, numbers[::-1], [numbers[1], numbers[2], numbers[0], numbers[1]]]
    tasks = [_own(here, read, keep=tuple(order)) for order in orders for _ in range(3)]
    assert [answer.value for answer in _as_user.run_all(tasks, 5)] == ["abc"] * 9
    for number in numbers:
        os.close(number)


def test_what_ends_a_child_costs_the_task_in_its_hands_alone(here: int) -> None:
    work = [os.getpid, partial(os._exit, 3), partial(os.kill, 0, signal.SIGKILL), partial(time.sleep, 60)]
    answers = _as_user.run_all([_own(here, work[place % 4]) for place in range(16)], timeout=0.5)
    assert [answer.error is None for answer in answers] == [True, False, False, False] * 4


def test_a_task_whose_descriptors_cannot_be_sent_costs_itself_alone(here: int) -> None:
    tasks = [_own(here, os.getpid, keep=() if place % 3 else (987_654,)) for place in range(9)]
    answers = _as_user.run_all(tasks, 5)
    assert [answer.error is None for answer in answers] == [False, True, True] * 3


@pytest.mark.root
def test_another_uid_or_gid_is_another_child(here: int) -> None:
    def who() -> tuple[int, int, int]:
        return os.getpid(), os.getresuid()[2], os.getresgid()[2]

    identities = [(20001, 20001), (20001, 20002), (20002, 20001)] * 4
    answers = [
        answer.unwrap() for answer in _as_user.run_all([Task(*ids, here, who) for ids in identities], 5)
    ]
    assert [(uid, gid) for _, uid, gid in answers] == identities
    assert len({(pid, uid, gid) for pid, uid, gid in answers}) == len({pid for pid, _, _ in answers})


def test_work_with_a_limit_of_memory_has_a_child_of_its_own(here: int) -> None:
    tasks = [_own(here, os.getpid, memory=1 << 28) for _ in range(5)]
    assert len({answer.unwrap() for answer in _as_user.run_all(tasks, 5)}) == 5


def test_a_task_that_hangs_is_stopped_and_delays_no_other(here: int) -> None:
    started = time.monotonic()
    tasks = [_own(here, partial(time.sleep, 60)) for _ in range(2)]
    answers = _as_user.run_all([*tasks, *(_own(here, os.getpid) for _ in range(20))], timeout=0.5)
    assert [answer.error for answer in answers[:2]] == ["did not finish within 0.5 s and was stopped"] * 2
    assert [answer.error for answer in answers[2:]] == [None] * 20
    assert time.monotonic() - started < 5


def _wait(seconds: float) -> str:
    time.sleep(seconds)
    return "done"


def test_stragglers_are_stopped_once_all_others_are_done(here: int) -> None:
    started = time.monotonic()
    work = [partial(time.sleep, 600) if place in (3, 8) else os.getpid for place in range(20)]
    answers = _as_user.run_all([_own(here, each) for each in work], 300, Patience(0.2, 20))
    assert [place for place, answer in enumerate(answers) if answer.late] == [3, 8]
    assert "took much longer than the others" in str(answers[3].error)
    assert [answer.error for answer in answers if not answer.late] == [None] * 18
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("seconds", "users", "late"),
    [
        ([60], 2, [True]),  # a user without a task is done
        ([0.6], 1, [False]),  # there is nobody else
        ([0.6, 0.6], 2, [False, False]),  # as slow as each other
        ([0.8, 1.1], 2, [False, False]),  # not twice as slow
    ],
)
def test_which_tasks_count_as_stragglers(
    here: int, seconds: list[float], users: int, late: list[bool]
) -> None:
    tasks = [_own(here, partial(_wait, each)) for each in seconds]
    answers = _as_user.run_all(tasks, 60, Patience(0.2, users))
    assert [answer.late for answer in answers] == late
    assert [answer.value for answer in answers] == [None if each else "done" for each in late]


def test_a_batch_of_which_nobody_is_done_is_stopped(here: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_as_user, "_NONE_DONE", 0.5)
    started = time.monotonic()
    answers = _as_user.run_all([_own(here, partial(time.sleep, 60))] * 2, 60, Patience(0.2, 2))
    assert [answer.late for answer in answers] == [True, True]
    assert time.monotonic() - started < 30


def test_a_task_that_ended_without_an_answer_counts_as_done(
    here: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The straggler beside it is stopped, and not only when nobody has been done for long."""
    monkeypatch.setattr(_as_user, "_NONE_DONE", 100.0)
    tasks = [_own(here, partial(os._exit, 3)), _own(here, partial(time.sleep, 600))]
    answers = _as_user.run_all(tasks, 50, Patience(0.2, 2))
    assert [answer.late for answer in answers] == [False, True]
    assert "took much longer than the others" in str(answers[1].error)


def test_many_tasks_that_hang_give_up_their_places_to_others(
    here: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_as_user, "_MOST_AT_ONCE", 3)
    monkeypatch.setattr(_as_user, "_PATIENCE", 0.1)
    tasks = [_own(here, partial(time.sleep, 600)) for _ in range(3)] + [_own(here, os.getpid)] * 4
    answers = _as_user.run_all(tasks, 300, Patience(0.3, 10))
    assert [answer.late for answer in answers] == [True] * 3 + [False] * 4


def test_a_task_that_is_out_of_time_is_late_and_one_that_fails_is_not(here: int) -> None:
    slow, failed = _as_user.run_all([_own(here, partial(time.sleep, 60)), _own(here, partial(int, "x"))], 0.3)
    assert slow.late and not failed.late and failed.error
    with pytest.raises(LateError):
        slow.unwrap()


@pytest.mark.root
@pytest.mark.parametrize("reads", [False, True], ids=["killable", "beyond SIGKILL"])
def test_a_task_that_hangs_in_the_users_file_system_is_given_up_in_bounded_time(
    root: Path, make_user: MakeUser, reads: bool
) -> None:
    """The lock is free as soon as the process is gone: at once if it can be killed, else when the server is."""
    alice = make_user("alice", home=True)
    path = root / "lock"
    with hanging.fuse(root / "alice", alice["uid"], reads=reads):
        lock = os.open(path, os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)
        directory = os.open("/", os.O_RDONLY)
        work = (partial(os.listdir, root / "alice"), os.getcwd)
        tasks = [Task(alice["uid"], alice["gid"], directory, each, (lock,)) for each in work]
        started = time.monotonic()
        answers = _as_user.run_all(tasks, 60, Patience(0.2, 3))
        os.close(directory)
        assert [answer.late for answer in answers] == [True, False]
        assert time.monotonic() - started < 20
        os.close(lock)
        assert _is_free(path) != reads
    until = time.monotonic() + 10
    while not _is_free(path):
        assert time.monotonic() < until


def _is_free(path: Path) -> bool:
    lock = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def test_a_child_stopped_by_its_users_signal_delays_no_other(here: int) -> None:
    def held() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    started = time.monotonic()
    first, second = _as_user.run_all([_own(here, held), _own(here, os.getpid)], timeout=60)
    assert "was held by a signal" in str(first.error)
    assert second.unwrap()
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (partial(os.open, "missing", os.O_RDONLY), "missing: No such file or directory"),
        (partial(os.kill, 0, signal.SIGKILL), "killed (signal 9)"),
        (partial(os._exit, 0), "ended without an answer"),
        (object, "the answer is no JSON"),
        (partial(int, "\x1b[2K"), r"unexpected ValueError"),
    ],
)
def test_whatever_happens_to_the_child_is_said(here: int, work: Callable[[], Any], says: str) -> None:
    answer = _as_user.run(_own(here, work), 5)
    assert answer.error is not None
    assert says in answer.error
    assert "\x1b" not in answer.error


def _parent_that_is_killed(here: int, child: Callable[[], None], lock: int = -1) -> None:
    """In a process: run ``child``, and be killed as soon as it has written the file ``pid``."""
    keep = (lock,) if lock >= 0 else ()

    def wait_then_kill() -> None:
        parent = os.fork()
        if parent == 0:
            _as_user.run(_own(here, child, keep=keep), 60)
            os._exit(0)
        while not _exists(here, "pid"):
            time.sleep(0.01)
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)

    assert _as_user.run(_own(here, wait_then_kill, keep=keep), 10).error is None


def _exists(directory: int, name: str) -> bool:
    return name in os.listdir(directory)


def _write_pid(directory: int) -> None:
    draft = os.open("draft", os.O_WRONLY | os.O_CREAT, dir_fd=directory)
    os.write(draft, str(os.getpid()).encode())
    os.close(draft)
    os.rename("draft", "pid", src_dir_fd=directory, dst_dir_fd=directory)


def test_the_child_ends_with_its_parent(here: int, tmp_path: Path) -> None:
    def child() -> None:
        _write_pid(here)
        time.sleep(60)

    _parent_that_is_killed(here, child)
    pid = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 5
    while _alive(pid):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_child_that_cannot_be_killed_keeps_the_lock(here: int, tmp_path: Path) -> None:
    """A dead disk can hold a process beyond SIGKILL; here it merely declines to die with its parent."""
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)

    def child() -> None:
        _rights.prctl(_rights.PR_SET_PDEATHSIG, 0)
        _write_pid(here)
        time.sleep(60)

    _parent_that_is_killed(here, child, lock)
    os.close(lock)
    pid = int((tmp_path / "pid").read_text())
    again = os.open(tmp_path / "lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(pid, signal.SIGKILL)
    fcntl.flock(again, fcntl.LOCK_EX)
    os.close(again)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.root
def test_without_root_only_the_own_uid_is_served(as_user: Callable[..., Any]) -> None:
    def try_another() -> str | None:
        directory = os.open("/", os.O_RDONLY)
        assert _as_user.run(Task(20001, 20001, directory, os.getpid), 5).error is None
        return _as_user.run(Task(20002, 20002, directory, os.getpid), 5).error

    assert as_user(20001, try_another) == "working for uid 20002 needs root; this process is uid 20001"


def test_an_answer_that_failed_raises() -> None:
    with pytest.raises(StorageError, match="no space"):
        _as_user.Answer(error="no space").unwrap()


# What goes wrong between a child and its parent


def test_a_task_that_cannot_be_handed_over_fails_alone(here: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, broken = socket.send_fds, iter([True])

    def send(*arguments: Any) -> int:
        if next(broken, False):
            raise OSError("no buffers")
        return real(*arguments)

    monkeypatch.setattr(socket, "send_fds", send)
    first, second = _as_user.run_all([_own(here, os.getpid), _own(here, os.getuid, memory=1 << 30)], 5)
    assert "ended without an answer" in str(first.error)
    assert second.value == os.getuid()


def test_a_child_that_ends_before_it_reads_its_task_costs_that_task(
    here: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(_: Task, channel: int, __: int) -> None:
        select.select([channel], [], [], 10)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(_as_user, "_become", end)
    assert "killed (signal 9)" in str(_as_user.run(_own(here, os.getpid), 10).error)


def test_a_child_that_has_ended_is_not_held_by_a_signal() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not _as_user._is_held(_as_user._Child(pid, socket.socket(), watches=False))
    os.waitpid(pid, 0)


def test_each_descriptor_of_a_task_is_the_one_that_the_parent_means(tmp_path: Path, here: int) -> None:
    """In whatever order they are: received descriptors have other numbers, which others are to have."""
    files = []
    for number in range(12):
        (tmp_path / str(number)).write_text(str(number))
        files.append(os.open(tmp_path / str(number), os.O_RDONLY))

    def read() -> list[str]:
        return [os.pread(file, 9, 0).decode() for file in files]

    for order in (files, files[::-1], files[6:] + files[:6]):
        task = _own(here, read, keep=tuple(order))
        assert _as_user.run(task, 10).unwrap() == [str(number) for number in range(12)]
    for file in files:
        os.close(file)


@pytest.mark.parametrize(("number", "most", "error"), [(1500, 4096, None), (900, 901, "too many files")])
def test_a_high_descriptor_is_handed_over_if_the_limit_allows(
    here: int, number: int, most: int, error: str | None
) -> None:
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        os.dup2(here, number)
        answer = _as_user.run(_own(number, partial(os.listdir, number)), 10)
        os._exit(0 if (error in str(answer.error) if error else answer.value == []) else 1)
    assert os.waitpid(pid, 0)[1] == 0
