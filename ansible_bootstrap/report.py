"""What ``ansible-bootstrap`` prints: progress on a terminal, outcomes, history."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from types import TracebackType
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from .history import PastOutcome, RunSummary
from .protocol import Outcome

LISTED: Final = 50
"""Up to so many users each gets a line; beyond, only those who failed."""

ALIKE: Final = 5
"""More users than this who failed for one and the same reason share a line."""


class Progress:
    """A bar on stderr while outcomes come in; only on a terminal.

    Args:
        total: how many outcomes there will be.
        show: whether there is somebody to see it.
    """

    def __init__(self, total: int, *, show: bool) -> None:
        self._bar = Bar(
            TextColumn("bootstrapping"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not show,
        )
        self._task = self._bar.add_task("", total=total, failed=0)
        self._failed = 0
        self._start = time.monotonic()
        self.seconds = 0.0

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self.seconds = time.monotonic() - self._start

    def advance(self, outcome: Outcome) -> None:
        """One more user is final."""
        self._failed += outcome.status == "failed"
        self._bar.update(self._task, advance=1, failed=self._failed)


def print_outcomes(outcomes: list[Outcome], *, check: bool, as_json: bool, seconds: float) -> None:
    """Print a line a user (all of a small batch, else who failed) and a summary; or a JSON list."""
    if as_json:
        _print_json([outcome.model_dump(mode="json") for outcome in outcomes])
        return
    console = Console(highlight=False, soft_wrap=True)
    alike = Counter(_why(outcome) for outcome in outcomes if outcome.status == "failed")
    for outcome in outcomes:
        if outcome.status == "failed" and alike[_why(outcome)] > ALIKE:
            continue
        if outcome.status == "failed" or len(outcomes) <= LISTED:
            _print_outcome(console, outcome, check=check)
    for why, count in alike.items():
        if count > ALIKE:
            console.print(f"[red]failed[/]  {count} users alike: {_safe(why)}")
    console.print(_summary(outcomes, check=check, seconds=seconds))


def _why(outcome: Outcome) -> str:
    where = f"{outcome.failed_role}: " if outcome.failed_role else ""
    task = f" (task: {outcome.failed_task})" if outcome.failed_task else ""
    return where + outcome.message + task


def _summary(outcomes: list[Outcome], *, check: bool, seconds: float) -> str:
    ok = [outcome for outcome in outcomes if outcome.status == "ok"]
    changed = Counter(role for outcome in ok for role in outcome.changed)
    reasons = Counter(str(outcome.reason) for outcome in outcomes if outcome.status == "failed")
    parts = [f"{len(outcomes)} users: {len(ok)} ok, {len(outcomes) - len(ok)} failed in {seconds:.1f} s"]
    if changed:
        verb = "would change" if check else "changed"
        parts.append(f"{verb}: " + ", ".join(f"{_safe(role)} {count}" for role, count in changed.items()))
    if reasons:
        parts.append("failed: " + ", ".join(f"{reason} {count}" for reason, count in reasons.items()))
    return "\n".join(parts)


def print_runs(runs: list[RunSummary], *, as_json: bool) -> None:
    """Print the last runs, the newest first."""
    if as_json:
        _print_json([run.as_dict() for run in runs])
        return
    table = Table("began", "run", "operation", "storage host", "users", "failed", "seconds", box=None)
    for run in runs:
        operation = f"{run.operation} (check)" if run.check else run.operation
        table.add_row(
            _when(run.started),
            _safe(run.run),
            operation,
            _safe(run.storage_host),
            str(run.users),
            f"[red]{run.failed}[/]" if run.failed else "0",
            f"{run.seconds:.1f}",
        )
    width = None if sys.stdout.isatty() else 160  # in a pipe nothing is cut
    Console(highlight=False, width=width).print(table if runs else "No run yet.")


def print_past(name: str, past: list[PastOutcome], *, as_json: bool) -> None:
    """Print what became of one user, the newest first."""
    if as_json:
        _print_json(
            [
                {"started": item.started, "operation": item.operation, "check": item.check}
                | item.outcome.model_dump(mode="json")
                for item in past
            ]
        )
        return
    console = Console(highlight=False, soft_wrap=True)
    for item in past:
        console.print(f"{_when(item.started)}  {item.operation}{' (check)' if item.check else ''}")
        _print_outcome(console, item.outcome, check=item.check)
    if not past:
        console.print(f"Nothing is known of {_safe(name)}.")


def _print_outcome(console: Console, outcome: Outcome, *, check: bool) -> None:
    if outcome.status == "failed":
        console.print(f"[red]failed[/]  {_safe(outcome.name)}: {_safe(_why(outcome))}")
    elif outcome.changed:
        verb = "would change" if check else "changed"
        console.print(f"[yellow]{verb}[/]  {_safe(outcome.name)}: {_safe(', '.join(outcome.changed))}")
    else:
        console.print(f"[green]ok[/]  {_safe(outcome.name)}")
    for note in outcome.notes:
        console.print(f"        {_safe(note)}")


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _safe(text: str) -> str:
    """Text for a terminal: no control characters, no markup."""
    return escape("".join(char if char.isprintable() else ascii(char)[1:-1] for char in text))


def _print_json(data: Any) -> None:
    json.dump(data, sys.stdout, indent=1)
    print()
