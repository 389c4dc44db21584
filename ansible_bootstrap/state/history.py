"""Past runs and the outcome of each user: one SQLite file for ``ansible-bootstrap status``.

It is for people to look at; nothing is decided by it. A daemon thread writes it, so a slow disk delays no spawn. A file
that another version has written is begun anew.

Each record drops what is too old, a few runs at a time, and gives the space back to the file system.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Final

from ansible_bootstrap.protocol import Outcome
from ansible_bootstrap.run_record import RunOutcome, RunRecord
from ansible_bootstrap.state.sqlite_file import SqliteFile, execute_rows
from ansible_bootstrap.state.writer import WarnOnce
from ansible_bootstrap.threads import Pool

FILE: Final = "history.sqlite"
"""Below ``state_dir``, mode 0600."""

MAX_QUEUED: Final = 100
"""Most runs that wait to be written; beyond, they are dropped."""

MAX_MESSAGE: Final = 2000

MAX_RUNS: Final = 50_000
"""Most runs that are kept, however young."""

MAX_DROPPED: Final = 20
"""Most runs that one record drops: it adds one, so what is too old goes soon, and no record takes long."""

MAX_PAGES: Final = 1000
"""Most pages, of 4 KiB each, that one record gives back."""

_VERSION: Final = 3
_SCHEMA: Final = """
CREATE TABLE runs (
    number INTEGER PRIMARY KEY,
    run TEXT NOT NULL,
    operation TEXT NOT NULL,
    storage_host TEXT NOT NULL,
    started REAL NOT NULL,      -- seconds since the epoch
    seconds REAL NOT NULL,
    users INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    checked INTEGER NOT NULL,   -- whether it only predicted
    outcome TEXT NOT NULL,
    fetched INTEGER NOT NULL,
    way TEXT NOT NULL,          -- protocol.End
    error TEXT NOT NULL
);
CREATE INDEX runs_started ON runs (started);
CREATE TABLE outcomes (
    number INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
    name TEXT NOT NULL,
    reason TEXT NOT NULL,       -- empty: ok
    outcome TEXT NOT NULL       -- JSON of protocol.Outcome
);
CREATE INDEX outcomes_name ON outcomes (name, number);
CREATE INDEX outcomes_number ON outcomes (number);
CREATE TABLE roles (
    number INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
    role TEXT NOT NULL,
    seconds REAL NOT NULL,
    PRIMARY KEY (number, role)
);
"""


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
    outcome: RunOutcome
    fetched: int
    way: str
    error: str
    """Why it failed as a whole, if it did."""

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
COLUMNS: Final = ", ".join("checked" if name == "check" else name for name in _SUMMARY)
"""Of ``runs``, for :func:`summary`."""


def summary(row: tuple[Any, ...]) -> RunSummary:
    """Return the run of a row of :data:`COLUMNS`."""
    values = dict(zip(_SUMMARY, row, strict=True))
    return RunSummary(**{**values, "check": bool(values["check"])})


class History:
    """The file itself. Every call blocks on the disk.

    Args:
        state_dir: made with mode 0700 if there is none.
        days: how long a run is kept.
    """

    def __init__(self, state_dir: str | os.PathLike[str], days: float = 30.0) -> None:
        self._file = SqliteFile(Path(state_dir) / FILE, _SCHEMA, _VERSION, "past runs are lost")
        self._days = days

    def record(self, run: RunRecord) -> None:
        """Keep a run, and drop those that are too old.

        Raises:
            sqlite3.Error, OSError, SettingsError: it cannot be written.
        """
        with self._file.writing() as database:
            values = {name: getattr(run, name) for name in _SUMMARY}
            values |= {"seconds": round(run.seconds, 3), "error": run.why[:MAX_MESSAGE]}
            number = database.execute(
                f"INSERT INTO runs ({COLUMNS}) VALUES ({', '.join('?' * len(values))})",  # noqa: S608
                list(values.values()),
            ).lastrowid
            outcomes = [
                (number, outcome.name, outcome.reason or "", _shortened(outcome).model_dump_json())
                for outcome in run.outcomes
            ]
            execute_rows(database, "INSERT INTO outcomes (number, name, reason, outcome) {values}", outcomes)
            roles = [(number, role, round(seconds, 3)) for role, seconds in run.roles.items()]
            execute_rows(database, "INSERT INTO roles (number, role, seconds) {values}", roles)
            self._drop(database)
            # Each step frees one page; ``execute`` would make only the first.
            database.executescript(f"PRAGMA incremental_vacuum({MAX_PAGES})")

    def _drop(self, database: sqlite3.Connection) -> None:
        too_old = time.time() - self._days * 86400
        last = database.execute("SELECT MAX(number) FROM runs").fetchone()[0]
        for which, bound in (("started < ?", too_old), ("number <= ?", last - MAX_RUNS)):
            database.execute(
                f"DELETE FROM runs WHERE number IN (SELECT number FROM runs WHERE {which} LIMIT ?)",  # noqa: S608
                (bound, MAX_DROPPED),
            )

    def runs(self, limit: int = 20) -> list[RunSummary]:
        """Return the last runs, the newest first; none if there is no history."""
        query = f"SELECT {COLUMNS} FROM runs ORDER BY number DESC LIMIT ?"  # noqa: S608
        return [summary(row) for row in self.select(query, (limit,))]

    def outcomes(self, name: str, limit: int = 1) -> list[PastOutcome]:
        """Return what became of a user, the newest first; nothing if nothing is known."""
        return [
            PastOutcome(started, operation, bool(check), Outcome.model_validate_json(text))
            for started, operation, check, text in self.select(
                "SELECT started, operation, checked, outcomes.outcome FROM outcomes JOIN runs USING (number)"
                " WHERE name = ? ORDER BY number DESC, outcomes.rowid DESC LIMIT ?",
                (name, limit),
            )
        ]

    def select(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        """Return the rows of a query; none if there is no history of this version.

        Raises:
            sqlite3.Error, OSError: it cannot be read.
        """
        return self._file.select(query, values)


class Recorder:
    """Writes runs into the history from a daemon thread; never blocks, never raises.

    Args:
        history: where to.
        log: told once that it does not work.
    """

    def __init__(self, history: History, log: logging.Logger) -> None:
        self._history = history
        self._pool = Pool("history", 1)
        self._room = threading.Semaphore(MAX_QUEUED)
        self._complain = WarnOnce(log, "the history cannot be written, runs go on")

    def record(self, run: RunRecord) -> None:
        """Hand a run to the thread."""
        if not self._room.acquire(blocking=False):
            self._complain(TimeoutError("the disk does not keep up"))
            return
        try:
            self._pool.submit(partial(self._write, run))
        except RuntimeError as error:  # No thread could be made.
            self._room.release()
            self._complain(error)

    def _write(self, run: RunRecord) -> None:
        try:
            self._history.record(run)
        except Exception as error:
            self._complain(error)
        finally:
            self._room.release()


def _shortened(outcome: Outcome) -> Outcome:
    if len(outcome.message) <= MAX_MESSAGE:
        return outcome
    return outcome.model_copy(update={"message": outcome.message[:MAX_MESSAGE] + "…"})
