# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Copy and remove trees of files, through descriptors.

Copies run in a process that has given up everything but its user's rights (``_as_user.py``), so that a
file the user may not read is not read for them, and quotas count. Nothing here changes an owner.
"""

from __future__ import annotations

import errno
import os
import stat

from ._errors import StorageError, explain, printable
from ._files import DIRECTORY, kind

MAX_DEPTH = 64
"""Directories within directories; each holds two descriptors while it is copied."""

_CANNOT_COPY_IN_KERNEL = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


def copy_tree(source: int, target: int | None, where: str = "", depth: int = 0) -> None:
    """Copy what is in directory ``source`` into the empty directory ``target``.

    Symbolic links are copied as links, hard links become copies; modes are kept without setuid and
    setgid, and times are kept. With ``target`` None nothing is written, everything is read open: would
    it work?

    Args:
        source: any descriptor of the directory. It is opened anew, because processes that share a
            descriptor share its place in the listing.
        target: the directory to fill.
        where: what the source is called in errors.
        depth: of this directory below the first.

    Raises:
        StorageError: something cannot be read, or is neither file, directory nor link.
        OSError: it cannot be written.
    """
    try:
        source = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=source)
    except OSError as error:
        raise StorageError(explain(error, f"{where} cannot be read")) from None
    try:
        if depth > MAX_DEPTH:
            raise StorageError(f"{printable(where)} has more than {MAX_DEPTH} directories within each other")
        with os.scandir(source) as entries:
            for entry in entries:
                path = f"{where}/{entry.name}" if where else entry.name
                if entry.is_symlink():
                    if target is not None:
                        os.symlink(os.readlink(entry.name, dir_fd=source), entry.name, dir_fd=target)
                elif entry.is_dir(follow_symlinks=False):
                    _copy_directory(source, target, entry.name, path, depth)
                elif entry.is_file(follow_symlinks=False):
                    _copy_file(source, target, entry.name, path)
                else:
                    what = kind(entry.stat(follow_symlinks=False).st_mode)
                    raise StorageError(f"{printable(path)} is {what}, which is not copied")
    finally:
        os.close(source)


def _copy_directory(source: int, target: int | None, name: str, path: str, depth: int) -> None:
    inner: int | None = None
    try:
        # Not O_RDONLY: whether this user may list it, the descriptor opened by copy_tree tells.
        reader = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    except OSError as error:
        raise StorageError(explain(error, f"{path} cannot be read")) from None
    try:
        status = os.fstat(reader)
        if target is not None:
            os.mkdir(name, 0o700, dir_fd=target)
            inner = os.open(name, DIRECTORY, dir_fd=target)
        copy_tree(reader, inner, path, depth + 1)
        if inner is not None:
            os.utime(inner, ns=(status.st_atime_ns, status.st_mtime_ns))
            os.fchmod(inner, stat.S_IMODE(status.st_mode) & 0o1777)
    finally:
        os.close(reader)
        if inner is not None:
            os.close(inner)


def _copy_file(source: int, target: int | None, name: str, path: str) -> None:
    try:
        # O_NONBLOCK: a FIFO must not keep us waiting for somebody to write.
        reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise StorageError(f"{printable(path)} is not readable for this user") from None
        raise StorageError(explain(error, f"{path} cannot be read")) from None
    try:
        status = os.fstat(reader)
        if not stat.S_ISREG(status.st_mode):
            raise StorageError(f"{printable(path)} is {kind(status.st_mode)}, which is not copied")
        if target is None:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        mode = stat.S_IMODE(status.st_mode) & 0o777
        writer = os.open(name, flags, mode & ~0o022, dir_fd=target)
        try:
            _copy_data(reader, writer, status.st_size)
            os.utime(writer, ns=(status.st_atime_ns, status.st_mtime_ns))
            if mode & 0o022:  # what the umask would have taken
                os.fchmod(writer, mode)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _copy_data(reader: int, writer: int, size: int) -> None:
    """Let the kernel copy, which shares the blocks where the file system can; else read and write."""
    try:
        while size > 0:
            copied = os.copy_file_range(reader, writer, size)
            if not copied:
                break
            size -= copied
    except OSError as error:
        if error.errno not in _CANNOT_COPY_IN_KERNEL:
            raise
    while size > 0:
        chunk = os.read(reader, 1 << 20)
        if not chunk:
            break
        size -= len(chunk)
        while chunk:
            chunk = chunk[os.write(writer, chunk) :]


def remove_tree(parent: int, name: str) -> None:
    """Remove a file, link or whole directory; links are removed, not followed. Absent is fine.

    Raises:
        OSError: it cannot be removed. It may also be too deep: whoever made it so is no other user's trouble.
    """
    try:
        _remove_tree(parent, name)
    except RecursionError:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name) from None


def _remove_tree(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):  # which of the two unlink says depends on the file system
        pass
    else:
        return
    directory = _open_to_empty(parent, name)
    try:
        for inner in os.listdir(directory):
            _remove_tree(directory, inner)
    finally:
        os.close(directory)
    os.rmdir(name, dir_fd=parent)


def _open_to_empty(parent: int, name: str) -> int:
    """Open a directory of one's own although its mode is against it (a skeleton may have 0555)."""
    try:
        directory = os.open(name, DIRECTORY, dir_fd=parent)
    except PermissionError:
        if os.geteuid() == 0:
            raise
        # Follows a link if one is put there meanwhile; by then we have no rights but the user's own.
        os.chmod(name, 0o700, dir_fd=parent)
        directory = os.open(name, DIRECTORY, dir_fd=parent)
    if os.geteuid() != 0:
        os.fchmod(directory, 0o700)
    return directory
