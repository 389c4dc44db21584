"""The hub's own directory, ``c.AnsibleBootstrap.state_dir``: private, of the hub's account alone, and of one hub."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import Final

import platformdirs

from ansible_bootstrap.errors import SettingsError
from ansible_bootstrap.storage._errors import StorageError
from ansible_bootstrap.storage._ways import open_directory

LOCK: Final = "hub.lock"
"""In a ``state_dir`` that a hub has, or has had."""


def default_state_dir() -> str:
    """``/var/lib/ansible-bootstrap`` as root, else the account's own state directory."""
    if os.geteuid() == 0:
        return "/var/lib/ansible-bootstrap"
    return platformdirs.user_state_dir("ansible-bootstrap")


def ensure_state_dir(path: str | os.PathLike[str]) -> Path:
    """Make the directory, mode 0700, if there is none, and return it.

    Raises:
        SettingsError: it cannot be made, or others could change it or the way to it.
    """
    directory = Path(path).absolute()
    try:
        descriptor, _real = open_directory(str(directory), "c.AnsibleBootstrap.state_dir", make=True)
    except StorageError as error:
        raise SettingsError(str(error)) from None
    owner = os.fstat(descriptor).st_uid
    os.close(descriptor)
    if owner != os.geteuid():
        raise SettingsError(
            f"c.AnsibleBootstrap.state_dir {str(directory)!r} must belong to uid {os.geteuid()}: chown it"
        )
    return directory


_LOCKS: dict[str, int] = {}
"""Descriptors of the locks that this process holds, by path without links; they are held until it ends."""

_SETTINGS_SECONDS: Final = 86400.0


def hold_state_dir(path: str | os.PathLike[str]) -> None:
    """Take the directory for this hub, until the process ends; commands beside it need no lock.

    Removes settings files that have not been used for a day.

    Raises:
        SettingsError: another hub has it.
    """
    directory = ensure_state_dir(path)
    lock = str(directory.resolve() / LOCK)
    if lock in _LOCKS:
        return
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            return  # A disk that cannot be written refuses nobody; the next core of this process tries again.
        raise SettingsError(f"{lock!r} cannot be opened: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(descriptor, 20).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise SettingsError(
            f"c.AnsibleBootstrap.state_dir {str(directory)!r} is in use by another hub (process {pid or 'unknown'}): "
            "give each hub a state_dir of its own"
        ) from None
    except OSError:  # A file system without locks.
        os.close(descriptor)
        return
    _LOCKS[lock] = descriptor
    with contextlib.suppress(OSError):  # The disk may be full; the pid is for the message alone.
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    for file in directory.glob("settings-*.json"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > _SETTINGS_SECONDS:
                file.unlink()


def make_private(path: Path) -> None:
    """Make an empty file of mode 0600, if there is none; SQLite gives its journals the mode of the file itself.

    One that is there is not opened: to close a descriptor of a file drops all locks that this process has on it, those
    of SQLite's other connections, too (fcntl(2)); another process then takes away what they are built on.

    Raises:
        OSError: it cannot be made, or is a link.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None


def write_private(path: Path, text: str) -> None:
    """Let ``path`` hold exactly ``text``, mode 0600, atomically; if it already does, it only becomes young.

    Raises:
        SettingsError: it cannot be written.
    """
    try:
        if _holds(path, text):
            os.utime(path)
            return
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise SettingsError(f"{str(path)!r} cannot be written: {error.strerror}") from None


def _holds(path: Path, text: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
        info = os.fstat(file.fileno())
        return (
            stat.S_ISREG(info.st_mode)
            and info.st_uid == os.geteuid()
            and stat.S_IMODE(info.st_mode) == 0o600
            and file.read() == text
        )
