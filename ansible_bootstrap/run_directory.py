"""A directory for each run: fresh, private, deleted afterwards.

Everything a run writes on the control node is below one directory of mode 0700, in a base that
belongs to the effective user alone: ``/run/ansible-bootstrap`` for root, ``/tmp/ansible-bootstrap-UID``
otherwise (short paths, for ssh's control sockets have 104 characters). Nothing is shared between
runs: a reused private data dir would mix users' extra vars. A run that was killed leaves its
directory behind; the next run removes it, told by the lock that died with its owner.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from .errors import ApplyError


@contextlib.contextmanager
def run_directory(run: str) -> Iterator[Path]:
    """Make the directory of the run with this id, and remove it at the end.

    Raises:
        ApplyError: the base belongs to another, or cannot be made (a full disk, say).
    """
    base = _base()
    path = base / run
    try:
        base.mkdir(mode=0o700, exist_ok=True)
        _refuse_foreign(base)
        _sweep(base)
        path.mkdir(mode=0o700)
        lock = os.open(path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ApplyError(f"{path}: {error.strerror}") from None
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _base() -> Path:
    uid = os.geteuid()
    if uid == 0 and os.access("/run", os.W_OK):
        return Path("/run/ansible-bootstrap")
    return Path(f"/tmp/ansible-bootstrap-{uid}")  # noqa: S108 - checked to be ours and 0700


def _refuse_foreign(base: Path) -> None:
    status = base.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise ApplyError(f"{base} is not a private directory of uid {os.geteuid()}: remove it")


def _sweep(base: Path) -> None:
    """Remove what killed runs left: directories whose lock nobody holds."""
    for path in base.iterdir():
        with contextlib.suppress(OSError):
            lock = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
