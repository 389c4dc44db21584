# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""What we keep on the storage host: ``<storage root>/.ansible_bootstrap/``, ours alone, mode 0700.

With ``records_dir`` it is a directory in there that is named after the root (:func:`state_name`).

::

    stage/<id>-<uid>     a home while it is made; renamed to its place when whole. What cannot be removed of a
                         stage is left as stage/<id>-<uid>-<hex>, and each run tries again
    stage/<id>-<uid>-taken/home   a half-made home that was moved away, until it is compared (``_system_homes``)
    stage/kept-<hex>/home         such a home in which its user has worked
    locks/<id>           one lock for each directory; never removed
    records/<id>.json    whose directory it is, and which role is complete
    cache/               tutorials, unpacked (``_library.py``)

``<id>`` is the sha256 of the directory's path below the storage root. It lies on the storage, not in
/var, because so it follows the storage when that is moved, restored or replaced, and because a
rename needs the stage on the same mount. Where it is on another, homes that exist are served, and none is made.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import posixpath
import random
import re
import secrets
import time
from collections.abc import Sequence
from typing import Any

from ._descriptors import DIRECTORY, held
from ._errors import StorageError, printable
from ._files import exists, put_draft, read_small, write_draft
from ._mounts import kind_by_owner, mount_of, sentence
from ._names import STATE_DIRECTORY, component
from ._trees import discard

SWEEP_SECONDS = 2.0
"""For all that killed runs left, before the work of a batch begins; and for one stage that is in the way."""

_STAGE = re.compile(r"[0-9a-f]{64}-[0-9]+(-[0-9a-f]{8})?\Z")

Record = dict[str, Any]
"""``{"name": username, "directory": path below the root, "user_dir": {…}, "tutorials": {source: {…}}}``"""


def identity(parts: Sequence[str]) -> str:
    """Return the id of the directory with these path components below the storage root."""
    return hashlib.sha256("/".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def state_name(root: str) -> str:
    """Return the name of the directory in ``records_dir`` that belongs to a storage root."""
    return component(posixpath.normpath(root))


class Lock:
    """A lock held by an open descriptor: released when the last process that has it closes it.

    A child that works for a user inherits it, so a killed module whose child is still at work keeps
    the next run out.
    """

    def __init__(self, directory: int, name: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self.fd = os.open(name, flags, 0o600, dir_fd=directory)

    def acquire(self, until: float = 0.0, *, shared: bool = False) -> bool:
        """Take the lock if it is free by ``until`` (time.monotonic()); say whether it was taken."""
        while True:
            try:
                fcntl.flock(self.fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    return False
                time.sleep(0.05)
            else:
                return True

    def close(self) -> None:
        """Let go."""
        os.close(self.fd)


class Records:
    """The records of a storage root, for check mode too: reads what is there and makes nothing.

    Args:
        above: descriptor of the directory that has our state, the storage root or ``records_dir``.
        path: of that directory.
        name: of ours in it.

    Attributes:
        path: of our state, for the admin.
        top: its descriptor; None if there is none.
    """

    def __init__(self, above: int, path: str, name: str = STATE_DIRECTORY) -> None:
        self._open: list[int] = []
        self._above = path
        self.path = printable(f"{path.rstrip('/')}/{name}")
        self.top: int | None = None
        self.records: int | None = None
        try:
            self._open_all(above, name)
        except BaseException:
            self.close()
            raise

    def _open_all(self, above: int, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.top = self._enter(above, name)
            self.records = self._enter(self.top, "records")

    def _enter(self, parent: int, name: str) -> int:
        directory = open_private(parent, name, self._above)
        self._open.append(directory)
        return directory

    def load(self, name: str) -> Record | None:
        """Return the record of a directory; None if there is none, or an empty one (the power failed).

        Raises:
            StorageError: the record is damaged.
        """
        data = None if self.records is None else read_small(self.records, f"{name}.json")
        if not data or not data.strip(b"\0"):
            return None
        try:
            record = json.loads(data)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not _is_record(record):
            raise StorageError(
                f"the record {self.path}/records/{name}.json is damaged: look at it, then remove it"
            )
        return record

    def check_owner(self, record: Record, name: str, record_id: str) -> None:
        """Refuse (StorageError) a directory that belongs to another username."""
        if record["name"] != name:
            raise StorageError(
                f"this directory is recorded as that of the user {printable(record['name'])}; if it changed hands, "
                f"remove {self.path}/records/{record_id}.json"
            )

    def close(self) -> None:
        """Close all descriptors."""
        while self._open:
            os.close(self._open.pop())


class State(Records):
    """The state directory, made where it is missing, opened and checked; StorageError if it is not ours alone."""

    records: int

    def _open_all(self, above: int, name: str) -> None:
        self.top = state = self._enter(above, name)
        self.stage, self.locks, self.records, self.cache = (
            self._enter(state, each) for each in ("stage", "locks", "records", "cache")
        )

    def _enter(self, parent: int, name: str) -> int:
        # To make a name in the storage root waits for everybody who lists that. Nobody lists what is ours, and there
        # the attempt finds out at once whether the disk takes writes at all.
        made = False
        if self._open or not exists(parent, name):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
                made = True
        try:
            return super()._enter(parent, name)
        except StorageError:
            if made:  # and is not ours: this file system does not obey root
                os.rmdir(name, dir_fd=parent)
            raise

    def lock(self, name: str) -> Lock:
        """Return the lock of that name, not yet taken."""
        return Lock(self.locks, name)

    def draft(self, name: str, record: Record) -> None:
        """Write what shall replace the record of a directory."""
        write_draft(self.records, f"{name}.json", json.dumps(record, sort_keys=True).encode("ascii"))

    def put(self, name: str) -> None:
        """Let the draft be the record."""
        put_draft(self.records, f"{name}.json")

    def clear(self, stage: str, ending: str = "") -> list[str]:
        """Remove a stage (``stage`` + ``ending``) whose lock is held; return notes for the admin on what is left."""
        left = f"{stage}-{secrets.token_hex(4)}"
        try:
            os.rename(stage + ending, left, src_dir_fd=self.stage, dst_dir_fd=self.stage)
        except FileNotFoundError:
            return []
        why = discard(self.stage, left, int(stage.split("-")[1]), SWEEP_SECONDS)
        if why is None:
            return []
        return [f"something is left in {self.path}/stage/{left}: {why}; the next run tries again"]

    def sweep(self) -> None:
        """Remove the stages that a killed run left behind: those whose lock is free. What is left has to wait."""
        until = time.monotonic() + SWEEP_SECONDS
        names = [name for name in os.listdir(self.stage) if _STAGE.match(name)]
        random.shuffle(names)  # what cannot be removed in time is not always the first
        for name in names:
            if time.monotonic() >= until:
                return
            home, uid = name.split("-")[:2]
            with contextlib.suppress(OSError):  # no descriptor, no space for a lock
                lock = self.lock(home)
                try:
                    if lock.acquire():
                        discard(self.stage, name, int(uid), until - time.monotonic())
                finally:
                    lock.close()


def _is_record(record: Record) -> bool:
    """Tell whether it has what the roles rely on."""
    if not isinstance(record.get("name"), str):
        return False
    parts = [record.get(role, {}) for role in ("user_dir", "mkhomedir", "tutorials", "script")]
    return all(isinstance(part, dict) for part in parts)


def open_private(parent: int, name: str, path: str) -> int:
    """Open a directory that must be this process's alone, below the storage root or ``records_dir`` at ``path``."""
    try:
        directory = os.open(name, DIRECTORY, dir_fd=parent)
    except NotADirectoryError:
        raise StorageError(
            f"{name}, below {printable(path)}, is not a directory: somebody put it there"
        ) from None
    status = os.fstat(directory)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        with held(directory):
            mount = mount_of(directory)
        kind = kind_by_owner(status, mount) if mount and (mount.is_remote or not mount.has_owners) else None
        raise StorageError(
            sentence(kind, path, mount, status)
            if kind
            else f"{name}, below {printable(path)}, must belong to uid {os.geteuid()} with mode 0700 (it has uid "
            f"{status.st_uid}, mode {status.st_mode & 0o7777:04o}): it holds the state of ansible_bootstrap"
        )
    return directory
