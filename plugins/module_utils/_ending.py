# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""End every process that this one has caused, whatever those processes do.

Two ways, always both:

- A cgroup of version 2 around what is started, where the machine has one and we may make it. The kernel kills the
  whole group at once, forks included (``cgroup.kill``; before Linux 5.14, ``cgroup.freeze`` and a signal for each).
- This process is a subreaper: an orphan becomes its child. It kills its children until it has none, and is meanwhile
  ahead of everything else that wants a processor, so a chain of processes that fork and exit does not outrun it.

A process that has been killed and does not go away is held by a tracer (ptrace(2)) that does not wait for it. It runs
no instruction of its own any more, so it counts as ended.

Sources: cgroups(7), Documentation/admin-guide/cgroup-v2.rst of the kernel, proc_pid_stat(5), ptrace(2).
"""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

from ._descriptors import DIRECTORY, held, write
from ._errors import StorageError
from ._priority import get_ahead
from ._rights import prctl

_PREFIX = "ansible-bootstrap-"
_KILL = "cgroup.kill"
_PR_SET_CHILD_SUBREAPER = 36
_QUIET = 3
"""Looks in a row that must find the same processes, all of them held: a look at a list that changes may miss one."""


def become_subreaper() -> None:
    """Let orphans below this process become its children; StorageError if the kernel refuses."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


class Group:
    """A cgroup of this process's making, below the one that it is in; see :func:`make_group`.

    Its maker holds a lock on it. A group without that lock was left by a process that was killed.
    """

    def __init__(self, path: str, lock: int) -> None:
        self._path = path
        self._lock = lock

    def enter(self) -> None:
        """Move this process in, if the kernel allows it."""
        write(f"{self._path}/cgroup.procs", "0")

    def leave(self) -> None:
        """Move this process out again."""
        write(f"{os.path.dirname(self._path)}/cgroup.procs", "0")

    def kill(self) -> None:
        """Kill all that is in it, and in groups below it."""
        if not write(f"{self._path}/{_KILL}", "1"):
            write(f"{self._path}/cgroup.freeze", "1")
            for pid in self.members():
                _kill(pid)

    def members(self) -> list[int]:
        """Return the pids of all that is in it, and in groups below it."""
        found: list[int] = []
        for path, _, _ in os.walk(self._path):
            found += map(int, _read(f"{path}/cgroup.procs").split())
        return [pid for pid in found if pid]  # 0 is a process of a pid namespace that is not below ours

    def populated(self) -> bool:
        """Whether a process in it, or in groups below it, has not ended."""
        return b"populated 1" in _read(f"{self._path}/cgroup.events")

    def remove(self) -> None:
        """Remove it with the groups below it; what is not empty is left to the next :func:`make_group`."""
        for path, _, _ in os.walk(self._path, topdown=False):
            with suppress(OSError):
                os.rmdir(path)
        os.close(self._lock)


def make_group(most: int | None = None) -> Group | None:
    """Make a group below that of this process, and end what killed processes left in such groups.

    Args:
        most: processes and threads that it may have, where the controller ``pids`` is there.

    Returns:
        None where there is no cgroup of version 2 or we may not make one.
    """
    parent = _own_group()
    if parent is None:
        return None
    _sweep(parent)
    path = f"{parent}/{_PREFIX}{secrets.token_hex(8)}"
    with suppress(OSError):
        os.mkdir(path, 0o700)  # nobody else may take the lock
        lock = _locked(path)
        if lock is not None and os.path.isdir(path):  # else another's sweep came between
            if most is not None:
                write(f"{path}/pids.max", str(most))
            return Group(path, lock)
    return None


def _sweep(parent: str) -> None:
    with suppress(OSError):
        for name in os.listdir(parent):
            if not name.startswith(_PREFIX):
                continue
            with suppress(OSError):
                lock = _locked(f"{parent}/{name}")
                if lock is not None:
                    left = Group(f"{parent}/{name}", lock)
                    left.kill()
                    left.remove()


def _locked(path: str) -> int | None:
    """Return a descriptor that holds the lock on a directory; None if another process has it."""
    descriptor = os.open(path, DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _own_group() -> str | None:
    """Return the directory of the cgroup that this process is in; None if there is none to be seen."""
    lines = os.fsdecode(_read("/proc/self/cgroup")).splitlines()
    own = next((line[3:] for line in lines if line.startswith("0::")), None)
    for line in os.fsdecode(_read("/proc/self/mountinfo")).splitlines() if own else ():
        fields, _, system = line.partition(" - ")
        if system.startswith("cgroup2 "):
            top, mount = fields.split()[3:5]
            below = f"{own}/".replace("//", "/")
            if below.startswith(f"{top.rstrip('/')}/"):
                return f"{mount}/{below[len(top.rstrip('/')) + 1 :]}".rstrip("/")
    return None


def end_all(group: Group | None, seconds: float) -> int | None:
    """Kill and reap all that descends from this process, and all in the group.

    This process stays ahead of others afterwards; see ``_priority.get_ahead``.

    Returns:
        How many were killed; None if some do not end within these seconds.
    """
    get_ahead()
    until = time.monotonic() + seconds
    killed = quiet = 0
    pause = 0.0005
    held: set[int] = set()
    while True:
        if group is not None:
            group.kill()
        left = _kill_below()
        statuses = [status for _, status in reaped(until)]
        killed += sum(os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL for status in statuses)
        if _childless() and (group is None or not group.populated()):
            return killed
        if group is not None:
            left |= set(group.members())
        same = left == held and not statuses and all(ended(pid, "ZXxt") for pid in left)
        quiet, held = quiet + 1 if same else 0, left
        if quiet == _QUIET:
            return killed + len(left)
        if time.monotonic() > until:
            return None
        pause = 0.0005 if statuses else min(0.02, pause * 1.2)
        time.sleep(pause)


def reaped(until: float) -> Iterator[tuple[int, int]]:
    """Reap the children that have ended, at most until then; yield the pid and status of each."""
    with suppress(ChildProcessError):
        while time.monotonic() < until:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            yield pid, status


def _childless() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def _kill_below() -> set[int]:
    """Kill all that descends from this process; return it.

    As a process ends, its children become ours. But one that was killed may not end: a tracer holds it at its last step
    (PTRACE_EVENT_EXIT), or it sleeps uninterruptibly. So its children are killed where they are.
    """
    found: set[int] = set()
    parents = [os.getpid()]
    while parents:
        parent = parents.pop()
        for child in _children(parent):
            _kill_child(child, parent)
            if child not in found:
                parents.append(child)
            found.add(child)
    return found


def _kill_child(pid: int, parent: int) -> None:
    """Kill a child of that process, if it still is one: when its parent has reaped it, its pid may be another's."""
    with suppress(OSError):
        with held(os.pidfd_open(pid)) as handle:
            if _fields(f"{pid}")[1:2] == [b"%d" % parent]:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        return
    if _fields(f"{pid}")[1:2] == [b"%d" % parent]:  # before Linux 5.3
        _kill(pid)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _children(of: int) -> list[int]:
    threads = _names(f"/proc/{of}/task")
    if os.path.exists("/proc/thread-self/children"):
        lists = [_read(f"/proc/{of}/task/{thread}/children") for thread in threads]
        return [int(pid) for pid in b" ".join(lists).split()]
    return [int(name) for name in _names("/proc") if name.isdigit() and _fields(name)[1:2] == [b"%d" % of]]


def ended(pid: int, states: str = "ZXx") -> bool:
    """Whether each thread of a process is in one of these states, or gone. Its first thread may end before others."""
    return all(_state(f"{pid}/task/{thread}") in states for thread in _names(f"/proc/{pid}/task"))


def status_of_held(child: int) -> int | None:
    """Return the exit status of a child that has ended, without reaping it; None if it has not ended.

    A child that another process traces cannot be reaped before its tracer has waited for it.

    Raises:
        StorageError: this process may not know it.
    """
    if not ended(child):
        return None
    # The kernel says 0 for "not for you". The same right decides here, and a process that has ended has no program.
    with suppress(FileNotFoundError):
        try:
            os.readlink(f"/proc/{child}/exe")
        except PermissionError:
            raise StorageError(
                "the script ended while a process of the user's traced it, so nobody can say how: end that process, "
                "and run again"
            ) from None
    return os.waitstatus_to_exitcode(int(_fields(f"{child}")[49]))


def _state(task: str) -> str:
    """Return the state of ``PID`` or ``PID/task/THREAD``; "X" if it is gone."""
    return (_fields(task) or [b"X"])[0].decode()


def _fields(task: str) -> list[bytes]:
    """Return the fields of its ``stat`` from the third on; none if it is gone."""
    return _read(f"/proc/{task}/stat").rpartition(b") ")[2].split()


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
