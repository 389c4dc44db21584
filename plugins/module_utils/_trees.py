# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Copy and remove trees of files, through descriptors.

Copies run in a process that has given up everything but its user's rights (``_as_user.py``), so that a
file the user may not read is not read for them, and quotas count. Nothing here changes an owner.

Root removes trees by :func:`discard` alone. A user who was once able to enter a tree may still have a working
directory or a descriptor in it, and can move what is somebody else's into it at any moment; neither chown nor
mode 0700 ends that. So what is not root's own is removed with the rights of that user, who could do it anyway.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable
from functools import partial
from typing import Optional, Union

from . import _as_user
from ._descriptors import DIRECTORY, NAMES, held, opened
from ._errors import StorageError, explain, printable, sentence
from ._files import kind

MAX_DEPTH = 64
"""Directories within directories; each holds two descriptors while it is copied."""

_CANNOT_COPY_IN_KERNEL = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


def copy_tree(source: int, target: int | None, where: str = "", depth: int = 0) -> None:
    """Copy what is in directory ``source`` into the empty directory ``target``.

    Symbolic links are copied as links, hard links become copies; modes are kept without setuid, setgid and
    the right of others to write, and times are kept. With ``target`` None nothing is written, everything is read
    open: would it work?

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
    with held(_open_source(".", DIRECTORY, source, where)) as listed:
        if depth > MAX_DEPTH:
            raise StorageError(f"{printable(where)} has more than {MAX_DEPTH} directories within each other")
        with os.scandir(listed) as entries:
            for entry in entries:
                path = f"{where}/{entry.name}" if where else entry.name
                if entry.is_symlink():
                    if target is not None:
                        os.symlink(os.readlink(entry.name, dir_fd=listed), entry.name, dir_fd=target)
                elif entry.is_dir(follow_symlinks=False):
                    _copy_directory(listed, target, entry.name, path, depth)
                elif entry.is_file(follow_symlinks=False):
                    _copy_file(listed, target, entry.name, path)
                else:
                    what = kind(entry.stat(follow_symlinks=False).st_mode)
                    raise StorageError(f"{printable(path)} is {what}, which is not copied")


def _open_source(name: str, flags: int, directory: int, path: str) -> int:
    try:
        return os.open(name, flags, dir_fd=directory)
    except PermissionError:
        raise StorageError(f"{printable(path)} is not readable for this user") from None
    except OSError as error:
        raise StorageError(explain(error, f"{path} cannot be read")) from None


def _copy_directory(source: int, target: int | None, name: str, path: str, depth: int) -> None:
    # Whether this user may list it, the descriptor opened by copy_tree tells.
    with held(_open_source(name, NAMES, source, path)) as reader:
        if target is None:
            copy_tree(reader, None, path, depth + 1)
            return
        status = os.fstat(reader)
        os.mkdir(name, 0o700, dir_fd=target)
        with opened(name, DIRECTORY, target) as inner:
            copy_tree(reader, inner, path, depth + 1)
            os.utime(inner, ns=(status.st_atime_ns, status.st_mtime_ns))
            os.fchmod(inner, stat.S_IMODE(status.st_mode) & 0o1775)


def _copy_file(source: int, target: int | None, name: str, path: str) -> None:
    # O_NONBLOCK: a FIFO must not keep us waiting for somebody to write.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with held(_open_source(name, flags, source, path)) as reader:
        status = os.fstat(reader)
        if not stat.S_ISREG(status.st_mode):
            raise StorageError(f"{printable(path)} is {kind(status.st_mode)}, which is not copied")
        if target is None:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        mode = stat.S_IMODE(status.st_mode) & 0o775
        with held(os.open(name, flags, mode & ~0o022, dir_fd=target)) as writer:
            _copy_data(reader, writer, status.st_size)
            os.utime(writer, ns=(status.st_atime_ns, status.st_mtime_ns))
            if mode & 0o022:  # what the umask would have taken
                os.fchmod(writer, mode)


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
    while size > 0 and (chunk := os.read(reader, 1 << 20)):
        size -= len(chunk)
        while chunk:
            chunk = chunk[os.write(writer, chunk) :]


def discard(parent: int, name: str, uid: int, seconds: float = 60) -> Optional[str]:
    """Remove a tree from a directory that only root can write; absent is fine.

    Root itself removes names only in directories that are root's and that nobody else can write, reached from
    the top through such directories. Every other directory is emptied by a child with the user's rights.

    Args:
        parent: descriptor of the directory, root's own.
        name: of the tree in it.
        uid: of the user who may have been able to enter the tree. Never the owner that the tree itself shows:
            a directory that others can write may be a third user's, moved into it.
        seconds: when they are over, the rest is left.

    Returns:
        None if it is gone, else why something of it is left.
    """
    try:
        if os.geteuid() == 0:
            # In a process of its own: it waits for ever where the user holds the lock of a directory.
            work = partial(_discard, parent, name, uid, time.monotonic() + seconds)
            _as_user.run(_as_user.Task(0, 0, parent, work), seconds + 2).unwrap()
        else:
            remove_tree(parent, name, seconds)
    except (OSError, StorageError) as error:
        return sentence(error)
    return None


def _discard(parent: int, name: str, uid: int, until: float, *, top: int = -1, depth: int = 0) -> None:
    if _unlinked(parent, name):
        return
    with opened(name, DIRECTORY, parent) as directory:
        if top < 0:
            top = directory
            _claim(top)
        status = os.fstat(directory)
        if status.st_uid != 0 or status.st_mode & 0o022:
            left = max(0.0, until - time.monotonic())
            work = partial(_empty, directory, until)
            _as_user.run(_as_user.Task(uid, _as_user.NOBODY, directory, work, (top,)), left + 1).unwrap()
        elif depth < MAX_DEPTH:
            remove = partial(_discard, directory, uid=uid, until=until, top=top, depth=depth + 1)
            _each(directory, until, remove)
    os.rmdir(name, dir_fd=parent)


def _claim(tree: int) -> None:
    """Lock a tree that is to be removed, for this process and its children.

    Raises:
        StorageError: a process that waits in it for ever has the lock.
    """
    try:
        fcntl.flock(tree, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StorageError("a process that removes it cannot go on") from None
    except OSError:  # a file system without locks for directories (NFS)
        pass


def remove_tree(parent: int, name: str, seconds: float = 3600) -> None:
    """Remove a file, link or whole directory; links are removed, not followed. Absent is fine. Never run by root.

    Raises:
        OSError: something cannot be removed, and is left; so is what is too deep. The rest is gone.
        StorageError: ``seconds`` are over.
    """
    if os.geteuid() == 0:
        raise RuntimeError("root removes trees by discard()")
    _remove_tree(parent, name, time.monotonic() + seconds)


def _unlinked(parent: int, name: str) -> bool:
    """Remove what is no directory; say whether nothing of that name is left."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError):  # which of the two unlink says depends on the file system
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise
        return False
    return True


def _remove_tree(parent: int, name: str, until: float) -> None:
    if _unlinked(parent, name):
        return
    with held(_open_to_empty(parent, name)) as directory:
        _empty(directory, until)
    os.rmdir(name, dir_fd=parent)


def _empty(directory: int, until: float) -> None:
    """Remove what is in a directory."""
    _each(directory, until, partial(_remove_tree, directory, until=until))


def _each(directory: int, until: float, remove: Callable[[str], None]) -> None:
    """Remove each entry of a directory, however many there are; one that cannot be removed stops no other."""
    failed: Union[OSError, StorageError, None] = None
    with os.scandir(directory) as entries:
        for entry in entries:
            if time.monotonic() >= until:
                raise StorageError("to remove it takes longer than there is time")
            try:
                remove(entry.name)
            except (OSError, StorageError) as error:
                failed = failed or error
            except RecursionError:
                failed = failed or OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), entry.name)
    if failed is not None:
        raise failed


def _open_to_empty(parent: int, name: str) -> int:
    """Open a directory of one's own although its mode is against it (a skeleton may have 0555)."""
    try:
        directory = os.open(name, DIRECTORY, dir_fd=parent)
    except PermissionError:
        # Follows a link if one is put there meanwhile; we have no rights but the user's own.
        os.chmod(name, 0o700, dir_fd=parent)
        directory = os.open(name, DIRECTORY, dir_fd=parent)
    if os.fstat(directory).st_uid == os.geteuid():
        os.fchmod(directory, 0o700)
    return directory
