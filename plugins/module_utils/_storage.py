# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""A storage root while a batch is worked for: users' places in it, and our own records and stages."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ._as_user import NO_LIMIT, Answer, Patience, Task, run_all
from ._descriptors import DIRECTORY, NAMES, held
from ._errors import LeftAloneError, StorageError, printable
from ._files import enter, exists, kind, open_parent, open_records_dir, open_root, sync
from ._mounts import is_of_user, mount_id, refuse_what_takes_no_records, refuse_what_takes_nothing
from ._names import STATE_DIRECTORY, carries, check_roots
from ._state import Records, State, identity, state_name
from ._ways import judge

_ABOVE = 5.0
"""Seconds to wait for another run that is at work on a directory in which a home lies."""


@dataclass(frozen=True)
class Roots:
    """The storage roots of a batch; ``plugins/doc_fragments/batch.py`` documents the fields."""

    root: str
    roots: tuple[str, ...] = ()
    records_dir: str = ""
    work_as: int | None = None

    @property
    def all(self) -> tuple[str, ...]:
        """All of them; UserRefusedError if one is no good path, or lies in another, or has the records in it."""
        every = (self.root, *self.roots)
        return check_roots(every, self.records_dir) if self.roots or self.records_dir else every


@dataclass(frozen=True)
class Home:
    """One directory and whose it is or shall be.

    Attributes:
        root: the storage root that it lies below.
        parts: the path's components from there.
    """

    name: str
    directory: str
    root: str
    parts: tuple[str, ...]
    uid: int
    gid: int

    @property
    def id(self) -> str:
        """The name under which the state directory knows it."""
        return identity(self.parts)

    @property
    def stage(self) -> str:
        """The name of its stage, with the uid whose rights may remove it."""
        return f"{self.id}-{self.uid}"


class Storage:
    """One storage root and our state in it, open for one batch.

    Args:
        root: its path.
        check: read only.
        patience: with the slowest of the batch's users.
        records_dir: where our state is, in a directory named after the root, if it is not in the root.

    Attributes:
        fetched: how many sources a web server has sent for the batch.

    Raises:
        StorageError: the root cannot be used (:func:`open_root`), or the state is not ours alone.
    """

    def __init__(
        self, root: str, *, check: bool, patience: Patience = NO_LIMIT, records_dir: str = ""
    ) -> None:
        self.check = check
        self.patience = patience
        self.fetched = 0
        self.path = root
        self.root = open_root(root)
        self._above = self.root
        try:
            name = STATE_DIRECTORY
            if records_dir:
                self._above, name = open_records_dir(records_dir), state_name(root)
                if not exists(self._above, name):
                    self._refuse_to_forget(records_dir, name)
            refuse_what_takes_no_records(self._above, records_dir or root, name)
            self.records = (Records if check else State)(self._above, records_dir or root, name)
        except BaseException:
            self._close_top()
            raise

    def _refuse_to_forget(self, records_dir: str, name: str) -> None:
        """Refuse (StorageError) to begin without the records that are in the root."""
        with contextlib.suppress(OSError):
            os.stat(f"{STATE_DIRECTORY}/records", dir_fd=self.root)
            old, new = (
                printable(shlex.quote(path))
                for path in (f"{self.path}/{STATE_DIRECTORY}", f"{records_dir}/{name}")
            )
            raise StorageError(
                f"the records of {printable(self.path)} are not in records_dir yet: `mv {old} {new}`"
            )

    @property
    def state(self) -> State:
        """The state directory; check mode has none."""
        if not isinstance(self.records, State):
            raise TypeError("check mode writes nothing")
        return self.records

    def check_room(self) -> None:
        """Refuse (StorageError) to make homes in a root that takes none; our records may be on a mount of their own."""
        refuse_what_takes_nothing(self.root, self.path)

    def check_moves(self) -> None:
        """Refuse (StorageError) to make homes where none could be moved to its place: rename(2) leaves no mount."""
        top = self._above if self.records.top is None else self.records.top
        if mount_id(top) != mount_id(self.root):
            raise StorageError(
                f"no new home can be made: that is done in {self.records.path} and moved to its place in one step, and "
                f"{printable(self.path)} is on another mount; have the home made before its user starts, or set "
                "records_dir to a directory on the mount of the storage root"
            )

    def sync(self) -> None:
        """Bring the records and what was made in the root onto the disk; OSError if it may not be safe there."""
        for directory in {os.fstat(each).st_dev: each for each in (self.root, self.state.records)}.values():
            sync(directory)

    def open_home(self, home: Home) -> int | None:
        """Open the directory in a home's place, whosever it is; None if there is nothing.

        Raises:
            LeftAloneError: the user's own directory is there, and root may not enter it.
            StorageError: something else is there.
        """
        own = self.own_above(home)
        if own is None:
            parent = open_parent(self.root, home.parts, make=False)
        else:
            parent = None
            with held(own[0]), contextlib.suppress(FileNotFoundError):
                parent = enter(own[0], own[1][:-1], "in the user's own directory", make=False)
        if parent is None:
            return None
        name, shown = home.parts[-1], printable(home.directory)
        with held(parent):
            try:
                return os.open(name, DIRECTORY, dir_fd=parent)
            except FileNotFoundError:
                return None
            except PermissionError:
                if os.geteuid() == 0 and is_of_user(parent, name, home.uid):
                    raise LeftAloneError(
                        f"{shown} is the user's, and root may not enter it: left alone"
                    ) from None
                raise
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                what = kind(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
                raise StorageError(f"{shown} is {what}, not a directory: left as it is") from None

    @contextlib.contextmanager
    def opened_home(self, home: Home) -> Iterator[int | None]:
        """Open the directory in a home's place for the body, as :meth:`open_home` does."""
        directory = self.open_home(home)
        with held(directory) if directory is not None else contextlib.nullcontext():
            yield directory

    def own_above(self, home: Home) -> tuple[int, tuple[str, ...]] | None:
        """Open the outermost directory of the user's own in which a home lies, for names only.

        Returns:
            Its descriptor, and the path components from there to the home; None if there is none on the way.
        """
        current = os.open(".", NAMES, dir_fd=self.root)
        try:
            for depth, part in enumerate(home.parts[:-1], start=1):
                inner = os.open(part, NAMES, dir_fd=current)
                os.close(current)
                current, status = inner, os.fstat(inner)
                if any(judge(part, status, passed=False)):
                    if status.st_uid == home.uid and self._is_named(home, home.parts[:depth]):
                        return os.dup(current), home.parts[depth:]
                    break
        except OSError:  # missing, or no directory: whoever goes there says so
            pass
        finally:
            os.close(current)
        return None

    def _is_named(self, home: Home, parts: tuple[str, ...]) -> bool:
        """Say whether a directory is recorded as the user's, or, not being recorded, carries the name in its path."""
        record = self.records.load(identity(parts))
        return carries(home.name, parts) if record is None else record["name"] == home.name

    def check_above(self, home: Home) -> None:
        """Refuse (StorageError) a directory inside one that is recorded as another user's."""
        for depth in range(1, len(home.parts)):
            record = self.records.load(identity(home.parts[:depth]))
            if record is not None and record["name"] != home.name:
                raise StorageError(
                    f"this directory lies inside another user's ({printable('/'.join(home.parts[:depth]))}, below the "
                    "storage root): c.AnsibleBootstrap.place can say another"
                )

    def holds_only_own(self, home: Home, directory: int) -> bool:
        """Say whether all that lies in a home's place is recorded as directories of the same user's."""
        ids = (identity((*home.parts, name)) for name in os.listdir(directory))
        return all((self.records.load(each) or {}).get("name") == home.name for each in ids)

    @contextlib.contextmanager
    def unchanged_above(self, home: Home) -> Iterator[None]:
        """During the body no directory above the home becomes a user's by another run (:meth:`holds_only_own`).

        Raises:
            StorageError: one has become another user's, or another run is at work on it for long.
        """
        with contextlib.ExitStack() as locks:
            for depth in range(1, len(home.parts)):
                lock = self.state.lock(identity(home.parts[:depth]))
                locks.callback(lock.close)
                if not lock.acquire(time.monotonic() + _ABOVE, shared=True):
                    raise StorageError("another run is at work on the directory above this one: run again")
            self.check_above(home)
            yield

    def run_all(self, tasks: list[Task], timeout: float) -> list[Answer]:
        """Run tasks of the batch's users; see :func:`._as_user.run_all`."""
        return run_all(tasks, timeout, self.patience)

    def make_room(self, home: Home) -> int:
        """Open the directory in which a home shall lie, for names only; make what is missing on the way."""
        parent = open_parent(self.root, home.parts, make=True)
        if parent is None:
            raise StorageError(f"{printable(home.directory)}: the directory above it disappeared")
        return parent

    def close(self) -> None:
        """Close all descriptors."""
        self.records.close()
        self._close_top()

    def _close_top(self) -> None:
        for descriptor in {self.root, self._above}:
            os.close(descriptor)
