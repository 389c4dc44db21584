"""What observers, log and students are told of runs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_runs import Clock, Hub, busy, cancel, never
from hub_fakes import Lines, until

from ansible_bootstrap.errors import ApplyError
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import Accepted, End, Fetched, RoleFingerprint, RoleStarted

FINGERPRINTS = (RoleFingerprint(role="user_dir", fingerprint="1", revised=True),)


async def test_a_complete_user_is_reported_with_the_fingerprints_of_the_run(hub: Hub) -> None:
    spawns = [hub.spawn("good", directory="/v/good"), hub.spawn("bad"), hub.spawn("silent")]
    run = await hub.run(1)
    run.on_event(Accepted(run="r1", storage_host="s", fingerprints=FINGERPRINTS))
    run.settle("good")
    assert [(place.directory, outcome.key, said) for place, outcome, said, _ in hub.completed] == [
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


class Broken(Hub):
    def fail(self, *what: Any) -> None:
        raise ValueError("cannot write")

    run_ended = user_completed = cleanup_asked = cleanup_settled = fail


async def test_an_observer_that_fails_costs_no_user_their_server(log: Lines) -> None:
    hub = Broken(log)
    for number in (1, 2):
        spawn = hub.spawn("alice")
        (await hub.run(number)).succeed()
        assert (await spawn).status == "ok"
    hub.dispatcher.cleanup(Place("alice"), never)
    (await hub.run(3)).succeed()
    await until(lambda: sum("could not be noted" in line for line in log.lines) == 9)


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


async def test_a_user_who_left_an_abandoned_run_is_no_failure_in_the_log(hub: Hub, log: Lines) -> None:
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
