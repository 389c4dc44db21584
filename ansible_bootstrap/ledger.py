"""Who is complete: what every user has been given, by fingerprint, and what the hub saw of it.

A user whose entry still holds costs nothing: no Ansible, no process, no look at a storage host. So an entry is
believed only while everything it was made under is as it was:

* **place**: name, storage host, path, uid and gid. The user's groups count where a site role could have seen them.
* **roles**: the fingerprint of each (``fingerprints.py``); one that differs is one role to apply, not all.
* **directory**: what this machine's *own* lstat said then (inode, owner, group, mode). The device number is left out:
  it differs between an NFS client and its server, and may change at a reboot. A storage host other than ``localhost``
  may show this machine another directory under the same path, so there, and where this machine sees none at all, an
  entry is good for ``trust_for`` seconds only.

Several hands write it (a hub, a command line beside it), so no entry depends on who writes first. Each says since when
what it rests on is known, and whoever makes a user unknown leaves a tombstone: a run that was in the air by then
notes nothing. A clean-up only doubts its users' entries, each clean-up with a token of its own, and believes them again
if it has changed nothing; whom somebody else has forgotten or doubted meanwhile stays unknown.

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
import uuid
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

DAY: Final = 86400.0
"""Longest that a run may rest on what was known before it; older tombstones are dropped."""

MAX_PLACES: Final = 100
"""Most places of one user that are kept: whoever may name servers could fill the disk with them."""

_EVERYBODY: Final = ""
"""Stands for a name in a tombstone."""

_VERSION: Final = 2
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
    since REAL NOT NULL,        -- when what it rests on was known
    doubt TEXT NOT NULL,        -- the token of a clean-up that has begun; empty: believed
    PRIMARY KEY (storage_host, work, name)
);
CREATE INDEX complete_name ON complete (name);
CREATE TABLE forgotten (
    name TEXT PRIMARY KEY,
    at REAL NOT NULL
);
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
    since: float
    """When what it rests on was known: whoever was forgotten later is not complete."""

    def has(self, fingerprints: Sequence[RoleFingerprint]) -> bool:
        """Whether nothing is left to do of these roles."""
        return all(now.revised and self.roles.get(now.role) == now.fingerprint for now in fingerprints)


def completed(
    place: Place,
    directory: str,
    fingerprints: Iterable[RoleFingerprint],
    missing: Iterable[str] = (),
    since: float | None = None,
) -> Entry:
    """Return the entry of a user for whom a bootstrap has just succeeded.

    Args:
        place: as it was asked for.
        directory: where the apply side says that it is.
        fingerprints: of all roles, as of that run.
        missing: roles that failed and were let go on without.
        since: when the run began or, if it left out roles, when it was known that the user has them; now, if not
            given.
    """
    now = time.time()
    roles = {role.role: role.fingerprint for role in fingerprints if role.revised}
    for role in missing:
        roles.pop(role, None)
    return Entry(place, directory or place.directory or "", roles, "", now, now if since is None else since)


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
        if entry.seen != _lstat(entry.directory):  # Also if there was nothing to be seen then, and is now.
            return None
        ours = bool(entry.seen) and place.storage_host in ("", "localhost")
        fresh = -CLOCK_SECONDS <= time.time() - entry.at <= self._trust_for
        return entry if ours or fresh else None

    def complete(self, entries: Sequence[Entry], *, until: float | None = None) -> None:
        """Note that these users have what their entries say, and what their directories look like now.

        Args:
            entries: made by :func:`completed`.
            until: as for :meth:`note`.

        Raises:
            sqlite3.Error, OSError, SettingsError: it cannot be written.
        """
        self.note([looked_at(entry) for entry in entries], until=until)

    def note(self, entries: Iterable[Entry], *, until: float | None = None) -> None:
        """Note entries as they are, but for users who have been forgotten since.

        Args:
            entries: with what was seen of the directories.
            until: a time of ``time.monotonic``; if it has taken longer to come to write (a directory or a disk that
                hangs), nothing is noted, for by then the caller may have gone on to something else.

        Raises:
            sqlite3.Error, OSError, SettingsError: it cannot be written.
        """
        with self._writing() as database:
            if until is not None and time.monotonic() >= until:
                return
            database.executemany(
                "INSERT OR REPLACE INTO complete VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, '')",
                [_row(entry) for entry in entries if not _forgotten(database, entry)],
            )

    def forget(self, names: Iterable[str]) -> int:
        """Make users unknown, wherever they are, and return how many places that were.

        Raises:
            sqlite3.Error, OSError, SettingsError: it cannot be written.
        """
        return self._forget_names(list(names), "name = ?")

    def forget_all(self) -> int:
        """Make everybody unknown, and return how many places that were."""
        return self._forget_names([_EVERYBODY], "? = ''")

    def doubt(self, places: Iterable[Place]) -> str:
        """Make the users of these places unknown on their storage hosts, wherever their directories are there.

        By name, not by directory: a path may be known under two names (that of before a setting was made, a link), and
        a site's clean-up may reach beyond the directory that it was asked for.

        Returns:
            A token for :meth:`believe`.

        Raises:
            sqlite3.Error, OSError, SettingsError: it cannot be written.
        """
        token = uuid.uuid4().hex
        whose = [(token, *who) for who in _whose(places)]
        with self._writing() as database:
            database.executemany("UPDATE complete SET doubt = ? WHERE storage_host = ? AND name = ?", whose)
            _bury(database, (name for *_, name in whose), time.time())
        return token

    def believe(self, token: str, unchanged: Iterable[tuple[str, str]]) -> None:
        """A clean-up is over: believe again what is known of those whom it left as they were.

        Args:
            token: what :meth:`doubt` has returned; entries that somebody else has doubted since stay doubted.
            unchanged: storage host and name of each of them.

        Raises:
            sqlite3.Error, OSError, SettingsError: it cannot be written.
        """
        with self._writing() as database:
            database.executemany(
                "UPDATE complete SET doubt = '' WHERE storage_host = ? AND name = ? AND doubt = ?",
                [(*who, token) for who in unchanged],
            )

    def spoil(self, changed: Iterable[tuple[str, str]], at: float) -> None:
        """A clean-up that ended then has changed something for these: what rests on earlier is known no more.

        Args:
            changed: storage host and name of each of them.
            at: when it ended, as ``time.time``.

        Raises:
            sqlite3.Error, OSError, SettingsError: it cannot be written.
        """
        changed = list(changed)
        with self._writing() as database:
            database.executemany(
                "DELETE FROM complete WHERE storage_host = ? AND name = ? AND since < ?",
                [(*who, at) for who in changed],
            )
            _bury(database, (name for _, name in changed), at)

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
            database.executemany(
                "DELETE FROM places WHERE name = ? AND server_name <> '' AND rowid NOT IN"
                " (SELECT rowid FROM places WHERE name = ? ORDER BY rowid DESC LIMIT ?)",
                [(name, name, MAX_PLACES) for name in {row[0] for row in rows}],
            )

    def places(self, name: str, under: str) -> list[Place]:
        """Return where a user's servers last had their storage under these settings, the default server's first."""
        rows = self._select(
            "SELECT place FROM places WHERE name = ? AND under = ? ORDER BY server_name", (name, under)
        )
        return [place for (text,) in rows if (place := _place(text)) is not None]

    # -- inner --------------------------------------------------------------------------------

    def _entry(self, place: Place) -> Entry | None:
        rows = self._select(
            "SELECT place, directory, roles, seen, at, since FROM complete"
            " WHERE storage_host = ? AND work = ? AND name = ? AND doubt = ''",
            (*place.work_key, place.name),
        )
        for text, directory, roles, seen, at, since in rows:
            known = _place(text)
            if known is not None:
                return Entry(known, directory, json.loads(roles), seen, at, since)
        return None

    def _select(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        if not self._path.exists():
            return []
        with contextlib.closing(sqlite3.connect(self._path, timeout=BUSY_SECONDS)) as database:
            if _version(database) != _VERSION:
                return []
            return database.execute(query, values).fetchall()

    def _forget_names(self, names: Sequence[str], which: str) -> int:
        values = [(name,) for name in names]
        with self._writing() as database:
            database.executemany(f"DELETE FROM complete WHERE {which} AND doubt <> ''", values)  # noqa: S608
            known = database.executemany(f"DELETE FROM complete WHERE {which}", values).rowcount  # noqa: S608
            _bury(database, names, time.time())
        return known

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        ensure_state_dir(self._path.parent)
        make_private(self._path)
        with contextlib.closing(self._whole()) as database, database:
            database.execute("BEGIN IMMEDIATE")  # Or what is read in it may be old by the time of writing.
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
                database.execute("BEGIN EXCLUSIVE")
                if _version(database) != _VERSION:  # Not made by another process meanwhile.
                    for (table,) in database.execute(
                        "SELECT name FROM sqlite_master WHERE type = 'table'"
                    ).fetchall():
                        database.execute(f'DROP TABLE "{table}"')
                    for statement in _SCHEMA.split(";\n"):
                        database.execute(statement)
                database.commit()
            # The file stays so. While others are at it, this fails at once, whatever the timeout: then with the next.
            with contextlib.suppress(sqlite3.OperationalError):
                database.execute("PRAGMA journal_mode = WAL")
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


def _whose(places: Iterable[Place]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((place.storage_host, place.name) for place in places))


def _row(entry: Entry) -> tuple[Any, ...]:
    return (
        *entry.place.work_key,
        entry.place.name,
        json.dumps(asdict(entry.place)),
        entry.directory,
        json.dumps(dict(entry.roles)),
        entry.seen,
        entry.at,
        entry.since,
    )


def _bury(database: sqlite3.Connection, names: Iterable[str], at: float) -> None:
    """Set tombstones; drop those that no run in the air can be older than, or that a wrong clock has made."""
    rows = [(name, at) for name in names]
    database.executemany("INSERT OR REPLACE INTO forgotten VALUES (?, ?)", rows)
    database.execute("DELETE FROM forgotten WHERE abs(? - at) > ?", (at, DAY))


def _forgotten(database: sqlite3.Connection, entry: Entry) -> bool:
    """Whether the user has been made unknown since what this entry rests on was known."""
    rows = database.execute(
        "SELECT 1 FROM forgotten WHERE name IN (?, ?) AND at > ?", (entry.place.name, _EVERYBODY, entry.since)
    )
    return rows.fetchone() is not None


def looked_at(entry: Entry) -> Entry:
    """Return the entry with what its directory looks like now; blocks as long as the file system does."""
    return replace(entry, seen=_lstat(entry.directory))


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
