"""A class at once, straight into the dispatcher, beside the obvious hook.

300 new users wait at the same moment; each gets a directory and a course of 20 files, by the real apply program, whose
spare is ready, as in a hub that is up. The naive hook does the same for 20 users, as many at a time as a hub's threads
would, and is extrapolated. Rounds alternate; figures are medians. Goal: at most a hundredth of the naive hook's time.

    python -m benchmarks.dispatch                 writes benchmarks/results/dispatch.md
    python -m benchmarks.dispatch --users 40 --rounds 1 --results /tmp/dispatch.md
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

from traitlets.config import Config

from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.dispatch.client import ApplyClient
from ansible_bootstrap.dispatch.dispatcher import Dispatcher
from ansible_bootstrap.dispatch.observer import Observer
from ansible_bootstrap.place import Place
from ansible_bootstrap.run_record import RunRecord
from ansible_bootstrap.threads import in_thread
from benchmarks.course import FILES, lessons, make_course
from benchmarks.disk import fresh_disk
from benchmarks.machine import describe, owner
from benchmarks.naive import bootstrap

GOAL: Final = 100
PAUSE: Final = 2.0
"""Seconds in which a spare is ready, or has ended."""

RESULTS: Final = Path(__file__).parent / "results" / "dispatch.md"


async def ours(directory: Path, archive: Path, users: int) -> tuple[float, float, int]:
    """Return seconds until the last is ready, until the median one is, and the number of runs."""
    storage = directory / "storage"
    storage.mkdir(mode=0o755)
    c = Config()
    c.AnsibleBootstrap.storage_root = str(storage)
    c.AnsibleBootstrap.state_dir = str(directory / "state")
    c.AnsibleBootstrap.roles = ["user_dir", "tutorials"]
    c.AnsibleBootstrap.extra_vars = {
        "tutorials_sources": [{"name": "course", "path": str(archive), "dest": "tutorials"}]
    }
    c.AnsibleBootstrap.uid, c.AnsibleBootstrap.gid = owner()
    config = AnsibleBootstrap(config=c)
    log = logging.getLogger("dispatch")
    runs: list[RunRecord] = []
    landed = asyncio.Event()

    class Runs(Observer):
        def run_ended(self, record: RunRecord) -> None:
            """Called a little after the last of its users is ready."""
            runs.append(record)
            if sum(run.users for run in runs) == users:
                landed.set()

    client = ApplyClient(
        lambda: in_thread(config.apply_argv, timeout=10), log, spare=config.embedded and config.spare
    )
    client.prepare()
    await asyncio.sleep(PAUSE)
    dispatcher = Dispatcher(client, log, Runs(), batch_size=config.batch_size)
    begin = time.monotonic()

    async def wait(name: str) -> float:
        place = Place(name, storage_host="localhost")
        outcome = await dispatcher.wait(place, timeout=600, on_progress=lambda sentence, share: None)
        if outcome.status != "ok":
            raise SystemExit(f"{name}: {outcome.message}")
        return time.monotonic() - begin

    seconds = sorted(await asyncio.gather(*(wait(f"student{number}") for number in range(users))))
    await landed.wait()
    client.close()
    await client.gone()
    _check(storage, users)
    return seconds[-1], statistics.median(seconds), len(runs)


def naive(directory: Path, archive: Path, users: int, threads: int) -> float:
    """Return seconds until the last is ready."""
    storage = directory / "storage"
    storage.mkdir(mode=0o755)
    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        statuses = list(
            pool.map(lambda number: bootstrap(f"student{number}", storage, archive), range(users))
        )
    seconds = time.monotonic() - begin
    assert not any(statuses), statuses
    _check(storage, users)
    return seconds


def _check(storage: Path, users: int) -> None:
    counts = {lessons(storage / f"student{number}") for number in range(users)}
    assert counts == {FILES}, counts


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.dispatch", description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--naive-users", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    threads = min(32, (os.cpu_count() or 1) + 4)  # As asyncio.to_thread has.
    last, median, runs, slow = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="dispatch-") as name:
        workspace = Path(name)
        workspace.chmod(0o755)
        archive = make_course(workspace)
        for number in range(args.rounds):
            for way in ("naive", "ours")[:: -1 if number % 2 else 1]:
                with fresh_disk(workspace) as directory:
                    if way == "naive":
                        slow.append(naive(directory, archive, args.naive_users, threads))
                        said = f"naive, {args.naive_users} users: {slow[-1]:.1f} s"
                    else:
                        figures = asyncio.run(ours(directory, archive, args.users))
                        for values, value in zip((last, median, runs), figures, strict=True):
                            values.append(value)
                        said = f"ours, {args.users} users: {last[-1]:.2f} s in {runs[-1]} runs"
                print(f"round {number + 1}: {said}", flush=True)
    per_user = statistics.median(slow) / args.naive_users
    mine = statistics.median(last)
    lines = [
        "# A class at once, straight into the dispatcher",
        "",
        f"Each of {args.users} new users gets a directory and a course of {FILES} files; the spare program is ready, "
        f"as in a hub that is up. Medians of {args.rounds} alternating rounds. Naive: one `ansible_runner.run` per "
        f"user, {threads} at a time, measured on {args.naive_users} users ({per_user:.2f} s a user) and extrapolated. "
        f"Goal: {GOAL} times faster.",
        "",
        "| users | last ready | half of them ready | runs | naive (extrapolated) | times faster |",
        "|---:|---:|---:|---:|---:|---:|",
        f"| {args.users} | {mine:.2f} s | {statistics.median(median):.2f} s | {statistics.median(runs):.0f} | "
        f"{per_user * args.users:.0f} s | {per_user * args.users / mine:.0f} |",
        "",
        f"{describe('ansible-core', 'ansible-runner')}. Made by `python -m benchmarks.dispatch`.",
    ]
    args.results.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
