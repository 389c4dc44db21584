"""Tables and plots of the storms."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import describe

from .storm import Storm

COLOURS = {
    "none": "#777777",
    "none again": "#bbbbbb",
    "ours": "#1f6fb4",
    "ours again": "#2ca05a",
    "naive": "#c0392b",
    "script": "#d98c1f",
}
BASELINE = {"ours": "none", "ours again": "none again", "naive": "none", "script": "none"}
"""What each variant is compared with."""


def percentile(values: list[float], share: float) -> float:
    """Return the value below which that share of the (sorted) values lies; nan if there are none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def _middle(values: list[float], form: str) -> str:
    """Say the median and, where it is one of several, the quartiles."""
    if not values:
        return "-"
    median = format(statistics.median(values), form)
    if len(values) < 2:
        return median
    low, _, high = statistics.quantiles(values, method="inclusive")
    return f"{median} ({low:{form}} … {high:{form}})"


class Results:
    """All storms of all rounds."""

    def __init__(self, users: int, seconds: float, seed: int, naive_users: int, spawn_limit: int = 0) -> None:
        self._users = users
        self._seconds = seconds
        self._seed = seed
        self._naive_users = min(users, naive_users)
        self._spawn_limit = spawn_limit
        self._storms: dict[str, list[Storm]] = {}

    def add(self, storm: Storm) -> None:
        self._storms.setdefault(storm.variant, []).append(storm)

    def one_line(self, storm: Storm) -> str:
        troubles = ", ".join(f"{kind}: {count}" for kind, count in storm.troubles.items()) or "no trouble"
        return (
            f"{storm.variant}: {len(storm.served)} of {len(storm.records)} served, last {self._last(storm):.1f} s, "
            f"median wait {percentile(storm.waited, 0.5):.2f} s; hook p50 {percentile(storm.hooks, 0.5):.3f} s; "
            f"health p99 {percentile(storm.health, 0.99):.0f} ms; {troubles}"
        )

    def table(self) -> list[str]:
        lines = [
            "# The first minute of a class",
            "",
            f"{self._users} users arrive at one hub within {self._seconds:g} s (seed {self._seed}), log in, ask for a "
            "server, follow the page and open it. Each new user gets a directory and a course of 20 files.",
            "",
            "| variant | storms | served | last served | ÷ no hook | wait p50 / p95 / p99 | hook p50 / p99 | "
            "health p50 / p99 / max | p99 above no hook | troubles |",
            "|---|---:|---:|---:|---:|---|---|---|---:|---|",
        ]
        lines += [self._row(variant, storms) for variant, storms in self._storms.items()]
        lines += [
            "",
            "Medians of the storms; ratios and differences are of two storms of one round, with their quartiles. Times "
            "of users are seconds, of `/hub/health` milliseconds. Last served: from the first arrival to the last "
            'server\'s answer through the proxy. "again": the same users at the same hub, after their servers were '
            "stopped, each storm compared with the `none again` right before or after it. Health is asked for every "
            "20 ms, and what could not be asked while the hub stood still is counted as if it had been. The hub has "
            "its defaults but for `concurrent_spawn_limit`, which is "
            f"{self._spawn_limit or 'off'}; a user who gets a 429 comes back when the hub's Retry-After says.",
        ]
        if "naive" in self._storms and self._naive_users < self._users:
            lines += [
                "",
                f"The naive hook was measured on {self._naive_users} users arriving as densely; its last served is "
                f"extrapolated to {self._users} users in proportion, all else in its row is of those "
                f"{self._naive_users}.",
            ]
        machine = describe("jupyterhub", "ansible-core", "ansible-runner")
        return [*lines, "", f"{machine}. Made by `python -m benchmarks.storm`."]

    def write(self, path: Path) -> None:
        """Write ``.md``, ``.svg`` and ``.png``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".md").write_text("\n".join(self.table()) + "\n")
        try:
            import matplotlib  # noqa: PLC0415 - tables do without
        except ImportError:
            print("no plot: pip install 'ansible-bootstrap[bench]'")
            return
        matplotlib.use("Agg")
        self._plot(path)

    # -- inner --------------------------------------------------------------------------------

    def _last(self, storm: Storm) -> float:
        """When the last was served; of the naive hook, in proportion to all users."""
        if not storm.served:
            return float("nan")
        factor = self._users / len(storm.records) if storm.variant == "naive" else 1
        return (storm.served[-1] - storm.arrivals[0]) * factor

    def _row(self, variant: str, storms: list[Storm]) -> str:
        def median(figure: Callable[[Storm], float]) -> float:
            return statistics.median(figure(storm) for storm in storms)

        def against(
            figure: Callable[[Storm], float], combine: Callable[[float, float], float]
        ) -> list[float]:
            others = self._storms.get(BASELINE.get(variant, ""), [])
            return [combine(figure(mine), figure(other)) for mine, other in zip(storms, others, strict=False)]

        ratio = against(self._last, lambda mine, other: mine / other)
        slower = against(lambda storm: percentile(storm.health, 0.99), lambda mine, other: mine - other)
        wait = " / ".join(
            f"{median(lambda s, p=p: percentile(s.waited, p)):.2f}"  # type: ignore[misc]
            for p in (0.5, 0.95, 0.99)
        )
        hook = " / ".join(
            f"{median(lambda s, p=p: percentile(s.hooks, p)):.3f}"  # type: ignore[misc]
            for p in (0.5, 0.99)
        )
        health = " / ".join(
            f"{median(lambda s, p=p: percentile(s.health, p)):.0f}"  # type: ignore[misc]
            for p in (0.5, 0.99, 1)
        )
        troubles: dict[str, int] = {}
        for storm in storms:
            for kind, count in storm.troubles.items():
                troubles[kind] = troubles.get(kind, 0) + count
        said = ", ".join(f"{kind}: {count}" for kind, count in troubles.items()) or "none"
        served = (
            f"{sum(len(storm.served) for storm in storms)} of {sum(len(storm.records) for storm in storms)}"
        )
        return (
            f"| {variant} | {len(storms)} | {served} | {median(self._last):.1f} | "
            f"{_middle(ratio, '.2f')} | {wait} | {hook} | {health} | {_middle(slower, '+.0f')} | {said} |"
        )

    def _plot(self, path: Path) -> None:
        from matplotlib import pyplot  # noqa: PLC0415

        figure, (users, health) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
        for variant, storms in self._storms.items():
            for number, storm in enumerate(storms):
                label = variant if number == 0 else None
                style = {"color": COLOURS[variant], "linewidth": 1.3, "alpha": 0.9 if number == 0 else 0.5}
                users.step(
                    [0.0, *storm.served], range(len(storm.served) + 1), where="post", label=label, **style
                )
                slowest_first = storm.health[::-1]
                shares = [100 * (rank + 1) / len(slowest_first) for rank in range(len(slowest_first))]
                health.plot(slowest_first, shares, label=label, **style)
        first = next(iter(self._storms.values()))[0]
        users.step(
            first.arrivals,
            range(1, len(first.arrivals) + 1),
            where="post",
            color="black",
            linestyle=":",
            linewidth=1,
            label="arrived",
        )
        users.set(xlabel="seconds", ylabel="users", title="Users whose server answers")
        users.legend(fontsize="small")
        health.set(
            xscale="log",
            yscale="log",
            xlabel="milliseconds",
            ylabel="% of requests slower",
            title="/hub/health meanwhile",
        )
        health.grid(which="major", alpha=0.3)
        for suffix in (".svg", ".png"):
            figure.savefig(path.with_suffix(suffix), dpi=120)
        pyplot.close(figure)
