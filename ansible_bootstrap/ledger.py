"""Who is complete: what every user has been given, by fingerprint, and what the hub saw of it.

A user whose entry still holds costs nothing: no Ansible, no process, no look at a storage host. So an entry is
believed only while everything it was made under is as it was:

* **place**: name, storage host, path, uid and gid. The user's groups count where a site role could have seen them.
* **roles**: the fingerprint of each (``fingerprints.py``); one that differs is one role to apply, not all.
* **directory**: what this machine's *own* lstat said then (inode, owner, group, mode). The device number is left out:
  it differs between an NFS client and its server, and may change at a reboot. A storage host other than ``localhost``
  may show this machine another directory under the same path, so there, and where this machine sees none at all, an
  entry is good for ``trust_for`` seconds only.

The ledger may be deleted at any time: whoever is unknown is bootstrapped again, which changes nothing that is right.
So what cannot be read is unknown, and a file that is broken is moved aside.

It is SQLite, in WAL mode, so that looking somebody up never waits for a hub, a command line or a killed one of
either that was writing. Every transaction is synced: an entry that was forgotten must not come back after a power cut.
Each call opens the file anew (0.2 ms): a connection kept open would go on believing in a file that was removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from .errors import RefusedError
from .places import Place
from .protocol import RoleFingerprint
from .state import ensure_state_dir, make_private
from .storage._plan import BUILT_IN_ROLES

FILE: Final = "ledger.sqlite"
"""Below ``state_dir``, mode 0600."""

BUSY_SECONDS: Final = 5.0
CLOCK_SECONDS: Final = 60.0
"""An entry from further in the future than this was made by a clock that has been set back."""

_VERSION: Final = 1
_SCHEMA: Final = f"""
CREATE TABLE complete (
    storage_host TEXT NOT NULL,
    work TEXT NOT NULL,         -- the directory, or the name where only the apply side knows it
    name TEXT NOT NULL,
    place TEXT NOT NULL,        -- JSON of places.Place
    directory TEXT NOT NULL,
    roles TEXT NOT NULL,        -- JSON: role -> fingerprint
    seen TEXT NOT NULL,         -- inode, owner, group, mode; empty if this machine saw nothing
    at REAL NOT NULL,           -- seconds since the epoch
    PRIMARY KEY (storage_host, work, name)
);
CREATE INDEX complete_name ON complete (name);
CREATE TABLE places (
    name TEXT NOT NULL,
    server_name TEXT NOT NULL,
    place TEXT NOT NULL,
    under TEXT NOT NULL,        -- a digest of the settings of the spawner
    PRIMARY KEY (name, server_name)
);
PRAGMA user_version = {_VERSION};
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """What one user has, at one place."""

    place: Place
    directory: str
    roles: Mapping[str, str]
    """Fingerprints by role, as of when each was last applied."""
    seen: str
    at: float

    def has(self, fingerprints: Sequence[RoleFingerprint]) -> bool:
        """Whether nothing is left to do of these roles."""
        return all(now.revised and self.roles.get(now.role) == now.fingerprint for now in fingerprints)


def completed(
    place: Place, directory: str, fingerprints: Iterable[RoleFingerprint], missing: Iterable[str] = ()
) -> Entry:
    """Return the entry of a user for whom a bootstrap has just succeeded.

    Args:
        place: as it was asked for.
        directory: where the apply side says that it is.
        fingerprints: of all roles, as of that run.
        missing: roles that failed and were let go on without.
    """
    roles = {role.role: role.fingerprint for role in fingerprints if role.revised}
    for role in missing:
        roles.pop(role, None)
    return Entry(place, directory or place.directory or "", roles, "", time.time())


class Ledger:
    """The file itself. Every call blocks on the disk; several threads and processes may use it at once.

    Args:
        state_dir: made with mode 0700 if there is none.
        trust_for: seconds for which an entry is good where this machine cannot see the storage.
    """

    def __init__(self, state_dir: str | os.PathLike[str], trust_for: float = 86400.0) -> None:
        self._path = Path(state_dir) / FILE
        self._trust_for = trust_for

    # -- who is complete ----------------------------------------------------------------------

    def look(self, place: Place) -> Entry | None:
        """Return what the user has, if the directory is as it was; None if that is not known.

        Raises:
            sqlite3.Error, OSError: the file cannot be read, which must be taken for not known.
        """
        entry = self._entry(place)
        if entry is None or not _same(entry.place, place, entry.roles):
            return None
        if entry.seen and entry.seen != _lstat(entry.directory):
            return None
        ours = bool(entry.seen) and place.storage_host in ("", "localhost")
        fresh = -CLOCK_SECONDS <= time.time() - entry.at <= self._trust_for
        return entry if ours or fresh else None

    def complete(self, entries: Sequence[Entry], *, until: float | None = None) -> None:
        """Note that these users have what their entries say, and what their directories look like now.

        Args:
            entries: made by :func:`completed`.
            until: a time of ``time.monotonic``; if looking at the directories has taken longer (an NFS server that
                hangs), nothing is noted, for by then the caller may have gone on to something else.

        Raises:
            sqlite3.Error, OSError, SettingsError: it cannot be written.
        """
        seen = [replace(entry, seen=_lstat(entry.directory)) for entry in entries]
        if until is None or time.monotonic() < until:
            self.restore(seen)

    def restore(self, entries: Iterable[Entry]) -> None:
        """Note entries as they are, without looking at the directories.

        Raises:
            sqlite3.Error, OSError, SettingsError: it cannot be written.
        """
        rows = [
            (
                *entry.place.work_key,
                entry.place.name,
                json.dumps(asdict(entry.place)),
                entry.directory,
                json.dumps(dict(entry.roles)),
                entry.seen,
                entry.at,
            )
            for entry in entries
        ]
        with self._writing() as database:
            database.executemany("INSERT OR REPLACE INTO complete VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def forget(self, names: Iterable[str]) -> int:
        """Make users unknown, wherever they are, and return how many places that were.

        Raises:
            sqlite3.Error, OSError, SettingsError: it cannot be written.
        """
        return self._delete("DELETE FROM complete WHERE name = ?", [(name,) for name in names])

    def forget_all(self) -> int:
        """Make everybody unknown, and return how many places that were."""
        return self._delete("DELETE FROM complete", [()])

    def forget_places(self, places: Iterable[Place]) -> list[Entry]:
        """Make these places unknown, and return what was known of them."""
        places = list(places)
        known = [entry for place in places if (entry := self._entry(place)) is not None]
        if known:
            keys = [(*entry.place.work_key, entry.place.name) for entry in known]
            self._delete("DELETE FROM complete WHERE storage_host = ? AND work = ? AND name = ?", keys)
        return known

    # -- where they were ----------------------------------------------------------------------

    def note_places(self, places: Iterable[Place], under: str) -> None:
        """Note where users' servers had their storage.

        Args:
            places: one for each server that starts.
            under: :func:`digest` of the settings that made it so; under others they mean nothing.
        """
        rows = [(place.name, place.server_name, json.dumps(asdict(place)), under) for place in places]
        with self._writing() as database:
            database.executemany("INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?)", rows)

    def places(self, name: str, under: str) -> list[Place]:
        """Return where a user's servers last had their storage under these settings, the default server's first."""
        rows = self._select(
            "SELECT place FROM places WHERE name = ? AND under = ? ORDER BY server_name", (name, under)
        )
        return [place for (text,) in rows if (place := _place(text)) is not None]

    # -- inner --------------------------------------------------------------------------------

    def _entry(self, place: Place) -> Entry | None:
        rows = self._select(
            "SELECT place, directory, roles, seen, at FROM complete"
            " WHERE storage_host = ? AND work = ? AND name = ?",
            (*place.work_key, place.name),
        )
        for text, directory, roles, seen, at in rows:
            known = _place(text)
            if known is not None:
                return Entry(known, directory, json.loads(roles), seen, at)
        return None

    def _select(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        if not self._path.exists():
            return []
        with contextlib.closing(sqlite3.connect(self._path, timeout=BUSY_SECONDS)) as database:
            if _version(database) != _VERSION:
                return []
            return database.execute(query, values).fetchall()

    def _delete(self, query: str, values: Sequence[tuple[Any, ...]]) -> int:
        if not self._path.exists():
            return 0
        with self._writing() as database:
            return database.executemany(query, values).rowcount

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        ensure_state_dir(self._path.parent)
        make_private(self._path)
        with contextlib.closing(self._whole()) as database, database:
            yield database

    def _whole(self) -> sqlite3.Connection:
        """Return a connection to a file with our tables; a broken one is moved aside, another version's emptied."""
        try:
            return self._prepared()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            os.replace(self._path, self._path.with_suffix(".broken"))
            for rest in ("-wal", "-shm"):
                self._path.with_name(f"{FILE}{rest}").unlink(missing_ok=True)
            make_private(self._path)
            return self._prepared()

    def _prepared(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=BUSY_SECONDS)
        try:
            if _version(database) != _VERSION:
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("BEGIN EXCLUSIVE")
                if _version(database) != _VERSION:  # Not made by another process meanwhile.
                    for (table,) in database.execute(
                        "SELECT name FROM sqlite_master WHERE type = 'table'"
                    ).fetchall():
                        database.execute(f'DROP TABLE "{table}"')
                    for statement in _SCHEMA.split(";\n"):
                        database.execute(statement)
                database.commit()
            database.execute("PRAGMA synchronous = FULL")
        except BaseException:
            database.close()
            raise
        return database


def digest(settings: Mapping[str, Any]) -> str:
    """Return a digest of settings, for :meth:`Ledger.note_places`; equal means that they say the same."""
    text = json.dumps(settings, sort_keys=True, default=_named)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _named(value: Any) -> str:
    """Say which function or object it is, the same in every process."""
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{getattr(kind, '__module__', '')}.{kind.__qualname__}"


def _same(known: Place, now: Place, roles: Mapping[str, str]) -> bool:
    if all(role in BUILT_IN_ROLES for role in roles):  # Ours do not look at groups.
        known, now = replace(known, groups=()), replace(now, groups=())
    return known == now


def _lstat(directory: str) -> str:
    """Return what tells that it is still the same directory; empty if there is nothing to be seen."""
    try:
        status = os.lstat(directory)
    except (OSError, ValueError):
        return ""
    return f"{status.st_ino} {status.st_uid} {status.st_gid} {status.st_mode:o}"


def _place(text: str) -> Place | None:
    try:
        said = json.loads(text)
        place = Place(**{**said, "groups": tuple(said["groups"])})
        place.user()
    except (ValueError, TypeError, KeyError, RefusedError):
        return None
    return place


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])
