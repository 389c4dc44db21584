# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Put tutorials into one home: what a child does there, with the user's rights and no others.

Every function here runs in a process of ``_as_user``. The home is the user's, who may change anything
in it at any moment; whatever they put in the way costs only themselves.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass

from ._errors import StorageError, explain, printable
from ._files import DIRECTORY, exists, rename_directory
from ._trees import copy_tree, remove_tree

Found = dict[str, dict[str, str]]
"""By source: ``{"is": "absent" | "exists" | "staged" | "placed"}``, or ``{"error": sentence}``."""


@dataclass(frozen=True)
class Placing:
    """One tutorial on its way.

    Attributes:
        name: of the source.
        dest: path components in the home.
        stage: name, in the home, of the directory it is made in; "" if there never was one.
        tree: descriptor of the content.
        where: what the source is called in errors.
    """

    name: str
    dest: tuple[str, ...]
    stage: str = ""
    tree: int = -1
    where: str = ""


def look_at(home: int, placings: Sequence[Placing]) -> Found:
    """Say of each what is in its place; ``staged`` if its stage is still there."""
    found: Found = {}
    for placing in placings:
        try:
            if placing.stage and exists(home, placing.stage):
                found[placing.name] = {"is": "staged"}
            else:
                found[placing.name] = {"is": "exists" if _occupied(home, placing.dest) else "absent"}
        except (StorageError, OSError) as error:
            found[placing.name] = {"error": _sentence(error)}
    return found


def stage(home: int, placings: Sequence[Placing]) -> Found:
    """Copy each into its stage, unless its place is taken. What an earlier run left there goes first."""
    found: Found = {}
    for placing in placings:
        try:
            remove_tree(home, placing.stage)
            if _occupied(home, placing.dest):
                found[placing.name] = {"is": "exists"}
                continue
            _copy(home, placing)
            found[placing.name] = {"is": "staged"}
        except (StorageError, OSError) as error:
            found[placing.name] = {"error": _sentence(error)}
            with contextlib.suppress(OSError):
                remove_tree(home, placing.stage)
    return found


def _copy(home: int, placing: Placing) -> None:
    os.mkdir(placing.stage, 0o700, dir_fd=home)
    inside = os.open(placing.stage, DIRECTORY, dir_fd=home)
    try:
        copy_tree(placing.tree, inside, placing.where)
        os.fchmod(inside, 0o755)  # noqa: S103 - like any directory a user makes; the home's mode shuts others out
    finally:
        os.close(inside)


def reveal(home: int, placings: Sequence[Placing]) -> Found:
    """Put each stage in its place, in one step, unless that was taken meanwhile; what cannot be placed goes."""
    found: Found = {}
    for placing in placings:
        try:
            parent = _enter(home, placing.dest[:-1], make=True)
            try:
                rename_directory(home, placing.stage, parent, placing.dest[-1])
            finally:
                os.close(parent)
            found[placing.name] = {"is": "placed"}
        except FileExistsError:
            found[placing.name] = {"is": "exists"}
            with contextlib.suppress(OSError):
                remove_tree(home, placing.stage)
        except (StorageError, OSError) as error:
            # The stage stays until that is recorded (:func:`drop`): one that is gone was put in its place.
            found[placing.name] = {"error": _sentence(error)}
    return found


def drop(home: int, stages: Sequence[str]) -> None:
    """Remove stages that could not be put in their places; what cannot be removed is left to the next run."""
    for name in stages:
        with contextlib.suppress(OSError, StorageError):
            remove_tree(home, name)


def _occupied(home: int, dest: Sequence[str]) -> bool:
    try:
        parent = _enter(home, dest[:-1], make=False)
    except FileNotFoundError:
        return False
    try:
        return exists(parent, dest[-1])
    finally:
        os.close(parent)


def _enter(home: int, parts: Sequence[str], *, make: bool) -> int:
    """Open a directory in the home; no link is followed."""
    current = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=home)
    for depth, part in enumerate(parts, start=1):
        try:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=current)
            inner = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            shown = printable("/".join(parts[:depth]))
            raise StorageError(f"{shown}, in the home, is not a directory (links are not followed)") from None
        finally:
            os.close(current)
        current = inner
    return current


def _sentence(error: Exception) -> str:
    return explain(error) if isinstance(error, OSError) else str(error)
