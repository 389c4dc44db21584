# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Step back behind the hub, and stay there across sessions.

A run wants every processor there is, and so does a hub when a class arrives; the hub's share is what everybody sees.
``nice`` says so, and all children inherit it. But where the kernel groups processes by session (``autogroup``, on by
default in most distributions, in force where systemd gives a unit no share of its own), it counts only among those of
one session, and setsid(2) begins a new group of normal priority. So whoever begins a session says it again.

Source: sched(7), "The autogroup feature".
"""

from __future__ import annotations

import contextlib
import os

from ._descriptors import write

_NICE = 10
"""About a tenth of the share of a process of normal priority, when both want the same processor; all of it else."""
_AHEAD = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK


def step_back() -> None:
    """Lower the priority of this process and of all that it will start, unless it is as low already."""
    if os.sched_getscheduler(0) == _AHEAD:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(_NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    keep_back()


def keep_back() -> None:
    """Give the session that this process has begun the priority of the process."""
    if os.getsid(0) != os.getpid():
        return  # It is somebody else's: of the terminal where an admin works, say.
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    if nice > 0:
        _set_group(nice)


def get_ahead() -> None:
    """Come before everything of normal priority, as far as this process may: it is to end what does not want to end.

    Real time where the kernel allows it, which children do not inherit; else the highest priority.
    """
    try:
        os.sched_setscheduler(0, _AHEAD, os.sched_param(1))
    except OSError:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -20)
            if os.getsid(0) == os.getpid():
                _set_group(-20)


def _set_group(nice: int) -> None:
    write("/proc/self/autogroup", str(nice))  # False: there is no grouping
