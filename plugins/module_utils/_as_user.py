# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Do a piece of work in a user's directory with no rights but that user's.

A child process gives up everything before it looks at the first name in there, so the kernel
enforces what path checks could only hope for: a link to somebody else's file is harmless, quotas
count, and a file system that distrusts root (root_squash) works. In this order::

    fork → setsid → fchdir to a descriptor already checked → setgroups([]) → setresgid → setresuid
         → no_new_privs → not dumpable → dies with its parent → limits → umask → the work

Not dumpable matters: without it the user could attach a debugger to the child and take over the
descriptors root opened for it. A caller that is not root runs the same steps with nothing to give up.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ._errors import StorageError, explain, printable
from ._priority import keep_back

NOBODY = 65534
"""uid and gid of ``nobody`` on every Linux: for work on strangers' data that is no user's."""

MAX_ANSWER = 1 << 20
"""Most bytes of JSON that a child may answer."""

_PATIENCE = 2.0
"""Seconds after which a child no longer takes another's turn: it waits for something, most likely."""
_MOST_AT_ONCE = 64
_GLANCE = 1.0
"""Seconds between looks for children that their user holds up with a signal."""
_LAST_WORDS = 10.0
"""Seconds for one who watches over a process to end it with all it started, before it is killed itself."""

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Task:
    """A piece of work for one user.

    Attributes:
        uid, gid: whose rights it gets.
        directory: descriptor of its working directory, checked by the caller.
        work: called in the child; what it returns must be JSON.
        keep: descriptors the work needs, and locks that must be held as long as it runs. All others
            are closed in the child.
        memory: most bytes of address space it may add, if limited.
        keeps_rights: it watches over a process that becomes the user (``_supervise.py``), and does not itself:
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
    """What became of a task: ``error`` is None, or a sentence, and then ``value`` means nothing."""

    value: Any = None
    error: str | None = None

    def unwrap(self) -> Any:
        """Return the value.

        Raises:
            StorageError: the task failed.
        """
        if self.error is not None:
            raise StorageError(self.error)
        return self.value


class _Child:
    def __init__(self, place: int, pid: int, pipe: int, timeout: float, *, watches: bool) -> None:
        self.place = place
        self.pid = pid
        self.pipe = pipe
        self.watches = watches
        """See :attr:`Task.keeps_rights`: killed at once, it would leave what it watches over."""
        self.started = time.monotonic()
        self.deadline = self.started + timeout
        self.data = bytearray()


def run(task: Task, timeout: float) -> Answer:
    """Run one task; see :func:`run_all`."""
    return run_all([task], timeout)[0]


def run_all(tasks: Iterable[Task], timeout: float) -> list[Answer]:
    """Run the tasks, about as many at once as there are processors, and return their answers in order.

    Args:
        tasks: each for one user.
        timeout: seconds that each may take; then its whole session is killed.
    """
    waiting = deque(enumerate(tasks))
    answers = [Answer(error="was not run")] * len(waiting)
    running: dict[int, _Child] = {}
    at_once = len(os.sched_getaffinity(0))
    poll = select.poll()
    if waiting:
        gc.freeze()  # what exists now is not looked at again in the children, so its pages stay shared
    try:
        while waiting or running:
            now = time.monotonic()
            busy = sum(1 for child in running.values() if now - child.started < _PATIENCE)
            while waiting and busy < at_once and len(running) < _MOST_AT_ONCE:
                place, task = waiting.popleft()
                try:
                    child = _start(place, task, timeout)
                except StorageError as error:
                    answers[place] = Answer(error=str(error))
                except OSError as error:
                    answers[place] = Answer(error=explain(error, "starting a process"))
                else:
                    running[child.pipe] = child
                    poll.register(child.pipe, select.POLLIN)
                    busy += 1
            for pipe in _ready(poll, running, bool(waiting)):
                child = running[pipe]
                chunk = os.read(pipe, 1 << 16)
                child.data += chunk
                if not chunk or len(child.data) > MAX_ANSWER:
                    poll.unregister(pipe)
                    answers[child.place] = _finish(running.pop(pipe))
            ended = [(child, why) for child in running.values() if (why := _hopeless(child, timeout))]
            for child, why in ended:
                poll.unregister(child.pipe)
                del running[child.pipe]
                answers[child.place] = Answer(error=why)
            _stop([child for child, _ in ended])
    finally:
        _stop(list(running.values()))
        gc.unfreeze()
    return answers


def _ready(poll: select.poll, running: dict[int, _Child], waiting: bool) -> list[int]:
    """Wait until a child has something to say, a deadline passes, or a turn becomes free."""
    if not running:
        return []
    now = time.monotonic()
    until = min(now + _GLANCE, *(child.deadline for child in running.values()))
    if waiting:
        turns = [child.started + _PATIENCE for child in running.values() if child.started + _PATIENCE > now]
        until = min([until, *turns])
    return [pipe for pipe, _ in poll.poll(max(0.0, until - now) * 1000 + 1)]


def _start(place: int, task: Task, timeout: float) -> _Child:
    if os.geteuid() != 0 and task.uid != os.geteuid():
        raise StorageError(f"working for uid {task.uid} needs root; this process is uid {os.geteuid()}")
    reader, writer = os.pipe()
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if pid == 0:
        try:
            _write_answer(writer, _answer(task, writer, parent))
        finally:
            os._exit(0)
    os.close(writer)
    return _Child(place, pid, reader, timeout, watches=task.keeps_rights)


def _answer(task: Task, writer: int, parent: int) -> dict[str, Any]:
    """Become the user and do the work; the child's whole life."""
    try:
        _become(task, writer, parent)
        return {"value": task.work()}
    except StorageError as error:
        return {"error": str(error)}
    except OSError as error:
        return {"error": explain(error)}
    except MemoryError:
        return {"error": "needs more memory than it may have"}
    except BaseException as error:
        return {"error": printable(f"unexpected {type(error).__name__}: {error}")[:2000]}


def _become(task: Task, writer: int, parent: int) -> None:
    os.setsid()
    keep_back()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    close_others({0, 1, 2, writer, task.directory, *task.keep})
    os.fchdir(task.directory)
    if task.keeps_rights:
        prctl(PR_SET_DUMPABLE, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        give_up_rights(task.uid, task.gid)
    if os.getppid() != parent:
        raise StorageError("the parent process is gone")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    files = min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if task.memory is not None:
        most = _address_space() + task.memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    os.umask(0o022)


def give_up_rights(uid: int, gid: int) -> None:
    """Become a user for good, out of reach of that user's debugger, to die with the parent.

    Raises:
        StorageError: the kernel did not do it.
    """
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3 or os.getgroups():
            raise StorageError(f"could not become uid {uid}")
    # Only now: a change of uid resets both the debugging flag and the death signal.
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process.

    Raises:
        StorageError: the kernel refuses.
    """
    zero = ctypes.c_ulong(0)
    if _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero) != 0:
        raise StorageError(f"prctl {option} is refused: {os.strerror(ctypes.get_errno())}")


def close_others(keep: set[int]) -> None:
    """Close every descriptor but these: another user's lock or directory is not this child's to hold."""
    low = 0
    for descriptor in sorted(keep):
        if low < descriptor:  # an empty range at 0 would close all
            os.closerange(low, descriptor)
        low = descriptor + 1
    highest = max((int(name) for name in os.listdir("/proc/self/fd")), default=low)
    os.closerange(low, highest + 1)


def _address_space() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _write_answer(writer: int, answer: dict[str, Any]) -> None:
    try:
        data = json.dumps(answer).encode("ascii")
    except (TypeError, ValueError) as error:
        data = json.dumps({"error": f"the answer is no JSON: {error}"}).encode("ascii")
    while data:
        data = data[os.write(writer, data) :]


def _finish(child: _Child) -> Answer:
    """Turn what the child said, and how it ended, into its answer."""
    status = _end(child)
    if status is not None and os.WIFSIGNALED(status) and not child.data:
        return Answer(error=f"the process working for this user was killed (signal {os.WTERMSIG(status)})")
    try:
        said = json.loads(child.data)
        return Answer(said.get("value"), said.get("error"))
    except ValueError:
        return Answer(error="the process working for this user ended without an answer")


def _hopeless(child: _Child, timeout: float) -> str | None:
    """Say why a child is to be waited for no longer; None if it is."""
    if time.monotonic() >= child.deadline:
        return f"did not finish within {timeout:g} s and was stopped"
    # Its user may send it SIGSTOP, and all others of the batch would wait for the deadline.
    with contextlib.suppress(ChildProcessError):  # it has ended
        if os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None:
            return "the process working for this user was held by a signal, of the user's own maybe"
    return None


def _stop(children: list[_Child]) -> None:
    """End children who have not come to their own end; who watches over another process first ends that."""
    watching = [child for child in children if child.watches]
    for child in watching:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGTERM)
    until = time.monotonic() + _LAST_WORDS
    for child in watching:
        _ended(child.pid, until - time.monotonic())
    for child in children:
        _end(child)


def _end(child: _Child) -> int | None:
    """Kill the child's session and reap it; None if it cannot die yet (a dead disk holds it).

    Then it also still holds its locks, which is as it should be: it may still write.
    """
    os.close(child.pipe)
    for kill, target in ((os.killpg, child.pid), (os.kill, child.pid)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(target, signal.SIGKILL)
    return os.waitpid(child.pid, 0)[1] if _ended(child.pid, 2.0) else None


def _ended(pid: int, seconds: float) -> bool:
    """Wait for a child's end, without reaping it; say whether it came in time."""
    until = time.monotonic() + seconds
    pause = 0.0001
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= until:
            return False
        time.sleep(pause)
        pause = min(0.2, pause * 1.5)
    return True
