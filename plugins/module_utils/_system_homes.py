# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""The role ``mkhomedir``: the system's own ``mkhomedir_helper`` makes the homes of system users.

The helper makes the home as root with mode 0700, copies the skeleton, gives each copy to the user, then
chmods the home itself, and chowns it last. Killed half-way it leaves a home of root's, and asked again it
says that all is well. What it left is told by owner and mode:

* the user's: the helper came to its end. Never touched.
* root's and shut (no rights for group and others): nobody but root was ever in it. If all it holds is a
  beginning of the skeleton, byte for byte, it is moved away and made anew: nothing can be lost by that.
* root's and open, and recorded as begun: only the last chown is missing. The user may have written to
  the files in it already, so that chown is all that is done.
* anything else is left as it is, with a message.

The helper inherits the home's lock, so no other run of ours looks at a home that is still being made. A login
may make one too; such a home is known by its age.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import pwd
import re
import stat
import time
from functools import partial
from typing import Any

from . import _batch
from ._batch import Claim, Home, Report, Storage
from ._errors import StorageError, printable
from ._files import DIRECTORY, kind, open_parent, rename_directory, sync
from ._mkhomedir_helper import Options, find_helper, open_skeleton, run_helper
from ._trees import remove_tree

SETTLED = 60.0
"""Seconds of silence after which a partial home that is not ours counts as given up."""

_SYSTEM_NAME = re.compile(r"[a-z_][a-z0-9_.-]{0,30}\Z")


def ensure(users: list[Any], root: str, uid_min: int, options: Options, *, check: bool) -> Report:
    """Have a home made for every user of the batch; see the module ``mkhomedir``."""
    return _batch.run(users, root, uid_min, partial(_work, options), check=check)


def _work(options: Options, storage: Storage, claims: list[Claim]) -> None:
    # Mistakes of the admin's are everybody's.
    mode = options.mode
    helper = find_helper(options.helper)
    if os.geteuid() != 0:
        raise StorageError("mkhomedir_helper needs root: let Ansible become root on the storage host")
    skeleton = open_skeleton(options.skeleton)
    try:
        making: list[tuple[Claim, str]] = []
        ready = []
        for claim in claims:
            with claim.alone():
                _check_account(claim.home)
                state = _look(storage, claim, skeleton, mode)
                if state != "present":
                    making.append((claim, state))
                elif _began(claim):
                    ready.append(claim)
                elif not storage.check:
                    claim.save(storage, {"mkhomedir": {"made": False}, **(claim.record or {})})
        if storage.check:
            for claim, state in making:
                _changed(claim, state, mode)
        elif making or ready:
            ready += _make(storage, making, helper, options)
            sync(storage.root)
            for claim in ready:
                with claim.alone():
                    claim.save(storage, {**(claim.record or {}), "mkhomedir": {"made": True}})
    finally:
        os.close(skeleton)


def _make(storage: Storage, making: list[tuple[Claim, str]], helper: str, options: Options) -> list[Claim]:
    """Make the homes, or complete them; return the claims for which that was done."""
    done = []
    for claim, _ in making:
        with claim.alone():
            # What was done to a home that is gone does not count for the new one.
            claim.save(storage, {"mkhomedir": {"began": True}})
    sync(storage.root)  # else a power cut could leave a partial home and forget that we had begun
    for claim, state in making:
        if claim.error is not None:
            continue
        with claim.alone():
            if state == "finished":
                _give(storage, claim.home, options.mode)
            else:
                _clear(storage, claim.home, state)
                run_helper(helper, claim.home.name, options, claim.keep)
                _check_made(storage, claim)
            _changed(claim, state, options.mode)
            done.append(claim)
    for claim, state in making:
        if state == "partial":
            with contextlib.suppress(OSError):  # the next run sweeps it
                remove_tree(storage.state.stage, claim.home.id)
    return done


# Looking


def _began(claim: Claim) -> bool:
    done = (claim.record or {}).get("mkhomedir")
    return isinstance(done, dict) and bool(done.get("began"))


def _check_account(home: Home) -> None:
    """Refuse whoever the helper would not know, or know otherwise than we do."""
    if not _SYSTEM_NAME.match(home.name):
        raise StorageError(
            "cannot be a system user's name: it has lower-case letters, digits and _ . - and begins with a letter or _"
        )
    try:
        account = pwd.getpwnam(home.name)
    except KeyError:
        raise StorageError(
            f"is not a system user of the storage host: make the account (`getent passwd {home.name}` must know it)"
        ) from None
    if posixpath.normpath(account.pw_dir) != home.directory:
        raise StorageError(
            f"the system's home of this user is {printable(account.pw_dir)}, not {printable(home.directory)}: "
            "mkhomedir makes no other, user_dir does"
        )
    if (account.pw_uid, account.pw_gid) != (home.uid, home.gid):
        raise StorageError(
            f"the system's uid and gid of this user are {account.pw_uid} and {account.pw_gid}, "
            f"not {home.uid} and {home.gid}: set uid and gid to 'nss'"
        )


def _open_home(storage: Storage, home: Home) -> int | None:
    """Open what is in the home's place; None if that is nothing."""
    parent = open_parent(storage.root, home.parts, make=False)
    if parent is None:
        return None
    name = home.parts[-1]
    try:
        return os.open(name, DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        what = kind(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
        raise StorageError(f"{printable(home.directory)} is {what}, not a directory: left as it is") from None
    finally:
        os.close(parent)


def _look(storage: Storage, claim: Claim, skeleton: int, mode: int) -> str:
    """Say what there is in a home's place.

    Returns:
        ``absent``; ``present``, the user's; ``leftover``, an empty directory of root's; ``partial``, to be
        made anew; or ``finished`` but for the last chown.

    Raises:
        StorageError: anything else, which is left as it is.
    """
    home = claim.home
    directory = _open_home(storage, home)
    if directory is None:
        return "absent"
    try:
        status = os.fstat(directory)
        if status.st_uid == home.uid:
            if status.st_gid != home.gid:
                claim.notes.append(f"group is {status.st_gid}, not {home.gid}: left as it is")
            return "present"
        if status.st_uid != 0:
            why = f"belongs to uid {status.st_uid}, not to uid {home.uid}"
        elif status.st_mode & 0o077:
            if not os.listdir(directory):
                return "leftover"
            if _began(claim) and _lacks_only_the_owner(directory, skeleton, home, status, mode):
                return "finished"
            why = "belongs to root, is not empty, and others than root may have been in it"
        else:
            times = [status.st_ctime]
            other = _other_than_skeleton(directory, skeleton, home.uid, times)
            if other is None:
                if not _began(claim) and time.time() - max(times) < SETTLED:
                    raise StorageError(
                        f"{printable(home.directory)} is being made at this moment, by a login maybe: "
                        f"run again in {SETTLED:g} s"
                    )
                return "partial"
            why = f"belongs to root, and in it {other}"
        raise StorageError(
            f"{printable(home.directory)} {why}: left as it is; look at it, then chown or move it"
        )
    finally:
        os.close(directory)


def _lacks_only_the_owner(
    directory: int, skeleton: int, home: Home, status: os.stat_result, mode: int
) -> bool:
    """Say whether the helper had copied all, and opened the home.

    Only root can add or remove names in the home itself, so these are still the helper's. What is below
    them may be the user's own work by now.
    """
    if stat.S_IMODE(status.st_mode) != mode:
        return False
    names = set(os.listdir(directory))
    for name in names:
        if os.stat(name, dir_fd=directory, follow_symlinks=False).st_uid != home.uid:
            return False
    copied = set()
    for name in os.listdir(skeleton):
        form = stat.S_IFMT(os.stat(name, dir_fd=skeleton, follow_symlinks=False).st_mode)
        if form in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            copied.add(name)
    return names == copied


def _other_than_skeleton(directory: int, skeleton: int, uid: int, times: list[float]) -> str | None:
    """Name the first thing below ``directory`` that is no beginning of a copy of the skeleton.

    Args:
        directory: the home, or a directory in it; nobody but root gets there.
        skeleton: the skeleton's directory of the same place.
        uid: whose the home shall be.
        times: gets the ctime of everything seen.
    """
    for name in sorted(os.listdir(directory)):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        times.append(status.st_ctime)
        shown = printable(name)
        try:
            model = os.stat(name, dir_fd=skeleton, follow_symlinks=False)
        except FileNotFoundError:
            return f"{shown} is not of the skeleton"
        form = stat.S_IFMT(status.st_mode)
        if status.st_uid not in (0, uid) or form != stat.S_IFMT(model.st_mode):
            return f"{shown} is not the skeleton's"
        if form == stat.S_IFDIR:
            inner, inner_model = (os.open(name, DIRECTORY, dir_fd=place) for place in (directory, skeleton))
            try:
                other = _other_than_skeleton(inner, inner_model, uid, times)
            finally:
                os.close(inner)
                os.close(inner_model)
            if other is not None:
                return other
        elif form == stat.S_IFLNK:
            if os.readlink(name, dir_fd=directory) != os.readlink(name, dir_fd=skeleton):
                return f"{shown} is not the skeleton's"
        elif form != stat.S_IFREG or not _begins_alike(directory, skeleton, name):
            return f"{shown} is not the skeleton's"
    return None


def _begins_alike(directory: int, skeleton: int, name: str) -> bool:
    """Say whether the file is as the skeleton's, as far as it goes."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=directory), "rb") as file:  # noqa: SIM117  # for Python 3.9
        with open(os.open(name, flags, dir_fd=skeleton), "rb") as model:
            while True:
                chunk = file.read(1 << 16)
                if not chunk:
                    return True
                if model.read(len(chunk)) != chunk:
                    return False


# Doing


def _clear(storage: Storage, home: Home, state: str) -> None:
    """Make room for a home: what is in its place goes away, the directories above it are made."""
    parent = open_parent(storage.root, home.parts, make=True)
    if parent is None:
        raise StorageError(f"{printable(home.directory)}: the directory above it disappeared")
    name = home.parts[-1]
    try:
        if state == "leftover":
            os.rmdir(name, dir_fd=parent)
        elif state == "partial":
            remove_tree(storage.state.stage, home.id)
            rename_directory(parent, name, storage.state.stage, home.id)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise StorageError(f"{printable(home.directory)} is not empty any more: left as it is") from None
        if error.errno in (errno.EBUSY, errno.EXDEV):
            raise StorageError(
                f"{printable(home.directory)} is a mounted file system, or on another one than the storage root: "
                "unmount it, or give it to the user with chown"
            ) from None
        raise
    finally:
        os.close(parent)


def _give(storage: Storage, home: Home, mode: int) -> None:
    """Do what the helper had left to do."""
    directory = _open_home(storage, home)
    if directory is None:
        raise StorageError(f"{printable(home.directory)} disappeared: run again")
    try:
        os.fchown(directory, home.uid, home.gid)
        os.fchmod(directory, mode)
    finally:
        os.close(directory)


def _check_made(storage: Storage, claim: Claim) -> None:
    """See that the home is there which the helper says it has made."""
    home = claim.home
    directory = _open_home(storage, home)
    if directory is None:
        raise StorageError(
            f"mkhomedir_helper reports success, and {printable(home.directory)} does not exist"
        )
    status = os.fstat(directory)
    os.close(directory)
    if (status.st_uid, status.st_gid) != (home.uid, home.gid):
        # Not what we had begun: the next run must not take it from whoever is still at work there.
        claim.save(storage, {"mkhomedir": {"made": False}})
        raise StorageError(
            f"{printable(home.directory)} has owner {status.st_uid} and group {status.st_gid} after "
            "mkhomedir_helper: somebody else, a login maybe, was making it at this moment: run again"
        )


def _changed(claim: Claim, state: str, mode: int) -> None:
    home = claim.home
    claim.changed = True
    before: dict[str, Any] = {"state": "absent"} if state == "absent" else {"state": "directory", "owner": 0}
    after = {"state": "directory", "owner": home.uid, "group": home.gid, "mode": f"{mode:04o}"}
    claim.differs(home.directory, before, after)
