# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Put tutorials into one home: what a child does there, with the user's rights and no others.

Every function here runs in a process of ``_as_user``. The home is the user's, who may change anything
in it at any moment; whatever they put in the way costs only themselves.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from ._descriptors import DIRECTORY, held, opened
from ._errors import StorageError, sentence
from ._files import enter, exists, rename_directory
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
            found[placing.name] = {"error": sentence(error)}
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
            found[placing.name] = {"error": sentence(error)}
            with contextlib.suppress(OSError):
                remove_tree(home, placing.stage)
    return found


def _copy(home: int, placing: Placing) -> None:
    os.mkdir(placing.stage, 0o700, dir_fd=home)
    with opened(placing.stage, DIRECTORY, home) as inside:
        copy_tree(placing.tree, inside, placing.where)
        os.fchmod(inside, 0o755)  # noqa: S103 - like any directory a user makes; the home's mode shuts others out


def reveal(home: int, placings: Sequence[Placing]) -> Found:
    """Put each stage in its place, in one step, unless that was taken meanwhile; what cannot be placed goes."""
    found: Found = {}
    for placing in placings:
        try:
            with held(enter(home, placing.dest[:-1], "in the home", make=True)) as parent:
                rename_directory(home, placing.stage, parent, placing.dest[-1])
            found[placing.name] = {"is": "placed"}
        except FileExistsError:
            found[placing.name] = {"is": "exists"}
            with contextlib.suppress(OSError):
                remove_tree(home, placing.stage)
        except (StorageError, OSError) as error:
            # The stage stays until that is recorded (:func:`drop`): one that is gone was put in its place.
            found[placing.name] = {"error": sentence(error)}
    return found


def drop(home: int, stages: Sequence[str]) -> None:
    """Remove stages that could not be put in their places; what cannot be removed is left to the next run."""
    for name in stages:
        with contextlib.suppress(OSError, StorageError):
            remove_tree(home, name)


def _occupied(home: int, dest: Sequence[str]) -> bool:
    try:
        with held(enter(home, dest[:-1], "in the home", make=False)) as parent:
            return exists(parent, dest[-1])
    except FileNotFoundError:
        return False
