"""What a record says of roles is what the events said."""

from __future__ import annotations

import pytest

from ansible_bootstrap.dispatch import run as role_clock
from ansible_bootstrap.protocol import Accepted, End, Fetched, RoleStarted
from ansible_bootstrap.run_record import RunRecord


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    times = [100.0]
    monkeypatch.setattr(role_clock.time, "monotonic", lambda: times[0])
    return times


def test_a_role_takes_until_the_next_begins_and_the_last_until_the_end(now: list[float]) -> None:
    record = RunRecord("r1", "bootstrap", "localhost", started=0.0, users=1)
    clock = role_clock.RoleClock(record)
    clock.take(Accepted(run="r1", storage_host="localhost"))
    for role, seconds in (("user_dir", 1.0), ("tutorials", 4.0), ("user_dir", 0.5)):
        clock.take(RoleStarted(role=role, users=1))
        now[0] += seconds
    clock.take(Fetched(role="tutorials", count=2))
    clock.take(Fetched(role="other", count=1))
    clock.take(End(run="r1", ok=1, failed=0))
    now[0] += 60
    clock.stop()
    assert record.roles == {"user_dir": 1.5, "tutorials": 4.0}
    assert record.fetched == 3


def test_a_run_that_breaks_off_ends_its_role(now: list[float]) -> None:
    record = RunRecord("r1", "bootstrap", "localhost", started=0.0, users=1)
    clock = role_clock.RoleClock(record)
    clock.take(RoleStarted(role="user_dir", users=1))
    now[0] += 2
    clock.stop()
    assert record.roles == {"user_dir": 2.0}
