"""The history: kept for a while, private, and never in anybody's way."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from hub_fakes import Lines, until

from ansible_bootstrap.protocol import Outcome
from ansible_bootstrap.run_record import RunRecord
from ansible_bootstrap.state import history as module
from ansible_bootstrap.state.history import History, Recorder
from ansible_bootstrap.threads import in_thread


def run(name: str = "r1", *outcomes: Outcome, age: float = 0, **more: Any) -> RunRecord:
    given: dict[str, Any] = {"operation": "bootstrap", "storage_host": "storage1", **more}
    return RunRecord(
        run=name, started=time.time() - age, users=len(outcomes), outcomes=list(outcomes), **given
    )


def outcome(name: str, status: str = "ok", message: str = "", reason: str | None = None) -> Outcome:
    given = {"key": name, "name": name, "status": status, "message": message, "reason": reason}
    return Outcome.model_validate(given)


def failed(name: str, reason: str = "role_failed", message: str = "quota") -> Outcome:
    return outcome(name, "failed", message, reason)


def test_runs_and_outcomes_are_found_again(tmp_path: Path) -> None:
    history = History(tmp_path / "state")
    history.record(run("r1", outcome("alice", "failed", "quota"), outcome("bob")))
    history.record(run("r2", outcome("alice")))
    assert [(past.run, past.users, past.failed) for past in history.runs()] == [("r2", 1, 0), ("r1", 2, 1)]
    assert [past.outcome.status for past in history.outcomes("alice", limit=5)] == ["ok", "failed"]
    assert history.outcomes("alice", limit=5)[1].outcome.message == "quota"
    assert history.outcomes("nobody") == []


def test_what_is_old_is_dropped(tmp_path: Path) -> None:
    history = History(tmp_path / "state", days=1)
    history.record(run("old", outcome("alice"), age=2 * 86400))
    history.record(run("new", outcome("bob")))
    assert [past.run for past in history.runs()] == ["new"]
    assert history.outcomes("alice") == []


def test_a_record_drops_a_few_at_a_time_so_that_none_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        History(tmp_path, days=100).record(run(f"old{number}", outcome("alice"), age=2 * 86400))
    monkeypatch.setattr(module, "MAX_DROPPED", 2)
    history = History(tmp_path, days=1)
    left = []
    for number in range(3):
        history.record(run(f"new{number}", outcome("bob")))
        left.append(sum(past.run.startswith("old") for past in history.runs()))
    assert left == [3, 1, 0]


def test_however_young_only_so_many_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RUNS", 3)
    history = History(tmp_path)
    for number in range(6):
        history.record(run(f"r{number}", outcome("alice"), roles={"user_dir": 1.0}))
    assert [past.run for past in history.runs()] == ["r5", "r4", "r3"]
    assert len(history.outcomes("alice", limit=9)) == 3
    assert history.select("SELECT COUNT(*) FROM roles", ()) == [(3,)]


def test_what_is_dropped_makes_the_file_smaller(tmp_path: Path) -> None:
    file = tmp_path / "history.sqlite"
    crowd = [outcome(f"user{number}", message="x" * 1000) for number in range(2000)]
    History(tmp_path, days=100).record(run("old", *crowd, age=2 * 86400))
    large = file.stat().st_size
    for number in range(3):
        History(tmp_path, days=1).record(run(f"new{number}", outcome("bob")))
    assert file.stat().st_size < large / 10


def test_dropping_looks_at_an_index_and_not_at_all_runs(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.record(run("r1", outcome("alice")))
    for query in (
        "SELECT number FROM runs WHERE started < 1 LIMIT 9",
        "SELECT number FROM runs WHERE number <= 1 LIMIT 9",
        "SELECT 1 FROM outcomes WHERE number = 1",
        "SELECT 1 FROM roles WHERE number = 1",
    ):
        ((*_, plan),) = history.select(f"EXPLAIN QUERY PLAN {query}", ())
        assert plan.startswith("SEARCH"), plan


def test_roles_and_fetches_are_kept(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.record(run("r1", outcome("alice"), roles={"user_dir": 0.25, "tutorials": 4}, fetched=3))
    assert history.runs()[0].fetched == 3
    rows = history.select("SELECT role, seconds FROM roles ORDER BY role", ())
    assert rows == [("tutorials", 4.0), ("user_dir", 0.25)]


@pytest.mark.parametrize(
    ("outcomes", "more", "said"),
    [
        ([outcome("alice"), outcome("bob")], {}, "ok"),
        ([], {}, "ok"),
        ([outcome("alice"), failed("bob")], {}, "partial"),
        ([failed("alice")], {}, "partial"),
        ([failed("alice", "unreachable")], {}, "failed"),
        ([failed("alice"), failed("bob")], {}, "failed"),
        ([outcome("alice"), failed("bob", "apply_failed")], {"error": "killed"}, "failed"),
        ([failed("alice", "apply_failed")], {"error": "nobody waits", "abandoned": True}, "abandoned"),
    ],
)
def test_a_run_fails_as_a_whole_where_no_single_user_explains_it(
    tmp_path: Path, outcomes: list[Outcome], more: dict[str, Any], said: str
) -> None:
    record = run("r1", *outcomes, **more)
    history = History(tmp_path)
    history.record(record)
    (past,) = history.runs()
    assert (record.outcome, past.outcome) == (said, said)


def test_a_run_that_failed_as_a_whole_says_why_if_only_by_its_users(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.record(run("r1", failed("alice"), failed("bob")))
    history.record(run("r2", failed("alice"), outcome("bob")))
    assert [past.error for past in history.runs()] == ["", "quota"]


@pytest.mark.parametrize("version", [1, 99])
def test_a_file_of_another_version_is_begun_anew_and_no_run_fails_for_it(
    tmp_path: Path, version: int, log: Lines
) -> None:
    with sqlite3.connect(tmp_path / "history.sqlite") as database:
        database.executescript(
            "CREATE TABLE runs (number INTEGER PRIMARY KEY); INSERT INTO runs VALUES (7);"
            f"CREATE TABLE other (x); PRAGMA user_version = {version}"
        )
    database.close()
    history = History(tmp_path)
    assert history.runs() == []
    history.record(run("new", outcome("alice")))
    assert [past.run for past in history.runs()] == ["new"]
    assert history.select("SELECT name FROM sqlite_master WHERE name = 'other'", ()) == []


def test_no_history_is_an_empty_one_and_looking_makes_none(tmp_path: Path) -> None:
    assert History(tmp_path / "state").runs() == []
    assert not (tmp_path / "state").exists()


def test_only_the_hubs_account_can_read_it(tmp_path: Path) -> None:
    history = History(tmp_path / "state")
    history.record(run("r1", outcome("alice")))
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    for file in (tmp_path / "state").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_the_recorder_writes_in_the_background(tmp_path: Path, log: Lines) -> None:
    history = History(tmp_path / "state")
    recorder = Recorder(history, log.logger)
    for number in range(5):
        recorder.record(run(f"r{number}", outcome("alice")))
    await until(lambda: len(history.runs()) == 5)
    assert not log.lines


async def test_a_history_that_cannot_be_written_is_one_warning(tmp_path: Path, log: Lines) -> None:
    (tmp_path / "state").write_text("a file where the directory should be")
    recorder = Recorder(History(tmp_path / "state"), log.logger)
    for number in range(5):
        recorder.record(run(f"r{number}", outcome("alice")))
    await until(lambda: log.lines)
    await asyncio.sleep(0.1)
    assert len(log.lines) == 1
    assert log.records[0].levelno == logging.WARNING


async def test_a_call_that_hangs_does_not_take_the_others_threads() -> None:
    hanging = [asyncio.create_task(in_thread(lambda: time.sleep(1), timeout=0.1)) for _ in range(3)]
    assert await in_thread(lambda: "quick", timeout=1) == "quick"
    results = await asyncio.gather(*hanging, return_exceptions=True)
    assert [type(result) for result in results] == [TimeoutError] * 3


def test_a_history_that_is_just_being_made_is_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "history.sqlite").touch()
    assert History(tmp_path).runs() == []
    assert History(tmp_path).outcomes("alice") == []
