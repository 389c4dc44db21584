"""Which of the directories that a container mounts are the user's storage.

That a directory is the user's is believed where the spawner has filled in a field of the user's. A path that only has
the user's name in it proves nothing: a user who is called ``red`` must not be given ``teams/red``. For the home, which
is one directory at a known place in the container, there is a second proof: the name is in its path, and no setting has
that path, so that code of the site's (a hook, a class, a function) has made it for this user.
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

_USERS_FIELD: Final = re.compile(r"\{\w*user\w*(![ars])?(:[^{}]*)?\}", re.IGNORECASE)
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
    fixed: bool = False
    """Whether a setting has the source as it is, so that it is the same for all users (:func:`written`)."""


def of_the_user(templates: Iterable[str], render: Callable[[str], str]) -> set[str]:
    """Return what becomes of those templates that have a field of the user's."""
    return {render(template) for template in templates if _USERS_FIELD.search(template)}


def written(spawner: Any) -> set[str]:
    """Return all texts of the spawners' settings, without what comes after a colon, as in ``source:target``."""
    own = {cls.__name__ for cls in type(spawner).__mro__}
    return _texts(
        [values for name, values in spawner.config.items() if name in own or name.endswith("Spawner")]
    )


def _texts(settings: Any) -> set[str]:
    if isinstance(settings, str):
        return {settings.partition(":")[0].rstrip("/")}
    if isinstance(settings, Mapping):
        settings = [*settings.keys(), *settings.values()]
    inner = settings if isinstance(settings, (list, tuple)) else ()
    return set().union(*map(_texts, inner))


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

    def is_shared(mount: Mount) -> bool:
        by_name = not mount.fixed and word.search(_below(roots, mount.source) or mount.source)
        return mount.source.startswith("/") and not (mount.own or by_name)

    shared = [mount for mount in mounts if is_shared(mount)]
    if shared:
        nothing = (
            f"{shared[0].source} at {shared[0].target} counts as shared by users, for no field of the user's, such as "
            "{username}, is in its template"
        )
    home = _home([mount for mount in mounts if mount not in shared], inside, roots, nothing)
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
