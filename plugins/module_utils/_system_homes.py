# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""The role ``mkhomedir``: the system's own ``mkhomedir_helper`` makes the homes of system users.

The helper makes the home as root with mode 0700, copies the skeleton, gives each copy to the user, then
chmods the home itself, and chowns it last. Killed half-way it leaves a home of root's, and asked again it
says that all is well. What it left is told by owner and mode:

* the user's: never touched. The helper came to its end; but with no space left in a subdirectory it goes on, gives
  the user what there is, and exits with 6. Such a home is taken back at once. If we were killed before that, then
  by the next run: when it was begun, and holds a beginning of the skeleton and no more.
* root's and shut (no rights for group and others): if all it holds is a beginning of the skeleton, byte for byte,
  it is moved away, looked at once more, and made anew. Its user may have been in it, and may still have a
  working directory there: it is looked at again before it is removed as ``_trees.discard`` does it, and what the user
  has done since is kept.
* root's and open, and recorded as begun: only the last chown is missing. The user may have written to
  the files in it already, so that chown is all that is done.
* root's and shut, recorded as begun, with something else in it: its user had a working directory in it when it was
  taken back, and has worked on. It is given back as it is.
* anything else is left as it is, with a message.

The helper inherits the home's lock, so no other run of ours looks at a home that is still being made. A login
may make one too; such a home is known by its age.
"""

from __future__ import annotations

import errno
import os
import posixpath
import secrets
import time
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from . import _acls, _batch
from ._batch import Claim
from ._descriptors import DIRECTORY, held, opened
from ._errors import StorageError, printable
from ._files import open_parent, rename_directory
from ._mkhomedir_helper import Options, find_helper, open_skeleton, run_helper
from ._names import UserRefusedError
from ._partial_homes import is_partial, lacks_only_its_owner, other_than_skeleton
from ._report import Report
from ._storage import Home, Roots, Storage
from ._users import system_user

SETTLED = 60.0
"""Seconds of silence after which a partial home that is not ours counts as given up."""


def ensure(
    users: list[Any], root: str | Roots, uid_min: int, options: Options, *, check: bool, patience: float = 0
) -> Report:
    """Have a home made for every user of the batch; see the module ``mkhomedir``."""
    return _batch.run(users, root, uid_min, partial(_work, options), check=check, patience=patience)


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
                    if state not in ("finished", "worked"):
                        _check_acl(storage, claim.home, mode)
                        storage.check_moves()  # what a killed helper leaves is moved away
                    making.append((claim, state))
                elif _began(claim):
                    ready.append(claim)
                elif not storage.check:
                    claim.save(storage, {"mkhomedir": {"made": False}, **(claim.record or {})})
        if storage.check:
            for claim, state in making:
                claim.made(mode, over=state != "absent")
        elif making or ready:
            ready += _make(storage, making, helper, skeleton, options)
            storage.sync()
            for claim in ready:
                with claim.alone():
                    claim.notes += _drop_taken(storage, claim.home, skeleton)
                    claim.save(storage, {**(claim.record or {}), "mkhomedir": {"made": True}})
    finally:
        os.close(skeleton)


def _make(
    storage: Storage, making: list[tuple[Claim, str]], helper: str, skeleton: int, options: Options
) -> list[Claim]:
    """Make the homes, or complete them; return the claims for which that was done."""
    done = []
    for claim, _ in making:
        with claim.alone():
            # What was done to a home that is gone does not count for the new one.
            claim.save(storage, {"mkhomedir": {"began": True}})
    storage.sync()  # else a power cut could leave a partial home and forget that we had begun
    for claim, state in making:
        if claim.error is not None:
            continue
        with claim.alone():
            if state in ("finished", "worked"):
                _give(storage, claim.home, options.mode)
            else:
                if state == "partial":
                    _take_back(storage, claim.home, skeleton)
                _clear(storage, claim, state, skeleton)
                try:
                    run_helper(helper, claim.home.name, options, claim.keep)
                except StorageError:
                    _take_back(storage, claim.home, skeleton)
                    raise
                _check_made(storage, claim)
            claim.made(options.mode, over=state != "absent")
            done.append(claim)
    return done


# Looking


def _began(claim: Claim) -> bool:
    return bool((claim.record or {}).get("mkhomedir", {}).get("began"))


def _check_account(home: Home) -> None:
    """Refuse whoever the helper would not know, or know otherwise than we do."""
    try:
        account = system_user(home.name)
    except UserRefusedError as error:
        raise StorageError(str(error)) from None
    if account is None:
        raise StorageError(
            f"is not a system user of the storage host: make the account (`getent passwd {home.name!a}` must know it)"
        )
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


def _check_acl(storage: Storage, home: Home, mode: int) -> None:
    """Refuse a place in which a new home would let more people in than its mode says.

    The helper takes what is handed on, and opens the home itself: nothing can be taken from it in between.
    """
    if not _acls.widens(mode):
        return
    depth = len(home.parts)
    while (above := open_parent(storage.root, home.parts[:depth], make=False)) is None:
        depth -= 1  # what is still to be made takes it from what there is; the storage root is there
    with held(above):
        handed_on = _acls.hands_on(above)
    if handed_on:
        place = printable(str(PurePosixPath(home.directory).parents[len(home.parts) - depth]))
        raise StorageError(
            f"{place} has a default ACL, by which others than its owner and group would get into a home of mode "
            f'{mode:04o}: remove it with `setfacl -k {place}`, or set mkhomedir_umask to "0077"'
        )


def _look(storage: Storage, claim: Claim, skeleton: int, mode: int) -> str:  # noqa: PLR0911
    """Say what there is in a home's place.

    Returns:
        ``absent``; ``present``, the user's; ``leftover``, an empty directory of root's; ``partial``, to be
        made anew; ``finished`` but for the last chown; or ``worked`` in by its user, who had a working directory
        in it when it was taken back.

    Raises:
        StorageError: anything else, which is left as it is.
    """
    home = claim.home
    own = storage.own_above(home)
    if own is not None:  # the helper would make names there, as root
        os.close(own[0])
        raise StorageError(
            f"{printable(home.directory)} lies inside a directory of the user's own: mkhomedir makes no such home, "
            "user_dir does"
        )
    with storage.opened_home(home) as directory:
        if directory is None:
            return "absent"
        status = os.fstat(directory)
        if status.st_uid == home.uid:
            if _began(claim) and is_partial(directory, skeleton, home.uid):
                return "partial"
            if status.st_gid != home.gid:
                claim.notes.append(f"group is {status.st_gid}, not {home.gid}: left as it is")
            return "present"
        if status.st_uid != 0:
            why = f"belongs to uid {status.st_uid}, not to uid {home.uid}"
        elif status.st_mode & 0o077:
            if not os.listdir(directory):
                return "leftover"
            if _began(claim) and lacks_only_its_owner(directory, skeleton, home.uid, mode):
                return "finished"
            why = "belongs to root, is not empty, and others than root may have been in it"
        else:
            times = [status.st_ctime]
            other = other_than_skeleton(directory, skeleton, home.uid, times)
            if other is None:
                _check_settled(claim, times)
                return "partial"
            if _began(claim):
                claim.notes.append(f"its user has worked in it ({other}), so it is given back as it is")
                return "worked"
            why = f"belongs to root, and in it {other}"
    raise StorageError(f"{printable(home.directory)} {why}: left as it is; look at it, then chown or move it")


def _check_settled(claim: Claim, times: list[float]) -> None:
    """Refuse a partial home that was not begun by a run of ours, and has just been changed."""
    now = time.time()
    # A time to come is from before the clock was set back: nobody is at it at this moment.
    if not _began(claim) and any(0 <= now - changed < SETTLED for changed in times):
        raise StorageError(
            f"{printable(claim.home.directory)} is being made at this moment, by a login maybe: "
            f"run again in {SETTLED:g} s"
        )


# Doing


def _clear(storage: Storage, claim: Claim, state: str, skeleton: int) -> None:
    """Make room for a home: what is in its place goes away, the directories above it are made."""
    home = claim.home
    try:
        with held(storage.make_room(home)) as parent:
            if state == "leftover":
                os.rmdir(home.parts[-1], dir_fd=parent)
            elif state == "partial":
                claim.notes += _drop_taken(storage, home, skeleton)
                _take_away(storage, home, parent, skeleton)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise StorageError(f"{printable(home.directory)} is not empty any more: left as it is") from None
        if error.errno in (errno.EBUSY, errno.EXDEV):
            raise StorageError(
                f"{printable(home.directory)} is a mounted file system, or on another mount than {storage.state.path}: "
                "unmount it, or give it to the user with chown"
            ) from None
        raise


def _take_away(storage: Storage, home: Home, parent: int, skeleton: int) -> None:
    """Move a partial home to where only root comes. Its user may hold its lock: so into a directory of its own.

    Raises:
        StorageError: whoever was in it has worked on, so it was given back.
    """
    os.mkdir(f"{home.stage}-taken", 0o700, dir_fd=storage.state.stage)
    with opened(f"{home.stage}-taken", DIRECTORY, storage.state.stage) as taken:
        rename_directory(parent, home.parts[-1], taken, "home")
        other = _seen_again(taken, skeleton, home)
        if other is not None:
            rename_directory(taken, "home", parent, home.parts[-1])
            raise StorageError(f"{printable(home.directory)} was changed at this moment ({other}): run again")


def _seen_again(taken: int, skeleton: int, home: Home) -> str | None:
    """Name what came into a partial home since it was last looked at."""
    try:
        moved = os.open("home", DIRECTORY, dir_fd=taken)
    except FileNotFoundError:  # it was not moved, or given back
        return None
    with held(moved):
        return other_than_skeleton(moved, skeleton, home.uid, [])


def _drop_taken(storage: Storage, home: Home, skeleton: int) -> list[str]:
    """Remove a home that was taken away, this time or by a run that was killed; if its user has worked on, keep it.

    Returns:
        Notes for the admin.
    """
    try:
        taken = os.open(f"{home.stage}-taken", DIRECTORY, dir_fd=storage.state.stage)
    except FileNotFoundError:
        return []
    with held(taken):
        other = _seen_again(taken, skeleton, home)
    if other is None:
        return storage.state.clear(home.stage, "-taken")
    kept = f"kept-{secrets.token_hex(8)}"
    os.rename(f"{home.stage}-taken", kept, src_dir_fd=storage.state.stage, dst_dir_fd=storage.state.stage)
    return [
        f"its user has worked in the half-made home that was replaced ({other}): that is in "
        f"{storage.state.path}/stage/{kept}/home; give its user what is theirs, and remove it"
    ]


def _take_back(storage: Storage, home: Home, skeleton: int) -> None:
    """Shut out the user from a home that is only begun, if they were given it."""
    with storage.opened_home(home) as directory:
        if directory is None or os.fstat(directory).st_uid != home.uid:
            return
        if is_partial(directory, skeleton, home.uid):
            os.fchmod(directory, 0o700)
            os.fchown(directory, 0, 0)


def _give(storage: Storage, home: Home, mode: int) -> None:
    """Do what the helper had left to do."""
    with storage.opened_home(home) as directory:
        if directory is None:
            raise StorageError(f"{printable(home.directory)} disappeared: run again")
        os.fchown(directory, home.uid, home.gid)
        os.fchmod(directory, mode)


def _check_made(storage: Storage, claim: Claim) -> None:
    """See that the home is there which the helper says it has made."""
    home = claim.home
    with storage.opened_home(home) as directory:
        if directory is None:
            raise StorageError(
                f"mkhomedir_helper reports success, and {printable(home.directory)} does not exist"
            )
        status = os.fstat(directory)
    if (status.st_uid, status.st_gid) != (home.uid, home.gid):
        # Not what we had begun: the next run must not take it from whoever is still at work there.
        claim.save(storage, {"mkhomedir": {"made": False}})
        raise StorageError(
            f"{printable(home.directory)} has owner {status.st_uid} and group {status.st_gid} after "
            "mkhomedir_helper: somebody else, a login maybe, was making it at this moment: run again"
        )
