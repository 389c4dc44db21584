"""What the history says about the last day and the last weeks: counted by SQLite, so it costs no memory.

Runs that only predicted (``--check``, ``mode = "observe"``) are counted by themselves: they bootstrapped no user,
and a role that is predicted takes no time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from ansible_bootstrap.state.history import COLUMNS, History, RunSummary, summary

DAY: Final = 86400.0
SLOWEST: Final = 10
"""Most roles that are listed."""


@dataclass(frozen=True, slots=True)
class Failures:
    """Failures for one reason."""

    users: int
    times: int
    """A user who fails again counts again."""


@dataclass(slots=True)
class Period:
    """What was since a moment."""

    since: float
    """Seconds since the epoch."""
    runs: int = 0
    runs_failed: int = 0
    """As a whole."""
    bootstrapped: int = 0
    """Users, each once."""
    failures: dict[str, Failures] = field(default_factory=dict)
    """Of bootstraps, by ``errors.REASONS``."""
    cleanup_failures: dict[str, Failures] = field(default_factory=dict)
    would_fail: dict[str, Failures] = field(default_factory=dict)
    """Predicted ones."""


@dataclass(frozen=True, slots=True)
class RoleTimes:
    """How long a role took for all users of a run."""

    role: str
    runs: int
    median_seconds: float
    max_seconds: float


@dataclass(frozen=True, slots=True)
class LookBack:
    """All of it."""

    last_day: Period
    kept: Period
    """All that is kept: ``history_days``, if the history is that old."""
    last_failed_run: RunSummary | None
    """As a whole, within the last day."""
    slowest_roles: Sequence[RoleTimes]
    """By their median."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def look_back(history: History) -> LookBack:
    """Count what is kept.

    Raises:
        sqlite3.Error, OSError: it cannot be read.
    """
    now = time.time()
    day = now - DAY
    ((oldest,),) = history.select("SELECT MIN(started) FROM runs", ()) or [(None,)]
    failed = history.select(
        f"SELECT {COLUMNS} FROM runs WHERE outcome = 'failed' AND started >= ?"  # noqa: S608
        " ORDER BY number DESC LIMIT 1",
        (day,),
    )
    return LookBack(
        last_day=_period(history, day),
        kept=_period(history, now if oldest is None else oldest),
        last_failed_run=summary(failed[0]) if failed else None,
        slowest_roles=_slowest(history),
    )


def _period(history: History, since: float) -> Period:
    period = Period(since)
    for runs, failed in history.select(
        "SELECT COUNT(*), COUNT(*) FILTER (WHERE outcome = 'failed') FROM runs WHERE started >= ?", (since,)
    ):
        period.runs, period.runs_failed = runs, failed
    for operation, checked, reason, users, times in history.select(
        "SELECT operation, checked, reason, COUNT(DISTINCT name), COUNT(*) FROM runs JOIN outcomes USING (number)"
        " WHERE started >= ? GROUP BY operation, checked, reason ORDER BY COUNT(*) DESC, reason",
        (since,),
    ):
        if not reason:
            if operation == "bootstrap" and not checked:
                period.bootstrapped = users
        elif checked:
            period.would_fail[reason] = Failures(users, times)
        else:
            which = period.failures if operation == "bootstrap" else period.cleanup_failures
            which[reason] = Failures(users, times)
    return period


def _slowest(history: History) -> list[RoleTimes]:
    """SQLite has no median: it is the mean of the one or two in the middle."""
    rows = history.select(
        "SELECT role, runs, AVG(seconds) AS median, longest FROM ("
        "  SELECT role, roles.seconds AS seconds, COUNT(*) OVER each AS runs, MAX(roles.seconds) OVER each AS longest,"
        "    ROW_NUMBER() OVER (PARTITION BY role ORDER BY roles.seconds) AS place"
        "  FROM roles JOIN runs USING (number) WHERE NOT checked WINDOW each AS (PARTITION BY role)"
        ") WHERE place IN ((runs + 1) / 2, (runs + 2) / 2)"
        " GROUP BY role ORDER BY median DESC, role LIMIT ?",
        (SLOWEST,),
    )
    return [RoleTimes(role, runs, round(median, 3), longest) for role, runs, median, longest in rows]
