"""Batches of new users, beside the obvious hook.

For 10, 100 and 1,000 users: one ``ansible-bootstrap run --roster`` (directory only), beside one
``ansible_runner.run`` per user as a hook in threads would do it. The naive way is measured on a
sample and extrapolated, which the table says. Runs alternate; figures are medians.

    python -m benchmarks.run                  writes benchmarks/results/batches.md
    python -m benchmarks.run --rounds 1       quicker
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ansible_runner

from benchmarks.disk import fresh_disk

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "batches.md"
SIZES = (10, 100, 1000)
NAIVE_SAMPLE = 10
BIN = Path(sys.executable).parent
OWNER = (20001, 100) if os.geteuid() == 0 else (os.geteuid(), os.getegid())


def ours(directory: Path, count: int) -> float:
    """Bootstrap ``count`` new users in one run; seconds."""
    root = directory / "ours"
    root.mkdir(mode=0o755)
    roster = directory / "roster.txt"
    roster.write_text("".join(f"student{number}\n" for number in range(count)))
    config = directory / "jupyterhub_config.py"
    config.write_text(
        "c = get_config()\n"
        f"c.AnsibleBootstrap.storage_root = {str(root)!r}\n"
        f"c.AnsibleBootstrap.state_dir = {str(directory / 'state')!r}\n"
        f"c.AnsibleBootstrap.batch_size = 1000\n"
        f"c.AnsibleBootstrap.uid, c.AnsibleBootstrap.gid = {OWNER}\n"
    )
    command = [
        str(BIN / "ansible-bootstrap"),
        "run",
        "--roster",
        str(roster),
        "--config",
        str(config),
        "--json",
    ]
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - begin
    outcomes = json.loads(done.stdout)
    runs = {outcome["run"] for outcome in outcomes}
    made = sum(path.name.startswith("student") for path in root.iterdir())
    assert done.returncode == 0 and made == count and len(runs) == 1, done.stderr[-2000:]
    return seconds


def naive(directory: Path, count: int, threads: int) -> float:
    """Run Ansible once for each of ``count`` new users, ``threads`` at a time; seconds."""
    root = directory / "naive"
    root.mkdir(mode=0o755)
    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for status in pool.map(lambda number: _naive_hook(directory, root, number), range(count)):
            assert status == 0
    seconds = time.monotonic() - begin
    assert len(list(root.iterdir())) == count
    return seconds


def _naive_hook(directory: Path, root: Path, number: int) -> int:
    """Start a process of its own, as ansible_runner.run does under the hub's; runner is imported before the clock."""
    with tempfile.TemporaryDirectory(dir=directory) as data:
        result = ansible_runner.run(
            private_data_dir=data,
            playbook=str(HERE / "naive.yml"),
            inventory="localhost,",
            extravars={
                "username": f"student{number}",
                "root": str(root),
                "uid": OWNER[0],
                "gid": OWNER[1],
                "ansible_python_interpreter": sys.executable,
            },
            envvars={"PATH": f"{BIN}:{os.environ['PATH']}"},
            quiet=True,
            cancel_callback=lambda: False,
        )
    return int(result.rc)


def main() -> None:
    parser = argparse.ArgumentParser(description="Batches of new users, beside the obvious hook.")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    threads = 2 * (os.cpu_count() or 1)
    our_seconds: dict[int, list[float]] = {size: [] for size in SIZES}
    naive_seconds: list[float] = []
    os.environ["PATH"] = f"{BIN}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as name:
        for number in range(args.rounds):
            with fresh_disk(Path(name)) as disk:
                naive_seconds.append(naive(disk, NAIVE_SAMPLE, threads))
            print(f"round {number + 1}: naive, {NAIVE_SAMPLE} users: {naive_seconds[-1]:.1f} s", flush=True)
            for size in SIZES:
                with fresh_disk(Path(name)) as disk:
                    our_seconds[size].append(ours(disk, size))
                print(f"round {number + 1}: ours, {size} users: {our_seconds[size][-1]:.2f} s", flush=True)
    per_user = statistics.median(naive_seconds) / NAIVE_SAMPLE
    lines = [
        "# Batches of new users, directory only",
        "",
        f"{platform.system()} {platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"medians of {args.rounds} alternating rounds. Naive: one `ansible_runner.run` per user, {threads} at a time, "
        f"measured on {NAIVE_SAMPLE} users ({per_user:.2f} s a user) and extrapolated. Ours: `ansible-bootstrap run`, "
        "from its start to its end.",
        "",
        "| users | one run | naive hook (extrapolated) | times faster |",
        "|---:|---:|---:|---:|",
    ]
    for size in SIZES:
        mine = statistics.median(our_seconds[size])
        lines.append(f"| {size} | {mine:.2f} s | {per_user * size:.0f} s | {per_user * size / mine:.0f} |")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
