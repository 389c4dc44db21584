"""The file of the ledger: SQLite; made, emptied or moved aside as need be.

In WAL mode, so that looking somebody up never waits for a hub, a command line or a killed one of either that was
writing. Every transaction is synced: an entry that was forgotten must not come back after a power cut.

For reading, one connection is kept, as long as the file is the same. With the last connection SQLite removes the files
of the WAL, and with the next makes them anew: two files would come and two go for each login, and the commits of a
hub's database on the same file system wait for that. For writing, each call has a connection of its own.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from .state import ensure_state_dir, make_private

BUSY_SECONDS: Final = 5.0
READ_SECONDS: Final = 0.1
"""Most that a reader waits for others, which happens only while they make the file or move it: it may be an event
loop."""

_VERSION: Final = 4
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
CREATE TABLE cleaning (
    token TEXT NOT NULL,        -- of a clean-up that is under way
    storage_host TEXT NOT NULL,
    name TEXT NOT NULL,
    until REAL NOT NULL,        -- it ends by then even if its hub is killed
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
    person TEXT NOT NULL,       -- the hub's id of the user, and when the hub made it
    at REAL NOT NULL            -- seconds since the epoch
);
PRAGMA user_version = {_VERSION};
"""


class LedgerFile:
    """Connections to it. Every call blocks on the disk; several threads and processes may use it at once.

    Args:
        path: of the file, which is made with mode 0600; its directory with 0700 if there is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = threading.Lock()
        """Of the connection for reading."""
        self._reader: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        """Device and inode of what it reads."""

    def select(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        """Return what a query finds; nothing if there is no file of this version.

        Raises:
            sqlite3.Error, OSError: it cannot be read.
        """
        with self._turn:
            try:
                database = self._reading()
                if database is None or _version(database) != _VERSION:
                    return []
                return database.execute(query, values).fetchall()
            except BaseException:
                self._let_go()
                raise

    def _reading(self) -> sqlite3.Connection | None:
        """Return the connection for reading; None if there is no file."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._let_go()
            return None
        file = (status.st_dev, status.st_ino)
        if self._reader is None or self._file != file:  # The one that we knew was removed or replaced.
            self._let_go()
            # Each thread has its turn, and leaves no transaction open.
            self._reader = sqlite3.connect(self._path, timeout=READ_SECONDS, check_same_thread=False)
            self._file = file
        return self._reader

    def _let_go(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the only transaction that writes; it is on the disk when the body has ended, and nowhere if that raises.

        Raises:
            sqlite3.Error, OSError, SettingsError: it cannot be written.
        """
        try:
            ensure_state_dir(self._path.parent)
            make_private(self._path)
            with contextlib.closing(self._whole()) as database:
                with database:
                    # IMMEDIATE, or what is read in it may be old by the time of writing.
                    database.execute("BEGIN IMMEDIATE")
                    yield database
                # A connection that closes last does it, but one for reading is kept. What is left in the WAL would be
                # written into another file that comes in this one's place, from a backup say.
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except (sqlite3.Error, OSError):
            # A process's connections share what the first has found: a file system that was read-only, say.
            with self._turn:
                self._let_go()
            raise

    def _whole(self) -> sqlite3.Connection:
        """Return a connection to a file with our tables; a broken one is moved aside, another version's emptied."""
        try:
            return self._prepared()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            os.replace(self._path, self._path.with_suffix(".broken"))
            for rest in ("-wal", "-shm"):
                self._path.with_name(f"{self._path.name}{rest}").unlink(missing_ok=True)
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


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])
