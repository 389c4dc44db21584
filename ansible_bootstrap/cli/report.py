"""What ``ansible-bootstrap run`` prints: its progress, and the outcomes."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from ansible_bootstrap.cli.roster import shown
from ansible_bootstrap.protocol import Outcome
from ansible_bootstrap.storage._errors import printable

LISTED: Final = 50
"""Up to so many users have a line each; if there are more, only failed users have one."""

ALIKE: Final = 5
"""More users than this that failed for the same reason share a line."""

LINE_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""


class Progress:
    """The progress on stderr: a bar on a terminal, else a line now and then, for the mail of a cron job, say.

    Args:
        what: what is being done.
        total: how many outcomes there will be, if that is known.
        quiet: print nothing.
    """

    def __init__(self, what: str, total: int | None = None, *, quiet: bool = False) -> None:
        self._what = what
        self._lines = not quiet and not sys.stderr.isatty()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=quiet or self._lines,
        )
        self._task = self._bar.add_task(what, total=total, pace="")
        self._total = total
        self._known = 0
        self._worked = 0
        self._ended = threading.Event()
        self._start = time.monotonic()
        self.done = 0
        self.failed = 0
        self.seconds = 0.0

    def __enter__(self) -> Progress:
        self._bar.start()
        if self._lines:
            threading.Thread(target=self._write_lines, name="progress", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._bar.stop()
        self.seconds = time.monotonic() - self._start

    def advance(self, outcome: Outcome, known: bool = False) -> None:
        """Count one more outcome; ``known`` if the user was complete already."""
        self.failed += outcome.status == "failed"
        self._known += known
        self._worked += bool(outcome.run)  # A user who was refused or skipped took no time.
        self.reach(self.done + 1, self._total)

    def reach(self, done: int, total: int | None) -> None:
        """Show that so many of so many are done."""
        self.done = done
        self._total = total if total is None else max(total, done)
        self._bar.update(self._task, completed=done, total=self._total, pace=self._pace())

    def _pace(self) -> str:
        """Return failures, speed and time left. The speed is the mean so far, for outcomes come a batch at a time."""
        seconds = time.monotonic() - self._start
        said = [f"{self.failed} failed"] if self.failed else []
        said += [f"{self._known} complete already"] if self._known else []
        if self._worked and seconds >= 1:
            speed = self._worked / seconds
            said.append(f"{speed:.1f} users/s" if speed < 10 else f"{speed:.0f} users/s")
            if self._total is not None and self._total > self.done:
                said.append(f"about {_span((self._total - self.done) / speed)} left")
        return ", ".join(said)

    def _write_lines(self) -> None:
        while not self._ended.wait(LINE_SECONDS):
            done = f"{self.done}" if self._total is None else f"{self.done} of {self._total}"
            line = ", ".join(filter(None, [f"{self._what}: {done}", self._pace()]))
            with contextlib.suppress(OSError, ValueError):  # Nobody reads it any more.
                print(line, file=sys.stderr, flush=True)


class Results:
    """The outcomes. In a long list, outcomes of users who are ok are counted, not kept.

    Args:
        total: how many there will be; in a short list each has a line.
        check: nothing was changed.
        as_json: print all of them as a JSON list instead.
    """

    def __init__(self, total: int, *, check: bool, as_json: bool) -> None:
        self._check = check
        self._each = total <= LISTED
        self._spool = tempfile.TemporaryFile("w+", encoding="utf-8") if as_json else None  # noqa: SIM115
        self._listed: list[Outcome] = []
        self._alike: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()
        self._changed: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._count = 0
        self._known = 0

    @property
    def failed(self) -> int:
        """How many users failed."""
        return self._reasons.total()

    def add(self, outcome: Outcome, known: bool = False) -> None:
        """Take an outcome; ``known`` if the user was complete already."""
        if self._spool is not None:
            self._spool.write(("," if self._count else "") + "\n" + outcome.model_dump_json())
        self._count += 1
        self._known += known
        self._changed.update(outcome.changed)
        if outcome.status == "failed":
            self._reasons[str(outcome.reason)] += 1
            self._alike[_why(outcome)] += 1
        if self._each or (outcome.status == "failed" and self._alike[_why(outcome)] <= ALIKE):
            self._listed.append(outcome)
        else:
            self._notes.update(outcome.notes)

    def print(self, seconds: float) -> None:
        """Print a line for each user (in a long list: for failed users) and a summary; or the JSON list."""
        if self._spool is not None:
            self._spool.seek(0)
            print("[", end="")
            shutil.copyfileobj(self._spool, sys.stdout)
            print("\n]")
            return
        console = Console(highlight=False, soft_wrap=True)
        for outcome in self._listed:
            if outcome.status == "failed" and self._alike[_why(outcome)] > ALIKE:
                self._notes.update(outcome.notes)
            else:
                print_outcome(console, outcome, check=self._check)
        for why, count in self._alike.items():
            if count > ALIKE:
                console.print(f"[red]failed[/]  {count} users alike: {safe(why)}")
        for note, count in self._notes.most_common(LISTED):
            console.print(f"note    {f'{count} users: ' if count > 1 else ''}{safe(note)}")
        if len(self._notes) > LISTED:
            console.print(f"note    … and {len(self._notes) - LISTED} more")
        console.print(self._summary(seconds))

    def _summary(self, seconds: float) -> str:
        ok = self._count - self.failed
        parts = [f"{self._count} users: {ok} ok, {self.failed} failed in {seconds:.1f} s"]
        if self._known:
            parts.append(f"{self._known} {'was' if self._known == 1 else 'were'} complete already")
        if self._changed:
            changed = ", ".join(f"{safe(role)} {count}" for role, count in self._changed.items())
            parts.append(f"{'would change' if self._check else 'changed'}: {changed}")
        if self._reasons:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self._reasons.items())
            parts.append(f"failed: {reasons}")
        return "\n".join(parts)


def _why(outcome: Outcome) -> str:
    where = f"{outcome.failed_role}: " if outcome.failed_role else ""
    task = f" (task: {outcome.failed_task})" if outcome.failed_task else ""
    return where + outcome.message + task


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def print_outcome(console: Console, outcome: Outcome, *, check: bool) -> None:
    """Print what became of one user, with the notes for the admin."""
    if outcome.status == "failed":
        console.print(f"[red]failed[/]  {safe(shown(outcome.name or outcome.key))}: {safe(_why(outcome))}")
    elif outcome.changed:
        verb = "would change" if check else "changed"
        console.print(f"[yellow]{verb}[/]  {safe(outcome.name)}: {safe(', '.join(outcome.changed))}")
    else:
        console.print(f"[green]ok[/]  {safe(outcome.name)}")
    for note in outcome.notes:
        console.print(f"        {safe(note)}")


def safe(text: str) -> str:
    """Return text for a terminal: no control characters, no markup."""
    return escape(printable(text))


def print_json(data: Any) -> None:
    """Print for a program."""
    json.dump(data, sys.stdout, indent=1)
    print()
