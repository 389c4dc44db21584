"""What safety costs: creating homes from a skeleton of 200 files, beside ``cp -r`` and ``chown -R``.

Both make the same homes on the same file system and end in ``sync -f``. Ours is the file library, called for the
whole batch without Ansible: staged, copied with each user's rights, one syncfs, renamed. The other is what a
script would do, one user after the other and as many at once as there are processors. Rounds alternate and the
order turns. Figures are medians, and a ratio is the median of the rounds' ratios, since a disk is not equally
quick from one second to the next.

    python benchmarks/safe_copy.py                    as root; writes benchmarks/results/safe_copy.md
    python benchmarks/safe_copy.py --rounds 3 --directory /volumes
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ansible_bootstrap.storage import _homes

RESULTS = Path(__file__).parent / "results" / "safe_copy.md"
FILES = 200
GOAL = 1.2

Way = Callable[[Path, Path, int], None]


def make_skeleton(path: Path) -> None:
    """Make 10 directories of 20 files of 1 to 9 KiB."""
    for number in range(FILES):
        file = path / f"d{number // 20}" / f"file{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(1024 + number * 40))


def ours(skeleton: Path, root: Path, users: int) -> None:
    """Let the file library make the homes."""
    batch = [
        {
            "name": f"u{number}",
            "directory": str(root / f"u{number}"),
            "uid": 20001 + number,
            "gid": 20001 + number,
        }
        for number in range(users)
    ]
    report = _homes.ensure(batch, str(root), 1000, _homes.Options(skeleton=str(skeleton)), check=False)
    failed = [user for user in report.users if user["failed"]]
    if failed:
        raise SystemExit(f"failed: {failed[0]}")


def one_by_one(skeleton: Path, root: Path, users: int) -> None:
    """``cp -r`` and ``chown -R``, user by user."""
    for number in range(users):
        subprocess.run(["cp", "-r", skeleton, root / f"u{number}"], check=True)
        subprocess.run(["chown", "-R", f"{20001 + number}:{20001 + number}", root / f"u{number}"], check=True)


def side_by_side(skeleton: Path, root: Path, users: int) -> None:
    """The same for as many users at once as there are processors."""
    at_once = str(len(os.sched_getaffinity(0)))
    script = 'cp -r "$0" "$1" && chown -R "$2:$2" "$1"'
    arguments = [f"{root}/u{number}\n{20001 + number}\n" for number in range(users)]
    command = ["xargs", "-P", at_once, "-n", "2", "sh", "-c", script, str(skeleton)]
    subprocess.run(command, input="".join(arguments), text=True, check=True)


WAYS: dict[str, Way] = {"ours": ours, "one by one": one_by_one, "side by side": side_by_side}


def measure(name: str, skeleton: Path, base: Path, users: int) -> float:
    """Return the seconds one way takes, the final ``sync -f`` included."""
    root = base / "homes"
    root.mkdir(mode=0o755)
    subprocess.run(["sync", "-f", base], check=True)
    begin = time.perf_counter()
    WAYS[name](skeleton, root, users)
    subprocess.run(["sync", "-f", root], check=True)
    took = time.perf_counter() - begin
    made = sum(1 for path in (root / f"u{users - 1}").rglob("*") if path.is_file())
    if made != FILES or (root / "u0/d0/file0").stat().st_uid != 20001:
        raise SystemExit(f"{name} did not make the homes")
    shutil.rmtree(root)
    return took


def main() -> int:
    """Measure, print and write the table; exit with 1 if the goal is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, nargs="*", default=[1, 20])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--directory", type=Path, default=Path("/tmp"), help="on the file system to measure")
    given = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root")
    base = Path(tempfile.mkdtemp(prefix="safe_copy_", dir=given.directory))
    base.chmod(0o755)
    lines = [
        "| users | " + " | ".join(WAYS) + " | ours ÷ one by one | ours ÷ side by side |",
        "|---|---|---|---|---|---|",
    ]
    worst = 0.0
    try:
        make_skeleton(base / "skeleton")
        for users in given.users:
            rounds: list[dict[str, float]] = []
            for number in range(given.rounds + 1):
                order = [list(WAYS)[(number + place) % len(WAYS)] for place in range(len(WAYS))]
                rounds.append({name: measure(name, base / "skeleton", base, users) for name in order})
            rounds = rounds[1:]  # the first warms the caches
            medians = {name: statistics.median(one[name] for one in rounds) for name in WAYS}
            ratios = [statistics.median(one["ours"] / one[name] for one in rounds) for name in list(WAYS)[1:]]
            worst = max(worst, *ratios)
            figures = [*(f"{medians[name]:.3f} s" for name in WAYS), *(f"{ratio:.2f}" for ratio in ratios)]
            lines.append(f"| {users} | {' | '.join(figures)} |")
            print(lines[-1], flush=True)
        kind = subprocess.run(
            ["findmnt", "-no", "FSTYPE", "-T", base], capture_output=True, text=True, check=True
        )
    finally:
        shutil.rmtree(base)
    table = "\n".join(lines)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        f"# What safety costs\n\nHomes from a skeleton of {FILES} files, all ways ending in `sync -f`; medians of "
        f"{given.rounds} alternating rounds. Goal: at most {GOAL} times `cp -r` and `chown -R`.\n\n{table}\n\n"
        f"{kind.stdout.strip()}, {os.cpu_count()} processors, Python {platform.python_version()}, "
        f"{platform.system()} {platform.release()}. Made by `benchmarks/safe_copy.py`.\n"
    )
    print(table)
    return 0 if worst <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
