"""Clean-ups that wait, kept on disk: a hub that is killed has them done when it is back.

A row is one piece of work (``Place.job_key``); it goes when the clean-up has an outcome, or when the user's
next server has made it needless. What a hub finds at its start it does then, unless that user has a server.

Nothing here holds anybody up: changes are gathered on the event loop and written in a thread, one
transaction for all that came meanwhile. A disk that fails is one warning, and the hub goes on from memory.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

from ansible_bootstrap.errors import AnsibleBootstrapError, RefusedError
from ansible_bootstrap.place import Place
from ansible_bootstrap.state.sqlite_file import SqliteFile
from ansible_bootstrap.threads import in_thread

JobKey = tuple[str, str]

FILE: Final = "cleanups.sqlite"
"""Below ``state_dir``, mode 0600. Not in the history: that one may be deleted at any time."""

DISK_SECONDS: Final = 30.0

_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE cleanups (
    storage_host TEXT NOT NULL,
    work TEXT NOT NULL,
    place TEXT NOT NULL,        -- JSON of places.Place
    PRIMARY KEY (storage_host, work)
);
"""


class CleanupFile:
    """The file itself. Every call blocks on the disk.

    Args:
        state_dir: made with mode 0700 if there is none.
    """

    def __init__(self, state_dir: str | os.PathLike[str]) -> None:
        self._path = Path(state_dir) / FILE
        self._file = SqliteFile(self._path, _SCHEMA, _VERSION, "clean-ups that waited are lost")

    def read(self) -> dict[JobKey, Place]:
        """Return what waits; drops rows that make no acceptable place.

        Raises:
            sqlite3.Error, OSError, SettingsError: it cannot be read.
        """
        found: dict[JobKey, Place] = {}
        bad: list[JobKey] = []
        for host, work, text in self._file.select("SELECT storage_host, work, place FROM cleanups", ()):
            try:
                place = _place(text)
                found[place.job_key] = place
            except (ValueError, TypeError, KeyError, RefusedError):
                bad.append((host, work))
        if bad:
            self.write(dict.fromkeys(bad))
        return found

    def write(self, changes: Mapping[JobKey, Place | None]) -> None:
        """Keep these places, and forget those that are None: all of it or nothing.

        Raises:
            sqlite3.Error, OSError, SettingsError: it cannot be written.
        """
        if not any(changes.values()) and not self._path.exists():
            return
        with self._file.writing() as database:
            database.executemany(
                "DELETE FROM cleanups WHERE storage_host = ? AND work = ?",
                [key for key, place in changes.items() if place is None],
            )
            database.executemany(
                "INSERT OR REPLACE INTO cleanups (storage_host, work, place) VALUES (?, ?, ?)",
                [(*key, json.dumps(asdict(place))) for key, place in changes.items() if place is not None],
            )


def _change(kept: dict[JobKey, Place], key: JobKey, place: Place | None) -> None:
    if place is None:
        kept.pop(key, None)
    else:
        kept[key] = place


def _place(text: str) -> Place:
    said = json.loads(text)
    return Place(**{**said, "groups": tuple(said["groups"])})


class PendingCleanups:
    """What the dispatcher notes, on its way to the file. All methods are called on one event loop.

    Args:
        state_dir: where the file is.
        log: told once that it does not work.
    """

    def __init__(self, state_dir: str | os.PathLike[str], log: logging.Logger) -> None:
        self._file = CleanupFile(state_dir)
        self._log = log
        self._changes: dict[JobKey, Place | None] = {}
        self._early: dict[JobKey, Place | None] = {}
        """What was noted before the file had been read: it is newer than the file."""
        self._kept: dict[JobKey, Place] | None = None
        """What the file holds once all changes are written; None until it has been read."""
        self._task: asyncio.Task[None] | None = None
        self._complained = False

    async def load(self) -> list[Place]:
        """Return what an earlier hub has left; nothing, and a warning, if it cannot be read."""
        try:
            kept = await in_thread(self._file.read, timeout=DISK_SECONDS)
        except Exception as error:
            self._complain(error)
            return []
        left = [place for key, place in kept.items() if key not in self._early]
        for key, noted in self._early.items():
            _change(kept, key, noted)
        self._early.clear()
        self._kept = kept
        return left

    def note(self, key: JobKey, place: Place | None) -> None:
        """A clean-up waits from now on, or (None) no longer. Returns at once; never raises."""
        if self._kept is None:
            self._early[key] = place
        elif self._kept.get(key) == place:
            return
        else:
            _change(self._kept, key, place)
        self._changes[key] = place
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._write())

    async def written(self, seconds: float) -> None:
        """Return when all that has been noted is on disk, or could not be, or after that time."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=seconds)

    async def _write(self) -> None:
        while self._changes:
            batch, self._changes = self._changes, {}
            try:
                await in_thread(partial(self._file.write, batch), timeout=DISK_SECONDS)
            except Exception as error:
                self._changes = {**batch, **self._changes}  # With the next change it is tried again.
                self._complain(error)
                return

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            why = error.details if isinstance(error, AnsibleBootstrapError) else ""
            self._log.warning(
                "ansible_bootstrap: clean-ups that wait cannot be kept in %s of c.AnsibleBootstrap.state_dir; "
                "if the hub is killed, they are lost: %s",
                FILE,
                why or f"{type(error).__name__}: {error}",
            )
