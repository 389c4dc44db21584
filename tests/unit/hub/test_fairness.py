"""The order in which spawns, logins and storage hosts get their runs."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from fake_runs import Hub, assert_empty, busy, cancel
from hub_fakes import Lines, until

from ansible_bootstrap.errors import ApplyError, DeadlineError
from ansible_bootstrap.place import Place


async def test_the_first_user_is_first_also_when_another_server_joins(log: Lines) -> None:
    hub = Hub(log, batch_size=2)
    first, run = await busy(hub)
    spawns = [hub.spawn(name) for name in ("alice", "bob", "carol")]
    await hub.settled()
    spawns += [hub.spawn("carol", server_name="b"), hub.spawn("alice", server_name="b")]
    gone = hub.spawn("alice", server_name="c")
    await hub.settled()
    await cancel(gone)
    run.succeed()
    for number in (2, 3):
        (await hub.run(number)).succeed()
    await asyncio.gather(first, *spawns)
    assert [run.names for run in hub.runs[1:]] == [["alice", "bob"], ["carol"]]


async def test_a_user_who_gives_up_and_comes_back_waits_behind_the_others(log: Lines) -> None:
    hub = Hub(log, batch_size=1)
    first, run = await busy(hub)
    hasty, patient = hub.spawn("hasty"), hub.spawn("patient")
    await hub.settled()
    await cancel(hasty)
    again = hub.spawn("hasty")
    await hub.settled()
    run.succeed()
    for number in (2, 3):
        (await hub.run(number)).succeed()
    await asyncio.gather(first, patient, again)
    assert [run.names for run in hub.runs[1:]] == [["patient"], ["hasty"]]


async def test_one_hosts_storm_delays_no_other_host(log: Lines) -> None:
    hub = Hub(log, batch_size=10, max_runs=1)
    storm = [hub.spawn(f"u{number}", storage_host="busy") for number in range(100)]
    run = await hub.run(1)
    alice = hub.spawn("alice", storage_host="quiet")
    await hub.settled()
    run.succeed()
    second = await hub.run(2)
    assert second.names == ["alice"], "after the one run in flight, though 90 came earlier elsewhere"
    second.succeed()
    await alice
    for number in range(3, 12):
        (await hub.run(number)).succeed()
    await asyncio.gather(*storm)


async def test_a_host_where_somebody_waits_goes_before_those_with_logins_only(log: Lines) -> None:
    hub = Hub(log, max_runs=1)
    first, run = await busy(hub, storage_host="s0")
    hub.dispatcher.prepare(Place("bob", storage_host="s1"))
    alice = hub.spawn("alice", storage_host="s2")
    await hub.settled()
    run.succeed()
    for number in (2, 3):
        (await hub.run(number)).succeed()
    await asyncio.gather(first, alice)
    assert [run.names for run in hub.runs[1:]] == [["alice"], ["bob"]]


async def test_a_host_that_nobody_waits_for_any_more_does_not_wait_for_a_run(log: Lines) -> None:
    hub = Hub(log, max_runs=1)
    first, run = await busy(hub, storage_host="s1")
    gone = hub.spawn("alice", storage_host="s2")
    await hub.settled()
    await cancel(gone)
    assert hub.dispatcher.hosts == ["s1"]
    run.succeed()
    await first
    await until(lambda: not hub.dispatcher.running)
    await hub.settled()
    assert_empty(hub)


async def test_a_storm_of_cancels_costs_the_others_nothing_and_leaves_nothing(log: Lines) -> None:
    hub = Hub(log, batch_size=100)
    first, run = await busy(hub)
    spawns = [hub.spawn(f"u{number}", storage_host=("", "s1")[number % 2]) for number in range(1000)]
    await hub.run(2)
    stay, go = spawns[::7], [spawn for number, spawn in enumerate(spawns) if number % 7]
    await cancel(*go)
    run.succeed()

    async def pilot() -> None:
        for number in itertools.count(2):
            (await hub.run(number)).succeed()

    flying = asyncio.create_task(pilot())
    assert {outcome.status for outcome in await asyncio.gather(first, *stay)} == {"ok"}
    flying.cancel()
    await until(lambda: not hub.dispatcher.running)
    await hub.settled()
    assert_empty(hub)


async def test_a_run_that_everybody_left_says_nothing_against_its_host(log: Lines) -> None:
    hub = Hub(log, max_runs=2)
    for host in ("s1", "s2"):
        spawn, run = await busy(hub, storage_host=host)
        await cancel(spawn)
        run.end(run.stopped)
        await until(lambda: not hub.dispatcher.running)
    again = [hub.spawn("alice", storage_host=host) for host in ("s1", "s2")]
    await hub.run(4)
    for run in hub.runs:
        run.succeed()
    await asyncio.gather(*again)


async def test_a_hub_that_ends_begins_no_run_on_another_host_either(log: Lines) -> None:
    hub = Hub(log, max_runs=1)
    first, _ = await busy(hub, storage_host="s1")
    other = hub.spawn("other", storage_host="s2")
    await hub.settled()
    await hub.dispatcher.close()
    await hub.settled()
    assert len(hub.runs) == 1
    with pytest.raises(ApplyError):
        await first
    await cancel(other)


async def test_a_waiter_whose_time_ends_in_the_queue_says_nothing_against_the_run_before(hub: Hub) -> None:
    first, run = await busy(hub)
    late = hub.spawn("late", timeout=0.05)
    with pytest.raises(DeadlineError):
        await late
    await cancel(first)
    assert not isinstance(run.stopped, DeadlineError)
    run.end(run.stopped)
    await until(lambda: hub.records)
    assert hub.records[0].abandoned
