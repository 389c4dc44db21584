"""Clean-ups that wait, kept on disk: a hub that is killed has them done when it is back.

A row is one piece of work (``Place.job_key``); it goes when the clean-up has an outcome, or when the user's
next server has made it needless. What a hub finds at its start it does then, unless that user has a server.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from ansible_bootstrap.place import Place
from ansible_bootstrap.state.sqlite_file import SqliteFile
from ansible_bootstrap.state.writer import Writer

JobKey = tuple[str, str]

FILE: Final = "cleanups.sqlite"
"""Below ``state_dir``, mode 0600. Not in the history: that one may be deleted at any time."""

_VERSION: Final = 2
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
            place = Place.from_json(text)
            if place is None:
                bad.append((host, work))
            else:
                found[place.job_key] = place
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
                [(*key, place.to_json()) for key, place in changes.items() if place is not None],
            )


class PendingCleanups(Writer):
    """What the dispatcher notes, on its way to the file. All methods are called on one event loop.

    Args:
        state_dir: where the file is.
        log: told once that it does not work.
    """

    def __init__(self, state_dir: str | os.PathLike[str], log: logging.Logger) -> None:
        super().__init__(
            "cleanups",
            log,
            f"clean-ups that wait cannot be kept in {FILE} of c.AnsibleBootstrap.state_dir; "
            "if the hub is killed, they are lost",
        )
        self._file = CleanupFile(state_dir)
        self._changes: dict[JobKey, Place | None] = {}
        self._loaded = False
        """Whether the file has been read."""
        self._known: dict[JobKey, Place | None] = {}
        """What the file holds once all changes are written; before it has been read, what was noted since."""

    async def load(self) -> list[Place]:
        """Return what an earlier hub has left; nothing, and a warning, if it cannot be read."""
        try:
            kept = await self._on_disk(self._file.read)
        except Exception as error:
            self._complain(error)
            return []
        left = [place for key, place in kept.items() if key not in self._known]
        self._known = {key: place for key, place in {**kept, **self._known}.items() if place is not None}
        self._loaded = True
        return left

    def note(self, key: JobKey, place: Place | None) -> None:
        """A clean-up waits from now on, or (None) no longer. Returns at once; never raises."""
        if self._loaded and self._known.get(key) == place:
            return
        self._known[key] = self._changes[key] = place
        if self._loaded and place is None:
            del self._known[key]
        self._write_soon()

    async def _write(self) -> None:
        while self._changes:
            batch, self._changes = self._changes, {}
            if not await self._try(partial(self._file.write, batch)):
                self._changes = {**batch, **self._changes}  # With the next change it is tried again.
                return
