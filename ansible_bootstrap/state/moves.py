"""Whether a user who is known would get an empty directory beside the one with their files.

A path follows from settings and from a spawner's way to escape names. When one of them changes (an upgrade of
DockerSpawner, a renamed root, another storage host), every user has a new path, and the files are at the old one.
"""

from __future__ import annotations

import os

from ansible_bootstrap.errors import RefusedError
from ansible_bootstrap.place import Place


def check_move(old: Place, new: Place, *, seen: bool) -> None:
    """Refuse a new directory for a user whose old one may still have files; blocks as long as its disk does.

    The first is compared with the first, the others with the others.

    Args:
        old: where the user's server last had its storage.
        new: where it would have it now; another directory, or on another storage host.
        seen: both storage hosts' directories are this machine's.

    Raises:
        RefusedError: the details name both, and the ways out.
    """
    if old.directory is None or new.directory is None:
        return  # Only the apply side knows the path.
    same = (
        set()
        if new.storage_host != old.storage_host
        else {old.directory, *old.also} & {new.directory, *new.also}
    )
    found = {
        _left_behind({old.directory} - same, {new.directory} - same, seen),
        _left_behind(set(old.also) - same, set(new.also) - same, seen),
    }
    if found == {False}:
        return
    files = True in found
    why = "still has files" if files else "may still have files, which cannot be seen from here"
    raise RefusedError(
        f"{new.name!a} had the storage in {where(old)}, which {why}, and would get a new directory {where(new)}: move "
        f"the old directory there, or undo the change of settings; `ansible-bootstrap accept {new.name!a}` lets this "
        'user begin anew, c.AnsibleBootstrap.on_move = "warn" lets all users'
    )


def _left_behind(old: set[str], new: set[str], here: bool) -> bool | None:
    """Whether an old directory has files while a new one is empty or missing; None if it cannot be told from here."""
    if not (old and new) or (here and all(map(_is_filled, new))):
        return False
    found = {_has_files(directory) if here else None for directory in old}
    return True if True in found else None if None in found else False


def _is_filled(directory: str) -> bool:
    """Whether something is there, other than an empty directory."""
    return os.path.islink(directory) or (os.path.lexists(directory) and _has_files(directory) is not False)


def where(place: Place) -> str:
    """Return a place for a line of the log."""
    owner = "" if place.uid is None else f" (uid {place.uid})"
    directories = ", ".join(ascii(text) for text in (place.directory or place.name, *place.also))
    return f"{directories} on {place.storage_host or 'localhost'}{owner}"


def _has_files(directory: str) -> bool | None:
    """Return None if it cannot be told from here."""
    try:
        with os.scandir(directory) as entries:
            return next(entries, None) is not None
    except FileNotFoundError:
        return False if os.path.isdir(os.path.dirname(directory)) else None
    except (OSError, ValueError):
        return None
