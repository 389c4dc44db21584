"""End every process that this one has caused, however it tried to slip away.

``ansible-playbook`` starts its workers in sessions of their own, and modules may leave daemons
behind, so neither a process group nor the list of direct children reaches them all. As a *child
subreaper* (prctl(2)) this process becomes the parent of every orphan below it, and what is not yet
an orphan is found by following parents through ``/proc``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36


def become_subreaper() -> None:
    """Let orphans below this process become its children.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def descendants(of: int | None = None) -> set[int]:
    """Return the pids of all living descendants of a process (zombies excluded), itself left out."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] != b"Z":
            children.setdefault(int(fields[1]), []).append(int(entry))
    found: set[int] = set()
    queue = [os.getpid() if of is None else of]
    while queue:
        for child in children.get(queue.pop(), ()):
            if child not in found:
                found.add(child)
                queue.append(child)
    return found


def end_descendants(grace: float = 1.0) -> None:
    """Send TERM to all descendants, after ``grace`` seconds KILL, until none is left.

    Gives up after two more seconds: a process in uninterruptible sleep (a hung NFS server) cannot be
    ended by anyone, and its lock on the storage host keeps others away from what it was doing.
    """
    start = time.monotonic()
    signalled: set[int] = set()
    while True:
        living = descendants()
        _reap()
        waited = time.monotonic() - start
        if not living or waited > grace + 2:
            return
        for pid in living:
            if waited >= grace:
                _kill(pid, signal.SIGKILL)
            elif pid not in signalled:
                signalled.add(pid)
                _kill(pid, signal.SIGTERM)
        time.sleep(0.02)


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _reap() -> None:
    """Collect ended orphans; the run's own child is left to whoever waits for it."""
    with contextlib.suppress(ChildProcessError):
        while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return
