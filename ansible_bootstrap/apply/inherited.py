"""What a process inherits of its caller besides the environment: descriptors, limits, its share of the machine.

A caller before the boundary may lower them at will. A limit of one process would let no role start a program as its
user; a share that is only what others leave (``SCHED_IDLE``) would have root's run wait, with its locks held, for as
long as the caller keeps the processors busy.

Not replaced, because the caller cannot use it against a run: securebits (to set them takes a privilege), the
personality (sudo is setuid, so the kernel drops what weakens a program).
Not replaced, because this program cannot: the caller's control group, see ``docs/boundary.md``.

Source: setrlimit(2), sched(7), ioprio_set(2), personality(2), proc_pid_oom_score_adj(5), PR_SET_TIMERSLACK(2const).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import stat
from pathlib import Path
from typing import Final

from ansible_bootstrap.errors import RefusedError
from ansible_bootstrap.storage._rights import leave_session_keyring

_UNLIMITED: Final = resource.RLIM_INFINITY
_MIB: Final = 1 << 20

_LIMITS: Final = {
    resource.RLIMIT_AS: (_UNLIMITED, _UNLIMITED),
    resource.RLIMIT_CORE: (0, 0),
    resource.RLIMIT_CPU: (_UNLIMITED, _UNLIMITED),
    resource.RLIMIT_DATA: (_UNLIMITED, _UNLIMITED),
    resource.RLIMIT_FSIZE: (_UNLIMITED, _UNLIMITED),
    resource.RLIMIT_MEMLOCK: (8 * _MIB, 8 * _MIB),
    resource.RLIMIT_MSGQUEUE: (819_200, 819_200),
    resource.RLIMIT_NICE: (0, 0),
    resource.RLIMIT_NOFILE: (4096, 524_288),
    resource.RLIMIT_RSS: (_UNLIMITED, _UNLIMITED),
    resource.RLIMIT_RTPRIO: (0, 0),
    resource.RLIMIT_RTTIME: (_UNLIMITED, _UNLIMITED),
    resource.RLIMIT_STACK: (8 * _MIB, _UNLIMITED),
}
"""Soft and hard: what the kernel gives its first process, but for files and core dumps."""

_BY_SIZE: Final = (resource.RLIMIT_NPROC, resource.RLIMIT_SIGPENDING)
"""For these the kernel gives its first process half of what it bears in all."""

_IOPRIO_SET: Final = {
    "x86_64": 251,
    "aarch64": 30,
    "armv7l": 314,
    "ppc64le": 273,
    "s390x": 282,
    "riscv64": 30,
}
_PR_SET_TIMERSLACK: Final = 29
_TIMER_SLACK: Final = 50_000
"""Nanoseconds; the kernel's default."""

_libc = ctypes.CDLL(None, use_errno=True)


def unfit_descriptors() -> list[int]:
    """Return which of stdin, stdout and stderr are files: on a mount of the caller's, one holds us beyond SIGKILL.

    To be asked before a slot is taken, for the answer may be held up, too.
    """
    return [number for number in range(3) if not _is_fit(number)]


def _is_fit(number: int) -> bool:
    try:
        status = os.fstat(number)
    except OSError:  # a mount that lets nobody in but its user
        return False
    mode = status.st_mode
    if stat.S_ISCHR(mode):
        return status.st_rdev == os.makedev(1, 3) or os.isatty(number)
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def replace_limits() -> None:
    """Replace the caller's ulimits: a file size of 0 would cut short what a role writes.

    Root may lift hard limits, unless its container took CAP_SYS_RESOURCE away. Where it may not, the soft limit becomes
    as much of what is wanted as the hard limit allows.

    Raises:
        RefusedError: the size of files stays limited.
    """
    half = int(Path("/proc/sys/kernel/threads-max").read_text()) // 2
    for number, (soft, hard) in {**_LIMITS, **dict.fromkeys(_BY_SIZE, (half, half))}.items():
        most = resource.getrlimit(number)[1]
        for limits in ((soft, hard), (_lower(soft, most), most)):
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(number, limits)
                break
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != _UNLIMITED:
        raise RefusedError(
            f"the caller limits files to {limit} bytes, which would cut some short: lift its ulimit -f"
        )


def _lower(one: int, other: int) -> int:
    if _UNLIMITED in (one, other):
        return other if one == _UNLIMITED else one
    return min(one, other)


def replace_share() -> None:
    """Replace what the caller left us of processors, disks, memory and time by what a service has.

    Where the system does not let it (a container), the caller's stays.
    """
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    with contextlib.suppress(OSError):  # The kernel leaves out those that the cpuset does not have.
        os.sched_setaffinity(0, range(os.sysconf("SC_NPROCESSORS_CONF")))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("0")
    if platform.machine() in _IOPRIO_SET:
        _libc.syscall(
            ctypes.c_long(_IOPRIO_SET[platform.machine()]), 1, 0, 0
        )  # this process, by its nice value
    _libc.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(_TIMER_SLACK))
    with contextlib.suppress(OSError):  # network file systems look there for the identity to use
        leave_session_keyring()
