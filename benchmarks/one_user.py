"""One new user, beside Ansible's own start.

In alternating rounds: a cold ``ansible-playbook`` of an empty play (which nobody who uses Ansible can go below), one of
our runs as a hub without a spare makes it, and one with the spare ready; ours from ``ApplyClient.start`` to the user's
outcome, with the role ``user_dir``. Ratios are taken within a round; figures are medians.

    python -m benchmarks.one_user                writes benchmarks/results/one_user.md
    python -m benchmarks.one_user --rounds 3     quicker
    python -m benchmarks.one_user --row 20       also runs one after another, without a pause
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ansible_bootstrap.dispatch.client import ApplyClient
from ansible_bootstrap.protocol import Event, OutcomeEvent, Request
from benchmarks.machine import describe, owner

RESULTS = Path(__file__).parent / "results" / "one_user.md"
BIN = Path(sys.executable).parent
GOALS = {"one run": 1.6, "with a spare": 0.7}
PAUSE = 3.0
"""Seconds in which a spare is surely ready: in a class, the time until somebody presses Start."""


class Site:
    """A storage root, settings for it, and an empty play."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "volumes"
        self.root.mkdir(mode=0o755)
        self.settings = directory / "settings.json"
        uid, gid = owner()
        self.settings.write_text(json.dumps({"storage_root": str(self.root), "uid": uid, "gid": gid}))
        self.settings.chmod(0o600)
        self.play = directory / "empty.yml"
        self.play.write_text("- hosts: localhost\n  connection: local\n  gather_facts: false\n")
        self.directory = directory
        self._users = 0

    def cold(self) -> float:
        """Run the empty play; seconds."""
        command = [str(BIN / "ansible-playbook"), "-i", "localhost,", str(self.play)]
        environment = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(self.directory),
            "LC_ALL": "C.UTF-8",
        }
        begin = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=self.directory, env=environment)
        return time.perf_counter() - begin

    async def argv(self) -> Sequence[str]:
        return [sys.executable, "-I", "-m", "ansible_bootstrap.apply", "--settings", str(self.settings)]

    async def run(self, client: ApplyClient) -> tuple[float, float]:
        """Bootstrap one new user; seconds to the outcome and to the end of the run."""
        self._users += 1
        name = f"student{self._users}"
        begin = time.perf_counter()
        after: list[float] = []

        def take(event: Event) -> None:
            if isinstance(event, OutcomeEvent):
                assert event.outcome.status == "ok", event.outcome
                after.append(time.perf_counter() - begin)

        users = [{"name": name, "key": name, "storage_host": "localhost"}]
        run = await client.start(Request(operation="bootstrap", users=users), take, limit=60)
        await run.finish()
        assert (self.root / name).is_dir()
        return after[0], time.perf_counter() - begin


async def measure(site: Site, rounds: int, row: int) -> tuple[list[dict[str, float]], dict[str, list[float]]]:
    """Return each round's seconds by way, and the seconds of runs in a row."""
    plain = ApplyClient(site.argv, logging.getLogger())
    ours = ApplyClient(site.argv, logging.getLogger(), spare=True)
    ours.prepare()
    taken: list[dict[str, float]] = []
    for number in range(rounds + 1):
        await asyncio.sleep(PAUSE)
        one = {"empty play": site.cold()}
        one["with a spare"], _ = await site.run(ours)
        await asyncio.sleep(
            PAUSE
        )  # the next spare begins when the run has ended: let it not disturb the others
        one["one run"], _ = await site.run(plain)
        if number:  # the first warms the caches
            taken.append(one)
            print("  ".join(f"{way}: {seconds:.3f} s" for way, seconds in one.items()), flush=True)
    rows: dict[str, list[float]] = {}
    for way, client in (("one run", plain), ("with a spare", ours)) if row else ():
        await asyncio.sleep(PAUSE)
        begin = time.perf_counter()
        outcomes = [(await site.run(client))[0] for _ in range(row)]
        rows[way] = [statistics.median(outcomes), time.perf_counter() - begin]
    ours.close()
    await asyncio.sleep(0.2)
    return taken, rows


def main() -> int:
    """Measure, print and write the table; exit with 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description="One new user, beside Ansible's own start.")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--row", type=int, default=0, metavar="RUNS")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        taken, rows = asyncio.run(measure(Site(Path(name)), given.rounds, given.row))
    lines = ["| | seconds | ÷ empty play | goal |", "|---|---:|---:|---:|"]
    missed = False
    for way in ("empty play", "one run", "with a spare"):
        ratio = statistics.median(one[way] / one["empty play"] for one in taken)
        goal = GOALS.get(way)
        missed = missed or (goal is not None and ratio > goal)
        seconds = statistics.median(one[way] for one in taken)
        lines.append(f"| {way} | {seconds:.3f} | {ratio:.2f} | {f'≤ {goal}' if goal else ''} |")
    for way, (outcome, total) in rows.items():
        lines.append(f"| {given.row} in a row, {way} | {outcome:.3f} each, {total:.1f} in all | | |")
    table = "\n".join(lines)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        "# One new user\n\n"
        f"{describe('ansible-core', 'ansible-runner')}; medians of {given.rounds} alternating "
        "rounds, ratios within a round. Empty play: a cold `ansible-playbook`, "
        "start to exit. Ours: role `user_dir`, from `ApplyClient.start` to the outcome, the spare ready.\n\n"
        f"{table}\n\nMade by `python -m benchmarks.one_user`.\n"
    )
    print(table)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
