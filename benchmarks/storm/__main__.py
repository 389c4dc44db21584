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
"""Variants whose users come again."""
SLOW: Final = ("naive", "script")
"""Variants that are not run in every round."""


def main() -> None:
    args = _parser().parse_args()
    end_with_everything()
    print(f"seed {args.seed}", flush=True)
    results = Results(args.users, args.seconds, args.seed, args.naive_users, args.spawn_limit)
    with _workspace(args.keep) as workspace:
        archive = make_course(workspace)
        for number in range(args.rounds):
            for variants in _groups(args.variants, number, args.slow_rounds):
                for storm in _round(args, workspace, archive, number, variants):
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
        "--again",
        type=int,
        default=5,
        help="how often the users of a hub come again, without a hook and with ours (%(default)s)",
    )
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


def _groups(variants: list[str], number: int, slow_rounds: int) -> list[list[str]]:
    """Return whose hubs stand at the same time: those whose users come again; all others alone."""
    unknown = set(variants) - set(VARIANTS)
    if unknown:
        raise SystemExit(f"no such variant: {', '.join(sorted(unknown))}")
    together = [variant for variant in variants if variant in AGAIN]
    alone = [[variant] for variant in variants if variant not in AGAIN and number < slow_rounds]
    return [_in_turn(together, number), *alone] if together else alone


def _in_turn(variants: list[str], number: int) -> list[str]:
    """Who went first goes last the next time."""
    return variants[::-1] if number % 2 else variants


def _round(
    args: argparse.Namespace, workspace: Path, archive: Path, number: int, variants: list[str]
) -> Iterator[Storm]:
    """Let each variant's users come; then, in turn, those of each who come again.

    A hub whose turn it is not has no servers, and so nothing to do.
    """
    with contextlib.ExitStack() as standing:
        hubs: dict[str, Hub] = {}
        for variant in variants:
            hubs[variant] = hub = standing.enter_context(_hub(args, workspace, archive, number, variant))
            times = _times(args, number, variant)
            yield let_loose(hub, variant, times, patience=args.patience)
            asyncio.run(stop_all(hub))
            if variant != "none":
                counts = [lessons(hub.storage / f"student{user:03}") for user in range(len(times))]
                if set(counts) != {FILES}:
                    raise SystemExit(f"{variant}: somebody has not the whole course: {counts}")
        for turn in range(args.again):
            for variant in _in_turn([variant for variant in variants if variant in AGAIN], number + turn):
                times = _times(args, number, variant)
                yield let_loose(hubs[variant], f"{variant} again", times, patience=args.patience)
                asyncio.run(stop_all(hubs[variant]))


def _times(args: argparse.Namespace, number: int, variant: str) -> list[float]:
    users = min(args.users, args.naive_users) if variant == "naive" else args.users
    return arrivals(users, args.seconds * users / args.users, args.seed + number)


@contextlib.contextmanager
def _hub(
    args: argparse.Namespace, workspace: Path, archive: Path, number: int, variant: str
) -> Iterator[Hub]:
    """Start a hub with disks of its own, and end it."""
    tools = None if args.no_proxy else HERE.parents[1] / ".demo"  # Where the demo has its proxy.
    if tools:
        tools.mkdir(exist_ok=True)
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
        disks.callback(hub.end)
        hub.start()
        yield hub


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
