"""The history: kept for a while, private, and never in anybody's way."""

from __future__ import annotations

import asyncio
import logging
import stat
import time
from pathlib import Path

from hub_fakes import Lines, until

from ansible_bootstrap.history import History, Recorder, RunRecord
from ansible_bootstrap.protocol import Outcome
from ansible_bootstrap.threads import in_thread


def run(name: str = "r1", *outcomes: Outcome, age: float = 0) -> RunRecord:
    return RunRecord(
        run=name,
        operation="bootstrap",
        storage_host="storage1",
        started=time.time() - age,
        users=len(outcomes),
        outcomes=list(outcomes),
    )


def outcome(name: str, status: str = "ok", message: str = "") -> Outcome:
    return Outcome.model_validate({"key": name, "name": name, "status": status, "message": message})


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
