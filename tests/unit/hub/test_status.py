"""What ``ansible-bootstrap status`` makes of the history."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.cli.status import print_past, print_status
from ansible_bootstrap.protocol import Outcome
from ansible_bootstrap.run_record import RunRecord
from ansible_bootstrap.state.history import History
from ansible_bootstrap.state.lookback import Failures, RoleTimes, look_back

DAY = 86400.0


class Past:
    """A history that a test writes, and what status says about it."""

    def __init__(self, path: Path) -> None:
        self.history = History(path)
        self._runs = 0

    def run(self, *names: str, age: float = 0, **more: Any) -> None:
        """Users named ``bob:quota`` failed for ``quota`` and so on."""
        self._runs += 1
        outcomes = []
        for name, _, reason in (text.partition(":") for text in names):
            state = "failed" if reason else "ok"
            message = "no [red]quota[/] \x1b[1m" if reason else ""
            outcomes.append(
                Outcome.model_validate(
                    {"key": name, "name": name, "status": state, "reason": reason or None, "message": message}
                )
            )
        given: dict[str, Any] = {"operation": "bootstrap", "storage_host": "storage1", **more}
        self.history.record(
            RunRecord(
                run=f"run{self._runs}",
                started=time.time() - age,
                users=len(outcomes),
                outcomes=outcomes,
                **given,
            )
        )

    def look(self) -> Any:
        return look_back(self.history)


@pytest.fixture
def past(tmp_path: Path) -> Past:
    return Past(tmp_path)


def said(past: Past, capsys: pytest.CaptureFixture[str], *, as_json: bool = False) -> str:
    print_status(past.history.runs(), past.look(), as_json=as_json)
    return capsys.readouterr().out


def test_failures_are_counted_by_reason_for_the_day_and_for_all_that_is_kept(past: Past) -> None:
    past.run("alice", "bob:timeout", age=3 * DAY)
    past.run("bob:role_failed", "carol:role_failed", "dan")
    past.run("bob:role_failed", "alice")
    look = past.look()
    assert look.last_day.failures == {"role_failed": Failures(users=2, times=3)}
    assert look.kept.failures == {"role_failed": Failures(2, 3), "timeout": Failures(1, 1)}
    assert (look.last_day.bootstrapped, look.kept.bootstrapped) == (2, 2)
    assert (look.last_day.runs, look.kept.runs) == (2, 3)


def test_what_was_only_predicted_and_what_was_cleaned_up_is_counted_by_itself(past: Past) -> None:
    past.run("alice", "bob:role_failed", check=True, roles={"user_dir": 99.0})
    past.run("carol", "dan:unreachable", operation="cleanup")
    day = past.look().last_day
    assert (day.bootstrapped, day.failures) == (0, {})
    assert day.would_fail == {"role_failed": Failures(1, 1)}
    assert day.cleanup_failures == {"unreachable": Failures(1, 1)}
    assert past.look().slowest_roles == []


def test_the_slowest_role_is_the_one_that_mostly_takes_longest(past: Past) -> None:
    for seconds in (1.0, 9.0, 2.0, 3.0):
        past.run("alice", roles={"tutorials": seconds, "user_dir": 0.5})
    past.run("alice", roles={"user_dir": 50.0})
    assert past.look().slowest_roles == [
        RoleTimes("tutorials", runs=4, median_seconds=2.5, max_seconds=9.0),
        RoleTimes("user_dir", runs=5, median_seconds=0.5, max_seconds=50.0),
    ]


def test_a_run_that_failed_as_a_whole_lately_is_named(past: Past, capsys: pytest.CaptureFixture[str]) -> None:
    past.run("alice:unreachable", age=2 * DAY)
    assert past.look().last_failed_run is None
    assert (past.look().last_day.runs_failed, past.look().kept.runs_failed) == (0, 1)
    past.run("alice:unreachable", "bob:unreachable", error="no route to storage1")
    past.run("alice")
    assert past.look().last_failed_run.run == "run2"
    assert "run2 on storage1: no route to storage1" in said(past, capsys)


def test_everything_stands_on_the_terminal(past: Past, capsys: pytest.CaptureFixture[str]) -> None:
    past.run("alice", "bob:role_failed", roles={"tutorials": 4.0})
    past.run("bob:role_failed", "carol:role_failed")
    lines = [" ".join(line.split()) for line in said(past, capsys).splitlines()]
    assert any(line.endswith("run2 bootstrap storage1 2 all 0.0") for line in lines)
    assert "users bootstrapped 1 1" in lines
    assert "failed: role_failed 2 users, 3 times 2 users, 3 times" in lines
    assert "failed as a whole 1 1" in lines
    assert "tutorials 1 4.00 4.00" in lines


def test_what_users_and_roles_said_is_neither_markup_nor_control(
    past: Past, capsys: pytest.CaptureFixture[str]
) -> None:
    past.run("alice:role_failed", "bob:role_failed", storage_host="[bold]s", roles={"[red]r\x1b[1m": 1.0})
    text = said(past, capsys)
    assert "no [red]quota[/] \\x1b[1m" in text
    assert "[bold]s" in text
    assert "[red]r\\x1b[1m" in text
    assert "\x1b" not in text


def test_an_empty_history_says_so_in_a_sentence(past: Past, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(past, capsys) == "No run yet: the first spawn, or ansible-bootstrap run, makes one.\n"
    print_past("alice", past.history.outcomes("alice"), as_json=False)
    assert capsys.readouterr().out == "Nothing is known of alice.\n"


def test_json_is_one_object_of_the_same_shape_with_and_without_a_history(
    past: Past, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = json.loads(said(past, capsys, as_json=True))
    past.run("alice", "bob:role_failed", roles={"tutorials": 4.0}, fetched=2)
    past.run("bob:unreachable")
    full = json.loads(said(past, capsys, as_json=True))
    keys = {"runs", "last_day", "kept", "last_failed_run", "slowest_roles"}
    assert set(empty) == set(full) == keys
    assert set(empty["last_day"]) == set(full["last_day"]) == set(full["kept"])
    assert empty["runs"] == empty["slowest_roles"] == []
    assert empty["last_failed_run"] is None
    assert full["kept"]["failures"]["role_failed"] == {"users": 1, "times": 1}
    assert full["last_failed_run"]["run"] == "run2"
    assert full["runs"][1]["fetched"] == 2
    (role,) = full["slowest_roles"]
    assert role == {"role": "tutorials", "runs": 1, "median_seconds": 4.0, "max_seconds": 4.0}
