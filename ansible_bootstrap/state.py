"""The hub's own directory, ``c.AnsibleBootstrap.state_dir``: private, and of the hub's account alone."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path

import platformdirs

from .errors import SettingsError
from .storage._errors import StorageError
from .storage._ways import open_directory


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
    """Let ``path`` hold exactly ``text``, mode 0600, atomically; untouched if it already does.

    Raises:
        SettingsError: it cannot be written.
    """
    try:
        if _holds(path, text):
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
