"""What each user has been given, by the fingerprints of the roles, and what the hub saw of the directory.

A user whose entry still holds needs no Ansible, no process, and no connection to a storage host. So an entry is
believed only while everything that it rests on is as it was:

* **place**: name, storage host, path, uid and gid. The user's groups count where a site role could have seen them.
* **roles**: the fingerprint of each (``fingerprints.py``); one that differs is one role to apply, not all.
* **directory**: what this machine's *own* lstat said then (inode, owner, group, mode), and when it was made. The
  device number is left out: it differs between an NFS client and its server, and may change at a reboot. A storage host
  other than ``localhost`` may show this machine another directory under the same path, so there, and where this machine
  sees none at all, an entry is good for ``trust_for`` seconds only.

A hub and a command beside it write at the same time, so no entry depends on which writes first. Each entry says since
when its facts are known, by a clock that nobody sets and that begins with each boot. :meth:`Ledger.forget` deletes a
user's entries and records when it did so: a run that began before that notes nothing. :meth:`Ledger.doubt` hides the
entries of a clean-up's users under a token of that clean-up, and until it ends nothing is noted of these users. An
entry that the clean-up has not changed is believed again, unless it was forgotten or doubted once more meanwhile.

The ledger may be deleted at any time: a user without an entry is bootstrapped again, which changes nothing that is
right. So an entry that cannot be read counts as none, and a file that is damaged is moved aside. The times at which
users were forgotten are lost with it, so the new file notes no run that began before the file was made.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import RoleFingerprint
from ansible_bootstrap.state.birth import birth_time
from ansible_bootstrap.state.sqlite_file import SqliteFile, execute_rows
from ansible_bootstrap.storage._plan import BUILT_IN_ROLES

FILE: Final = "ledger.sqlite"
"""Below ``state_dir``, mode 0600."""

CLOCK_SECONDS: Final = 60.0
"""An entry from further in the future than this was made by a clock that has been set back."""

DAY: Final = 86400.0
"""Longest that a run may rest on what was known before it; older rows of ``forgotten`` are dropped."""

MAX_PLACES: Final = 100
"""Most places of one user that are kept: a user who may name servers could fill the disk with them."""

_EVERYBODY: Final = ""
"""In place of a name in ``forgotten``."""

_UNDER_WAY: Final = (
    "SELECT 1 FROM cleaning WHERE storage_host = {host} AND name = {name} AND until > ? AND boot = ?"
)
"""Whether a clean-up of a user is under way."""

_NOTE: Final = f"""
WITH entry (storage_host, work, name, place, directory, roles, seen, at, since) AS ({{values}})
INSERT OR REPLACE INTO complete SELECT *, ?, '' FROM entry
WHERE NOT EXISTS (
    SELECT 1 FROM forgotten
    WHERE forgotten.name IN (entry.name, '') AND forgotten.boot = ? AND forgotten.at > entry.since
) AND NOT EXISTS ({_UNDER_WAY.format(host="entry.storage_host", name="entry.name")})
"""  # noqa: S608 - names of columns
"""Except users who were forgotten since the entry's knowledge was taken, or whose clean-up is under way."""


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
    """By ``time.monotonic``, when what it rests on was known; it does not hold for a user who was forgotten later."""

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
        since: by ``time.monotonic``, when the run began or, if it left out roles, when it was known that the user has
            them; now, if not given.
    """
    since = time.monotonic() if since is None else since
    roles = {role.role: role.fingerprint for role in fingerprints if role.revised}
    for role in missing:
        roles.pop(role, None)
    return Entry(place, directory or place.directory or "", roles, "", time.time(), since)


_VERSION: Final = 5
_SCHEMA: Final = """
CREATE TABLE complete (
    storage_host TEXT NOT NULL,
    work TEXT NOT NULL,         -- the directories, or the name where only the apply side knows the first
    name TEXT NOT NULL,
    place TEXT NOT NULL,        -- JSON of places.Place
    directory TEXT NOT NULL,
    roles TEXT NOT NULL,        -- JSON: role -> fingerprint
    seen TEXT NOT NULL,         -- inode, owner, group, mode; empty if this machine saw nothing
    at REAL NOT NULL,           -- seconds since the epoch
    since REAL NOT NULL,        -- when what it rests on was known, in seconds of that boot
    boot TEXT NOT NULL,
    doubt TEXT NOT NULL,        -- the token of a clean-up that has begun; empty: believed
    PRIMARY KEY (storage_host, work, name)
);
CREATE INDEX complete_name ON complete (name);
CREATE TABLE forgotten (
    name TEXT PRIMARY KEY,
    at REAL NOT NULL,           -- seconds of that boot
    boot TEXT NOT NULL
);
CREATE TABLE cleaning (
    token TEXT NOT NULL,        -- of a clean-up that has begun
    storage_host TEXT NOT NULL,
    name TEXT NOT NULL,
    until REAL NOT NULL,        -- it ends by then even if its hub is killed, in seconds of that boot
    boot TEXT NOT NULL,
    PRIMARY KEY (token, storage_host, name)
);
CREATE INDEX cleaning_name ON cleaning (name);
CREATE TABLE places (
    name TEXT NOT NULL,
    server_name TEXT NOT NULL,
    place TEXT NOT NULL,
    under TEXT NOT NULL,        -- a digest of the settings of the spawner
    PRIMARY KEY (name, server_name)
);
CREATE TABLE persons (
    name TEXT PRIMARY KEY,
    person TEXT NOT NULL        -- the hub's id of the user and when it was made; the same of some others
);
"""


class Ledger:
    """The file itself. Every call blocks on the disk; several threads and processes may use it at once.

    Args:
        state_dir: made with mode 0700 if there is none.
        trust_for: seconds for which an entry is good where this machine cannot see the storage.
        here: whether the storage host ``localhost`` is this machine.
    """

    def __init__(
        self, state_dir: str | os.PathLike[str], trust_for: float = 86400.0, *, here: bool = True
    ) -> None:
        self._file = SqliteFile(
            Path(state_dir) / FILE,
            _SCHEMA,
            _VERSION,
            "everybody is bootstrapped once more",
            # A damaged file held the times at which users were forgotten, too.
            lambda database: _note_forgotten(database, [_EVERYBODY], time.monotonic()),
        )
        self._trust_for = trust_for
        self._here = here

    def sees(self, place: Place) -> bool:
        """Whether the storage host's directories are this machine's."""
        return self._here and place.storage_host in ("", "localhost")

    # -- what users have ----------------------------------------------------------------------

    def recorded(self, place: Place) -> Entry | None:
        """Return what is noted of the user at this place, whatever has become of the directory.

        Raises:
            sqlite3.Error, OSError: the file cannot be read, which must be taken for not known.
        """
        entry = self._entry(place)
        return entry if entry is not None and _same(entry.place, place, entry.roles) else None

    def holds(self, entry: Entry) -> bool:
        """Whether the directory is as it was; blocks as long as its file system does."""
        # Not equal either if there was nothing to be seen then, and is now.
        return self.trusts(entry) and entry.seen == _seen(entry)

    def trusts(self, entry: Entry) -> bool:
        """Whether the entry is good as long as the directory is as it was; asks no disk."""
        ours = bool(entry.seen) and self.sees(entry.place)
        return ours or -CLOCK_SECONDS <= time.time() - entry.at <= self._trust_for

    def note(self, entries: Iterable[Entry], *, until: float | None = None) -> None:
        """Note entries as they are, except of users who have been forgotten since.

        Args:
            entries: with what was seen of the directories.
            until: a time of ``time.monotonic``; if it has taken longer to come to write (a directory or a disk that
                hangs), nothing is noted, for by then the caller may have gone on to something else.

        Raises:
            sqlite3.Error, OSError, SettingsError: it cannot be written.
        """
        with self._file.writing() as database:
            if until is not None and time.monotonic() >= until:
                return
            rows = [_row(entry) for entry in entries if _is_text(entry.directory, *entry.place.work)]
            execute_rows(database, _NOTE, rows, _boot(), _boot(), time.monotonic(), _boot())

    def forget(self, names: Iterable[str]) -> int:
        """Make users unknown, wherever they are, and return how many places that were.

        Raises:
            sqlite3.Error, OSError, SettingsError: it cannot be written.
        """
        return self._forget_names(list(names), "name = ?")

    def forget_all(self) -> int:
        """Make everybody unknown, and return how many places that were."""
        return self._forget_names([_EVERYBODY], "? = ''")

    def doubt(self, places: Iterable[Place], seconds: float) -> str:
        """A clean-up of these users begins: hide their entries on their storage hosts, of all their directories.

        Until :meth:`cleaned` no process notes anything of these users: the clean-up may yet take away what a bootstrap
        beside it gives. If the hub is killed meanwhile, that ends by itself.

        By name, not by directory: a path may be known under two names (that of before a setting was made, a link), and
        a site's clean-up may reach beyond the directory that it was asked for.

        Args:
            places: of the users.
            seconds: after which the clean-up counts as ended without :meth:`cleaned`; a day at most.

        Returns:
            A token for :meth:`cleaned`.

        Raises:
            sqlite3.Error, OSError, SettingsError: it cannot be written.
        """
        token = uuid.uuid4().hex
        users = list(dict.fromkeys((place.storage_host, place.name) for place in places))
        with self._file.writing() as database:
            now = time.monotonic()
            database.executemany(
                "UPDATE complete SET doubt = ? WHERE storage_host = ? AND name = ?",
                [(token, *user) for user in users],
            )
            database.execute("DELETE FROM cleaning WHERE until <= ? OR boot <> ?", (now, _boot()))
            database.executemany(
                "INSERT INTO cleaning VALUES (?, ?, ?, ?, ?)",
                [(token, *user, now + min(seconds, DAY), _boot()) for user in users],
            )
            _note_forgotten(database, (name for _, name in users), now)
        return token

    def cleaned(
        self,
        token: str,
        unchanged: Iterable[tuple[str, str]],
        changed: Iterable[tuple[str, str]],
        at: float,
    ) -> None:
        """A clean-up has ended: believe the entries of unchanged users again, and forget changed users.

        Args:
            token: of :meth:`doubt`; an entry that was doubted again since, under another token, stays hidden.
            unchanged: storage host and name of each user that the clean-up left unchanged.
            changed: storage host and name of each user that it changed: their entries from before ``at`` are deleted.
            at: when it ended, as ``time.monotonic``.

        Raises:
            sqlite3.Error, OSError, SettingsError: it cannot be written; the users stay unknown for the ``seconds`` of
                :meth:`doubt`.
        """
        changed = list(changed)
        with self._file.writing() as database:
            database.execute("DELETE FROM cleaning WHERE token = ?", (token,))
            database.executemany(
                "DELETE FROM complete WHERE storage_host = ? AND name = ? AND (since < ? OR boot <> ?)",
                [(*user, at, _boot()) for user in changed],
            )
            _note_forgotten(database, (name for _, name in changed), at)
            database.executemany(
                "UPDATE complete SET doubt = '' WHERE storage_host = ? AND name = ? AND doubt = ?",
                [(*user, token) for user in unchanged],
            )

    # -- where servers were ----------------------------------------------------------------------

    def note_places(self, places: Iterable[Place], under: str) -> None:
        """Note where users' servers had their storage.

        Args:
            places: one for each server that starts.
            under: :func:`digest` of the settings that made it so; under others they mean nothing.
        """
        rows = [(place.name, place.server_name, place.to_json(), under) for place in places]
        with self._file.writing() as database:
            execute_rows(database, "INSERT OR REPLACE INTO places {values}", rows)
            database.executemany(
                "DELETE FROM places WHERE name = ? AND server_name <> '' AND rowid NOT IN"
                " (SELECT rowid FROM places WHERE name = ? ORDER BY rowid DESC LIMIT ?)",
                [
                    (name, name, MAX_PLACES)
                    for name in {name for name, server_name, *_ in rows if server_name}
                ],
            )

    def places(self, name: str, under: str | None = None) -> list[Place]:
        """Return where a user's servers last had their storage (under these settings), the default server's first."""
        rows = self._file.select(
            "SELECT place FROM places WHERE name = ? AND under = coalesce(?, under) ORDER BY server_name",
            (name, under),
        )
        return [place for (text,) in rows if (place := Place.from_json(text)) is not None]

    def last_places(self) -> list[Place]:
        """Return where the default server of each known user last had its storage, the latest first."""
        rows = self._file.select("SELECT place FROM places WHERE server_name = '' ORDER BY rowid DESC", ())
        return [place for (text,) in rows if (place := Place.from_json(text)) is not None]

    def elsewhere(self, place: Place, under: str, *, gone: bool = False) -> Place | None:
        """Return where the user's server of that name last had its storage, if that was not this place.

        None if the user has once been complete at this place, too, and it is still there: then both places are known.
        Under the same settings only the first directory counts, for a profile may choose which others are mounted.

        Args:
            place: where it would have it now.
            under: digest of the present settings, as for :meth:`note_places`.
            gone: the directory of this place is not there.
        """
        rows = self._file.select(
            "SELECT place, under FROM places WHERE name = ? AND server_name = ? AND (? OR NOT EXISTS"
            " (SELECT 1 FROM complete WHERE storage_host = ? AND work = ? AND name = ?))",
            (place.name, place.server_name, gone, *place.work, place.name),
        )
        last = Place.from_json(rows[0][0]) if rows else None
        if last is None or (last.storage_host, last.directory) != (place.storage_host, place.directory):
            return last
        left, new = set(last.also) - set(place.also), set(place.also) - set(last.also)
        return last if left and new and rows[0][1] != under else None

    # -- which person has a name -------------------------------------------------------------------------

    def person(self, name: str) -> str | None:
        """Return the person noted for a username, None if there is none.

        Raises:
            sqlite3.Error, OSError: that cannot be read.
        """
        rows = self._file.select("SELECT person FROM persons WHERE name = ?", (name,))
        return str(rows[0][0]) if rows else None

    def note_persons(self, persons: Mapping[str, tuple[str, str]]) -> None:
        """Note the person of each username, in place of a certain earlier one: another than that is not replaced.

        Args:
            persons: by username, the person and the earlier one.
        """
        with self._file.writing() as database:
            database.executemany(
                "INSERT INTO persons VALUES (?, ?) ON CONFLICT (name)"
                " DO UPDATE SET person = excluded.person WHERE person = ?",
                [(name, *both) for name, both in persons.items()],
            )

    def accept(self, names: Iterable[str]) -> int:
        """Let the users of these names be new persons, at new places; return of how many something was noted."""
        accepted = 0
        with self._file.writing() as database:
            for name in names:
                persons = database.execute("DELETE FROM persons WHERE name = ?", (name,)).rowcount
                places = database.execute("DELETE FROM places WHERE name = ?", (name,)).rowcount
                accepted += bool(persons or places)
        return accepted

    # -- inner --------------------------------------------------------------------------------

    def _entry(self, place: Place) -> Entry | None:
        rows = self._file.select(
            "SELECT place, directory, roles, seen, at, since FROM complete"  # noqa: S608
            " WHERE storage_host = ? AND work = ? AND name = ? AND doubt = ''"
            f" AND NOT EXISTS ({_UNDER_WAY.format(host='?', name='?')})",
            (*place.work, place.name, place.storage_host, place.name, time.monotonic(), _boot()),
        )
        for text, directory, roles, seen, at, since in rows:
            known = Place.from_json(text)
            if known is not None:
                return Entry(known, directory, json.loads(roles), seen, at, since)
        return None

    def _forget_names(self, names: Sequence[str], which: str) -> int:
        values = [(name,) for name in names]
        with self._file.writing() as database:
            database.executemany(f"DELETE FROM complete WHERE {which} AND doubt <> ''", values)  # noqa: S608
            known: int = database.executemany(f"DELETE FROM complete WHERE {which}", values).rowcount  # noqa: S608
            _note_forgotten(database, names, time.monotonic())
        return known


def _same(known: Place, now: Place, roles: Mapping[str, str]) -> bool:
    if all(role in BUILT_IN_ROLES for role in roles):  # Roles of ours do not use groups.
        known, now = replace(known, groups=()), replace(now, groups=())
    return known == now


def _is_text(*values: str) -> bool:
    """Whether SQLite can keep them: an entry with a path that is not UTF-8 is left out, and the others are noted."""
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return False
    return True


def _row(entry: Entry) -> tuple[Any, ...]:
    return (
        *entry.place.work,
        entry.place.name,
        entry.place.to_json(),
        entry.directory,
        json.dumps(dict(entry.roles)),
        entry.seen,
        entry.at,
        entry.since,
    )


@cache
def _boot() -> str:
    """Return which boot of the machine this is: ``time.monotonic`` is the same clock for all processes of one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _note_forgotten(database: sqlite3.Connection, names: Iterable[str], at: float) -> None:
    """Record that users were forgotten, and move no time back; drop rows older than any run, or of another boot."""
    database.execute("DELETE FROM forgotten WHERE ? - at > ? OR boot <> ?", (at, DAY, _boot()))
    database.executemany(
        "INSERT INTO forgotten VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET at = max(at, excluded.at)",
        [(name, at, _boot()) for name in names],
    )


def probed(entry: Entry) -> Entry:
    """Return the entry with what is seen of its directories now; blocks as long as the file system does."""
    return replace(entry, seen=_seen(entry))


def _seen(entry: Entry) -> str:
    """Return what tells of each of the user's directories that it is still the same; empty if none is to be seen."""
    seen = [_lstat(directory) for directory in (entry.directory, *entry.place.also)]
    return ";".join(seen) if any(seen) else ""


def _lstat(directory: str) -> str:
    """Return what tells that it is still the same directory; empty if there is nothing to be seen."""
    try:
        status = os.lstat(directory)
    except (OSError, ValueError):
        return ""
    facts = f"{status.st_ino} {status.st_uid} {status.st_gid} {status.st_mode:o}"
    return f"{facts} {birth_time(directory)}"
