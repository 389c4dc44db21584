"""The apply program as two processes, so that one is left to end what the other had started, whichever is killed.

::

    caller ── front (waits) ── keeper (serves the request; a session of its own) ── ansible-playbook ── …

The front does nothing but wait, and pass signals on. If it is killed, the kernel sends the keeper SIGTERM, which stops
the run. If the keeper is killed, its descendants fall to the front, which ends them. If both are killed at once, the
next run ends what is left in their cgroup (``storage/_ending.py``), where there is one.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable

from ansible_bootstrap.apply.caller import STOP_SIGNALS, log
from ansible_bootstrap.apply.descendants import end_descendants
from ansible_bootstrap.storage._ending import Group, become_subreaper, make_group
from ansible_bootstrap.storage._priority import keep_back
from ansible_bootstrap.storage._rights import PR_SET_PDEATHSIG, prctl


def keep(serve: Callable[[Callable[[], None]], int], *, fault: int) -> int:
    """Have a child serve the request; return its exit status.

    To be called without other threads, and with the stop signals blocked, which ``serve`` unblocks.

    Args:
        serve: what the child does; returns its exit status. It is given a function that ends all that it has started.
        fault: the exit status if the child is killed.

    Raises:
        StorageError: the kernel refuses what this needs.
        OSError: there is no process to be had.
    """
    become_subreaper()
    group = make_group()
    front = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = fault
        try:
            status = _be_keeper(serve, front, group)
        except BaseException:
            log(traceback.format_exc())
        finally:
            os._exit(status)  # without waiting for threads that wait for others
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # its pid may be another's from here on
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status < 0:
        log(
            f"the process that served this request was killed by signal {-status}: all that it had started is ended"
        )
        end_descendants(group)
        status = fault
    if group is not None:
        group.remove()
    return status


def _be_keeper(serve: Callable[[Callable[[], None]], int], front: int, group: Group | None) -> int:
    def end() -> None:
        end_descendants(group)
        # From here on it may end at once; without a front nobody could end it while it waits for a caller to read.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != front:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.close(null)

    os.setsid()  # a signal to the caller's session ends the front alone
    keep_back()
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    become_subreaper()
    if os.getppid() != front:
        raise OSError("the parent process is gone")
    if group is not None:
        group.enter()
    try:
        return serve(end)
    finally:
        if group is not None:
            group.leave()
            group.remove()
