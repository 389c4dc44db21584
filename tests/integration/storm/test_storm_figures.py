"""What the storm benchmark makes of what it has seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from classroom import Classroom  # noqa: F401 - makes the benchmarks importable where only this file is run

from benchmarks.course import FILES, lessons, make_course
from benchmarks.storm.health import latencies
from benchmarks.storm.results import Results, percentile
from benchmarks.storm.storm import Storm, arrivals
from benchmarks.storm.student import Record


def test_the_same_seed_is_the_same_crowd() -> None:
    first = arrivals(300, 10, 1)
    assert first == arrivals(300, 10, 1) == sorted(first)
    assert first != arrivals(300, 10, 2)
    assert first[0] >= 0 and first[-1] <= 10


def test_a_hub_that_stood_still_is_not_taken_for_a_quick_one(tmp_path: Path) -> None:
    """One request took a second, so 49 were not sent: with those, half of all would have waited long."""
    file = tmp_path / "health.txt"
    file.write_text("".join(f"{number * 0.02} 1.0\n" for number in range(50)) + "1.0 1000.0\n")
    found = latencies(file)
    assert len(found) == 50 + 50
    assert found == sorted(found)
    assert percentile(found, 0.25) == 1.0
    assert percentile(found, 0.75) == pytest.approx(500, abs=20)
    assert found[-1] == 1000.0


def test_the_table_compares_with_the_same_round_and_counts_users_never_served() -> None:
    def storm(variant: str, *served: float) -> Storm:
        records = [Record(f"student{number}", served=at) for number, at in enumerate(served)]
        return Storm(variant, [0.0] * len(served), records, [0.1], [1.0, 2.0])

    results = Results(users=2, seconds=1, seed=1, naive_users=1)
    for one in (
        storm("none", 1, 2),
        storm("none", 1, 10),
        storm("ours", 1, 4),
        storm("ours", 10, 0),
        storm("naive", 3),
    ):
        results.add(one)
    rows = {line.split("|")[1].strip(): line.split("|") for line in results.table() if line.startswith("| ")}
    assert rows["ours"][3].strip() == "3 of 4"
    assert rows["ours"][5].strip() == "1.50 (1.25 … 1.75)"  # Of 4 to 2, and 10 to 10.
    assert rows["none"][5].strip() == "-"
    assert rows["naive"][4].strip() == "6.0"  # One of two users: twice as long.


def test_the_course_is_the_same_each_time(tmp_path: Path) -> None:
    import tarfile

    archive = make_course(tmp_path)
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "home/tutorials", filter="data")
    assert lessons(tmp_path / "home") == FILES
