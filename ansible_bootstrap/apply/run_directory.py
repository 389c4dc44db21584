"""A directory for each run: fresh, private, deleted afterwards.

Everything a run writes on the control node is below one directory of mode 0700, in a base that
belongs to the effective user alone: ``/run/ansible-bootstrap`` for root, ``/tmp/ansible-bootstrap-UID``
otherwise (short paths, for ssh's control sockets have 104 characters). Nothing is shared between
runs: a reused private data dir would mix users' extra vars. A run that was killed leaves its
directory behind; the next run removes it, told by the lock that died with its owner. The lock is on
the directory itself, and directories are made and swept under a lock on the base, so that a run
never sweeps one that another is just making.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ansible_bootstrap.errors import ApplyError
from ansible_bootstrap.storage._errors import StorageError
from ansible_bootstrap.storage._ways import open_directory


@contextlib.contextmanager
def run_directory(run: str) -> Iterator[Path]:
    """Make the directory of the run with this id, and remove it at the end.

    Raises:
        ApplyError: the base belongs to another, or cannot be made (a full disk, say).
    """
    base = private_base()
    path = base / run
    with contextlib.ExitStack() as held:
        try:
            with _locked(base):
                _sweep(base)
                path.mkdir(mode=0o700)
                held.enter_context(_locked(path))
        except OSError as error:
            raise ApplyError(f"{path}: {error.strerror}") from None
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def private_base() -> Path:
    """Make the base if there is none, and return its path without links.

    Raises:
        ApplyError: another could change what is in it, or it cannot be made.
    """
    base = base_path()
    try:
        descriptor, real = open_directory(str(base), "the directory of runs", make=True)
    except StorageError as error:
        raise ApplyError(str(error)) from None
    status = os.fstat(descriptor)
    os.close(descriptor)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise ApplyError(f"{base} is not a private directory of uid {os.geteuid()}: remove it")
    return Path(real)


def base_path() -> Path:
    """Return where runs have their directories."""
    uid = os.geteuid()
    if uid == 0 and os.access("/run", os.W_OK):
        return Path("/run/ansible-bootstrap")
    return Path(f"/tmp/ansible-bootstrap-{uid}")  # noqa: S108 - checked to be ours and 0700


@contextlib.contextmanager
def _locked(directory: Path, flags: int = 0) -> Iterator[int]:
    """Hold the lock on a directory; the kernel drops it when the process ends, however it ends."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
        yield descriptor
    finally:
        os.close(descriptor)


def _sweep(base: Path) -> None:
    """Remove what killed runs left: directories whose lock nobody holds; files are slots (``slots.py``)."""
    for path in base.iterdir():
        with contextlib.suppress(OSError), _locked(path, fcntl.LOCK_NB):
            shutil.rmtree(path, ignore_errors=True)
