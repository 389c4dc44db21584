"""What runs there were and what became of whom: one SQLite file for ``ansible-bootstrap status``.

It is for people to look at; nothing is decided by it. The hub hands records to a daemon thread, so a slow
or full disk delays no spawn, and a history that cannot be written is one warning in the log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from .errors import AnsibleBootstrapError
from .protocol import Outcome
from .state import ensure_state_dir

FILE: Final = "history.sqlite"
"""Below ``state_dir``, mode 0600."""

BUSY_SECONDS: Final = 5.0
MAX_QUEUED: Final = 1000
"""Most runs that wait to be written; beyond, they are dropped."""

MAX_MESSAGE: Final = 2000

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS runs (
    number INTEGER PRIMARY KEY,
    run TEXT NOT NULL,
    operation TEXT NOT NULL,
    storage_host TEXT NOT NULL,
    started REAL NOT NULL,      -- seconds since the epoch
    seconds REAL NOT NULL,
    users INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    checked INTEGER NOT NULL,   -- whether it only predicted
    error TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS runs_started ON runs (started);
CREATE TABLE IF NOT EXISTS outcomes (
    number INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
    name TEXT NOT NULL,
    outcome TEXT NOT NULL       -- JSON of protocol.Outcome
);
CREATE INDEX IF NOT EXISTS outcomes_name ON outcomes (name, number);
CREATE INDEX IF NOT EXISTS outcomes_number ON outcomes (number);
PRAGMA user_version = 1;
"""


@dataclass(slots=True)
class RunRecord:
    """One run, as it is kept."""

    run: str
    operation: str
    storage_host: str
    started: float
    """Seconds since the epoch."""
    users: int
    seconds: float = 0.0
    check: bool = False
    error: str = ""
    """Why users without an outcome of their own have failed, if there are any."""
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """How many users failed."""
        return sum(outcome.status == "failed" for outcome in self.outcomes)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run, as ``status`` lists it."""

    run: str
    operation: str
    storage_host: str
    started: float
    seconds: float
    users: int
    failed: int
    check: bool
    error: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PastOutcome:
    """What became of a user in one run."""

    started: float
    operation: str
    check: bool
    outcome: Outcome


_SUMMARY: Final = tuple(item.name for item in fields(RunSummary))


class History:
    """The file itself. Every call blocks on the disk.

    Args:
        state_dir: made with mode 0700 if there is none.
        days: how long a run is kept.
    """

    def __init__(self, state_dir: str | os.PathLike[str], days: float = 30.0) -> None:
        self._directory = Path(state_dir)
        self._days = days

    def record(self, run: RunRecord) -> None:
        """Keep a run, and drop those that are too old.

        Raises:
            sqlite3.Error, OSError, SettingsError: it cannot be written.
        """
        with self._open(write=True) as database:
            cursor = database.execute(
                "INSERT INTO runs (run, operation, storage_host, started, seconds, users, failed, checked, error)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    run.run,
                    run.operation,
                    run.storage_host,
                    run.started,
                    round(run.seconds, 3),
                    run.users,
                    run.failed,
                    run.check,
                    run.error[:MAX_MESSAGE],
                ),
            )
            database.executemany(
                "INSERT INTO outcomes (number, name, outcome) VALUES (?, ?, ?)",
                [
                    (cursor.lastrowid, outcome.name, _shortened(outcome).model_dump_json())
                    for outcome in run.outcomes
                ],
            )
            database.execute("DELETE FROM runs WHERE started < ?", (time.time() - self._days * 86400,))

    def runs(self, limit: int = 20) -> list[RunSummary]:
        """Return the last runs, the newest first; none if there is no history."""
        rows = self._select(
            "SELECT run, operation, storage_host, started, seconds, users, failed, checked, error"
            " FROM runs ORDER BY number DESC LIMIT ?",
            (limit,),
        )
        return [
            RunSummary(**{**dict(zip(_SUMMARY, row, strict=True)), "check": bool(row[7])}) for row in rows
        ]

    def outcomes(self, name: str, limit: int = 1) -> list[PastOutcome]:
        """Return what became of a user, the newest first; nothing if nothing is known."""
        return [
            PastOutcome(started, operation, bool(check), Outcome.model_validate_json(text))
            for started, operation, check, text in self._select(
                "SELECT started, operation, checked, outcome FROM outcomes JOIN runs USING (number)"
                " WHERE name = ? ORDER BY number DESC, outcomes.rowid DESC LIMIT ?",
                (name, limit),
            )
        ]

    def _select(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        if not (self._directory / FILE).exists():
            return []
        with self._open(write=False) as database:
            if database.execute("PRAGMA user_version").fetchone()[0] == 0:
                return []  # The first run is just making it.
            return database.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _open(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        path = self._directory / FILE
        if write:
            ensure_state_dir(self._directory)
            # SQLite gives its -wal and -shm the mode of the file itself.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(path, timeout=BUSY_SECONDS)
        try:
            if write:
                database.executescript("PRAGMA journal_mode = WAL; PRAGMA foreign_keys = ON;" + _SCHEMA)
            with database:
                yield database
        finally:
            database.close()


class Recorder:
    """Writes runs into the history from a daemon thread; never blocks, never raises.

    Args:
        history: where to.
        log: told once that it does not work.
    """

    def __init__(self, history: History, log: logging.Logger) -> None:
        self._history = history
        self._log = log
        self._queue: queue.Queue[RunRecord] = queue.Queue(MAX_QUEUED)
        self._thread: threading.Thread | None = None
        self._complained = False

    def record(self, run: RunRecord) -> None:
        """Hand a run to the thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="ansible-bootstrap-history", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(run)
        except queue.Full:
            self._complain("the disk does not keep up")

    def _work(self) -> None:
        while True:
            run = self._queue.get()
            try:
                self._history.record(run)
            except AnsibleBootstrapError as error:
                self._complain(error.details)
            except Exception as error:
                self._complain(f"{type(error).__name__}: {error}")

    def _complain(self, why: str) -> None:
        if not self._complained:
            self._complained = True
            self._log.warning("ansible_bootstrap: the history cannot be written, runs go on: %s", why)


def _shortened(outcome: Outcome) -> Outcome:
    if len(outcome.message) <= MAX_MESSAGE:
        return outcome
    return outcome.model_copy(update={"message": outcome.message[:MAX_MESSAGE] + "…"})
