"""What is begun at a login: with spawns, before clean-ups, and without a waiter."""

from __future__ import annotations

import asyncio

import pytest
from fake_runs import Hub, assert_empty, busy, cancel
from hub_fakes import Lines, until

from ansible_bootstrap.dispatch import dispatcher
from ansible_bootstrap.place import Place


async def test_the_work_of_a_login_begins_though_nobody_waits(hub: Hub) -> None:
    hub.dispatcher.prepare(Place("alice"))
    run = await hub.run(1)
    assert run.names == ["alice"]
    run.succeed()
    await until(lambda: hub.records)
    assert [(place.name, outcome.status) for place, outcome, *_ in hub.completed] == [("alice", "ok")]
    assert_empty(hub)


async def test_a_spawn_joins_what_was_begun_at_login(hub: Hub) -> None:
    hub.dispatcher.prepare(Place("alice"))
    run = await hub.run(1)
    spawn = hub.spawn("alice")
    await hub.settled()
    run.succeed()
    assert (await spawn).status == "ok"
    assert len(hub.runs) == 1


async def test_waiting_spawns_board_before_logins(log: Lines) -> None:
    hub = Hub(log, batch_size=3)
    first, run = await busy(hub)
    for number in range(5):
        hub.dispatcher.prepare(Place(f"login{number}"))
    spawns = [hub.spawn(f"spawn{number}") for number in range(4)]
    await hub.settled()
    run.succeed()
    for number in (2, 3, 4):
        (await hub.run(number)).succeed()
    await asyncio.gather(first, *spawns)
    assert [run.names for run in hub.runs[1:]] == [
        ["spawn0", "spawn1", "spawn2"],
        ["spawn3", "login0", "login1"],
        ["login2", "login3", "login4"],
    ]


async def test_a_spawn_never_waits_for_more_than_the_run_in_flight(log: Lines) -> None:
    """However many have logged in."""
    hub = Hub(log, batch_size=10)
    for number in range(100):
        hub.dispatcher.prepare(Place(f"login{number}"))
    run = await hub.run(1)
    spawn = hub.spawn("alice")
    await hub.settled()
    run.succeed()
    second = await hub.run(2)
    assert second.names[0] == "alice"
    second.settle("alice")
    assert (await spawn).status == "ok"
    for number in range(2, 12):
        (await hub.run(number)).succeed()
    await until(lambda: len(hub.records) == 11)
    assert_empty(hub)


async def test_a_spawn_turns_its_login_into_a_waiting_job(log: Lines) -> None:
    hub = Hub(log, batch_size=1)
    first, run = await busy(hub)
    for name in ("bob", "alice"):
        hub.dispatcher.prepare(Place(name))
    spawns = [hub.spawn("carol"), hub.spawn("alice", uid=1001)]
    await hub.settled()
    run.succeed()
    for number in (2, 3, 4):
        (await hub.run(number)).succeed()
    await asyncio.gather(first, *spawns)
    assert [run.names for run in hub.runs[1:]] == [["carol"], ["alice"], ["bob"]]
    assert hub.runs[2].request.users[0]["uid"] == 1001, "the spawner knows better than the login"


async def test_a_login_adds_nothing_to_work_that_waits_or_runs(hub: Hub) -> None:
    first, run = await busy(hub)
    waiting = hub.spawn("alice")
    await hub.settled()
    for name in ("first", "alice", "bob", "bob"):
        hub.dispatcher.prepare(Place(name))
    assert hub.dispatcher.waiting()[""][0] == 2
    run.succeed()
    second = await hub.run(2)
    assert second.names == ["alice", "bob"]
    second.succeed()
    await asyncio.gather(first, waiting)
    await hub.settled()
    assert len(hub.runs) == 2


async def test_spawns_that_are_cancelled_do_not_stop_the_work_of_a_login(hub: Hub) -> None:
    hub.dispatcher.prepare(Place("alice"))
    run = await hub.run(1)
    spawn = hub.spawn("alice")
    await hub.settled()
    await cancel(spawn)
    assert run.stopped is None
    run.succeed()
    await until(lambda: hub.completed)


async def test_a_login_in_the_queue_outlives_the_spawn_that_joined_it(hub: Hub) -> None:
    first, run = await busy(hub)
    hub.dispatcher.prepare(Place("alice"))
    spawn = hub.spawn("alice")
    await hub.settled()
    await cancel(spawn)
    later = hub.spawn("bob")
    await hub.settled()
    run.succeed()
    second = await hub.run(2)
    assert second.names == ["bob", "alice"], "it waits as a login again"
    second.succeed()
    await asyncio.gather(first, later)


async def test_a_run_is_stopped_when_neither_a_spawn_nor_a_login_wants_the_rest(hub: Hub) -> None:
    leaver = hub.spawn("leaver")
    asyncio.get_running_loop().call_soon(hub.dispatcher.prepare, Place("login"))
    run = await hub.run(1)
    assert run.names == ["leaver", "login"]
    await cancel(leaver)
    assert run.stopped is None
    run.settle("login")
    assert run.stopped is not None
    run.end(run.stopped)


async def test_a_login_that_joins_what_is_being_stopped_is_new_work(hub: Hub) -> None:
    spawn, run = await busy(hub, "alice")
    await cancel(spawn)
    assert run.stopped is not None
    hub.dispatcher.prepare(Place("alice"))
    run.end(run.stopped)
    (await hub.run(2)).succeed()
    await until(lambda: len(hub.records) == 2)
    assert [record.abandoned for record in hub.records] == [True, False]


async def test_more_logins_than_fit_are_dropped_with_one_warning(
    log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "MAX_LOGINS", 5)
    hub = Hub(log)
    first, run = await busy(hub)
    for number in range(20):
        hub.dispatcher.prepare(Place(f"login{number}"))
    assert hub.dispatcher.waiting()[""][0] == 5
    assert sum("too many logins" in line for line in log.lines) == 1
    spawns = [hub.spawn("login19"), hub.spawn("login0")]
    await hub.settled()
    for number in (20, 21):  # One finds room, the other does not.
        hub.dispatcher.prepare(Place(f"login{number}"))
    assert sum("too many logins" in line for line in log.lines) == 1
    run.succeed()
    (await hub.run(2)).succeed()
    assert {outcome.status for outcome in await asyncio.gather(first, *spawns)} == {"ok"}
    assert "login20" in hub.runs[1].names
    assert "login21" not in hub.runs[1].names
