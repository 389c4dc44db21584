"""The hub's loop is shared: spawns that are released together, and runs that follow one another, leave it time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from fake_runs import Hub, assert_empty, busy
from hub_fakes import Lines, until

from ansible_bootstrap.dispatch import loop_share
from ansible_bootstrap.dispatch.loop_share import IN_A_TURN, Turnstile, loop_has_time


@contextlib.contextmanager
def storm() -> Iterator[None]:
    """Each turn of the loop takes a while."""
    loop, over = asyncio.get_running_loop(), False

    def turn() -> None:
        if not over:
            time.sleep(2 * loop_share.LONG_TURN)
            loop.call_soon(turn)

    turn()
    yield
    over = True


async def test_a_few_go_through_in_each_turn_in_the_order_of_their_coming() -> None:
    loop, turnstile = asyncio.get_running_loop(), Turnstile()
    futures = [loop.create_future() for _ in range(3 * IN_A_TURN)]
    for future in futures:
        turnstile.let_through(future)
    seen = []
    for _ in range(4):
        await asyncio.sleep(0)
        done = [future.done() for future in futures]
        assert done == sorted(done, reverse=True)
        seen.append(sum(done))
    assert seen == [IN_A_TURN, 2 * IN_A_TURN, 3 * IN_A_TURN, 3 * IN_A_TURN]


async def test_who_has_given_up_costs_no_turn_and_who_comes_later_is_let_through_as_well() -> None:
    loop, turnstile = asyncio.get_running_loop(), Turnstile()
    futures = [loop.create_future() for _ in range(IN_A_TURN + 1)]
    for future in futures:
        turnstile.let_through(future)
    for future in futures[:-1]:
        future.cancel()
    await asyncio.sleep(0)
    assert futures[-1].done()
    late = loop.create_future()
    turnstile.let_through(late)
    await asyncio.sleep(0)
    assert late.done()


async def test_in_an_idle_hub_the_next_run_begins_at_once(hub: Hub) -> None:
    first, run = await busy(hub)
    second = hub.spawn("second")
    await hub.settled()
    run.succeed()
    await first
    await hub.settled()
    hub.runs[1].succeed()
    await second


async def test_a_busy_hub_rests_from_runs_but_not_for_ever(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_share, "MOST_REST", 0.5)
    first, run = await busy(hub)
    second = hub.spawn("second")
    await hub.settled()
    with storm():
        run.succeed()
        ended = time.monotonic()
        await first
        next_run = await hub.run(2)
        assert time.monotonic() - ended >= 0.5
    next_run.succeed()
    await second


async def test_a_host_that_rests_begins_nothing_and_keeps_no_other_host_waiting(
    log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_share, "MOST_REST", 60.0)
    hub = Hub(log, max_runs=1)
    first, run = await busy(hub, storage_host="s1")
    again, other = hub.spawn("again", storage_host="s1"), hub.spawn("other", storage_host="s2")
    await hub.settled()
    with storm():
        run.succeed()
        await first
        second = await hub.run(2)
        assert second.names == ["other"]
        second.succeed()
        await other
        late = hub.spawn("late", storage_host="s1")
        await hub.settled()
        assert len(hub.runs) == 2
    third = await hub.run(3)
    assert third.names == ["again", "late"]
    third.succeed()
    await asyncio.gather(again, late)
    await until(lambda: not hub.dispatcher.running)
    assert_empty(hub)


async def test_one_short_turn_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = iter([0.1, 0.001, 0.1, 0.001, 0.001, 0.1, 0.1])
    clock = [0.0]

    def monotonic() -> float:
        clock[0] += next(lengths)
        return clock[0]

    monkeypatch.setattr(loop_share, "time", SimpleNamespace(monotonic=monotonic))
    await loop_has_time()
    assert list(lengths) == [0.1, 0.1]
