"""What ``ansible-bootstrap status`` prints: the last runs, what they add up to, what became of one user."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ansible_bootstrap.cli.report import print_json, print_outcome, safe
from ansible_bootstrap.cli.roster import shown
from ansible_bootstrap.place import Place
from ansible_bootstrap.state.history import PastOutcome, RunSummary
from ansible_bootstrap.state.lookback import Failures, LookBack, Period, RoleTimes
from ansible_bootstrap.state.moves import where


def print_status(runs: Sequence[RunSummary], past: LookBack, moved: int = 0, *, as_json: bool) -> None:
    """Print the last runs, the newest first, the look back, and how many users' storage is now at another place.

    Or one JSON object with ``runs`` and what the look back has.
    """
    if as_json:
        print_json({"runs": [run.as_dict() for run in runs], **past.as_dict()})
        return
    width = None if sys.stdout.isatty() else 160  # in a pipe nothing is cut
    console = Console(highlight=False, width=width)
    if moved:
        users = "1 user is" if moved == 1 else f"{moved} users are"
        console.print(
            f"[yellow]{users} elsewhere than their last run[/]: ansible-bootstrap doctor names them\n"
        )
    if not runs:
        console.print("No run yet: the first spawn, or ansible-bootstrap run, makes one.")
        return
    console.print(_runs(runs))
    console.print()
    console.print(_periods(past.last_day, past.kept))
    if past.slowest_roles:
        console.print()
        console.print(_roles(past.slowest_roles))
    if (run := past.last_failed_run) is not None:
        console.print()
        console.print(
            f"[red]failed as a whole[/]  {_when(run.started)}, run {safe(run.run)} on {safe(run.storage_host)}: "
            f"{safe(run.error)}",
            soft_wrap=True,
        )


def print_past(
    name: str, past: Sequence[PastOutcome], places: Sequence[Place] = (), *, as_json: bool
) -> None:
    """Print where the servers of one user last had their storage, and what became of the user; or that, as JSON."""
    if as_json:
        print_json(
            [
                {"started": item.started, "operation": item.operation, "check": item.check}
                | item.outcome.model_dump(mode="json")
                for item in past
            ]
        )
        return
    console = Console(highlight=False, soft_wrap=True)
    for place in places:
        server = f"server {safe(place.server_name)}" if place.server_name else "the default server"
        console.print(f"storage of {server}: {safe(where(place))}")
    for item in past:
        console.print(f"{_when(item.started)}  {item.operation}{' (check)' if item.check else ''}")
        print_outcome(console, item.outcome, check=item.check)
    if not (past or places):
        console.print(f"Nothing is known of {safe(shown(name))}.")


def _runs(runs: Sequence[RunSummary]) -> Table:
    table = Table("began", "run", "operation", "storage host", "users", "failed", "seconds", "way", box=None)
    for run in runs:
        failed = "all" if run.outcome == "failed" and run.failed == run.users else str(run.failed)
        table.add_row(
            _when(run.started),
            safe(run.run),
            f"{run.operation} (check)" if run.check else run.operation,
            safe(run.storage_host),
            str(run.users),
            f"[red]{failed}[/]" if run.failed else "0",
            f"{run.seconds:.1f}",
            safe(run.way),
        )
    return table


def _periods(day: Period, kept: Period) -> Table:
    table = Table("", "last 24 hours", f"since {_when(kept.since)[:10]}", box=None)
    both = (day, kept)
    table.add_row("runs", *(str(period.runs) for period in both))
    table.add_row("failed as a whole", *(_red(period.runs_failed) for period in both))
    table.add_row("users bootstrapped", *(str(period.bootstrapped) for period in both))
    for what, ours, all_kept in (
        ("failed", day.failures, kept.failures),
        ("clean-up failed", day.cleanup_failures, kept.cleanup_failures),
        ("would fail", day.would_fail, kept.would_fail),
    ):
        for reason in all_kept:
            table.add_row(f"{what}: {reason}", _times(ours.get(reason)), _times(all_kept[reason]))
    return table


def _roles(roles: Sequence[RoleTimes]) -> Table:
    table = Table("slowest roles", "runs", "median seconds", "longest", box=None)
    for role in roles:
        table.add_row(
            safe(role.role), str(role.runs), f"{role.median_seconds:.2f}", f"{role.max_seconds:.2f}"
        )
    return table


def _times(failures: Failures | None) -> str:
    if failures is None:
        return "0"
    users = f"{failures.users} user{'s' if failures.users > 1 else ''}"
    return f"[red]{users}[/]" + (f", {failures.times} times" if failures.times > failures.users else "")


def _red(count: int) -> str:
    return f"[red]{count}[/]" if count else "0"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
