"""A hub with users who arrive all at once, and its processes at work."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from benchmarks.course import lessons, make_course
from benchmarks.storm.hub import Hub

SCRIPT_SECONDS = 5
"""What the admin's script may take; see ``bound``."""

SCRIPT = """#!/bin/sh
# The kernel frees the lock when its holder ends, in any way: a script that does not get it runs beside another for the same user.
exec 9>> {log}/$1.lock
flock -n 9 || echo $1 >> {log}/overlaps
echo begin $1 $$ >> {log}/notes
sleep 0.1
echo end $1 $$ >> {log}/notes
"""


class Classroom:
    """The hub, and what its admin's script notes out of the users' reach."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path / "log"
        self.log.mkdir(mode=0o700)
        script = path / "site-script"
        script.write_text(SCRIPT.format(log=self.log))
        script.chmod(0o755)
        archive = make_course(path)
        self.hub = Hub(
            path / "hub",
            "ours",
            archive,
            tools=None,
            settings={
                "roles": ["user_dir", "tutorials", "script"],
                "extra_vars": {
                    "tutorials_sources": [{"name": "course", "path": str(archive), "dest": "tutorials"}],
                    "script_path": str(script),
                    "script_as": "root",
                    "script_timeout": SCRIPT_SECONDS,
                },
            },
        )

    # -- what the script noted ------------------------------------------------------------------

    def noted(self, what: str) -> list[tuple[str, int]]:
        """Return user and pid of each ``begin`` or ``end``."""
        notes = self.log / "notes"
        lines = [line.split() for line in notes.read_text().splitlines()] if notes.exists() else []
        return [(name, int(pid)) for kind, name, pid in lines if kind == what]

    @property
    def overlaps(self) -> list[str]:
        """Users for whom the script ran twice at once."""
        file = self.log / "overlaps"
        return file.read_text().split() if file.exists() else []

    # -- processes at work ----------------------------------------------------------------------

    def at_work(self) -> list[int]:
        """Return the processes from one below the hub down to a script that runs now; none if none runs."""
        assert self.hub.process
        ended = {pid for _, pid in self.noted("end")}
        for _, pid in self.noted("begin"):
            if pid not in ended:
                line = [pid]
                while line[0] != self.hub.process.pid and (parent := parent_of(line[0])) > 1:
                    line.insert(0, parent)
                if line[0] == self.hub.process.pid:
                    return line[1:]
        return []

    # -- what there is ----------------------------------------------------------------------------

    def lessons(self) -> dict[str, int]:
        """How many files of the course each user has; users without a place for it are left out."""
        homes = [path for path in self.hub.storage.iterdir() if path.name.startswith("student")]
        return {home.name: lessons(home) for home in homes if (home / "tutorials").exists()}


def parent_of(pid: int) -> int:
    """Return the parent's pid; 0 if the process is gone or a zombie."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if fields[0] in "ZX" else int(fields[1])
    return 0


def carrying(marks: set[str]) -> dict[int, str]:
    """Return the living processes, but this one, that have one of the marks in command line or environment."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid() or not parent_of(int(entry)):
            continue
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{entry}/cmdline").read_bytes()
            text = (command + Path(f"/proc/{entry}/environ").read_bytes()).decode("utf-8", "replace")
            if any(mark in text for mark in marks):
                found[int(entry)] = command.replace(b"\0", b" ").decode("utf-8", "replace")
    return found


def born(pids: set[int]) -> set[tuple[int, str]]:
    """Return those of these processes that live, each with its time of birth: a pid may be somebody else's later."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[0] not in "ZX":
                found.add((pid, fields[19]))
    return found


def living(processes: set[tuple[int, str]]) -> set[tuple[int, str]]:
    """Return the processes that still run."""
    return processes & born({pid for pid, _ in processes})
