"""When a directory was made, which Python's own stat does not tell. Source: statx(2)."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_STATX_BTIME: Final = 0x800
_SIZE: Final = 256
_BTIME_AT: Final = 80
"""Where ``stx_btime`` is in ``struct statx``; ``stx_mask`` is its first word."""

_statx = getattr(ctypes.CDLL(None), "statx", None)


def birth_time(path: str) -> int:
    """Return the time at which what is at a path was made, in nanoseconds; blocks as long as its file system does.

    A directory that another has taken the place of, by a mount or by another of the same number, was made at another
    time. 0 where the file system, the kernel or the C library does not tell.
    """
    if _statx is None:
        return 0
    said = ctypes.create_string_buffer(_SIZE)
    if _statx(_AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, said) != 0:
        return 0
    mask = struct.unpack_from("I", said)[0]
    seconds, nanoseconds = struct.unpack_from("qI", said, _BTIME_AT)
    return int(seconds * 10**9 + nanoseconds) if mask & _STATX_BTIME else 0
