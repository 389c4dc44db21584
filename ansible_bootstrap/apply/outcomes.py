"""Reads what the playbook's callback writes about the users of a run, and sends it to the caller."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any, Final

from ansible_bootstrap.apply.caller import emit, log
from ansible_bootstrap.errors import Reason
from ansible_bootstrap.protocol import End, Fetched, Outcome, OutcomeEvent, RoleStarted, User
from ansible_bootstrap.storage._errors import printable

EXIT_OK: Final = 0
EXIT_SOME_FAILED: Final = 1


class Batch:
    """The users of this run and their outcomes; each user gets exactly one."""

    def __init__(self, run: str, storage_host: str, users: list[User]) -> None:
        self.run = run
        self.storage_host = storage_host
        self.users = {user.key: user for user in users}
        self.waiting = dict(self.users)
        self.lost: tuple[Reason, str] | None = None
        """Why Ansible could not even begin the batch."""
        self.ways: set[str] = set()
        """How it was done, see :class:`End`."""
        self.over = False
        """Whether Ansible has nothing left to do but to clear up after itself."""
        self._start = time.monotonic()
        self._ok = 0
        self._failed = 0

    def take(self, lines: list[bytes]) -> None:
        """Take lines of the outcomes file."""
        for line in lines:
            data = json.loads(line)
            kind = data.pop("type")
            if kind == "role":
                emit(RoleStarted(role=data["role"], users=data["users"]))
            elif kind == "fetched":
                emit(Fetched(role=data["role"], count=data["count"]))
            elif kind == "diff":
                log(data["text"])
            elif kind == "lost":
                self.lost = data["reason"], data["message"]
            elif kind == "module":
                self.ways.add(data["way"])
            elif kind == "over":
                self.over = True
            elif kind == "outcome" and data["key"] in self.waiting:
                self._finish(**data)

    def finish(self, outcome: Outcome) -> None:
        """Pass one user's outcome on."""
        self.waiting.pop(outcome.key, None)
        if outcome.status == "ok":
            self._ok += 1
        else:
            self._failed += 1
        for note in outcome.notes:
            log(f"{self.run}: {outcome.name}: {note}")
        emit(OutcomeEvent(outcome=outcome))

    def nothing_left(self) -> None:
        """All users have every role already."""
        self._finish_all(status="ok")

    def give_up(self, message: str, inventory: str = "") -> None:
        """Fail all users who have no outcome: silence is never success.

        Args:
            message: why, if nothing that the playbook said tells it.
            inventory: what Ansible said about the inventory, see :func:`inventory_errors`.
        """
        reason, message = self.lost or ("apply_failed", message)
        if reason == "settings" and inventory:
            message = f"{message}; {inventory}"
        self._finish_all(status="failed", reason=reason, message=message)

    def _finish_all(self, **what: Any) -> None:
        for user in list(self.waiting.values()):
            self._finish(key=user.key, name=user.name, directory=user.directory or "", **what)

    def _finish(self, **what: Any) -> None:
        seconds = round(time.monotonic() - self._start, 3)
        self.finish(Outcome(run=self.run, storage_host=self.storage_host, seconds=seconds, **what))

    def end(self) -> int:
        """Say that this was all; return the exit status."""
        way = "+".join(way for way in ("cold", "spare", "ansible", "worker", "server") if way in self.ways)
        emit(End(run=self.run, ok=self._ok, failed=self._failed, way=way))
        return EXIT_SOME_FAILED if self._failed else EXIT_OK


class Tail:
    """The whole lines that have been added to a growing file since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._rest = b""

    def read(self) -> list[bytes]:
        """Return them."""
        if self._file is None:
            try:
                self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return []
        while chunk := os.read(self._file, 1 << 20):
            self._rest += chunk
        *lines, self._rest = self._rest.split(b"\n")
        return lines


def last_words(directory: Path) -> str:
    """Return the end of Ansible's own output, for the admin, where no outcome says more."""
    text = _printed(directory)
    lines = [line for line in text.splitlines() if "ERROR" in line or "fatal" in line] or text.splitlines()
    return (
        f"Ansible ended early: {' | '.join(lines[-3:])[-1500:]}" if lines else "Ansible ended without a word"
    )


def inventory_errors(directory: Path) -> str:
    """Return what Ansible said about an inventory that it could not read, for it only warns of that, and goes on."""
    said = re.findall(
        r"^\[WARNING\]: (Failed to parse inventory with '\w+' plugin: .*?)(?=^\[WARNING\]|^PLAY|\Z)",
        _printed(directory),
        re.MULTILINE | re.DOTALL,
    )
    text = ""
    # Of the plugins that Ansible tries in turn the first is the right one; "ini", the last, takes any text.
    for line in said[0].splitlines() if said else ():
        if line.strip(" .") not in text and "caused by" not in line:
            text += f" {line.strip()}"
    return printable(text[1:1000])


def _printed(directory: Path) -> str:
    try:
        return (directory / "artifacts" / "run" / "stdout").read_text("utf-8", "replace")
    except OSError:
        return ""
