"""What the hub side's tests share: the fake apply program and its control, waiting, reading a log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ansible_bootstrap.place import Place
from ansible_bootstrap.state.ledger import Entry, Ledger, probed

FAKE = Path(__file__).with_name("fake_apply.py")


class FakeApply:
    """The fake program's command line, what it shall do, and what it did."""

    def __init__(self, path: Path) -> None:
        self.control = path / "control.json"
        self.notes = path / "control.json.log"
        self.command = [sys.executable, "-S", str(FAKE), str(self.control)]
        self.do()

    def do(self, **control: Any) -> None:
        """From the next run on; atomically, for a run may just begin."""
        temporary = self.control.with_suffix(".new")
        temporary.write_text(json.dumps(control))
        os.replace(temporary, self.control)

    def noted(self, what: str) -> list[dict[str, Any]]:
        if not self.notes.exists():
            return []
        lines = [json.loads(line) for line in self.notes.read_text().splitlines()]
        return [line for line in lines if line["what"] == what]

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The bootstraps that have begun."""
        return [note for note in self.noted("begin") if note["operation"] == "bootstrap"]

    @property
    def cleanups(self) -> list[dict[str, Any]]:
        """The clean-ups that have begun."""
        return [note for note in self.noted("begin") if note["operation"] == "cleanup"]

    @property
    def ended(self) -> list[dict[str, Any]]:
        """The bootstraps that have ended as they should."""
        return [note for note in self.noted("end") if note["operation"] == "bootstrap"]

    def alive(self) -> list[int]:
        """Processes of runs that are still there."""
        return [note["pid"] for note in self.noted("begin") if is_alive(note["pid"])]

    def clean(self) -> None:
        """Kill what is left, and surely nothing else: a pid may be somebody else's by now."""
        for note in self.noted("begin") + self.noted("orphan"):
            pid, mark = (note["orphan"], b"sleep\x0030") if "orphan" in note else (note["pid"], self._mark)
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if mark in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)

    @property
    def _mark(self) -> bytes:
        return str(self.control).encode()


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """Wait until the condition holds, and return what it gave."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {condition}"
        await asyncio.sleep(0.01)
    return value


class Lines(logging.Handler):
    """What has been logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.logger = logging.Logger("test", logging.DEBUG)
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self.records]


class SeeingLedger(Ledger):
    """The ledger, and the probes of directories that the hub makes in threads."""

    def look(self, place: Place) -> Entry | None:
        """Return what the user has, if the directory is as it was."""
        entry = self.recorded(place)
        return entry if entry is not None and self.holds(entry) else None

    def complete(self, entries: Sequence[Entry], *, until: float | None = None) -> None:
        """Note these entries with what their directories look like now."""
        self.note([probed(entry) for entry in entries], until=until)
