# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""The role ``user_dir``: every user has a directory of their own, or several.

A new home is made where nobody can reach it, filled from the skeleton by a process with the user's
rights, brought onto the disk together with all others of the batch, and only then renamed to its place. So
a home is absent or whole, whenever the machine stops. An existing home is never changed, unless it is
the empty directory of root's that Docker leaves when it mounts what does not exist. What root has made as the
directory above others of the user's, and holds nothing else, is given to the user as it is.

A directory inside another one of the same user's is made by a process with the user's rights from the first name on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import _acls, _batch
from ._batch import Claim, fail_all
from ._descriptors import DIRECTORY, held, opened
from ._errors import StorageError, printable
from ._files import enter, rename_directory, sync
from ._names import STATE_DIRECTORY, carries
from ._report import Report
from ._storage import Home, Roots, Storage
from ._trees import copy_tree, remove_tree
from ._ways import open_directory

_MODE = re.compile(r"0[0-7]{3,4}\Z")


@dataclass(frozen=True)
class Options:
    """The options of the module ``user_dir``, which documents them."""

    mode: str = "0755"
    skeleton: str = ""
    enforce_mode: bool = False
    child_timeout: float = 60
    adopt_empty: str = "own"

    @property
    def bits(self) -> int:
        """The mode as a number; see :func:`parse_mode`."""
        return parse_mode(self.mode)


def parse_mode(text: str) -> int:
    """Return the mode that a string such as ``"0755"`` means; StorageError if it is none or shuts the owner out."""
    if not _MODE.match(text):
        raise StorageError('mode is four or five octal digits in quotes, beginning with 0, such as "0755"')
    mode = int(text, 8)
    if mode & 0o4000:
        raise StorageError("mode must not have the setuid bit")
    if mode & 0o700 != 0o700:
        raise StorageError("mode must let the owner read, write and enter")
    return mode


def ensure(
    users: list[Any], root: str | Roots, uid_min: int, options: Options, *, check: bool, patience: float = 0
) -> Report:
    """Give every user of the batch a home; see the module ``user_dir``."""
    return _batch.run(
        users, root, uid_min, partial(_work, options), check=check, patience=patience, also=True
    )


def look(storage: Storage, home: Home) -> tuple[str, int | None]:
    """Say what there is in a home's place, and open it.

    Returns:
        ``present`` and a descriptor: the home, owned by its user. ``leftover`` and a descriptor: an empty
        directory of root's. ``above`` and a descriptor: one of root's with nothing in it but other directories of the
        user's. ``absent`` and None.

    Raises:
        StorageError: anything else, which is left as it is.
    """
    directory = storage.open_home(home)
    if directory is None:
        return "absent", None
    owner = os.fstat(directory).st_uid
    if owner == home.uid:
        return "present", directory
    if owner == 0 and not os.listdir(directory):
        return "leftover", directory
    if owner == 0 and storage.holds_only_own(home, directory):
        return "above", directory
    os.close(directory)
    raise _not_the_users(home, owner)


def _not_the_users(home: Home, owner: int) -> StorageError:
    what = f"belongs to uid {owner}, not to uid {home.uid}" if owner else "belongs to root and is not empty"
    return StorageError(
        f"{printable(home.directory)} {what}: left as it is; look at it, then chown or move it"
    )


def open_present(storage: Storage, home: Home) -> int | None:
    """Open the home if its user owns it; None if it is absent, or a directory of root's that can become the user's.

    Raises:
        StorageError: as :func:`look`.
    """
    state, directory = look(storage, home)
    if state == "present" or directory is None:
        return directory
    os.close(directory)
    return None


_Repairs = list[tuple[Claim, int]]
"""Existing homes, each with a descriptor of it."""


class _Making:
    """A home that is to be made."""

    def __init__(self, claim: Claim, state: str, own: tuple[int, tuple[str, ...]] | None) -> None:
        self.claim = claim
        self.over = state != "absent"
        """A directory of root's is in its place."""
        self.above = state == "above"
        """With other directories of the user's in it."""
        self.top: int | None = own[0] if own else None
        self.inside: tuple[str, ...] = own[1] if own else ()
        """Where the user's own begins on the way, and what is left of it; :meth:`.Storage.own_above`."""
        self.staged: int | None = None
        """Descriptor of the staged directory."""

    def close(self) -> None:
        for descriptor in (self.staged, self.top):
            if descriptor is not None:
                os.close(descriptor)
        self.staged = self.top = None


def _work(options: Options, storage: Storage, claims: list[Claim]) -> None:
    parse_mode(options.mode)  # before anything is done: it fails for the whole batch
    making, repairs = [], _Repairs()
    for claim in claims:
        with claim.alone():
            state, directory = look(storage, claim.home)
            with contextlib.nullcontext() if directory is None else held(directory):
                if state == "present" and directory is not None:
                    repairs += _compare(storage, claim, directory, options)
                    continue
                if state != "absent":
                    _check_adoption(claim.home, options.adopt_empty)
                item = _Making(claim, state, storage.own_above(claim.home))
                making.append(item)
                if item.above and item.top is not None:
                    raise _not_the_users(claim.home, 0)
    _repair(storage, repairs, options)
    every, making = making, _left(making)
    _check_room(storage, making)
    skeleton = _open_skeleton(options.skeleton, making) if making else None
    try:
        if storage.check:
            _predict(storage, making, skeleton, options)
        else:
            _make(storage, making, skeleton, options)
    finally:
        if skeleton is not None:
            os.close(skeleton)
        for item in every:
            item.close()


def _check_room(storage: Storage, making: list[_Making]) -> None:
    """Let the homes fail that root would make, if the root takes none; a user's own directory may take some."""
    roots = [item for item in making if item.top is None]
    for check, some in (
        (storage.check_room, roots),
        (storage.check_moves, [item for item in roots if not item.above]),
    ):
        try:
            if some:
                check()
        except StorageError as error:
            fail_all((item.claim for item in some), error)
    making[:] = _left(making)


def _check_adoption(home: Home, adopt: str) -> None:
    """Refuse (StorageError) an empty directory of root's that was not made for this user.

    Docker leaves such a directory where it mounts what is missing. One that root made for another purpose (an inbox
    that all share, say) may be empty, too.
    """
    if adopt == "any" or (adopt == "own" and carries(home.name, home.parts)):
        return
    why = "user_dir_adopt_empty is never" if adopt == "never" else "its path does not carry the user's name"
    shown = printable(home.directory)
    raise StorageError(
        f"{shown} is a directory of root's, and {why}: if it is this user's, `chown {home.uid}:{home.gid} "
        f"{shown}`, remove it, or set user_dir_adopt_empty"
    )


def _compare(storage: Storage, claim: Claim, directory: int, options: Options) -> _Repairs:
    """Report the group and mode of an existing home; return it if they are to be repaired."""
    status = os.fstat(directory)
    mode = stat.S_IMODE(status.st_mode)
    wrong = []
    if status.st_gid != claim.home.gid:
        wrong.append(f"group is {status.st_gid}, not {claim.home.gid}")
    if mode != options.bits:
        wrong.append(f"mode is {mode:04o}, not {options.bits:04o}")
    if wrong and not options.enforce_mode:
        claim.notes.append(f"{' and '.join(wrong)}: left as it is (user_dir_enforce_mode would repair it)")
    elif wrong:
        claim.changed = True
        claim.differs(
            claim.home.directory,
            {"group": status.st_gid, "mode": f"{mode:04o}"},
            {"group": claim.home.gid, "mode": f"{options.bits:04o}"},
        )
    if not storage.check:
        claim.save(storage, {"user_dir": {"made": False}, **(claim.record or {})})
    return [(claim, os.dup(directory))] if wrong and options.enforce_mode and not storage.check else []


def _repair(storage: Storage, repairs: _Repairs, options: Options) -> None:
    """Let each user change their own home: a change waits for the directory's lock, which its user may hold."""

    def change(directory: int, gid: int) -> None:
        os.fchown(directory, -1, gid)
        os.fchmod(directory, options.bits)

    tasks = [
        claim.task(directory, partial(change, directory, claim.home.gid)) for claim, directory in repairs
    ]
    try:
        for (claim, _), answer in zip(repairs, storage.run_all(tasks, options.child_timeout)):  # noqa: B905
            claim.take(answer)
            if claim.error is not None:
                claim.changed, claim.diff = False, []
    finally:
        for _, directory in repairs:
            os.close(directory)


def _open_skeleton(path: str, making: list[_Making]) -> int | None:
    """Open the skeleton; without it all homes that are to be made fail."""
    if not path:
        return None
    try:
        return open_directory(path, "skeleton")[0]
    except StorageError as error:
        fail_all((item.claim for item in making), error)
        making.clear()
        return None


def _predict(storage: Storage, making: list[_Making], skeleton: int | None, options: Options) -> None:
    """Find out whether the homes could be made: root would have to write, each user to read the skeleton."""
    if skeleton is not None:
        try_copy = partial(copy_tree, skeleton, None, options.skeleton)
        homes = [item for item in making if item.claim.main]
        tasks = [item.claim.task(storage.root, try_copy, skeleton) for item in homes]
        for item, answer in zip(homes, storage.run_all(tasks, options.child_timeout)):  # noqa: B905
            item.claim.take(answer)
    for item in making:
        if item.claim.error is None:
            item.claim.made(options.bits, over=item.over)


def _make(storage: Storage, making: list[_Making], skeleton: int | None, options: Options) -> None:
    """Stage all, bring all onto the disk at once, reveal all."""
    _make_inside(storage, [item for item in making if item.top is not None], skeleton, options)
    making = [item for item in making if item.top is None]
    for item in making:
        with item.claim.alone():
            _stage(storage, item)
    _fill(storage, _left(making), skeleton, options)
    for item in _left(making):
        with item.claim.alone():
            _finish_stage(item, options)
    staged = _left(making)
    if staged:
        try:
            sync(storage.state.stage)
        except OSError as error:
            fail_all((item.claim for item in staged), error)
    for item in _left(making):
        with item.claim.alone():
            _reveal(storage, item, options)
            item.claim.made(options.bits, over=item.over)
            item.claim.save(storage, {"user_dir": {"made": True}})
    for item in making:
        if item.claim.error is not None and item.staged is not None:
            item.close()
            item.claim.notes += storage.state.clear(item.claim.home.stage)


def _left(making: list[_Making]) -> list[_Making]:
    return [item for item in making if item.claim.error is None]


def _forget(storage: Storage, claim: Claim) -> None:
    """What was done to a home that is gone does not count for the new one. Before that appears."""
    if claim.record is not None and set(claim.record) - {"name", "directory"}:
        claim.save(storage, {})


def _stage(storage: Storage, item: _Making) -> None:
    """Make an empty directory for the user where nobody can reach it."""
    claim = item.claim
    _forget(storage, claim)
    if item.above:
        return
    stage, name = storage.state.stage, claim.home.stage
    claim.notes += storage.state.clear(name)
    os.mkdir(name, 0o700, dir_fd=stage)
    item.staged = os.open(name, DIRECTORY, dir_fd=stage)
    _acls.drop(item.staged)
    status = os.fstat(item.staged)
    home = claim.home
    if (status.st_uid, status.st_gid) == (home.uid, home.gid):  # a squashed file system refuses any chown
        return
    try:
        os.fchown(item.staged, home.uid, home.gid)
    except PermissionError:
        if status.st_uid != home.uid:
            raise
        raise StorageError(
            f"what is made here has the group {status.st_gid}, not {home.gid}, and that cannot be changed: set gid to "
            f"{status.st_gid}"
        ) from None


def _fill(storage: Storage, making: list[_Making], skeleton: int | None, options: Options) -> None:
    """Copy the skeleton into each staged home, as its user."""
    if skeleton is None:
        return
    staged = [item for item in making if item.claim.main and not item.above]
    tasks = [
        item.claim.task(item.staged, partial(copy_tree, skeleton, item.staged, options.skeleton), skeleton)
        for item in staged
        if item.staged is not None
    ]
    for item, answer in zip(staged, storage.run_all(tasks, options.child_timeout)):  # noqa: B905
        item.claim.take(answer)


def _finish_stage(item: _Making, options: Options) -> None:
    if item.staged is not None:
        os.fchmod(item.staged, options.bits)


def _reveal(storage: Storage, item: _Making, options: Options) -> None:
    """Put the staged home in its place, in one step."""
    home, stage = item.claim.home, storage.state.stage
    shown = printable(home.directory)
    try:
        with storage.unchanged_above(home), held(storage.make_room(home)) as parent:
            if item.above:
                item.claim.save(
                    storage, {"user_dir": {"made": True}}
                )  # first: who looks above knows whose it will be
                _take(storage, parent, item, options)
                return
            if not item.over:
                rename_directory(stage, home.stage, parent, home.parts[-1])
                return
            try:
                # Replaces an empty directory and nothing else: the kernel looks and acts in one step.
                os.rename(home.stage, home.parts[-1], src_dir_fd=stage, dst_dir_fd=parent)
            except OSError as error:
                # btrfs says that a subvolume is not empty, whatever is in it.
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise
                _take(storage, parent, item, options)
                item.claim.notes += storage.state.clear(home.stage)
    except FileExistsError:
        raise StorageError(f"{shown} was made by somebody else at this moment: run again") from None
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise StorageError(f"{shown} is not empty any more: left as it is") from None
        if error.errno == errno.EXDEV:
            raise StorageError(
                f"{shown} is on another mount than {storage.state.path}, from where homes are moved to their places: "
                "let a storage root be on that mount, or have the home made before its user starts"
            ) from None
        raise


def _take(storage: Storage, parent: int, item: _Making, options: Options) -> None:
    """Give the user what is in the home's place and cannot be replaced.

    That is the empty top of a file system or subvolume, or a directory with nothing in it but others of the user's.
    """
    home = item.claim.home
    with opened(home.parts[-1], DIRECTORY, parent) as directory:
        if os.fstat(directory).st_uid != 0 or not storage.holds_only_own(home, directory):
            raise StorageError(f"{printable(home.directory)} is not empty any more: left as it is")
        os.fchmod(directory, options.bits)
        os.fchown(directory, home.uid, home.gid)  # last: until then the next run finds it as this one did
        sync(directory)
    if options.skeleton and item.claim.main:
        what = (
            "has other directories of the user's in it"
            if item.above
            else "is a mounted file system or a subvolume"
        )
        item.claim.notes.append(f"{what}: the skeleton was not copied")


def _make_inside(storage: Storage, making: list[_Making], skeleton: int | None, options: Options) -> None:
    """Have each user make their own directory inside another one of theirs; root makes no name there."""
    ready, tasks = [], []
    for item in making:
        with item.claim.alone():
            _forget(storage, item.claim)
        if item.top is not None and item.claim.error is None:
            filled = skeleton if item.claim.main else None
            work = partial(_inside, item.top, item, filled, options)
            tasks.append(item.claim.task(item.top, work, *(() if filled is None else (filled,))))
            ready.append(item)
    for item, answer in zip(ready, storage.run_all(tasks, options.child_timeout)):  # noqa: B905
        item.claim.take(answer)
        if answer.error is None:
            with item.claim.alone():
                item.claim.made(options.bits, over=item.over)
                item.claim.save(storage, {"user_dir": {"made": True}})


def _inside(top: int, item: _Making, skeleton: int | None, options: Options) -> None:
    """Make the directory, whole or not at all; runs with the user's rights."""
    home, above, name = item.claim.home, item.inside[:-1], item.inside[-1]
    stage = f"{STATE_DIRECTORY}-{home.id[:16]}"
    with held(enter(top, above, "in the user's own directory", make=True)) as parent:
        remove_tree(parent, stage)  # of a run that was killed
        try:
            os.mkdir(stage, 0o700, dir_fd=parent)
            with opened(stage, DIRECTORY, parent) as made:
                _acls.drop(made)
                if skeleton is not None:
                    copy_tree(skeleton, made, options.skeleton)
                if os.fstat(made).st_gid != home.gid:
                    os.fchown(made, -1, home.gid)
                os.fchmod(made, options.bits)
                if skeleton is not None:
                    sync(made)
            if item.over:  # replaces an empty directory and nothing else
                os.rename(stage, name, src_dir_fd=parent, dst_dir_fd=parent)
            else:
                rename_directory(parent, stage, parent, name)
        except OSError as error:
            with contextlib.suppress(OSError, StorageError):
                remove_tree(parent, stage)
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                raise StorageError(
                    f"{printable(home.directory)} was changed at this moment: run again"
                ) from None
            raise
