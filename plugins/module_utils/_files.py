# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""The few steps on the disk that all others are made of: open, make, rename, sync.

Everything goes through descriptors. Below the storage root no symbolic link is ever followed, and
root never acts on a path that somebody else could change between the look and the act.

Rejected: ``openat2(RESOLVE_NO_SYMLINKS)`` for the walk to a home. The walk is one or two components
through directories only root can write, so O_NOFOLLOW on each is as strong, and works on every kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import stat
from collections.abc import Sequence

from ._descriptors import NAMES, opened
from ._errors import StorageError, printable
from ._mounts import ways_out
from ._ways import judge, open_directory
from ._worker import expecting

_SYNC = 60.0
"""Seconds that a disk may take for all that a batch has written, in one call."""

_RENAME_NOREPLACE = 1
_RENAMEAT2 = {"x86_64": 316, "aarch64": 276, "armv7l": 382, "ppc64le": 357, "s390x": 347, "riscv64": 276}

_libc = ctypes.CDLL(None, use_errno=True)


def open_root(path: str) -> int:
    """Open the storage root and return its descriptor. The admin's own links to it are followed.

    Raises:
        StorageError: it does not exist (it is never made, for a file system may not be mounted), is no directory, or
            somebody other than root and the caller could change it or the way to it.
    """
    missing = f"mount it, or create it with `install -d -m 755 {printable(path)}`"
    return open_directory(path, "storage root", missing=missing, mend=ways_out)[0]


def open_records_dir(path: str) -> int:
    """Open ``records_dir``, as :func:`open_root` opens the storage root."""
    return open_directory(path, "records_dir", missing=f"`install -d -m 700 {printable(path)}`")[0]


def open_parent(root: int, parts: Sequence[str], *, make: bool) -> int | None:
    """Open the directory in which the last of ``parts`` lies, by :func:`enter`; None if it is missing."""
    try:
        return enter(root, parts[:-1], "below the storage root", make=make, trusted=True)
    except FileNotFoundError:
        return None


def enter(top: int, parts: Sequence[str], where: str, *, make: bool, trusted: bool = False) -> int:
    """Open a directory below another for names only (O_PATH); no link is followed.

    Args:
        top: the directory to begin at.
        parts: path components below it.
        where: what ``top`` is, for the sentence.
        make: make missing directories, mode 0755 (the umask is 022).
        trusted: refuse a directory that somebody else than root and the caller could change.

    Raises:
        StorageError: a directory on the way is none, or is not trusted.
    """
    current = os.open(".", NAMES, dir_fd=top)
    try:
        for depth, part in enumerate(parts, start=1):
            shown = f"{printable('/'.join(parts[:depth]))}, {where},"
            try:
                if make and not exists(current, part):  # mkdir waits for everybody who lists the directory
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o755, dir_fd=current)
                inner = os.open(part, NAMES, dir_fd=current)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                raise StorageError(f"{shown} is not a directory (links are not followed)") from None
            os.close(current)
            current = inner
            for fault in judge(part, os.fstat(current), passed=False) if trusted else ():
                raise StorageError(f"{shown} {fault.why}: chown and chmod it")
    except BaseException:
        os.close(current)
        raise
    return current


def kind(mode: int) -> str:
    """Return what a file of this st_mode is, with its article."""
    for test, name in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISREG, "a file"),
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if test(mode):
            return name
    return "a device"


def exists(directory: int, name: str) -> bool:
    """Say whether there is anything of that name, be it a dangling link."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def rename_directory(source: int, name: str, target: int, new_name: str) -> None:
    """Move a directory in one step to a name that does not exist yet.

    Where the file system cannot do that in one step (NFS), rename(2) comes close: it replaces nothing
    but an empty directory.

    Raises:
        FileExistsError: there is something of that name; it is untouched.
    """
    try:
        _renameat2(source, name, target, new_name)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        if exists(target, new_name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new_name) from None
        os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)


def _renameat2(source: int, name: str, target: int, new_name: str) -> None:
    arguments = (source, os.fsencode(name), target, os.fsencode(new_name), ctypes.c_uint(_RENAME_NOREPLACE))
    if hasattr(_libc, "renameat2"):
        result = _libc.renameat2(*arguments)
    elif platform.machine() in _RENAMEAT2:  # a C library older than the call
        result = _libc.syscall(ctypes.c_long(_RENAMEAT2[platform.machine()]), *arguments)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name, None, new_name)


def sync(directory: int) -> None:
    """Bring all that was written to a file system onto the disk (syncfs); OSError if it may not be safe there."""
    with expecting(_SYNC):
        if not hasattr(_libc, "syncfs"):
            os.sync()
        elif _libc.syncfs(directory) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), "writing to the disk")


def write_small(directory: int, name: str, data: bytes) -> None:
    """Write a file of ours whole or not at all: mode 0600, replaced by a rename.

    Not even that is enough when the power fails: the new name may reach the disk before the data. Where this
    matters, have :func:`sync` between the two halves.
    """
    write_draft(directory, name, data)
    put_draft(directory, name)


def write_draft(directory: int, name: str, data: bytes) -> None:
    """Write what shall replace a file of ours."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with opened(_draft(name), flags, directory) as file:
        while data:
            data = data[os.write(file, data) :]


def put_draft(directory: int, name: str) -> None:
    """Let the draft replace the file."""
    os.rename(_draft(name), name, src_dir_fd=directory, dst_dir_fd=directory)


def _draft(name: str) -> str:
    return f".{name}.new"


def read_small(directory: int, name: str) -> bytes | None:
    """Return the content of a file of ours, or None if there is none."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        return file.read()
