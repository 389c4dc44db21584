"""Who goes first: spawns before logins before clean-ups; what a run may leave out; what is told of it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from fake_runs import Clock, Hub, Run
from hub_fakes import Lines, until

from ansible_bootstrap.dispatch import cleanups, dispatcher, health
from ansible_bootstrap.dispatch import loop_share as spare_time
from ansible_bootstrap.errors import ApplyError, DeadlineError, UnreachableError
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import Accepted, End, Fetched, RoleFingerprint, RoleStarted


def never() -> bool:
    return False


@pytest.fixture
def hub(log: Lines) -> Hub:
    return Hub(log)


async def busy(hub: Hub, name: str = "first", **place: Any) -> tuple[asyncio.Task[Any], Run]:
    """A run in flight, so that others wait."""
    spawn = hub.spawn(name, **place)
    return spawn, await hub.run(len(hub.runs) + 1)


async def cancel(*spawns: asyncio.Task[Any]) -> None:
    for spawn in spawns:
        spawn.cancel()
    await asyncio.wait(spawns, timeout=5)
    assert all(spawn.cancelled() for spawn in spawns)


def assert_empty(hub: Hub) -> None:
    """Nothing is left of anybody."""
    assert not hub.dispatcher._hosts
    assert not hub.dispatcher._ready
    assert not hub.dispatcher._tasks
    assert not hub.dispatcher._cleanups._parked
    assert not hub.dispatcher._cleanups._due
    assert hub.dispatcher.waiting() == {}
    assert hub.dispatcher.waiting_cleanups() == 0


# Logins


async def test_the_work_of_a_login_begins_though_nobody_waits(hub: Hub) -> None:
    hub.dispatcher.prepare(Place("alice"))
    run = await hub.run(1)
    assert run.names == ["alice"]
    run.succeed()
    await until(lambda: hub.records)
    assert [(place.name, outcome.status) for place, outcome, _ in hub.completed] == [("alice", "ok")]
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


async def test_a_spawn_makes_its_login_one_of_those_who_wait(log: Lines) -> None:
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


async def test_a_login_for_whom_work_waits_or_flies_adds_nothing(hub: Hub) -> None:
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


# Fairness


async def test_who_came_first_boards_first_also_when_another_server_joins(log: Lines) -> None:
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


async def test_who_gives_up_and_comes_back_waits_behind_the_others(log: Lines) -> None:
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
    assert list(hub.dispatcher._hosts) == ["s1"]
    run.succeed()
    await first
    await until(lambda: not hub.dispatcher._tasks)
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
    await until(lambda: not hub.dispatcher._tasks)
    await hub.settled()
    assert_empty(hub)


async def test_a_run_that_everybody_left_says_nothing_against_its_host(log: Lines) -> None:
    hub = Hub(log, max_runs=2)
    for host in ("s1", "s2"):
        spawn, run = await busy(hub, storage_host=host)
        await cancel(spawn)
        run.end(run.stopped)
        await until(lambda: not hub.dispatcher._tasks)
    again = [hub.spawn("alice", storage_host=host) for host in ("s1", "s2")]
    await hub.run(4)
    for run in hub.runs:
        run.succeed()
    await asyncio.gather(*again)


# Clean-ups


async def test_a_clean_up_does_not_wait_for_ever(log: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind spawns that never cease; and once it has gone, they are not held up by the next one."""
    hub = Hub(log, batch_size=1)
    first, run = await busy(hub)
    for name in ("bob", "carol"):
        hub.dispatcher.cleanup(Place(name), never)
    await until(lambda: len(hub.dispatcher._cleanups._due.get("", ())) == 2)
    spawns = [hub.spawn(f"u{number}") for number in range(4)]
    await hub.settled()
    run.succeed()
    second = await hub.run(2)
    monkeypatch.setattr(cleanups, "PATIENCE_SECONDS", 0.0)
    second.succeed()
    for number in range(3, 8):
        (await hub.run(number)).succeed()
    await asyncio.gather(first, *spawns)
    assert [run.request.operation for run in hub.runs[1:]] == ["bootstrap", "cleanup"] * 2 + ["bootstrap"] * 2
    assert [run.names for run in hub.runs if run.request.operation == "bootstrap"][1:] == [
        ["u0"],
        ["u1"],
        ["u2"],
        ["u3"],
    ]


async def test_a_clean_up_that_is_due_asks_again_whether_the_user_has_a_server(hub: Hub) -> None:
    """It may have waited for minutes, and the server may use another directory."""
    active = False
    first, run = await busy(hub)
    hub.dispatcher.cleanup(Place("alice", directory="/v/alice-a"), lambda: active)
    await until(lambda: hub.dispatcher._cleanups._due)
    active = True
    run.succeed()
    await first
    await until(lambda: not hub.dispatcher._cleanups._due)
    assert len(hub.runs) == 1
    active = False
    hub.dispatcher.cleanup(Place("alice", directory="/v/alice-b"), lambda: active)
    second = await hub.run(2)
    assert {user["directory"] for user in second.request.users} == {"/v/alice-a", "/v/alice-b"}
    second.succeed()


async def test_a_clean_up_that_was_due_comes_after_all_if_the_spawn_fails(hub: Hub) -> None:
    first, run = await busy(hub)
    hub.dispatcher.cleanup(Place("alice"), never)
    await until(lambda: hub.dispatcher._cleanups._due)
    spawn = hub.spawn("alice")
    await hub.settled()
    assert not hub.dispatcher.waiting_cleanups()
    run.succeed()
    second = await hub.run(2)
    second.settle(status="failed", reason="role_failed")
    second.end()
    await asyncio.gather(first, spawn)
    third = await hub.run(3)
    assert (third.request.operation, third.names) == ("cleanup", ["alice"])
    third.succeed()


async def test_a_clean_up_that_is_asked_for_again_in_flight_is_kept_for_the_next_hub(log: Lines) -> None:
    kept: list[Any] = []
    hub = Hub(log, keep=lambda key, place: kept.append(place))
    alice = Place("alice")
    hub.dispatcher.cleanup(alice, never)
    run = await hub.run(1)
    hub.dispatcher.cleanup(alice, never)
    run.succeed()
    await until(lambda: hub.records)
    assert kept == [alice, alice]
    (await hub.run(2)).succeed()
    await until(lambda: kept == [alice, alice, None])


async def test_a_user_is_forgotten_before_their_clean_up_begins(log: Lines) -> None:
    forgotten: list[str] = []
    go = asyncio.Event()

    async def forget(places: Sequence[Place]) -> None:
        await go.wait()
        forgotten.extend(place.name for place in places)

    hub = Hub(log, forget=forget)
    for name in ("alice", "bob"):
        hub.dispatcher.cleanup(Place(name), never)
    await until(lambda: hub.dispatcher._tasks)
    await hub.settled()
    assert not hub.runs
    assert not hub.dispatcher.claim_untouched(Place("alice")), "it has begun: who is known is no longer so"
    go.set()
    run = await hub.run(1)
    assert (run.request.operation, sorted(forgotten)) == ("cleanup", ["alice", "bob"])
    run.succeed()
    await until(lambda: hub.records)


@pytest.mark.parametrize("trouble", ["raises", "hangs"])
async def test_who_cannot_be_forgotten_is_not_cleaned_up_now(
    log: Lines, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr(cleanups, "FORGET_SECONDS", 0.05)
    monkeypatch.setattr(cleanups, "RETRY_SECONDS", 0.3)
    broken = True

    async def forget(places: Sequence[Place]) -> None:
        if broken and trouble == "raises":
            raise OSError("disk full")
        if broken:
            await asyncio.sleep(60)

    kept: list[Any] = []
    hub = Hub(log, forget=forget, keep=lambda key, place: kept.append(place))
    alice = Place("alice")
    hub.dispatcher.cleanup(alice, never)
    await until(lambda: any("put off" in line for line in log.lines))
    await hub.settled()
    assert not hub.runs
    assert not hub.records
    assert kept == [alice], "a hub that is killed now must still know of it"
    assert hub.dispatcher.waiting_cleanups() == 1
    broken = False
    run = await hub.run(1)
    assert run.request.operation == "cleanup"
    run.succeed()
    await until(lambda: kept == [alice, None])
    await until(lambda: not hub.dispatcher._tasks)
    assert_empty(hub)


async def test_a_clean_up_that_was_put_off_is_withdrawn_by_the_spawn(
    log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = asyncio.Event()

    async def forget(places: Sequence[Place]) -> None:
        await go.wait()
        raise OSError("disk full")

    hub = Hub(log, forget=forget)
    hub.dispatcher.cleanup(Place("alice"), never)
    await until(lambda: hub.dispatcher._tasks)
    spawn = hub.spawn("alice")
    await hub.settled()
    go.set()
    run = await hub.run(1)
    assert run.request.operation == "bootstrap"
    run.succeed()
    assert (await spawn).status == "ok"
    await until(lambda: not hub.dispatcher._tasks)
    await hub.settled()
    assert_empty(hub)


async def test_who_is_known_withdraws_the_clean_up_without_a_run(log: Lines) -> None:
    kept: list[Any] = []
    hub = Hub(log, keep=lambda key, place: kept.append(place))
    alice = Place("alice")
    hub.dispatcher.cleanup(alice, never)
    assert hub.dispatcher.claim_untouched(alice)
    assert hub.dispatcher.claim_untouched(Place("bob")), "of whom nothing waits"
    assert kept == [alice, None]
    assert_empty(hub)


async def test_who_is_known_under_another_name_of_the_directory_waits_for_the_clean_up_too(hub: Hub) -> None:
    """As one that an earlier hub has left, from before the place of users was set."""
    hub.dispatcher.cleanup(Place("alice", storage_host="s1"), never)
    cleanup = await hub.run(1)
    told = Place("alice", "/v/alice", storage_host="s1")
    assert not hub.dispatcher.claim_untouched(told)
    assert hub.dispatcher.claim_untouched(Place("bob", "/v/bob", storage_host="s1"))
    spawn = hub.spawn("alice", directory="/v/alice", storage_host="s1", done={"user_dir": "1"})
    await hub.settled()
    cleanup.succeed()
    run = await hub.run(2)
    assert run.request.done == {}
    run.succeed()
    await spawn


async def test_a_clean_up_doubts_who_waits_under_another_name_of_the_directory(hub: Hub) -> None:
    flying, run = await busy(hub, "other", storage_host="s1")
    hub.dispatcher.prepare(Place("alice", "/v/alice", storage_host="s1"), {"user_dir": "1"})
    host = hub.dispatcher._hosts["s1"]
    host.doubt({"alice"})
    assert host.logins["s1", "/v/alice"].done == {}
    run.succeed()
    await flying
    (await hub.run(2)).succeed()
    await until(lambda: len(hub.records) == 2)


async def turns_between_runs(hub: Hub, monkeypatch: pytest.MonkeyPatch, turn_seconds: float) -> int:
    """Return how many turns of the loop, each of which takes as long, lie between the end of a run and the next."""
    first, run = await busy(hub)
    second = hub.spawn("second")
    await hub.settled()
    clock, turns, over = [time.monotonic()], [0], [False]
    monkeypatch.setattr(spare_time, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def turn() -> None:
        if not over[0]:
            turns[0] += 1
            clock[0] += turn_seconds
            asyncio.get_running_loop().call_soon(turn)

    has_time, next_run = dispatcher.loop_has_time, hub.dispatcher._next_run

    async def rest() -> None:
        turn()
        await has_time()

    def end(host: Any) -> Any:
        over[0] = True
        return next_run(host)

    monkeypatch.setattr(dispatcher, "loop_has_time", rest)
    monkeypatch.setattr(hub.dispatcher, "_next_run", end)
    run.succeed()
    await first
    (await hub.run(2)).succeed()
    await second
    return turns[0]


async def test_in_an_idle_hub_the_next_run_begins_when_the_loop_has_come_round_twice(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await turns_between_runs(hub, monkeypatch, 0.001) == 4


async def test_a_busy_hub_rests_from_runs_but_not_for_ever(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = await turns_between_runs(hub, monkeypatch, 0.1)
    assert 0 <= turns - spare_time.MOST_REST / 0.1 <= 3


async def test_a_host_that_rests_begins_nothing_and_keeps_no_other_host_waiting(
    log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(log, max_runs=1)
    rested = asyncio.Event()
    monkeypatch.setattr(dispatcher, "loop_has_time", rested.wait)
    first, run = await busy(hub, storage_host="s1")
    again, other = hub.spawn("again", storage_host="s1"), hub.spawn("other", storage_host="s2")
    await hub.settled()
    run.succeed()
    await first
    second = await hub.run(2)
    assert [user["name"] for user in second.request.users] == ["other"]
    second.succeed()
    await other
    late = hub.spawn("late", storage_host="s1")
    await hub.settled()
    assert len(hub.runs) == 2
    rested.set()
    third = await hub.run(3)
    assert [user["name"] for user in third.request.users] == ["again", "late"]
    third.succeed()
    await asyncio.gather(again, late)
    await until(lambda: not hub.dispatcher._tasks)
    assert_empty(hub)


async def test_a_hub_that_ends_begins_no_run_on_another_host_either(log: Lines) -> None:
    hub = Hub(log, max_runs=1)
    first, _ = await busy(hub, storage_host="s1")
    other = hub.spawn("other", storage_host="s2")
    await hub.settled()
    (flight,) = hub.dispatcher._tasks
    flight.cancel()
    await asyncio.wait({flight})
    await hub.settled()
    assert len(hub.runs) == 1
    with pytest.raises(ApplyError):
        await first
    await cancel(other)


async def test_one_short_turn_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = iter([0.1, 0.001, 0.1, 0.001, 0.001, 0.1, 0.1])
    clock = [0.0]

    def monotonic() -> float:
        clock[0] += next(lengths)
        return clock[0]

    monkeypatch.setattr(spare_time, "time", SimpleNamespace(monotonic=monotonic))
    await spare_time.loop_has_time()
    assert list(lengths) == [0.1, 0.1]


# What a run leaves out


@pytest.mark.parametrize("first", ["spawn", "login"])
async def test_what_was_known_of_another_place_is_not_left_out_after_the_other_spawn_is_gone(
    hub: Hub, first: str
) -> None:
    """The place is that of the last spawn, so what is known of the one before says nothing."""
    flying, run = await busy(hub, "other", storage_host="s1")
    old, new = {"directory": "/v/a", "uid": 1}, {"directory": "/v/a", "uid": 2}
    stays: asyncio.Task[Any] | None = None
    if first == "login":
        hub.dispatcher.prepare(Place("alice", storage_host="s1", **old), {"user_dir": "1"})  # type: ignore[arg-type]
    else:
        stays = hub.spawn("alice", storage_host="s1", done={"user_dir": "1"}, **old)
    goes = hub.spawn("alice", storage_host="s1", **new)
    await hub.settled()
    await cancel(goes)
    run.succeed()
    await flying
    second = await hub.run(2)
    assert (second.request.users[0]["uid"], second.request.done) == (2, {})
    second.succeed()
    if stays is not None:
        await stays
    await until(lambda: len(hub.records) == 2)


async def test_what_a_run_rests_on_is_as_old_as_what_it_leaves_out(log: Lines) -> None:
    told: list[float] = []
    hub = Hub(log, complete=lambda place, outcome, fingerprints, since: told.append(since))
    first, run = await busy(hub, "other")
    came = time.time()
    spawn = hub.spawn("alice", done={"user_dir": "1"})
    await hub.settled()
    waited = time.time()
    run.succeed()
    await first
    (await hub.run(2)).succeed()
    await spawn
    assert told[0] <= came, "all was done in the run"
    assert told[1] <= waited, "it was known before the run began that she has one role"


async def test_a_run_leaves_out_what_all_its_users_have(hub: Hub) -> None:
    spawns = [
        hub.spawn("alice", done={"user_dir": "1", "tutorials": "7"}),
        hub.spawn("bob", done={"user_dir": "1", "tutorials": "8", "script": "2"}),
    ]
    run = await hub.run(1)
    assert run.request.done == {"user_dir": "1"}
    run.succeed()
    await asyncio.gather(*spawns)


async def test_one_of_whom_nothing_is_known_makes_the_run_do_all(hub: Hub) -> None:
    spawn = hub.spawn("alice", done={"user_dir": "1"})
    asyncio.get_running_loop().call_soon(hub.dispatcher.prepare, Place("login"))
    run = await hub.run(1)
    assert (run.names, run.request.done) == (["alice", "login"], {})
    run.succeed()
    await spawn


async def test_servers_that_share_the_work_must_agree_on_what_is_done(hub: Hub) -> None:
    first, run = await busy(hub)
    hub.dispatcher.prepare(Place("alice"), {"user_dir": "1", "script": "2", "tutorials": "3"})
    spawns = [
        hub.spawn("alice", done={"user_dir": "1", "script": "2", "site": "4"}),
        hub.spawn("alice", server_name="b", done={"user_dir": "1", "tutorials": "3", "site": "4"}),
    ]
    await hub.settled()
    run.succeed()
    second = await hub.run(2)
    assert second.request.done == {"user_dir": "1"}
    second.succeed()
    await asyncio.gather(first, *spawns)


async def test_who_needs_more_than_the_run_in_flight_does_waits_for_the_next(hub: Hub) -> None:
    """Their server died early, say, and they are not known any more."""
    first, run = await busy(hub, "alice", done={"user_dir": "1"})
    assert run.request.done == {"user_dir": "1"}
    same = hub.spawn("alice", done={"user_dir": "1", "script": "2"})
    more = hub.spawn("alice", server_name="b")
    await hub.settled()
    run.succeed()
    await asyncio.gather(first, same)
    assert not more.done()
    second = await hub.run(2)
    assert second.request.done == {}
    second.succeed()
    await more


@pytest.mark.parametrize("who", ["a login before", "a spawn during", "a login during"])
async def test_nothing_is_done_any_more_after_a_clean_up(
    log: Lines, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """What the ledger said of a user before their clean-up began counts no longer when it has ended."""
    monkeypatch.setattr(cleanups, "PATIENCE_SECONDS", 0.0)
    alice, done = Place("alice"), {"user_dir": "1"}
    hub = Hub(log)
    first, run = await busy(hub)
    hub.dispatcher.cleanup(alice, never)
    await until(lambda: not hub.dispatcher._cleanups._parked)
    if who == "a login before":
        hub.dispatcher.prepare(alice, done)
    run.succeed()
    await first
    cleaning = await hub.run(2)
    assert cleaning.request.operation == "cleanup"
    cleaning.settle()  # It has not ended yet.
    spawn = hub.spawn("alice", done=done) if who == "a spawn during" else None
    if who == "a login during":
        hub.dispatcher.prepare(alice, done)
    await hub.settled()
    cleaning.end()
    third = await hub.run(3)
    assert (third.names, third.request.done) == (["alice"], {})
    third.succeed()
    if spawn is not None:
        await spawn


async def test_a_clean_up_leaves_nothing_out(hub: Hub) -> None:
    hub.dispatcher.cleanup(Place("alice"), never)
    run = await hub.run(1)
    assert run.request.done == {}
    run.succeed()


# What is told


FINGERPRINTS = (RoleFingerprint(role="user_dir", fingerprint="1", revised=True),)


async def test_who_is_complete_is_told_with_the_fingerprints_of_that_run(hub: Hub) -> None:
    spawns = [hub.spawn("good", directory="/v/good"), hub.spawn("bad"), hub.spawn("silent")]
    run = await hub.run(1)
    run.on_event(Accepted(run="r1", storage_host="s", fingerprints=FINGERPRINTS))
    run.settle("good")
    assert [(place.directory, outcome.key, said) for place, outcome, said in hub.completed] == [
        ("/v/good", "good", FINGERPRINTS)
    ], "before the spawn goes on"
    run.settle("bad", status="failed", reason="role_failed")
    run.end()
    await asyncio.wait(spawns)
    assert [type(spawn.exception()) for spawn in spawns] == [type(None), type(None), ApplyError]
    assert len(hub.completed) == 1


async def test_neither_a_check_nor_a_clean_up_makes_anybody_complete(log: Lines) -> None:
    hub = Hub(log, check=True)
    spawn, run = await busy(hub)
    run.succeed()
    await spawn
    assert not hub.completed
    hub = Hub(log)
    hub.dispatcher.cleanup(Place("alice"), never)
    (await hub.run(1)).succeed()
    await until(lambda: hub.records)
    assert not hub.completed


async def test_a_book_that_cannot_be_kept_costs_nobody_their_server(log: Lines) -> None:
    def broken(*what: Any) -> None:
        raise ValueError("cannot write")

    hub = Hub(log, complete=broken, record=broken)
    for number in (1, 2):
        spawn = hub.spawn("alice")
        (await hub.run(number)).succeed()
        assert (await spawn).status == "ok"
    assert sum("could not be noted" in line for line in log.lines) >= 3


async def test_a_run_tells_its_seconds_by_role(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    spawn, run = await busy(hub)
    clock.now += 1
    run.on_event(Accepted(run="r1", storage_host="s", roles=("user_dir", "site")))
    for role, seconds in (("user_dir", 2), ("site", 3), ("user_dir", 4)):
        run.on_event(RoleStarted(role=role, users=1))
        clock.now += seconds
    run.on_event(Fetched(role="tutorials", count=2))
    run.on_event(Fetched(role="site", count=1))
    run.settle()
    run.on_event(End(run="r1", ok=1, failed=0))
    clock.now += 5
    run.end()
    await spawn
    await until(lambda: hub.records)
    (record,) = hub.records
    assert record.roles == {"user_dir": 6.0, "site": 3.0}
    assert (record.seconds, record.fetched) == (15.0, 3)


async def test_a_role_that_ends_with_the_run_has_its_seconds(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    spawn, run = await busy(hub)
    run.on_event(RoleStarted(role="user_dir", users=1))
    clock.now += 2
    run.end(ApplyError("it died"))
    with pytest.raises(ApplyError):
        await spawn
    assert hub.records[0].roles == {"user_dir": 2.0}


async def test_there_is_a_line_for_each_user_and_for_the_run(hub: Hub, log: Lines) -> None:
    spawns = [hub.spawn("good"), hub.spawn("silent")]
    run = await hub.run(1)
    run.on_event(Accepted(run="r1", storage_host="s"))
    run.settle("good", changed=("user_dir",))
    run.end()
    await asyncio.wait(spawns)
    with pytest.raises(ApplyError):
        spawns[1].result()
    lines = [line.partition(" seconds")[0] for line in log.lines if "run=r1" in line]
    assert lines == [
        "ansible_bootstrap: run=r1 operation=bootstrap user=good outcome=ok reason=- failed_role=-",
        "ansible_bootstrap: run=r1 operation=bootstrap user=silent outcome=failed reason=apply_failed failed_role=-",
        "ansible_bootstrap: run=r1 operation=bootstrap storage_host=- check=false abandoned=false users=2 ok=1 failed=1 changed=1",
    ]


async def test_who_left_before_the_end_of_an_abandoned_run_is_no_failure_in_the_log(
    hub: Hub, log: Lines
) -> None:
    spawn, run = await busy(hub)
    await cancel(spawn)
    run.end(run.stopped)
    await until(lambda: hub.records)
    (line,) = [line for line in log.lines if "run=" in line]
    assert "abandoned=true" in line


async def test_it_can_be_told_how_many_wait_and_for_how_long(hub: Hub) -> None:
    first, run = await busy(hub, storage_host="s1")
    assert hub.dispatcher.waiting() == {}, "in flight is not waiting"
    spawn = hub.spawn("alice", storage_host="s1")
    await hub.settled()
    hub.dispatcher.prepare(Place("bob", storage_host="s1"))
    hub.dispatcher.cleanup(Place("carol", storage_host="s2"), never)
    assert hub.dispatcher.waiting_cleanups() == 1
    ((host, (count, age)),) = hub.dispatcher.waiting().items()
    assert (host, count) == ("s1", 2)
    await asyncio.sleep(0.05)
    assert hub.dispatcher.waiting()["s1"][1] >= age + 0.04
    run.succeed()
    await until(lambda: len(hub.runs) == 3)
    for run in hub.runs:
        run.succeed()
    await asyncio.gather(first, spawn)


# Progress


async def test_a_student_sees_which_share_is_done(hub: Hub) -> None:
    first, run = await busy(hub)
    waiting = hub.spawn("bob")
    await hub.settled()
    run.on_event(Accepted(run="r1", storage_host="s", roles=("user_dir", "tutorials", "site_a", "site_b")))
    for role in ("user_dir", "tutorials", "site_b", "site_a", "unheard_of"):
        run.on_event(RoleStarted(role=role, users=1))
    late = hub.spawn("first", server_name="b")
    await hub.settled()
    assert [share for _, share in hub.shown["first"]] == [0.0, 0.25, 0.75, 0.75, 0.75, 0.75], (
        "never backwards"
    )
    assert hub.shown["first"][-1] == ("Making the last preparations", 0.75), (
        "who comes late is told where it is"
    )
    assert hub.shown["bob"] == [("Waiting for 1 other", 0.0)]
    run.succeed()
    (await hub.run(2)).succeed()
    await asyncio.gather(first, waiting, late)


async def test_those_left_behind_by_a_full_run_are_told_anew_and_only_news(log: Lines) -> None:
    hub = Hub(log, batch_size=2)
    first, run = await busy(hub)
    spawns = [hub.spawn(f"u{number}") for number in range(6)]
    await hub.settled()
    run.succeed()
    await hub.run(2)
    assert hub.said("u1") == ["Waiting for 2 others"]
    assert hub.said("u2") == ["Waiting for 3 others", "Waiting for 2 others"]
    assert hub.said("u5") == ["Waiting for 6 others", "Waiting for 5 others"]
    for number in (2, 3, 4):
        (await hub.run(number)).succeed()
    await asyncio.gather(first, *spawns)
    assert hub.said("u5") == ["Waiting for 6 others", "Waiting for 5 others", "Waiting for 3 others"]


async def test_a_number_that_has_not_changed_is_not_said_again(log: Lines) -> None:
    hub = Hub(log, batch_size=1)
    first, run = await busy(hub)
    run.settle()
    spawns = [hub.spawn(f"u{number}") for number in range(3)]
    await hub.settled()
    run.end()
    await hub.run(2)
    assert [hub.said(f"u{number}") for number in range(3)] == [
        [],
        ["Waiting for 1 other"],
        ["Waiting for 2 others"],
    ]
    for number in (2, 3, 4):
        (await hub.run(number)).succeed()
    await asyncio.gather(first, *spawns)


# Batches that adapt


async def fly(hub: Hub, clock: Clock, users: int, seconds: float, how: str = "orderly") -> int:
    """So many spawns at once, whose first run takes so long; return how many users it had."""
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
    await until(lambda: not hub.dispatcher._tasks)
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
    if hub.dispatcher._health.down("s1"):
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
    await until(lambda: not hub.dispatcher._tasks)
    number = len(hub.runs) + 1
    first, run = await busy(hub, storage_host="s1")
    for user in range(50):
        hub.dispatcher.cleanup(Place(f"u{user}", storage_host="s1"), never)
    await until(lambda: not hub.dispatcher._cleanups._parked)
    run.succeed()
    await first
    cleaning = await hub.run(number + 1)
    assert len(cleaning.names) == 50
    cleaning.succeed()
