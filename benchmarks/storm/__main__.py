"""The options of the storm, and its rounds. See the package's docstring."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.course import FILES, lessons, make_course
from benchmarks.disk import fresh_disk

from .hub import Hub, end_with_everything
from .results import Results
from .storm import Storm, arrivals, let_loose, stop_all
from .variants import VARIANTS

HERE: Final = Path(__file__).parent
AGAIN: Final = ("none", "ours")
"""Variants whose users come a second time."""
SLOW: Final = ("naive", "script")
"""Variants that are not run in every round."""


def main() -> None:
    args = _parser().parse_args()
    end_with_everything()
    print(f"seed {args.seed}", flush=True)
    results = Results(args.users, args.seconds, args.seed, args.naive_users, args.spawn_limit)
    tools = None if args.no_proxy else HERE.parents[1] / ".demo"  # Where the demo has its proxy.
    if tools:
        tools.mkdir(exist_ok=True)
    with _workspace(args.keep) as workspace:
        archive = make_course(workspace)
        for number in range(args.rounds):
            for variant in _order(args.variants, number, args.slow_rounds):
                users = min(args.users, args.naive_users) if variant == "naive" else args.users
                times = arrivals(users, args.seconds * users / args.users, args.seed + number)
                with contextlib.ExitStack() as disks:
                    path = storage = workspace / f"{number}-{variant}"
                    if not args.keep:
                        path = disks.enter_context(fresh_disk(workspace)) / "hub"
                        storage = path if args.one_disk else disks.enter_context(fresh_disk(workspace))
                    hub = Hub(
                        path,
                        variant,
                        archive,
                        tools=tools,
                        storage=storage / "storage",
                        spawn_limit=args.spawn_limit,
                    )
                    for storm in _storms(hub, variant, times, args.patience):
                        results.add(storm)
                        print(f"round {number + 1}: {results.one_line(storm)}", flush=True)
    print("\n".join(results.table()))
    results.write(args.results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.storm", description="The first minute of a class.")
    parser.add_argument("--users", type=int, default=300, help="how many arrive (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="within how many seconds (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rounds", type=int, default=1, help="rounds with naive and script")
    parser.add_argument(
        "--naive-users",
        type=int,
        default=60,
        help="users of the naive hook, arriving as densely; extrapolated (%(default)s)",
    )
    parser.add_argument(
        "--variants",
        default="none,ours,naive,script",
        type=lambda text: text.split(","),
        help="%(default)s",
    )
    parser.add_argument("--seed", type=int, default=2026, help="of the arrivals (%(default)s)")
    parser.add_argument("--patience", type=float, default=300, help="seconds that a student tries")
    parser.add_argument(
        "--results", type=Path, default=HERE.parent / "results" / "storm", help="path without suffix"
    )
    parser.add_argument(
        "--spawn-limit",
        type=int,
        default=0,
        help="the hub's concurrent_spawn_limit in all variants; 0 is none, the hub's own default is 100 (%(default)s)",
    )
    parser.add_argument(
        "--one-disk", action="store_true", help="the hub's database on the file system of the users' storage"
    )
    parser.add_argument("--no-proxy", action="store_true", help="speak to hub and server directly")
    parser.add_argument(
        "--keep", type=Path, help="directory for databases, storage and logs, kept afterwards"
    )
    return parser


def _order(variants: list[str], number: int, slow_rounds: int) -> list[str]:
    """Alternate: who went first goes last in the next round."""
    unknown = set(variants) - set(VARIANTS)
    if unknown:
        raise SystemExit(f"no such variant: {', '.join(sorted(unknown))}")
    now = [variant for variant in variants if variant not in SLOW or number < slow_rounds]
    return now[::-1] if number % 2 else now


def _storms(hub: Hub, variant: str, times: list[float], patience: float) -> Iterator[Storm]:
    """Run the storms of one hub, and look at what it has left behind."""
    hub.start()
    try:
        yield let_loose(hub, variant, times, patience=patience)
        if variant in AGAIN:
            asyncio.run(stop_all(hub))
            yield let_loose(hub, f"{variant} again", times, patience=patience)
    finally:
        hub.end()
    if variant != "none":
        counts = [lessons(hub.storage / f"student{number:03}") for number in range(len(times))]
        if set(counts) != {FILES}:
            raise SystemExit(f"{variant}: somebody has not the whole course: {counts}")


@contextlib.contextmanager
def _workspace(keep: Path | None) -> Iterator[Path]:
    if keep:
        keep.mkdir(parents=True)
        yield keep.absolute()
    else:
        with tempfile.TemporaryDirectory(prefix="storm-") as name:
            Path(name).chmod(0o755)
            yield Path(name)


if __name__ == "__main__":
    main()
