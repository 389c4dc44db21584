"""What hangs delays no others: users whose storage hangs, storage hosts that are down, runs that give no sign."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_runs import Clock, Hub, Run, never
from hub_fakes import Lines, until

from ansible_bootstrap.dispatch import cleanups, dispatcher, health
from ansible_bootstrap.dispatch.dispatcher import CROWD
from ansible_bootstrap.dispatch.health import FIRST_PAUSE, HOLD_SECONDS, LONGEST_PAUSE
from ansible_bootstrap.dispatch.run import QUIET_SECONDS
from ansible_bootstrap.errors import DeadlineError, RoleFailedError, UnreachableError
from ansible_bootstrap.place import Place

HANGS = {"status": "failed", "reason": "timeout", "message": "no answer"}
DOWN = {"status": "failed", "reason": "unreachable", "message": "no route to host"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def answer(spawn: asyncio.Task[Any]) -> str:
    """What became of a spawn, at once."""
    await asyncio.wait({spawn}, timeout=2)
    assert spawn.done(), "it waits"
    error = spawn.exception()
    return spawn.result().status if error is None else getattr(error, "reason", repr(error))


async def landed(hub: Hub, runs: int) -> None:
    await until(lambda: len(hub.records) == runs and not hub.dispatcher.running)


async def hang_in_company(hub: Hub, who: str = "mallory") -> tuple[asyncio.Task[Any], Run]:
    """A run of two in which one hangs; return that one's spawn, which waits on, and the run of that user alone."""
    number = len(hub.runs)
    spawns = [hub.spawn(who), hub.spawn("alice")]
    run = await hub.run(number + 1)
    run.settle("alice")
    run.settle(who, **HANGS)
    assert await answer(spawns[1]) == "ok"
    run.end()
    return spawns[0], await hub.run(number + 2)


# A user


async def test_a_user_who_hangs_is_tried_again_alone_beside_the_others(hub: Hub) -> None:
    mallory, alone = await hang_in_company(hub)
    assert alone.names == ["mallory"]
    assert not mallory.done()
    for name in ("bob", "carol"):  # The storage host's runs go on meanwhile.
        spawn = hub.spawn(name)
        (await hub.run(len(hub.runs) + 1)).succeed()
        assert await answer(spawn) == "ok"
    alone.succeed()
    assert await answer(mallory) == "ok"
    await landed(hub, 4)
    together = [hub.spawn("mallory"), hub.spawn("bob")]
    run = await hub.run(5)
    assert run.names == ["mallory", "bob"], "a success is the end of it"
    run.succeed()
    assert [await answer(spawn) for spawn in together] == ["ok", "ok"]
    await landed(hub, 5)
    assert hub.dispatcher.idle


async def test_one_run_alone_at_a_time_on_a_storage_host(hub: Hub) -> None:
    names = ["mallory", "trudy", "alice"]
    spawns = [hub.spawn(name) for name in names]
    run = await hub.run(1)
    run.settle("alice")
    run.settle("mallory", "trudy", **HANGS)
    run.end()
    first = await hub.run(2)
    await hub.settled()
    assert len(hub.runs) == 2
    first.succeed()
    (await hub.run(3)).succeed()
    assert [run.names for run in hub.runs[1:]] == [["mallory"], ["trudy"]]
    assert {await answer(spawn) for spawn in spawns} == {"ok"}


async def test_a_user_who_also_hangs_alone_is_refused_at_once_for_some_minutes(
    hub: Hub, clock: Clock, log: Lines
) -> None:
    mallory, alone = await hang_in_company(hub)
    alone.settle(**HANGS)
    assert (await mallory).reason == "timeout"
    alone.end()
    await landed(hub, 2)
    for _ in range(3):
        with pytest.raises(DeadlineError, match="hangs, and end it"):
            await hub.spawn("mallory")
    hub.dispatcher.prepare(Place("mallory"))
    bob = hub.spawn("bob")
    run = await hub.run(3)
    assert run.names == ["bob"], "a login begins nothing"
    run.succeed()
    assert await answer(bob) == "ok"
    clock.now += HOLD_SECONDS
    hub.dispatcher.prepare(Place("mallory"))
    mallory, bob = hub.spawn("mallory"), hub.spawn("bob")
    runs = [await hub.run(4), await hub.run(5)]
    assert sorted(run.names for run in runs) == [["bob"], ["mallory"]], "the next try is alone again"
    for run in runs:
        run.succeed()
    assert [await answer(mallory), await answer(bob)] == ["ok", "ok"]


async def test_a_user_who_hangs_and_comes_alone_delays_nobody_for_long(hub: Hub, clock: Clock) -> None:
    """Their first run has nobody else in it, so nothing tells them from a storage host that hangs."""
    mallory = hub.spawn("mallory")
    alone = await hub.run(1)
    alice = hub.spawn("alice")
    await hub.settled()
    assert len(hub.runs) == 1
    hub.wait(clock, QUIET_SECONDS)
    (await hub.run(2)).succeed()
    assert await answer(alice) == "ok"
    late = hub.spawn("mallory", server_name="b")
    await hub.settled()
    alone.settle(**HANGS)
    alone.end()
    assert [(await spawn).reason for spawn in (mallory, late)] == ["timeout"] * 2
    await landed(hub, 2)
    with pytest.raises(DeadlineError):
        await hub.spawn("mallory")


@pytest.mark.parametrize("done", [("alice",), ()])
async def test_users_without_any_outcome_make_way_too(hub: Hub, clock: Clock, done: tuple[str, ...]) -> None:
    spawns = [hub.spawn("mallory"), hub.spawn("alice")]
    run = await hub.run(1)
    for name in done:
        run.settle(name)
    bob = hub.spawn("bob")
    hub.wait(clock, QUIET_SECONDS)
    (await hub.run(2)).succeed()
    assert await answer(bob) == "ok"
    run.settle("mallory")
    if not done:
        run.settle("alice")
    run.end()
    assert [await answer(spawn) for spawn in spawns] == ["ok", "ok"]


async def hang_together(hub: Hub, *places: tuple[str, str], **fields: Any) -> list[asyncio.Task[Any]]:
    """A run in which nobody is ready in time, while alice waits for the next."""
    spawns = [hub.spawn(name, directory=path, server_name=path) for name, path in places]
    run = await hub.run(1)
    alice = hub.spawn("alice")
    await hub.settled()
    run.settle(**(fields or HANGS))
    run.end()
    return [*spawns, alice]


async def test_users_who_hang_together_cost_nobody_else(hub: Hub, clock: Clock) -> None:
    mallory, trudy, alice = await hang_together(hub, ("mallory", "/v/m"), ("trudy", "/v/t"))
    runs = [await hub.run(2), await hub.run(3)]
    assert sorted(run.names for run in runs) == [["alice"], ["mallory"]], "each is tried alone"
    for run in runs:
        run.settle(**(HANGS if run.names == ["mallory"] else {}))
        run.end()
    assert await answer(alice) == "ok"
    (await hub.run(4)).succeed()
    assert [(await mallory).reason, await answer(trudy)] == ["timeout", "ok"]
    assert hub.dispatcher.health.down("") is None


async def test_one_user_with_two_servers_who_hangs_costs_nobody_else(hub: Hub, clock: Clock) -> None:
    one, two, alice = await hang_together(hub, ("mallory", "/v/m"), ("mallory", "/v/m--two"))
    assert [(await spawn).reason for spawn in (one, two)] == ["timeout"] * 2
    run = await hub.run(2)
    assert run.names == ["alice"]
    run.succeed()
    assert await answer(alice) == "ok"
    with pytest.raises(DeadlineError, match="hangs, and end it"):
        await hub.spawn("mallory", directory="/v/m")


async def test_a_run_that_told_nothing_says_nothing_against_a_host_that_answered_meanwhile(
    hub: Hub, clock: Clock
) -> None:
    """As in a site role that looks into the homes of two users who hang."""
    spawns = [hub.spawn(name) for name in ("mallory", "trudy")]
    silent = await hub.run(1)
    hub.wait(clock, QUIET_SECONDS)
    alice = hub.spawn("alice")
    (await hub.run(2)).succeed()
    assert await answer(alice) == "ok"
    clock.now += 120
    silent.end(DeadlineError("stopped"))
    assert [await answer(spawn) for spawn in spawns] == ["timeout"] * 2
    await landed(hub, 2)
    assert hub.dispatcher.health.down("") is None


async def test_a_user_who_hung_before_the_host_went_down_is_still_tried_alone(hub: Hub, clock: Clock) -> None:
    spawns = [hub.spawn(name, storage_host="s1") for name in ("mallory", "alice")]
    run = await hub.run(1)
    run.settle("mallory", **HANGS)
    run.settle("alice", **DOWN)
    run.end()
    assert await answer(spawns[1]) == "failed"
    await landed(hub, 1)
    assert hub.dispatcher.health.down("s1") is not None
    clock.now += FIRST_PAUSE
    probe = hub.spawn("probe", storage_host="s1")
    (await hub.run(2)).succeed()
    assert await answer(probe) == "ok"
    spawns = [hub.spawn(name, storage_host="s1") for name in ("mallory", "alice")]
    runs = [await hub.run(3), await hub.run(4)]
    assert sorted(run.names for run in runs) == [["alice"], ["mallory"]]
    for run in runs:
        run.succeed()
    assert {await answer(spawn) for spawn in spawns} == {"ok"}


async def test_a_host_that_was_not_reached_clears_no_user_who_hangs(hub: Hub, clock: Clock) -> None:
    mallory, alone = await hang_in_company(hub)
    alone.settle(**DOWN)
    alone.end()
    assert await answer(mallory) == "failed"
    await landed(hub, 2)
    clock.now += FIRST_PAUSE
    probe = hub.spawn("probe")
    (await hub.run(3)).succeed()
    assert await answer(probe) == "ok"
    spawns = [hub.spawn(name) for name in ("mallory", "bob")]
    runs = [await hub.run(4), await hub.run(5)]
    assert sorted(run.names for run in runs) == [["bob"], ["mallory"]]
    for run in runs:
        run.succeed()
    assert {await answer(spawn) for spawn in spawns} == {"ok"}


async def test_a_user_is_in_one_run_at_a_time(hub: Hub) -> None:
    """Two names of a directory may be the same one."""
    mallory, alone = await hang_in_company(hub)
    other = hub.spawn("mallory", directory="/v/mallory")
    hub.dispatcher.cleanup(Place("mallory", "/v/third"), never)
    await until(lambda: hub.dispatcher.due_cleanups)
    await hub.settled()
    assert len(hub.runs) == 2
    alone.succeed()
    assert await answer(mallory) == "ok"
    for number in (3, 4):
        run = await hub.run(number)
        await hub.settled()
        assert len(hub.runs) == number
        run.succeed()
    assert await answer(other) == "ok"
    assert sorted(run.request.operation for run in hub.runs[2:]) == ["bootstrap", "cleanup"]


async def test_a_user_who_no_longer_waits_is_not_tried_again_but_the_next_time_alone(hub: Hub) -> None:
    spawns = [hub.spawn("mallory"), hub.spawn("alice")]
    run = await hub.run(1)
    spawns[0].cancel()
    await hub.settled()
    run.settle("mallory", **HANGS)
    run.settle("alice")
    run.end()
    await landed(hub, 1)
    await until(lambda: hub.dispatcher.idle)
    hub.dispatcher.prepare(Place("mallory"))
    await hub.settled()
    assert len(hub.runs) == 1, "nobody waits"
    spawns = [hub.spawn("mallory"), hub.spawn("bob")]
    runs = [await hub.run(2), await hub.run(3)]
    assert sorted(run.names for run in runs) == [["bob"], ["mallory"]]
    for one in runs:
        one.succeed()
    assert {await answer(spawn) for spawn in spawns} == {"ok"}


async def test_a_login_that_hangs_is_tried_again_alone(hub: Hub) -> None:
    alice = hub.spawn("alice")
    asyncio.get_running_loop().call_soon(hub.dispatcher.prepare, Place("mallory"))
    run = await hub.run(1)
    assert run.names == ["alice", "mallory"]
    run.settle("alice")
    run.settle("mallory", **HANGS)
    run.end()
    alone = await hub.run(2)
    spawn = hub.spawn("mallory")
    await hub.settled()
    alone.succeed()
    assert [await answer(alice), await answer(spawn)] == ["ok", "ok"]


# A storage host


async def go_down(hub: Hub) -> None:
    spawns = [hub.spawn(name, storage_host="s1") for name in ("u1", "u2")]
    run = await hub.run(len(hub.runs) + 1)
    run.settle(**DOWN)
    run.end()
    await asyncio.wait(spawns)
    await landed(hub, len(hub.runs))


async def test_a_storage_host_that_is_down_answers_at_once(hub: Hub, clock: Clock, log: Lines) -> None:
    spawns = [hub.spawn(name, storage_host="s1") for name in ("u1", "u2")]
    run = await hub.run(1)
    hub.dispatcher.prepare(Place("login", storage_host="s1"))
    waits = hub.spawn("waits", storage_host="s1")
    await hub.settled()
    run.settle(**DOWN)
    run.end()
    assert [await answer(spawn) for spawn in spawns] == ["failed"] * 2
    for spawn in (waits, hub.spawn("comes", storage_host="s1")):
        with pytest.raises(
            UnreachableError,
            match=r"s1 has been down since 00:16:40.*the first user who comes after 00:16:45",
        ):
            await spawn
    hub.dispatcher.prepare(Place("login", storage_host="s1"))
    await hub.settled()
    assert len(hub.runs) == 1
    assert sum("s1 is down" in line for line in log.lines) == 1
    other = hub.spawn("alice", storage_host="s2")
    (await hub.run(2)).succeed()
    assert await answer(other) == "ok"


async def test_it_costs_one_user_a_try_each_pause_until_it_is_back(
    hub: Hub, clock: Clock, log: Lines
) -> None:
    await go_down(hub)
    pauses = [FIRST_PAUSE]
    while pauses[-1] < LONGEST_PAUSE:
        clock.now += pauses[-1] - 0.1
        with pytest.raises(UnreachableError):
            await hub.spawn("early", storage_host="s1")
        clock.now += 0.1
        probe = hub.spawn("probe", storage_host="s1")
        others = [hub.spawn(name, storage_host="s1") for name in ("u1", "u2")]
        same = hub.spawn("probe", storage_host="s1", server_name="b")
        run = await hub.run(len(hub.runs) + 1)
        assert run.names == ["probe"]
        assert [await answer(spawn) for spawn in others] == ["unreachable"] * 2
        run.settle(**DOWN)
        run.end()
        assert [await answer(spawn) for spawn in (probe, same)] == ["failed"] * 2
        await landed(hub, len(hub.runs))
        down = hub.dispatcher.health.down("s1")
        assert down is not None
        pauses.append(down.pause)
    assert pauses == [5, 10, 20, 40, 60]
    clock.now += LONGEST_PAUSE
    probe = hub.spawn("probe", storage_host="s1")
    run = await hub.run(len(hub.runs) + 1)
    run.settle(status="failed", reason="role_failed")  # The host works.
    run.end()
    assert await answer(probe) == "failed"
    assert any("s1 is back" in line for line in log.lines)
    spawns = [hub.spawn(name, storage_host="s1") for name in ("u1", "u2")]
    run = await hub.run(len(hub.runs) + 1)
    assert run.names == ["u1", "u2"]
    run.succeed()
    assert [await answer(spawn) for spawn in spawns] == ["ok"] * 2


async def test_a_probe_that_was_abandoned_says_nothing(hub: Hub, clock: Clock) -> None:
    await go_down(hub)
    clock.now += FIRST_PAUSE
    for _ in range(2):
        probe = hub.spawn("probe", storage_host="s1")
        run = await hub.run(len(hub.runs) + 1)
        probe.cancel()
        await until(lambda run=run: run.stopped)
        run.end(run.stopped)
        await landed(hub, len(hub.runs))


async def test_a_user_who_hangs_cannot_make_a_storage_host_down_nor_keep_it_down(
    hub: Hub, clock: Clock
) -> None:
    mallory = hub.spawn("mallory", storage_host="s1")
    run = await hub.run(1)
    run.settle(**HANGS)
    run.end()
    assert await answer(mallory) == "failed"
    await landed(hub, 1)
    assert hub.dispatcher.health.down("s1") is None
    await go_down(hub)
    clock.now += FIRST_PAUSE
    trudy = hub.spawn("trudy", storage_host="s1")
    probe = await hub.run(3)
    hub.wait(clock, QUIET_SECONDS)
    alice = hub.spawn("alice", storage_host="s1")
    second = await hub.run(4)
    assert second.names == ["alice"], "the probe hangs, so somebody else is the next"
    second.succeed()
    assert await answer(alice) == "ok"
    bob = hub.spawn("bob", storage_host="s1")
    (await hub.run(5)).succeed()
    assert await answer(bob) == "ok"
    probe.settle(**HANGS)
    probe.end()
    assert await answer(trudy) == "failed"
    await landed(hub, 5)
    assert hub.dispatcher.health.down("s1") is None


async def test_nobody_is_to_blame_for_a_disk_that_hung(hub: Hub, clock: Clock) -> None:
    await go_down(hub)
    clock.now += FIRST_PAUSE
    probe = hub.spawn("probe", storage_host="s1")
    run = await hub.run(2)
    run.settle(**HANGS)
    run.end()
    assert await answer(probe) == "failed"
    await landed(hub, 2)
    down = hub.dispatcher.health.down("s1")
    assert down is not None and down.pause == FIRST_PAUSE
    clock.now += FIRST_PAUSE
    alice = hub.spawn("alice", storage_host="s1")
    (await hub.run(3)).succeed()
    assert await answer(alice) == "ok"
    names = ["probe", "u1", "u2"]
    spawns = [hub.spawn(name, storage_host="s1") for name in names]
    run = await hub.run(4)
    assert run.names == names
    run.succeed()
    assert {await answer(spawn) for spawn in spawns} == {"ok"}


@pytest.mark.parametrize(("seconds", "down"), [(1.0, False), (60.0, False), (120.0, True)])
async def test_only_silence_for_all_the_time_that_a_run_has_says_something(
    hub: Hub, clock: Clock, seconds: float, down: bool
) -> None:
    """Else the waiting users may have come late."""
    spawns = [hub.spawn(name, storage_host="s1") for name in ("u1", "u2")]
    run = await hub.run(1)
    clock.now += seconds
    run.end(DeadlineError("stopped"))
    assert [await answer(spawn) for spawn in spawns] == ["timeout"] * 2
    alone = hub.spawn("mallory", storage_host="s2")
    run = await hub.run(2)
    clock.now += seconds
    run.end(DeadlineError("stopped"))
    assert await answer(alone) == "timeout"
    await landed(hub, 2)
    assert bool(hub.dispatcher.health.down("s1")) is down
    assert bool(hub.dispatcher.health.held(Place("mallory", storage_host="s2"))) is down


async def test_clean_ups_wait_for_a_storage_host_that_is_down(
    log: Lines, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleanups, "RETRY_SECONDS", 0.0)
    hub = Hub(log)
    for name in ("alice", "bob"):
        hub.dispatcher.cleanup(Place(name, storage_host="s1"), never)
    run = await hub.run(1)
    run.settle("alice", **DOWN)
    run.end(UnreachableError("down"))
    await landed(hub, 1)
    await until(lambda: hub.dispatcher.due_cleanups)
    hub.dispatcher.cleanup(Place("carol", storage_host="s1"), never)
    await until(lambda: hub.dispatcher.due_cleanups == 3)
    await hub.settled()
    assert len(hub.runs) == 1
    clock.now += FIRST_PAUSE
    hub.dispatcher.tick()
    probe = await hub.run(2)
    assert len(probe.names) == 1
    probe.succeed()
    rest = await hub.run(3)
    rest.succeed()
    assert sorted(probe.names + rest.names) == ["alice", "bob", "carol"]
    await until(lambda: hub.kept.count(None) == 3)
    await landed(hub, 3)
    assert hub.dispatcher.idle


async def test_a_clean_up_tries_a_host_again_after_the_pause_though_no_user_comes(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "FIRST_PAUSE", 0.3)
    monkeypatch.setattr(dispatcher, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(cleanups, "RETRY_SECONDS", 0.0)
    hub.dispatcher.cleanup(Place("alice", storage_host="s1"), never)
    run = await hub.run(1)
    run.settle(**DOWN)
    run.end()
    await landed(hub, 1)
    (await hub.run(2)).succeed()
    await until(lambda: hub.dispatcher.idle)
    assert not hub.dispatcher.waiting_cleanups()


async def test_a_clean_up_that_waits_for_the_ledger_is_not_begun_on_a_host_that_went_down_meanwhile(
    log: Lines, clock: Clock
) -> None:
    ledger, asked = asyncio.Event(), asyncio.Event()

    async def forget(_: Any) -> None:
        asked.set()
        await ledger.wait()

    hub = Hub(log, forget=forget)
    spawns = [hub.spawn(name, storage_host="s1") for name in ("mallory", "trudy", "bob")]
    run = await hub.run(1)
    run.settle("bob")
    run.settle("mallory", "trudy", **HANGS)
    run.end()
    alone = await hub.run(2)
    for name in ("alice", "carol"):
        hub.dispatcher.cleanup(Place(name, storage_host="s1"), never)
    await asyncio.wait_for(asked.wait(), 3)
    alone.end(UnreachableError("no route to host"))
    assert [await answer(spawn) for spawn in spawns] == ["unreachable", "unreachable", "ok"]
    ledger.set()
    await landed(hub, 3)
    assert len(hub.runs) == 2, "the clean-up of two began on a host that is down"
    assert [place and place.name for place in hub.kept[-2:]] == ["alice", "carol"], "both are still owed"
    assert hub.dispatcher.waiting_cleanups() == 2


async def test_runs_give_up_on_a_storage_host_only_after_so_many_tries(log: Lines, clock: Clock) -> None:
    """As a roster's: a moment of trouble must not fail thousands of waiting users."""
    hub = Hub(log, tries=3)
    first = hub.spawn("first", storage_host="s1")
    run = await hub.run(1)
    waiting = [hub.spawn(f"u{number}", storage_host="s1") for number in range(5)]
    await hub.settled()
    for number, name in enumerate(("first", "u0", "u1"), start=1):
        run = await hub.run(number)
        assert run.names == [name]
        run.settle(**DOWN)
        run.end()
        await landed(hub, number)
        clock.now += LONGEST_PAUSE
        if number < 3:
            assert not waiting[-1].done()
            hub.dispatcher.tick()
    assert [await answer(spawn) for spawn in (first, *waiting)] == ["failed"] * 3 + ["unreachable"] * 3


# Slots


async def test_storage_hosts_that_hang_do_not_starve_one_that_works(log: Lines, clock: Clock) -> None:
    hub = Hub(log, max_runs=2)
    hanging = [hub.spawn(f"u{n}", storage_host=f"hangs{n}") for n in range(2)]
    await hub.run(2)
    alice = hub.spawn("alice", storage_host="works")
    await hub.settled()
    assert len(hub.runs) == 2
    hub.wait(clock, QUIET_SECONDS)
    (await hub.run(3)).succeed()
    assert await answer(alice) == "ok"
    for run in hub.runs:
        run.succeed()
    assert [await answer(spawn) for spawn in hanging] == ["ok"] * 2


async def test_a_clean_up_that_waits_for_the_ledger_keeps_its_slot(log: Lines, clock: Clock) -> None:
    ledger, asked = asyncio.Event(), asyncio.Event()

    async def forget(_: Any) -> None:
        asked.set()
        await ledger.wait()

    hub = Hub(log, max_runs=1, forget=forget)
    hub.dispatcher.cleanup(Place("alice", storage_host="s1"), never)
    await asyncio.wait_for(asked.wait(), 3)
    hub.wait(clock, QUIET_SECONDS)
    bob = hub.spawn("bob", storage_host="s2")
    await hub.settled()
    assert not hub.runs, "what has not begun counted as a run that gives no sign"
    ledger.set()
    (await hub.run(1)).succeed()
    (await hub.run(2)).succeed()
    assert await answer(bob) == "ok"


async def test_there_is_a_most_of_all_runs(log: Lines, clock: Clock) -> None:
    hub = Hub(log, max_runs=2)
    spawns = [hub.spawn(f"u{n}", storage_host=f"s{n}") for n in range(20)]
    for _ in range(10):
        await hub.settled()
        hub.wait(clock, QUIET_SECONDS)
    await hub.settled()
    assert len(hub.runs) == (CROWD - 1) * 2
    for number in range(1, 21):
        (await hub.run(number)).succeed()
    assert {await answer(spawn) for spawn in spawns} == {"ok"}


async def test_lone_runs_that_hang_take_no_slot_from_the_others(log: Lines, clock: Clock) -> None:
    hub = Hub(log, max_runs=1)
    mallory, alone = await hang_in_company(hub)
    spawn = hub.spawn("bob")
    (await hub.run(3)).succeed()
    assert await answer(spawn) == "ok"
    alone.end(RoleFailedError("stopped"))
    assert await answer(mallory) == "role_failed"


async def test_there_is_a_most_of_lone_runs(log: Lines, clock: Clock) -> None:
    """Half of ``max_runs`` that give signs, and ``max_runs`` in all."""
    hub = Hub(log, max_runs=2)
    spawns = []
    for host in ("s1", "s2", "s3"):
        mallory, alice = (hub.spawn(name, storage_host=host) for name in ("mallory", "alice"))
        run = await hub.run(len(hub.runs) + 1)
        run.settle("alice")
        run.settle("mallory", **HANGS)
        run.end()
        assert await answer(alice) == "ok"
        spawns.append(mallory)
        await hub.settled()
    assert [run.names for run in hub.runs].count(["mallory"]) == 1
    for _ in range(3):
        hub.wait(clock, QUIET_SECONDS)
        await hub.settled()
    assert [run.names for run in hub.runs].count(["mallory"]) == 2
    hub.runs[1].succeed()
    await hub.run(6)
    for run in hub.runs:
        run.succeed()
    assert {await answer(spawn) for spawn in spawns} == {"ok"}
