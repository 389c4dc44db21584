"""Past runs and the outcome of each user: one SQLite file for ``ansible-bootstrap status``.

It is for people to read: no decision of the hub depends on it. Each record drops what is too old, a few runs at a time,
and gives the space back to the file system.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Final

from ansible_bootstrap.protocol import Outcome
from ansible_bootstrap.run_record import RunOutcome, RunRecord
from ansible_bootstrap.state.sqlite_file import SqliteFile, execute_rows
from ansible_bootstrap.state.writer import Writer

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


class Recorder(Writer):
    """Writes runs into the history beside the event loop.

    Args:
        history: where to.
        log: told once that it does not work.
    """

    def __init__(self, history: History, log: logging.Logger) -> None:
        super().__init__("history", log, "the history cannot be written, runs go on")
        self._history = history
        self._runs: list[RunRecord] = []

    def record(self, run: RunRecord) -> None:
        """Have a run written. Returns at once; never raises."""
        if len(self._runs) < MAX_QUEUED:
            self._runs.append(run)
            self._write_soon()
        else:
            self._complain(TimeoutError("the disk does not keep up"))

    async def _write(self) -> None:
        while self._runs:
            await self._try(partial(self._history.record, self._runs.pop(0)))


def _shortened(outcome: Outcome) -> Outcome:
    if len(outcome.message) <= MAX_MESSAGE:
        return outcome
    return outcome.model_copy(update={"message": outcome.message[:MAX_MESSAGE] + "…"})
