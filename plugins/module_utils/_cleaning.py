# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Remove what rules match below one home; runs with the user's rights only (``_as_user.py``).

Everything starts from an opened directory and goes one name at a time: a link is removed and never followed,
another mounted file system is never entered. Check mode is the same walk without the last step, so that its
prediction is no second opinion; it remembers what would be gone, and which directories would be young by it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import stat
import time
from dataclasses import dataclass
from typing import Any, Optional

from ._descriptors import DIRECTORY, held
from ._errors import explain, printable
from ._files import kind

MAX_DEPTH = 200
"""Directories within a matched directory; each holds a descriptor, of which the process has 1024."""

SHOWN = 20
"""Paths and notes that are reported one by one for each user."""

_SPARED = (errno.EACCES, errno.EPERM, errno.EBUSY, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)
"""What the user may not remove, or what changed between look and act, is left; other errors end the walk."""

_AT_EMPTY_PATH = 0x1000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Rule:
    """What shall go: path components, each with its pattern unless it is a plain name, and an age."""

    parts: tuple[tuple[str, Optional[re.Pattern[str]]], ...]
    age: int | None = None
    """Seconds without a change that let an entry go; None for any."""


def remove(home: int, rules: list[Rule], seconds: float, *, check: bool) -> dict[str, Any]:
    """Remove what the rules match below ``home``; runs with the user's rights.

    Returns:
        ``removed``, how many entries of any kind; ``matched``, how many of the entries that a rule named;
        ``paths``, the first of these with what they were and are; ``notes``, what was left and why; ``error``, why
        it ended early, or None. All of it printable, and a few KB at most.
    """
    walk = _Walk(home, seconds, check=check)
    error: str | None = None
    try:
        for rule in rules:
            walk.follow(rule)
    except _TimeUpError:
        error = (
            f"did not finish in time: {walk.removed} {'would be ' if check else ''}removed so far, the next "
            "clean-up goes on (cleanup_child_timeout allows more)"
        )
    except OSError as problem:
        error = explain(problem)
    error = error or walk.error
    notes = walk.notes[:SHOWN]
    if len(walk.notes) > SHOWN:
        notes.append("and more was left")
    return {
        "removed": walk.removed,
        "matched": walk.matched,
        "paths": walk.paths,
        "notes": notes,
        "error": error,
    }


class _TimeUpError(Exception):
    """The time for this user is used up."""


@dataclass(frozen=True)
class _Entry:
    """Something found below the home.

    Attributes:
        parent: descriptor of the directory it is in.
        writable: whether entries of that directory could be removed.
        depth: directories between it and the entry that a rule named.
    """

    parent: int
    name: str
    path: tuple[str, ...]
    status: os.stat_result
    writable: bool = False
    depth: int = 0

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)


class _Walk:
    """What is done to one home."""

    def __init__(self, home: int, seconds: float, *, check: bool) -> None:
        self._home = home
        self._check = check
        self._until = time.monotonic() + seconds
        self._now = time.time()
        self._mount = _mount(home)
        self._me = os.geteuid()
        self._gone: set[tuple[int, int, str]] = set()
        """In check mode: what would be gone by now (device and inode of its directory, name)."""
        self._stirred: set[tuple[int, int]] = set()
        """In check mode: directories that would have changed by now, so would be young."""
        self.removed = self.matched = 0
        self.paths: list[tuple[str, str, str]] = []
        self.notes: list[str] = []
        self.error: str | None = None
        """What was left that no later clean-up would remove either."""

    def follow(self, rule: Rule) -> None:
        """Remove what this rule matches."""
        self._descend(self._home, rule, (), None if rule.age is None else self._now - rule.age)

    def _descend(self, directory: int, rule: Rule, path: tuple[str, ...], cutoff: float | None) -> None:
        name, pattern = rule.parts[len(path)]
        writable = os.access(".", os.W_OK | os.X_OK, dir_fd=directory)
        for each in [name] if pattern is None else self._matching(directory, name, pattern):
            self._tick()
            entry = self._look(directory, each, path, writable, depth=0)
            if entry is None:
                continue
            if len(entry.path) == len(rule.parts):
                self._take(entry, cutoff)
            elif entry.is_directory:
                inner = self._open(entry)
                if inner is not None:
                    with held(inner):
                        self._descend(inner, rule, entry.path, cutoff)
            elif stat.S_ISLNK(entry.status.st_mode):
                self._note(entry.path, "is a symbolic link, and not followed")

    def _matching(self, directory: int, name: str, pattern: re.Pattern[str]) -> list[str]:
        hidden = name.startswith(".")
        names = os.listdir(directory)
        return sorted(each for each in names if (hidden or each[0] != ".") and pattern.match(each))

    def _take(self, entry: _Entry, cutoff: float | None) -> None:
        """Remove one entry that a rule named, if it is old enough."""
        if cutoff is not None and not self._old(entry, cutoff):
            return
        before = self.removed
        gone = self._remove(entry, cutoff)
        if self.removed > before:
            self.matched += 1
            if len(self.paths) < SHOWN:
                after = "absent" if gone else "partly removed"
                self.paths.append((_shown(entry.path), kind(entry.status.st_mode), after))

    def _old(self, entry: _Entry, cutoff: float) -> bool:
        """Say whether it was not changed since then, nor, in a directory, anything inside."""
        self._tick()
        if entry.status.st_mtime > cutoff or (entry.status.st_dev, entry.status.st_ino) in self._stirred:
            return False
        if not entry.is_directory:
            return True
        directory = self._open(entry)
        if directory is None:
            return False  # what cannot be looked into may hold something young
        with held(directory):
            if not os.access(".", os.X_OK, dir_fd=directory):
                self._note(entry.path, "may not be looked into by its user: left")
                return False
            for name in os.listdir(directory):
                inner = self._look(directory, name, entry.path, writable=False, depth=entry.depth + 1)
                if inner is not None and not self._old(inner, cutoff):
                    return False
        return True

    def _remove(self, entry: _Entry, cutoff: float | None) -> bool:
        """Remove an entry with all that is inside; say whether it is gone (in check mode: would be)."""
        self._tick()
        if not entry.is_directory:
            return self._remove_one(entry, cutoff)
        mode = stat.S_IMODE(entry.status.st_mode)
        # Caches of packages have read-only directories; without r and x not even their owner opens them.
        own = entry.status.st_uid == self._me
        widen = own and mode & 0o700 != 0o700
        if widen and mode & 0o500 != 0o500:
            if self._check:
                return self._predict(entry)
            with contextlib.suppress(OSError):
                # Follows a link if one is put there meanwhile; the user's own rights are all we have.
                os.chmod(entry.name, mode | 0o700, dir_fd=entry.parent)
        directory = self._open(entry)
        if directory is None:
            return False
        with held(directory):
            if widen and not self._check:
                try:
                    os.fchmod(directory, mode | 0o700)
                except OSError as error:  # chattr +i or +a
                    self._spare(entry, error)
                    return False
            gone = self._empty(directory, entry, cutoff, own=own)
            if widen and not gone and not self._check:
                os.fchmod(directory, mode)
        # Its own time changed by what was removed from it, so it is not asked for its age again.
        return gone and self._remove_one(entry, None)

    def _empty(self, directory: int, entry: _Entry, cutoff: float | None, *, own: bool) -> bool:
        writable = own or os.access(".", os.W_OK | os.X_OK, dir_fd=directory)
        gone = True
        for name in os.listdir(directory):
            inner = self._look(directory, name, entry.path, writable, entry.depth + 1)
            if inner is not None and not self._remove(inner, cutoff):
                gone = False
        return gone

    def _remove_one(self, entry: _Entry, cutoff: float | None) -> bool:
        """Remove a file, a link or an empty directory; say whether it is gone."""
        if self._check:
            return self._predict(entry)
        try:
            if cutoff is not None:
                latest = os.stat(entry.name, dir_fd=entry.parent, follow_symlinks=False)
                if latest.st_mtime > cutoff:
                    self._note(entry.path, "changed at this moment: left")
                    return False
            if entry.is_directory:
                os.rmdir(entry.name, dir_fd=entry.parent)
            else:
                os.unlink(entry.name, dir_fd=entry.parent)
        except FileNotFoundError:
            return True
        except OSError as error:
            self._spare(entry, error)
            return False
        self.removed += 1
        return True

    def _predict(self, entry: _Entry) -> bool:
        above = os.fstat(entry.parent)
        sticky = above.st_mode & stat.S_ISVTX and self._me not in (above.st_uid, entry.status.st_uid)
        if sticky or not entry.writable:
            why = "not permitted" if entry.writable else "permission denied"  # as the kernel would say
            self._note(entry.path, f"was left: {why}")
            return False
        self._gone.add((above.st_dev, above.st_ino, entry.name))
        self._stirred.add((above.st_dev, above.st_ino))
        self.removed += 1
        return True

    def _look(
        self, directory: int, name: str, path: tuple[str, ...], writable: bool, depth: int
    ) -> _Entry | None:
        """Return what is of that name, no link followed; None if nothing is, or would be by now."""
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except PermissionError:
            self._note((*path, name), "was left: permission denied")
            return None
        if self._gone:
            above = os.fstat(directory)
            if (above.st_dev, above.st_ino, name) in self._gone:
                return None
        return _Entry(directory, name, (*path, name), status, writable, depth)

    def _open(self, entry: _Entry) -> int | None:
        """Open a directory, unless it is not one any more, or something else is mounted there."""
        if entry.depth > MAX_DEPTH:
            self.error = f"{_shown(entry.path)} is more than {MAX_DEPTH} directories deep: remove it by hand"
            return None
        try:
            directory = os.open(entry.name, DIRECTORY, dir_fd=entry.parent)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._spare(entry, error)
            return None
        if _mount(directory) != self._mount:
            os.close(directory)
            self._note(entry.path, "is another file system mounted there: left")
            return None
        return directory

    def _spare(self, entry: _Entry, error: OSError) -> None:
        if error.errno not in _SPARED:
            raise error
        self._note(entry.path, f"was left: {explain(OSError(error.errno, os.strerror(error.errno)))}")

    def _tick(self) -> None:
        if time.monotonic() > self._until:
            raise _TimeUpError

    def _note(self, path: tuple[str, ...], what: str) -> None:
        text = f"{_shown(path)} {what}"
        if len(self.notes) <= SHOWN and text not in self.notes:
            self.notes.append(text)


def _shown(path: tuple[str, ...]) -> str:
    text = printable("/".join(path))
    return text if len(text) <= 300 else f"{text[:300]}…"


def _mount(directory: int) -> tuple[str, int]:
    """Return what tells one mounted file system from another.

    The device does not: a bind mount from the same file system has the same, and a subvolume of btrfs another. Where
    the kernel does not tell the mount (-1), the device must do.
    """
    handle = (ctypes.c_int * 2)(0, 0)  # room for no handle: the mount is told all the same
    mount = ctypes.c_int(-1)
    _libc.name_to_handle_at(directory, b"", handle, ctypes.byref(mount), _AT_EMPTY_PATH)
    return ("mount", mount.value) if mount.value != -1 else ("device", os.fstat(directory).st_dev)
