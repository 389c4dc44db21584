# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""How far ``mkhomedir_helper`` came with a home: what is there is held against the skeleton, byte for byte."""

from __future__ import annotations

import os
import stat

from ._descriptors import DIRECTORY, opened
from ._errors import printable

_COPIED = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
"""What the helper copies; it leaves out all else."""


def lacks_only_its_owner(directory: int, skeleton: int, uid: int, mode: int) -> bool:
    """Say whether the helper had copied all, and opened the home.

    Only root can add or remove names in the home itself, so these are still the helper's. What is below
    them may be the user's own work by now.
    """
    if stat.S_IMODE(os.fstat(directory).st_mode) != mode:
        return False
    names = os.listdir(directory)
    if any(os.stat(name, dir_fd=directory, follow_symlinks=False).st_uid != uid for name in names):
        return False
    models = {
        name: os.stat(name, dir_fd=skeleton, follow_symlinks=False).st_mode for name in os.listdir(skeleton)
    }
    return set(names) == {name for name, mode in models.items() if stat.S_IFMT(mode) in _COPIED}


def other_than_skeleton(directory: int, skeleton: int, uid: int, times: list[float]) -> str | None:
    """Name the first thing below ``directory`` that is no beginning of a copy of the skeleton.

    Args:
        directory: the home, or a directory in it. It may be the user's already, who may change it meanwhile.
        skeleton: the skeleton's directory of the same place.
        uid: whose the home shall be.
        times: gets the ctime of everything seen.
    """
    with os.scandir(directory) as entries:  # not a list: its user may have made a million
        others = (_other(directory, skeleton, entry.name, uid, times) for entry in entries)
        return next(filter(None, others), None)


def _other(directory: int, skeleton: int, name: str, uid: int, times: list[float]) -> str | None:
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
        with opened(name, DIRECTORY, directory) as inner, opened(name, DIRECTORY, skeleton) as same:
            return other_than_skeleton(inner, same, uid, times)
    elif form == stat.S_IFLNK:
        if os.readlink(name, dir_fd=directory) != os.readlink(name, dir_fd=skeleton):
            return f"{shown} is not the skeleton's"
    elif form != stat.S_IFREG or not _begins_alike(directory, skeleton, name):
        return f"{shown} is not the skeleton's"
    return None


def _begins_alike(directory: int, skeleton: int, name: str) -> bool:
    """Say whether the file is as the skeleton's, as far as it goes."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # nobody waits at a FIFO put there
    with opened(name, flags, directory) as file, opened(name, flags, skeleton) as model:
        place = 0
        while chunk := os.pread(file, 1 << 16, place):
            if os.pread(model, len(chunk), place) != chunk:
                return False
            place += len(chunk)
    return True


def is_whole(directory: int, skeleton: int, uid: int) -> bool:
    """Say whether what is no more than a beginning of a copy of the skeleton is all of it, and the user's."""
    for name in os.listdir(skeleton):
        model = os.stat(name, dir_fd=skeleton, follow_symlinks=False)
        form = stat.S_IFMT(model.st_mode)
        if form not in _COPIED:
            continue
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if status.st_uid != uid or (form == stat.S_IFREG and status.st_size != model.st_size):
            return False
        if form == stat.S_IFDIR:
            with opened(name, DIRECTORY, directory) as inner, opened(name, DIRECTORY, skeleton) as same:
                if not is_whole(inner, same, uid):
                    return False
    return True


def is_partial(directory: int, skeleton: int, uid: int) -> bool:
    """Say whether a copy of the skeleton was begun here and nothing else was ever done: nothing is lost with it."""
    return other_than_skeleton(directory, skeleton, uid, []) is None and not is_whole(
        directory, skeleton, uid
    )
