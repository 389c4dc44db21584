"""End every process that this one has caused, politely first; ``storage/_ending.py`` does the rest."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import Final

from ansible_bootstrap.storage._ending import Group, end_all, reaped
from ansible_bootstrap.storage._priority import get_ahead, step_back

_KILL_SECONDS: Final = 2.0
_WNOTHREAD: Final = 0x20000000
"""Of wait(2): no children of other threads."""
_MOST_ORPHANS: Final = 1000
"""In one look."""


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


def end_descendants(group: Group | None = None, grace: float = 1.0) -> None:
    """Send TERM to all descendants, after ``grace`` seconds KILL to them and to all in the group.

    Gives up after two more seconds: a process in uninterruptible sleep (a hung NFS server) cannot be
    ended by anyone, and its lock on the storage host keeps others away from what it was doing.
    """
    until = time.monotonic() + grace
    signalled: set[int] = set()
    while (living := descendants()) and time.monotonic() < until:
        for pid in living - signalled:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)
        signalled |= living
        for _ in reaped(until):
            pass
        time.sleep(0.02)
    if group is not None:
        group.leave()
    end_all(group, _KILL_SECONDS)
    step_back()


def reap_orphans() -> None:
    """Collect orphans that have ended; they fall to the main thread, which calls this."""
    with suppress(ChildProcessError):
        for _ in range(_MOST_ORPHANS):
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | _WNOTHREAD)
            if ended is None:
                return
            os.waitpid(ended.si_pid, os.WNOHANG)
        get_ahead()  # they come faster than they are collected
