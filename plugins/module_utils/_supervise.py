# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Run somebody's program to its end, and leave nothing of it behind.

The supervisor is a child of the module's (``_as_user.py``) that keeps its rights and holds the user's lock; the
program is a child of the supervisor's that has neither. So the program cannot kill the supervisor, and a
daemon it leaves cannot hold the lock. Whatever descends from the program, however often it forks and calls
setsid, falls to the supervisor when its parent dies, and is killed::

    module ── supervisor (root; lock; subreaper) ── program (the user) ── … ── a daemon

Where the machine has cgroups the program is also in one of its own, for which see ``_ending.py``. A user's program may
have no more than :data:`MOST` processes and threads beside those that the user has already.

Rejected: killing the process group (a daemon has its own), a pid namespace of its own (a script would see other pids).
"""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ._as_user import close_others
from ._ending import Group, become_subreaper, end_all, make_group, reaped, status_of_held
from ._errors import StorageError
from ._priority import get_ahead, keep_back
from ._rights import PR_SET_PDEATHSIG, give_up_rights, prctl

GRACE = 15.0
"""Seconds that a supervisor may need beyond the program's own timeout."""

_TAIL = 16 << 10
_CHUNK = 64 << 10
_LAST_DRAIN = 8 << 20
_ENDING = 5.0
_GLANCE = 0.25
"""Seconds between looks whether the program has ended unheard, held by a tracer."""
_CROWD = 100
"""Orphans after which the program may start processes faster than we reap them."""
MOST = 1024


@dataclass(frozen=True)
class Program:
    """What is to be run: in ``directory`` (a descriptor; None is ``/``), for ``timeout`` seconds at most.

    ``user`` is the uid and gid it gets; None leaves it the caller's rights.
    """

    argv: Sequence[str]
    environment: Mapping[str, str]
    timeout: float
    directory: int | None = None
    user: tuple[int, int] | None = None


class _ParentGoneError(BaseException):
    """The module was killed, or wants no more: what was started must end too. No Exception, so that nobody keeps it."""


def _parent_gone(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough, and what follows must not be interrupted
    raise _ParentGoneError


def supervise(program: Program) -> dict[str, Any]:
    """Run the program, with nothing to read and stdout and stderr read here; the work of a task.

    Returns:
        ``status``: its exit status; negative, the signal that killed it. ``timed_out``. ``left``: processes it had
        left behind, which were killed. ``tail``: the last 16 KiB of what it said.

    Raises:
        OSError: it could not be started.
        StorageError: it could not become the user, or has processes that do not end.
    """
    parent = os.getppid()
    signal.signal(signal.SIGTERM, _parent_gone)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # SIGKILL would leave us no time to kill
    become_subreaper()
    if os.getppid() != parent:
        raise StorageError("the parent process is gone")
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # the wakeup is all
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reader, False)
    group: Group | None = None
    try:
        try:
            group = make_group(MOST)
            deadline = time.monotonic() + program.timeout
            pid = _start(program, writer, group)
            status, tail = _follow(pid, reader, woken, deadline)
        finally:
            # The module may end at this very line; that is why nothing else is done in this block.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    finally:
        left = end_all(group, _ENDING)
        if group is not None:
            group.remove()
    if left is None:
        raise StorageError(
            "processes of the script cannot be killed: look for them with `ps -ef` and end them"
        )
    return {
        "status": status,
        "timed_out": status is None,
        "left": left,
        "tail": _drain(reader, tail).decode("utf-8", "replace"),
    }


def _start(program: Program, output: int, group: Group | None) -> int:
    """Start the program; return once it is itself, or has failed to be."""
    failed, fail = os.pipe2(os.O_CLOEXEC)
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            if group is not None:
                group.enter()
            _become_program(program, output, fail, supervisor)
        except OSError as error:
            os.write(fail, str(error.errno or errno.EIO).encode("ascii"))
        except StorageError as error:
            os.write(fail, str(error).encode("utf-8", "replace"))
        finally:
            os._exit(127)
    os.close(output)
    os.close(fail)
    why = os.read(failed, 1000).decode("utf-8", "replace")
    os.close(failed)
    if why.isdigit():
        raise OSError(int(why), os.strerror(int(why)), program.argv[0])
    if why:
        raise StorageError(why)
    return pid


def _become_program(program: Program, output: int, fail: int, supervisor: int) -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    keep_back()
    for standard in (1, 2):
        os.dup2(output, standard)
    close_others({0, 1, 2, fail} | ({program.directory} if program.directory is not None else set()))
    if program.user is not None:
        _limit_processes(program.user[0])
        give_up_rights(*program.user)
    else:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(127)
    # With the user's rights already: a home that its owner may not enter is no place to work for them.
    if program.directory is None:
        os.chdir("/")
    else:
        os.fchdir(program.directory)
        os.set_inheritable(program.directory, False)
    os.execve(program.argv[0], list(program.argv), dict(program.environment))  # noqa: S606


def _limit_processes(uid: int) -> None:
    most = MOST
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if os.stat(f"/proc/{name}").st_uid == uid:
                most += os.stat(f"/proc/{name}/task").st_nlink - 2
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def _follow(pid: int, reader: int, woken: int, deadline: float) -> tuple[int | None, bytes]:
    """Read what the program says until it ended (not its children); None as its status if it is too late."""
    tail = b""
    poll = select.poll()
    poll.register(woken, select.POLLIN)
    poll.register(reader, select.POLLIN)
    orphans = 0
    look = 0.0
    while True:
        for ended, status in reaped(deadline):
            if ended == pid:
                return os.waitstatus_to_exitcode(status), tail
            orphans += 1
            if orphans == _CROWD:
                get_ahead()
        now = time.monotonic()
        if now >= look:
            look = now + _GLANCE
            held = status_of_held(pid)
            if held is not None:
                return held, tail
        if now >= deadline:
            return None, tail
        for ready, _ in poll.poll((min(look, deadline) - now) * 1000 + 1):
            if ready == woken:
                with suppress(BlockingIOError):
                    os.read(woken, 4096)
                continue
            with suppress(BlockingIOError):
                chunk = os.read(reader, _CHUNK)
                tail = (tail + chunk)[-_TAIL:]
                if not chunk:  # it closed its output; that does not end it
                    poll.unregister(reader)


def _drain(reader: int, tail: bytes) -> bytes:
    """Read what is left in the pipe, up to a limit: another process might still write to it."""
    read = 0
    with suppress(BlockingIOError):
        while read < _LAST_DRAIN and (chunk := os.read(reader, _CHUNK)):
            read += len(chunk)
            tail = (tail + chunk)[-_TAIL:]
    return tail
