# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""A storage root while a batch is worked for: users' places in it, and our own records and stages."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

from ._as_user import NO_LIMIT, Answer, Patience, Task, run_all
from ._descriptors import DIRECTORY, held
from ._errors import LeftAloneError, StorageError, printable
from ._files import kind, open_parent, open_root
from ._mounts import is_of_user, refuse_what_takes_no_records, refuse_what_takes_nothing
from ._state import Records, State, identity


@dataclass(frozen=True)
class Home:
    """One directory and whose it is or shall be."""

    name: str
    directory: str
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
    """The storage root and our state in it, open for one batch.

    Args:
        root: its path.
        check: read only.
        patience: with the slowest of the batch's users.

    Attributes:
        fetched: how many sources a web server has sent for the batch.

    Raises:
        StorageError: the root cannot be used (:func:`open_root`), or the state is not ours alone.
    """

    def __init__(self, root: str, *, check: bool, patience: Patience = NO_LIMIT) -> None:
        self.check = check
        self.patience = patience
        self.fetched = 0
        self.path = root
        self.root = open_root(root)
        try:
            refuse_what_takes_no_records(self.root, root)
            self.records = Records(self.root, root) if check else State(self.root, root)
        except BaseException:
            os.close(self.root)
            raise

    @property
    def state(self) -> State:
        """The state directory; check mode has none."""
        if not isinstance(self.records, State):
            raise TypeError("check mode writes nothing")
        return self.records

    def check_room(self) -> None:
        """Refuse (StorageError) to make homes in a root that takes none; our records may be on a mount of their own."""
        refuse_what_takes_nothing(self.root, self.path)

    def open_home(self, home: Home) -> int | None:
        """Open the directory in a home's place, whosever it is; None if there is nothing.

        Raises:
            LeftAloneError: the user's own directory is there, and root may not enter it.
            StorageError: something else is there.
        """
        parent = open_parent(self.root, home.parts, make=False)
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
        os.close(self.root)
