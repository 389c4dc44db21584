"""The apply program that serves no request itself: it has imported everything, and forks programs that serve one each.

Half of a small run was its start: an interpreter, the packages of the apply program, Ansible's own. Here one process of
a hub pays for that once, and then forks, in a hundredth of the time, a program that waits for its request as a spare
(``standby.py``). Nothing that belongs to a run ever happens in this process, and each forked program serves one, so two
runs still share nothing but the files on disk.

It is spoken to through a socket of whole messages (SOCK_SEQPACKET) in the place of stdin. A message carries three
descriptors, which become stdin, stdout and stderr of a forked program; the answer is its pid, and carries its pidfd.
The end of the socket ends this process, and nothing else: a forked program has a stdin of its own.

Rejected: a fork server for Ansible alone, between apply program and playbook: ansible-runner waits for its process
with waitid(2), so it has to be a child of the apply program's.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import traceback
from collections.abc import Callable
from typing import Final, NoReturn

WARM: Final = "--warm"
"""Last argument of an apply program that shall be this."""

_STANDARD: Final = (0, 1, 2)


def serve(live: Callable[[], int], outdated: Callable[[], bool], log: Callable[[str], None]) -> None:
    """Fork a program for each message, until the other side hangs up or what was imported is outdated.

    Args:
        live: what a forked program does; returns its exit status.
        outdated: whether the installation has changed.
        log: writes to the admin's log.

    Raises:
        OSError: no process can be forked or watched here.
    """
    os.close(
        os.pidfd_open(os.getpid())
    )  # Some containers refuse it: not to be found out with a child in hand.
    children: dict[int, int] = {}
    """Pids by pidfd."""
    with socket.socket(fileno=os.dup(0)) as control:
        while True:
            ready = select.select([control.fileno(), *children], [], [])[0]
            for pidfd in children.keys() & set(ready):
                _bury(children.pop(pidfd), log)
                os.close(pidfd)
            if control.fileno() not in ready:
                continue
            line, standard, _, _ = socket.recv_fds(control, 16, len(_STANDARD))
            if not line or len(standard) != len(_STANDARD):
                return
            if outdated():
                log("the installation has changed: the next spare program is started anew")
                return
            own, theirs = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(own)
                _be_born(live, standard, theirs, log)
            os.close(theirs)
            os.read(own, 1)  # Its end: the program has left our session, which is killed when we end.
            os.close(own)
            pidfd = os.pidfd_open(pid)
            children[pidfd] = pid
            for descriptor in standard:
                os.close(descriptor)
            # If nobody takes it, the end of the socket is what is read next.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                socket.send_fds(control, [b"%d" % pid], [pidfd])


def _be_born(live: Callable[[], int], standard: list[int], left: int, log: Callable[[str], None]) -> NoReturn:
    """Be a program of its own; whatever else is open is left to :func:`live` to close."""
    status = 1
    try:
        os.setsid()
        os.close(left)
        for wanted, given in zip(_STANDARD, standard, strict=True):
            os.dup2(given, wanted)
        status = live()
    except BaseException:
        log(traceback.format_exc())
    finally:
        os._exit(status)


def _bury(pid: int, log: Callable[[str], None]) -> None:
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status < 0:
        log(f"the apply program {pid} died of signal {-status}")
