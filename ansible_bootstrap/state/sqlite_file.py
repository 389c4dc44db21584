"""A file of SQLite below ``state_dir``; made, or moved aside and made anew, as need be.

It is in WAL mode, so that a reader never waits for a hub or a command that writes, or was killed while it wrote.
Every transaction is synced: an entry that was forgotten must not come back after a power cut.

One connection for reading is kept as long as the file is the same. With its last connection SQLite removes the files
of the WAL, and with the next one makes them anew: two files would come and two go for each login, and the commits of a
hub's database on the same file system wait for that. For writing, each call has a connection of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ansible_bootstrap.state.directory import ensure_state_dir, make_private

BUSY_SECONDS: Final = 5.0
READ_SECONDS: Final = 0.1
"""Most that a reader waits for others, which happens only while they make the file or move it: it may be an event
loop."""


_NO_DATABASE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_OTHER_CONTENT: Final = (
    "no such table",
    "no such column",
    "has no column named",
    "Could not decode to UTF-8",
)
"""SQLite's messages where a file of our version does not have our tables, or has bytes in them that are no text."""

_LOG = logging.getLogger(__name__)


class _OtherVersionError(sqlite3.DatabaseError):
    """The file has tables, and they are not those of our version."""


class SqliteFile:
    """Connections to it. Every call blocks on the disk; several threads and processes may use it at once.

    A file that is damaged, or has another version's tables, is kept under another name, and the next writer begins
    a new one.

    Args:
        path: of the file, which is made with mode 0600; its directory with 0700 if there is none.
        schema: the statements that make its tables.
        version: of the schema; a file of another reads as empty until the next writer has moved it aside.
        lost: what is lost with such a file, for the log.
        after_loss: called in the transaction that makes the tables, if a file was moved aside before.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        version: int,
        lost: str,
        after_loss: Callable[[sqlite3.Connection], None] = lambda database: None,
    ) -> None:
        self._path = path
        self._schema = schema
        self._version = version
        self._lost = lost
        self._after_loss = after_loss
        self._broken = path.with_suffix(".broken")
        self._turn = threading.Lock()
        """Of the connection for reading."""
        self._reader: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        """Device and inode of what it reads."""

    def select(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        """Return what a query finds; nothing if there is no file of this version, or it is damaged.

        Raises:
            sqlite3.Error, OSError: it cannot be read.
        """
        with self._turn:
            try:
                database = self._reading()
                if database is None or _version(database) != self._version:
                    return []
                return database.execute(query, values).fetchall()
            except BaseException as error:
                self._let_go()
                if self._set_aside_if_damaged(self._file, error):
                    return []
                raise

    def _reading(self) -> sqlite3.Connection | None:
        """Return the connection for reading; None if there is no file."""
        try:
            file = _identity(self._path)
        except FileNotFoundError:
            self._let_go()
            return None
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
            sqlite3.Error, OSError, UnicodeDecodeError, SettingsError: it cannot be written; the next time it can, if it
                was damaged.
        """
        file: tuple[int, int] | None = None
        try:
            ensure_state_dir(self._path.parent)
            make_private(self._path)
            with contextlib.closing(self._whole()) as database:
                file = _identity(self._path)
                with database:
                    # IMMEDIATE, or what is read in it may be old by the time of writing.
                    database.execute("BEGIN IMMEDIATE")
                    yield database
                # A connection that closes last does it, but one for reading is kept. What is left in the WAL would be
                # written into another file that comes in this one's place, from a backup say.
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
            # A process's connections share what the first has found: a file system that was read-only, say.
            with self._turn:
                self._let_go()
            self._set_aside_if_damaged(file, error)
            raise

    def _whole(self) -> sqlite3.Connection:
        """Return a connection to a file with our tables; one that is damaged or another version's is moved aside."""
        file = _identity(self._path)
        try:
            return self._prepared()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if not self._set_aside_if_damaged(file, error):
                raise
            make_private(self._path)
            return self._prepared()

    def _set_aside_if_damaged(self, file: tuple[int, int] | None, error: BaseException) -> bool:
        """Keep a damaged file under another name, unless another process has done so; return False if it is not."""
        if not _is_damage(error):
            return False
        with contextlib.suppress(OSError):
            if file is None or _identity(self._path) != file:
                return True
            os.replace(self._path, self._broken)
            for rest in ("-wal", "-shm"):
                self._path.with_name(f"{self._path.name}{rest}").unlink(missing_ok=True)
            _LOG.warning(
                "ansible_bootstrap: %s was damaged, or of another version, and is kept as %s: %s",
                self._path,
                self._broken.name,
                self._lost,
            )
        return True

    def _prepared(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=BUSY_SECONDS)
        try:
            if _version(database) != self._version:
                database.execute("PRAGMA auto_vacuum = INCREMENTAL")  # Works on an empty file alone.
                database.execute("BEGIN EXCLUSIVE")
                if _version(database) != self._version:  # Not made by another process meanwhile.
                    if database.execute("SELECT 1 FROM sqlite_master").fetchone():
                        raise _OtherVersionError
                    for statement in self._schema.split(";\n"):
                        database.execute(statement)
                    database.execute(f"PRAGMA user_version = {self._version}")
                    if self._broken.exists():
                        self._after_loss(database)
                database.commit()
            # The file keeps the mode. While others are at it, this fails at once, whatever the timeout; the next
            # connection sets it.
            with contextlib.suppress(sqlite3.OperationalError):
                database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            database.close()
            raise
        return database


def _is_damage(error: BaseException) -> bool:
    # The latter where a damaged name is in SQLite's message.
    if isinstance(error, (_OtherVersionError, UnicodeDecodeError)):
        return True
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, sqlite3.DatabaseError) and (
        code in _NO_DATABASE or any(text in str(error) for text in _OTHER_CONTENT)
    )


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _identity(path: Path) -> tuple[int, int]:
    """Return device and inode of what is there."""
    status = path.stat()
    return status.st_dev, status.st_ino


_MOST_VALUES: Final = 999
"""In one statement; what the oldest SQLite takes that Python does."""


def execute_rows(
    database: sqlite3.Connection, query: str, rows: Sequence[tuple[Any, ...]], *more: Any
) -> None:
    """Execute a query with as many rows at once as SQLite takes; each step gives the interpreter's lock away.

    Args:
        database: in a transaction.
        query: with ``{values}`` where ``VALUES (?, ...), ...`` goes, and marks for ``more`` after that.
        rows: of the same length.
        more: values that the query has besides.
    """
    if not rows:
        return
    size = (_MOST_VALUES - len(more)) // len(rows[0])
    for begin in range(0, len(rows), size):
        some = rows[begin : begin + size]
        row = f"({', '.join('?' * len(some[0]))})"
        values = [value for values in some for value in values]
        database.execute(query.format(values=f"VALUES {', '.join([row] * len(some))}"), [*values, *more])
