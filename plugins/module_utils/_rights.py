# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Give up root's rights for those of one user, for good.

Also a program of its own, which needs no other file: on another host it runs a command as a user.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38

_KEYCTL = {"x86_64": 250, "aarch64": 219, "armv7l": 311, "ppc64le": 271, "s390x": 280, "riscv64": 219}
_JOIN_SESSION_KEYRING = 1

_libc = ctypes.CDLL(None, use_errno=True)


def give_up_rights(uid: int, gid: int, groups: Sequence[int] = ()) -> None:
    """Become a user for good, safe from that user's debugger, to die with the parent; OSError if it fails."""
    if os.geteuid() == 0:
        leave_session_keyring()
        os.setgroups(list(groups))
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3 or set(os.getgroups()) != set(groups):
            raise OSError(errno.EPERM, f"could not become uid {uid}")
    # Only now: a change of uid resets both the debugging flag and the death signal.
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def leave_session_keyring() -> None:
    """Join a new and empty session keyring: its holder may read and replace the keys in it, whatever the uid.

    Root makes it, because no user can use up root's quota. Where keys cannot be used (seccomp of a container), nothing
    is done.
    """
    number = _KEYCTL.get(platform.machine())
    if number is None or _libc.syscall(*map(ctypes.c_long, (number, _JOIN_SESSION_KEYRING, 0))) >= 0:
        return
    if ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM):
        raise OSError(
            ctypes.get_errno(), f"cannot leave the session keyring: {os.strerror(ctypes.get_errno())}"
        )


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process; OSError if the kernel refuses."""
    zero = ctypes.c_ulong(0)
    if _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option} is refused: {os.strerror(ctypes.get_errno())}")


def begin_as_user(uid: int, gid: int, groups: Sequence[int], directory: str) -> None:
    """Become the user in the user's directory; in ``/`` if it cannot be entered, as in check mode before it is made."""
    give_up_rights(uid, gid, groups)
    if os.getuid() != uid:
        raise OSError(
            errno.EPERM, f"uid {os.getuid()} cannot work as uid {uid}: give the storage host root, or become"
        )
    os.umask(0o022)
    try:
        os.chdir(directory)
    except OSError:  # Or the user has closed it, or cannot reach it: the task says what it cannot do.
        os.chdir("/")


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    begin_as_user(*(request[field] for field in ("uid", "gid", "groups", "directory")))
    os.execve("/bin/sh", ["/bin/sh", "-c", request["command"]], request["environment"])  # noqa: S606
