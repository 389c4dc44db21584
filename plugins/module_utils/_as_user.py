# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Do a piece of work in a user's directory with no rights but that user's.

A child process gives up everything before it looks at the first name in there, so the kernel
enforces what path checks could only hope for: a link to somebody else's file is harmless, quotas
count, and a file system that distrusts root (root_squash) works. In this order::

    fork → setsid → no descriptor of the parent's → a new session keyring → setgroups([]) → setresgid → setresuid
         → no_new_privs → not dumpable → dies with its parent → limits → umask
         → for each task: its descriptors, the work

Not dumpable matters: without it the user could attach a debugger to the child and take over the
descriptors root opened for it. A caller that is not root runs the same steps with nothing to give up.

Most hubs give all homes to one uid, that of their containers' user, and to fork for each home cost half of a batch.
So a child that has answered is given the next task of the very same uid and gid, if there is one, and with it that
task's descriptors: it never holds another home's lock, directory or file than that of the task in its hands, so one
that is stuck keeps nobody else out. Whatever ends a child costs the one task that it had.

Rejected: switching the effective uid back and forth in one process, which keeps root's rights at hand.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ._descriptors import silence
from ._errors import LateError, StorageError, explain, printable, sentence
from ._priority import keep_back
from ._rights import PR_SET_DUMPABLE, PR_SET_PDEATHSIG, give_up_rights, prctl

NOBODY = 65534
"""uid and gid of ``nobody`` on every Linux: for work on strangers' data that is no user's."""

MAX_ANSWER = 1 << 20
"""Most bytes of JSON that a child may answer."""

_PATIENCE = 2.0
"""Seconds after which a child no longer counts as busy: it probably waits for something."""
_NONE_DONE = 10.0
"""Seconds after which a batch in which no user is done is stopped. Each user is then tried alone."""
_MOST_AT_ONCE = 64
MOST_DESCRIPTORS = 253
"""SCM_MAX_FD of the kernel, unix(7)."""
_GLANCE = 1.0
"""Seconds between checks for children that a signal has stopped."""
_LAST_WORDS = 10.0
"""Seconds that a supervisor gets to end its program before it is killed."""
_DEATH = 1.0
"""Seconds to wait for the end of a process that was killed. One that sleeps on the storage is left."""

_HELD = "the process working for this user was held by a signal, of the user's own maybe"
_STRAGGLES = "took much longer than the others of its batch and was stopped: it is done alone next"


@dataclass(frozen=True)
class Task:
    """A piece of work for one user.

    Attributes:
        uid, gid: whose rights it gets.
        directory: descriptor of the directory it is about, checked by the caller.
        work: called in the child; what it returns must be JSON.
        keep: descriptors the work needs, and locks that must be held as long as it runs. All others
            are closed in the child.
        memory: most bytes of address space it may add, if limited.
        keeps_rights: it supervises a process that becomes the user (``_supervise.py``), and stays root itself:
            else the user could kill it. Such work never opens a name.
    """

    uid: int
    gid: int
    directory: int
    work: Callable[[], Any]
    keep: tuple[int, ...] = ()
    memory: int | None = None
    keeps_rights: bool = False


@dataclass(frozen=True)
class Answer:
    """What became of a task: ``error`` is None, or a sentence, and then ``value`` means nothing.

    ``late``: it was stopped because it took too long.
    """

    value: Any = None
    error: str | None = None
    late: bool = False

    def unwrap(self) -> Any:
        """Return the value, or raise StorageError if the task failed."""
        if self.error is not None:
            raise (LateError if self.late else StorageError)(self.error)
        return self.value


@dataclass(frozen=True)
class Patience:
    """How long a batch waits for its slowest.

    Attributes:
        seconds: once all others are done, so many, or twice as long as the slowest of them took; at least
            :data:`_NONE_DONE` if nobody is done; 0 is no limit.
        users: how many the batch has. A user without a task is done.
    """

    seconds: float = 0.0
    users: int = 1


NO_LIMIT = Patience()


@dataclass
class _Child:
    """A child process and its present task: the one at ``place``, from ``started`` until ``deadline``.

    Attributes:
        channel: takes tasks to the child and brings its answers.
        watches: see :attr:`Task.keeps_rights`: a supervisor that is killed at once leaves its program running.
        data: of the present answer.
    """

    pid: int
    channel: socket.socket
    watches: bool
    place: int = -1
    started: float = 0.0
    deadline: float = 0.0
    data: bytearray = field(default_factory=bytearray)

    def give(self, place: int, task: Task, timeout: float) -> None:
        """Hand a task over, with its descriptors and no others."""
        self.place = place
        self.started = time.monotonic()
        self.deadline = self.started + timeout
        self.data.clear()
        try:
            socket.send_fds(self.channel, [b"%d\n" % place], list(_descriptors(task)))
        except OSError:
            # Without a task the child ends, if it has not ended already, and its end costs this task alone.
            with contextlib.suppress(OSError):
                self.channel.shutdown(socket.SHUT_WR)


def run(task: Task, timeout: float) -> Answer:
    """Run one task; see :func:`run_all`."""
    return run_all([task], timeout)[0]


def run_all(tasks: Iterable[Task], timeout: float, patience: Patience = NO_LIMIT) -> list[Answer]:
    """Run the tasks, about as many at once as there are processors, and return their answers in order.

    Args:
        tasks: each for one user.
        timeout: seconds that each may take; then its whole session is killed.
        patience: with the slowest, while others of the batch are done.
    """
    every = list(tasks)
    if not every:
        return []
    if timeout <= 0:
        raise StorageError("a timeout is a number of seconds above 0")
    pool = _Pool(every, timeout, patience)
    gc.freeze()  # what exists now is not looked at again in the children, so its pages stay shared
    try:
        pool.work()
    finally:
        _stop(list(pool.running.values()))
        gc.unfreeze()
    return pool.answers


class _Pool:
    """The children at work on some tasks, and what is still to be done."""

    def __init__(self, tasks: Sequence[Task], timeout: float, patience: Patience) -> None:
        self.answers = [Answer(error="was not run")] * len(tasks)
        self.running: dict[int, _Child] = {}
        """By descriptor of the channel."""
        self._tasks = tasks
        self._timeout = timeout
        self._patience = patience
        self._longest = 0.0 if patience.users > len(tasks) else None
        """Seconds that the slowest of those that are done took; None while nobody is done."""
        self._waiting = _queues(tasks)
        self._poll = select.poll()

    def work(self) -> None:
        """Return when every task has its answer."""
        at_once = len(os.sched_getaffinity(0))
        while self._waiting or self.running:
            now = time.monotonic()
            busy = sum(1 for child in self.running.values() if now - child.started < _PATIENCE)
            while self._waiting and busy < at_once and len(self.running) < _MOST_AT_ONCE:
                busy += self._start()
            for channel, _ in self._poll.poll(self._pause()) if self.running else ():
                self._listen(self.running[channel])
            self._give_up()

    def _pause(self) -> float:
        """Return the milliseconds until a deadline passes, a turn becomes free, or stragglers are to be stopped."""
        now = time.monotonic()
        children = self.running.values()
        until = min(now + _GLANCE, self._end_of_patience(), *(child.deadline for child in children))
        if self._waiting:
            turns = [child.started + _PATIENCE for child in children if child.started + _PATIENCE > now]
            until = min([until, *turns])
        return max(0.0, until - now) * 1000 + 1

    def _end_of_patience(self) -> float:
        """Return when all that run will have run too long, whether others wait for them or nobody is done."""
        full = len(self.running) >= _MOST_AT_ONCE
        if not self._patience.seconds or (self._waiting and not full):
            return float("inf")
        longest = max(self._patience.seconds, _NONE_DONE if self._longest is None else 2 * self._longest)
        return max(child.started for child in self.running.values()) + longest

    def _start(self) -> bool:
        """Start a child for the next task; say whether that could be done."""
        place = _next(self._waiting, next(iter(self._waiting)))
        try:
            child = _start(self._tasks, self._tasks[place])
        except StorageError as error:
            self.answers[place] = Answer(error=str(error))
        except OSError as error:
            self.answers[place] = Answer(error=explain(error, "starting a process"))
        else:
            self.running[child.channel.fileno()] = child
            self._poll.register(child.channel, select.POLLIN)
            child.give(place, self._tasks[place], self._timeout)
            return True
        return False

    def _listen(self, child: _Child) -> None:
        """Take what a child says; give it the next task of its kind when it has answered."""
        chunk = _received(child.channel)
        child.data += chunk
        answered = chunk.endswith(b"\n")
        if answered or not chunk:
            self._longest = max(self._longest or 0.0, time.monotonic() - child.started)
        kind = _kind(child.place, self._tasks[child.place])
        if answered and len(child.data) <= MAX_ANSWER and kind in self._waiting:
            self.answers[child.place] = _understood(child)
            place = _next(self._waiting, kind)
            child.give(place, self._tasks[place], self._timeout)
        elif answered or not chunk or len(child.data) > MAX_ANSWER:
            self._forget(child)
            self.answers[child.place] = _finish(child)

    def _give_up(self) -> None:
        now = time.monotonic()
        stragglers = bool(self.running) and now >= self._end_of_patience()
        hopeless = []
        for child in self.running.values():
            if now >= child.deadline:
                hopeless.append((child, f"did not finish within {self._timeout:g} s and was stopped", True))
            elif _is_held(child):
                hopeless.append((child, _HELD, False))
            elif stragglers:
                hopeless.append((child, _STRAGGLES, True))
        for child, why, late in hopeless:
            self._forget(child)
            self.answers[child.place] = Answer(error=why, late=late)
        _stop([child for child, _, _ in hopeless])

    def _forget(self, child: _Child) -> None:
        del self.running[child.channel.fileno()]
        self._poll.unregister(child.channel)


_Kind = tuple[int, ...]
"""Tasks of the same may follow each other in one child."""


def _kind(place: int, task: Task) -> _Kind:
    if task.keeps_rights or task.memory is not None:
        return (task.uid, task.gid, place)  # a child of its own
    return (task.uid, task.gid)


def _queues(tasks: Sequence[Task]) -> dict[_Kind, deque[int]]:
    queues: dict[_Kind, deque[int]] = {}
    for place, task in enumerate(tasks):
        queues.setdefault(_kind(place, task), deque()).append(place)
    return queues


def _next(waiting: dict[_Kind, deque[int]], kind: _Kind) -> int:
    """Take the next task of that kind out."""
    place = waiting[kind].popleft()
    if not waiting[kind]:
        del waiting[kind]
    return place


def _start(tasks: Sequence[Task], first: Task) -> _Child:
    """Start a child that works for the user of the first task, which it is yet to be given."""
    if os.geteuid() != 0 and first.uid != os.geteuid():
        raise StorageError(f"working for uid {first.uid} needs root; this process is uid {os.geteuid()}")
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid == 0:
        try:
            _live(tasks, first, theirs, parent)
        finally:
            os._exit(0)
    theirs.close()
    return _Child(pid, ours, watches=first.keeps_rights)


def _live(tasks: Sequence[Task], first: Task, channel: socket.socket, parent: int) -> None:
    """Become the user, and do what comes through the channel, one task after the other; the child's whole life."""
    refused: Exception | None = None
    try:
        _become(first, channel.fileno(), parent)
    except (StorageError, OSError) as error:
        refused = error
    while (line := socket.recv_fds(channel, 32, MOST_DESCRIPTORS))[0]:
        task = tasks[int(line[0])]
        try:
            _take_over(line[1], _descriptors(task))
        except OSError as error:
            answer: dict[str, Any] = {"error": explain(error)}
        else:
            answer = _answer(task, refused)
            for descriptor in _descriptors(task):
                os.close(descriptor)
        _write_answer(channel, answer)


def _answer(task: Task, refused: Exception | None) -> dict[str, Any]:
    """Do one task."""
    try:
        if refused is not None:
            raise refused
        return {"value": task.work()}
    except (StorageError, OSError) as error:
        return {"error": sentence(error)}
    except MemoryError:
        return {"error": "needs more memory than it may have"}
    except BaseException as error:
        return {"error": printable(f"unexpected {type(error).__name__}: {error}")[:2000]}


def _descriptors(task: Task) -> tuple[int, ...]:
    """Return the descriptors of a task, each once, always in the same order."""
    return tuple(dict.fromkeys((task.directory, *task.keep)))


def _take_over(received: list[int], wanted: Sequence[int]) -> None:
    """Give a task's descriptors the numbers that they have in the parent; OSError if there are too few left."""
    moved = []
    try:
        if len(received) != len(wanted):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        # What was received may have the number that another is to have.
        above = max(*wanted, *received) + 1
        for number in received:
            moved.append(fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, above))
    except OSError as error:
        for number in moved:
            os.close(number)
        if error.errno == errno.EINVAL:  # "above" is more than the limit allows; fcntl(2)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from None
        raise
    finally:
        for number in received:
            os.close(number)
    for number, target in zip(moved, wanted):  # noqa: B905
        os.dup2(number, target, inheritable=False)
        os.close(number)


def _become(task: Task, channel: int, parent: int) -> None:
    os.setsid()
    keep_back()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    silence()
    highest = close_others({0, 1, 2, channel})
    os.chdir("/")  # work opens nothing but what lies below its descriptors
    if task.keeps_rights:
        prctl(PR_SET_DUMPABLE, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        give_up_rights(task.uid, task.gid)
    if os.getppid() != parent:
        raise StorageError("the parent process is gone")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Descriptors keep the numbers that they have in the parent, and some more are needed to move them there.
    files = min(max(1024, 2 * highest), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if task.uid == NOBODY:  # what reads strangers' data starts no process that could outlive it
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    if task.memory is not None:
        most = _address_space() + task.memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    os.umask(0o022)


def close_others(keep: set[int]) -> int:
    """Close every descriptor but these: another user's lock or directory is not this child's to hold.

    Returns:
        The highest number that was open.
    """
    low = 0
    for descriptor in sorted(keep):
        if low < descriptor:  # an empty range at 0 would close all
            os.closerange(low, descriptor)
        low = descriptor + 1
    highest = max((int(name) for name in os.listdir("/proc/self/fd")), default=low)
    os.closerange(low, highest + 1)
    return highest


def _address_space() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _write_answer(channel: socket.socket, answer: dict[str, Any]) -> None:
    try:
        data = json.dumps(answer).encode("ascii")
    except (TypeError, ValueError) as error:
        data = json.dumps({"error": f"the answer is no JSON: {error}"}).encode("ascii")
    channel.sendall(data + b"\n")


def _received(channel: socket.socket) -> bytes:
    try:
        return channel.recv(1 << 16)
    except ConnectionResetError:  # it ended with a task unread
        return b""


def _understood(child: _Child) -> Answer:
    """Turn what the child said into its answer."""
    try:
        said = json.loads(child.data)
        return Answer(said.get("value"), said.get("error"))
    except ValueError:
        return Answer(error="the process working for this user ended without an answer")


def _finish(child: _Child) -> Answer:
    """End a child that has no more to do, or to say; return its last answer."""
    _kill(child)
    status = _reap(child, time.monotonic() + _DEATH)
    if status is not None and os.WIFSIGNALED(status) and not child.data:
        return Answer(error=f"the process working for this user was killed (signal {os.WTERMSIG(status)})")
    return _understood(child)


def _is_held(child: _Child) -> bool:
    """Tell whether a child is stopped: its user may send it SIGSTOP, and all others would wait for the deadline."""
    with contextlib.suppress(ChildProcessError):  # it has ended
        return os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    return False


def _stop(children: list[_Child]) -> None:
    """End children that are still at work; a supervisor gets the time to end its program first."""
    watching = [child for child in children if child.watches]
    for child in watching:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGTERM)
    until = time.monotonic() + _LAST_WORDS
    for child in watching:
        ends_within(child.pid, until - time.monotonic())
    for child in children:
        _kill(child)
    until = time.monotonic() + _DEATH
    for child in children:
        _reap(child, until)


def _kill(child: _Child) -> None:
    child.channel.close()
    for kill, target in ((os.killpg, child.pid), (os.kill, child.pid)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(target, signal.SIGKILL)


def _reap(child: _Child, until: float) -> int | None:
    """Reap a child that was killed; None if it cannot die by then (a dead disk holds it).

    Then it also still holds its locks, which is as it should be: it may still write.
    """
    return os.waitpid(child.pid, 0)[1] if ends_within(child.pid, until - time.monotonic()) else None


def ends_within(pid: int, seconds: float) -> bool:
    """Wait for a child's end, without reaping it; say whether it came in time."""
    until = time.monotonic() + seconds
    pause = 0.0001
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= until:
            return False
        time.sleep(pause)
        pause = min(0.2, pause * 1.5)
    return True
