"""Storage hosts and operations get batches of their own size, by the runs that ended there."""

from __future__ import annotations

import asyncio

import pytest
from fake_runs import Clock, Hub, busy, cancel, never
from hub_fakes import Lines, until

from ansible_bootstrap.dispatch import health
from ansible_bootstrap.errors import DeadlineError, UnreachableError
from ansible_bootstrap.place import Place


async def fly(hub: Hub, clock: Clock, users: int, seconds: float, how: str = "orderly") -> int:
    """Begin so many spawns at once, with a first run that takes so long; return how many users it had."""
    number = len(hub.runs) + 1
    spawns = [
        hub.spawn(f"r{number}u{user}", 30 if how != "late" else 0.2, storage_host="s1")
        for user in range(users)
    ]
    run = await hub.run(number)
    clock.now += seconds
    match how:
        case "orderly":
            run.succeed()
        case "cancelled":
            await cancel(*spawns)
            run.end(run.stopped)
        case "cancelled at its end":
            await cancel(*spawns)
            run.end()
        case "late":
            await asyncio.wait(spawns)
            assert {type(spawn.exception()) for spawn in spawns} == {DeadlineError}
            assert isinstance(run.stopped, DeadlineError)
            run.end(run.stopped)
        case "unreachable":
            run.settle(status="failed", reason="unreachable")
            run.end()
        case "limit":
            run.end(DeadlineError("stopped"))
        case "down":
            run.end(UnreachableError("down"))
    await until(lambda: run in hub.runs and len(hub.records) >= number)
    await until(lambda: len(hub.runs) > number or all(spawn.done() for spawn in spawns))
    while not all(spawn.done() for spawn in spawns):
        hub.runs[-1].succeed()
        await hub.settled()
    await until(lambda: not hub.dispatcher.running)
    return len(run.names)


@pytest.mark.parametrize(
    ("how", "shrinks"),
    [
        ("orderly", True),
        ("late", True),
        ("limit", True),
        ("cancelled", False),
        ("cancelled at its end", False),
        ("unreachable", False),
        ("down", False),
    ],
)
async def test_after_a_run_that_was_too_long_the_next_is_smaller(
    log: Lines, monkeypatch: pytest.MonkeyPatch, how: str, shrinks: bool
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    clock = Clock(monkeypatch)
    hub = Hub(log, batch_size=100, max_runs=4)
    assert await fly(hub, clock, 100, 50.0, how) == 100
    if hub.dispatcher.health.down("s1"):
        clock.now += health.FIRST_PAUSE
        assert await fly(hub, clock, 1, 1.0) == 1
    assert await fly(hub, clock, 100, 1.0) == (20 if shrinks else 100)


async def test_each_storage_host_and_clean_up_has_a_pace_of_its_own(
    log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    hub = Hub(log, batch_size=100)
    await fly(hub, clock, 100, 50.0)
    other = [hub.spawn(f"u{number}", storage_host="other") for number in range(100)]
    run = await hub.run(len(hub.runs) + 1)
    assert len(run.names) == 100
    run.succeed()
    await asyncio.gather(*other)
    await until(lambda: not hub.dispatcher.running)
    number = len(hub.runs) + 1
    first, run = await busy(hub, storage_host="s1")
    for user in range(50):
        hub.dispatcher.cleanup(Place(f"u{user}", storage_host="s1"), never)
    await until(lambda: hub.dispatcher.due_cleanups == 50)
    run.succeed()
    await first
    cleaning = await hub.run(number + 1)
    assert len(cleaning.names) == 50
    cleaning.succeed()
