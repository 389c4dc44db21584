"""How many apply programs of one account run at the same time on a machine.

A caller before the boundary may start as many as it likes, and each holds memory from its first moment. So each takes
one of a fixed number of slots before it reads anything: a lock on a file beside the directories of runs, which the
kernel drops when the process ends, however it ends. The number is no setting, for settings are read only with a slot.
A spare, whose caller is the same user, takes one when its request has come: hubs that idle hold none.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Final

from ansible_bootstrap.apply.run_directory import private_base
from ansible_bootstrap.errors import ApplyError

_MOST: Final = max(16, 4 * (os.cpu_count() or 1))
_PATIENCE: Final = 5.0
"""Seconds to wait for a free slot."""
_POLL: Final = 0.1


def take_slot() -> None:
    """Take a slot; it is free again when this process, and what it forked, has ended.

    Raises:
        ApplyError: all are taken, or they cannot be made.
    """
    try:
        base = private_base()
        deadline = time.monotonic() + _PATIENCE
        while not any(_take(base / f"slot-{number}") for number in range(_MOST)):
            if time.monotonic() > deadline:
                raise ApplyError(
                    f"{_MOST} apply programs are running already, as many as may on this machine: try again later"
                )
            time.sleep(_POLL)
    except OSError as error:
        raise ApplyError(f"no slot for an apply program: {error}") from None


def _take(path: Path) -> bool:
    """Lock a file; it stays open for as long as this process lives."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    return True
