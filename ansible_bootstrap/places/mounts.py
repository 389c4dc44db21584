"""Which of the directories that a container mounts are the user's storage.

The home may be told by the user's name in its path, for it is only one, and at a known place in the container. That a
further directory is the user's is believed only where the spawner has filled in a field of the user's: a user who is
called ``red`` must not be given ``teams/red``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ansible_bootstrap.errors import UnresolvedError
from ansible_bootstrap.places.family import SETTING
from ansible_bootstrap.storage._names import NameRefusedError, below

_USERS_FIELD: Final = re.compile(r"\{[^{}]*user[^{}]*\}", re.IGNORECASE)
"""A field of a template that differs from user to user: ``{username}``, ``{raw_username}``, ``{user_server}``."""


@dataclass(frozen=True)
class Mount:
    """A writable mount of a container."""

    source: str
    """An absolute path of the storage host, or the name of what is none."""
    target: str
    """The path in the container."""
    why_not: str = ""
    """If the source is no path of the storage host: why nothing can be prepared there, and what to set."""
    own: bool = False
    """Whether the source was made of a template with a field of the user's (:func:`of_the_user`)."""


def of_the_user(templates: Any, render: Callable[[str], str]) -> set[str]:
    """Return what becomes of those texts of a setting, however deep in it, that have a field of the user's."""
    if isinstance(templates, str):
        return {render(templates)} if _USERS_FIELD.search(templates) else set()
    if isinstance(templates, Mapping):
        templates = [*templates.keys(), *templates.values()]
    inner = templates if isinstance(templates, (list, tuple)) else ()
    return set().union(*(of_the_user(each, render) for each in inner))


def choose(
    mounts: list[Mount], inside: str, roots: Sequence[str], own: Iterable[str], nothing: str
) -> list[str]:
    """Return the directories of the storage host that hold the user's files: the home, then all others below a root.

    Args:
        mounts: all writable ones.
        inside: the path in the container at which the user's files are.
        roots: the storage roots, if they are known here.
        own: the words of a path that mark it as the user's: their name as the spawner writes it.
        nothing: what to say if there is no directory at all.

    Raises:
        UnresolvedError: there is none, or it cannot be told which it is.
    """
    word = re.compile(rf"(?<![A-Za-z0-9])({'|'.join(map(re.escape, own))})(?![A-Za-z0-9])")
    shared = [source for source in below_root(mounts, roots) if not word.search(_below(roots, source))]
    home = _home([mount for mount in mounts if mount.source not in shared], inside, roots, nothing)
    return [home, *below_root([mount for mount in mounts if mount.own], roots)]


def below_root(mounts: list[Mount], roots: Sequence[str]) -> list[str]:
    """Return the directories below a storage root that are mounted."""
    return [mount.source for mount in mounts if is_below(roots, mount.source)]


def _home(mounts: list[Mount], inside: str, roots: Sequence[str], nothing: str) -> str:
    """Return the directory at the path inside, or the only one that there is."""
    paths = [mount for mount in mounts if mount.source.startswith("/")]
    in_root = [mount for mount in paths if is_below(roots, mount.source)]
    if len(in_root) == 1:
        return in_root[0].source
    candidates = in_root or paths
    covering = [mount for mount in in_root or mounts if _covers(mount.target, inside)]
    if covering:
        best = max(covering, key=lambda mount: len(mount.target))
        if not best.source.startswith("/"):
            raise UnresolvedError(best.why_not)
        return best.source
    if len(candidates) == 1:
        return candidates[0].source
    if not candidates:
        raise UnresolvedError(f"{nothing}. If this is not so, {SETTING}")
    listed = ", ".join(f"{mount.source} at {mount.target}" for mount in candidates)
    raise UnresolvedError(f"which of these is the user's storage? {listed}. Please {SETTING}")


def is_below(roots: Sequence[str], path: str) -> bool:
    """Whether the path lies below one of the roots, once it is made normal."""
    return bool(_below(roots, path))


def _below(roots: Sequence[str], path: str) -> str:
    """Return what of a path, once it is made normal, comes after a root; nothing if it lies below none."""
    try:
        return "/".join(below(roots, posixpath.normpath(path))[1]) if roots else ""
    except NameRefusedError:
        return ""


def _covers(target: str, inside: str) -> bool:
    target = posixpath.normpath(target)
    inside = posixpath.normpath(inside)
    return inside == target or inside.startswith(target.rstrip("/") + "/")
