"""A school the evening before: ``ansible-bootstrap run --roster`` for 500 and 5,000 new users.

How the time grows (goal: ten times the users take at most 1.2 times ten times as long), and that memory does not:
the peak of the command itself, of the largest process below it, and of all of them together (shared pages
counted once). Rounds alternate; figures are medians.

    python -m benchmarks.roster                   writes benchmarks/results/roster.md
    python -m benchmarks.roster --sizes 50,500 --rounds 1 --results /tmp/roster.md
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ansible_bootstrap.apply.descendants import descendants
from benchmarks.disk import fresh_disk
from benchmarks.machine import describe, owner

GOAL: Final = 1.2
RESULTS: Final = Path(__file__).parent / "results" / "roster.md"
BIN: Final = Path(sys.executable).parent
LOOK_SECONDS: Final = 0.1


@dataclass
class Taken:
    """What one command took. Memory in MiB, at its peak."""

    seconds: float
    command: float
    largest: float
    below: float


def run(directory: Path, users: int) -> Taken:
    """Bootstrap so many new users, directory only."""
    storage = directory / "storage"
    storage.mkdir(mode=0o755)
    roster = directory / "roster.txt"
    roster.write_text("".join(f"student{number:05}\n" for number in range(users)))
    config = directory / "jupyterhub_config.py"
    config.write_text(
        "c = get_config()\n"
        f"c.AnsibleBootstrap.storage_root = {str(storage)!r}\n"
        f"c.AnsibleBootstrap.state_dir = {str(directory / 'state')!r}\n"
        f"c.AnsibleBootstrap.uid, c.AnsibleBootstrap.gid = {owner()}\n"
    )
    with (directory / "out").open("wb") as out:
        begin = time.monotonic()
        process = subprocess.Popen(
            [
                str(BIN / "ansible-bootstrap"),
                "run",
                "--roster",
                str(roster),
                "--config",
                str(config),
                "--json",
            ],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
        command = largest = below = 0.0
        while process.poll() is None:
            children = descendants(process.pid)
            command = max(command, _peak(process.pid))
            largest = max([largest, *(_peak(pid) for pid in children)])
            below = max(below, sum(_share(pid) for pid in children))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_SECONDS)
        seconds = time.monotonic() - begin
    made = sum(path.name.startswith("student") for path in storage.iterdir())
    if process.returncode != 0 or made != users:
        raise SystemExit((directory / "out").read_text()[-2000:])
    return Taken(seconds, command, largest, below)


def _peak(pid: int) -> float:
    """Return the most memory that a process has had resident so far."""
    return _figure(Path(f"/proc/{pid}/status"), "VmHWM:")


def _share(pid: int) -> float:
    """Return what a process has resident now, shared pages divided among those who share them."""
    return _figure(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def _figure(file: Path, name: str) -> float:
    with contextlib.suppress(OSError):  # It has ended, or may not be looked at.
        for line in file.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.roster", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes", default="500,5000", help="a smaller and a larger number of users (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    small, large = (int(size) for size in args.sizes.split(","))
    taken: dict[int, list[Taken]] = {small: [], large: []}
    with tempfile.TemporaryDirectory(prefix="roster-") as name:
        for number in range(args.rounds):
            for size in (small, large)[:: -1 if number % 2 else 1]:
                with fresh_disk(Path(name)) as directory:
                    taken[size].append(run(directory, size))
                print(f"round {number + 1}: {size} users: {taken[size][-1]}", flush=True)
    ratio = statistics.median(
        many.seconds / few.seconds for few, many in zip(taken[small], taken[large], strict=True)
    )
    lines = [
        "# A roster, the evening before",
        "",
        f"`ansible-bootstrap run --roster`, directory only, batches of 500; medians of {args.rounds} alternating "
        f"rounds. {large} users take {ratio:.2f} times as long as {small}; goal: at most {GOAL * large / small:g}.",
        "",
        "| users | seconds | the command | largest process below it | all below it |",
        "|---:|---:|---:|---:|---:|",
    ]
    for size in (small, large):
        seconds, *memory = (
            statistics.median(getattr(one, name) for one in taken[size])
            for name in ("seconds", "command", "largest", "below")
        )
        lines.append(
            f"| {size} | {seconds:.2f} | " + " | ".join(f"{value:.0f} MiB" for value in memory) + " |"
        )
    lines += ["", f"{describe('ansible-core', 'ansible-runner')}. Made by `python -m benchmarks.roster`."]
    args.results.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
