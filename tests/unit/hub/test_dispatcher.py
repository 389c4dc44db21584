"""What waits for what: batches, shared work, leaving, clean-ups; with a client that runs nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from typing import Any

import pytest
from fake_runs import Hub, never
from hub_fakes import Lines, until

from ansible_bootstrap.dispatch.turnstile import IN_A_TURN, Turnstile
from ansible_bootstrap.errors import (
    ApplyError,
    DeadlineError,
    RefusedError,
    UnreachableError,
)
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import Accepted, Outcome, OutcomeEvent, RoleStarted

# Batches


async def test_users_who_come_during_a_run_go_into_the_next(hub: Hub) -> None:
    first = hub.spawn("alice")
    run = await hub.run(1)
    others = [hub.spawn(f"student{number}") for number in range(20)]
    await hub.settled()
    assert len(hub.runs) == 1, "two runs at once on one storage host"
    run.succeed()
    assert (await first).status == "ok"
    (await hub.run(2)).succeed()
    assert {(await other).status for other in others} == {"ok"}
    assert [len(run.names) for run in hub.runs] == [1, 20]


async def test_nobody_waits_for_company(hub: Hub) -> None:
    hub.spawn("alice")
    await hub.settled()
    assert len(hub.runs) == 1


async def test_a_batch_has_a_ceiling_and_keeps_the_order(log: Lines) -> None:
    hub = Hub(log, batch_size=3)
    spawns = [hub.spawn(f"u{number}") for number in range(7)]
    for number in (1, 2, 3):
        (await hub.run(number)).succeed()
    await asyncio.gather(*spawns)
    assert [run.names for run in hub.runs] == [["u0", "u1", "u2"], ["u3", "u4", "u5"], ["u6"]]


async def test_storage_hosts_do_not_wait_for_one_another_up_to_the_limit(log: Lines) -> None:
    hub = Hub(log, max_runs=2)
    spawns = [hub.spawn("alice", storage_host=f"s{number}") for number in range(3)]
    await hub.run(2)
    await hub.settled()
    assert len(hub.runs) == 2
    hub.runs[0].succeed()
    (await hub.run(3)).succeed()
    hub.runs[1].succeed()
    await asyncio.gather(*spawns)
    assert [run.request.users[0]["storage_host"] for run in hub.runs] == ["s0", "s1", "s2"]


async def test_a_class_that_has_waited_together_goes_on_a_few_in_a_turn_of_the_loop(hub: Hub) -> None:
    """All at once, each with the hub's own work for a spawn, the hub would answer nobody for a second."""
    spawns = [hub.spawn(f"student{number}") for number in range(40)]
    run = await hub.run(1)
    run.succeed()
    went_on = [0]
    while went_on[-1] < 40:
        await asyncio.sleep(0)
        went_on.append(sum(spawn.done() for spawn in spawns))
    assert max(after - before for before, after in itertools.pairwise(went_on)) <= IN_A_TURN


async def test_an_outcome_that_is_known_counts_although_its_turn_comes_after_the_deadline(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Turnstile, "let_through", lambda *_: None)
    spawn = hub.spawn("alice", timeout=0.3)
    (await hub.run(1)).succeed()
    assert (await spawn).status == "ok"


async def test_waiters_are_released_one_by_one(hub: Hub) -> None:
    fast, slow = hub.spawn("fast"), hub.spawn("slow")
    run = await hub.run(1)
    run.settle("fast")
    await fast
    assert not slow.done()
    run.succeed()
    await slow


async def test_a_user_who_fails_fails_alone(hub: Hub) -> None:
    good, bad, silent = hub.spawn("good"), hub.spawn("bad"), hub.spawn("silent")
    run = await hub.run(1)
    run.settle("good")
    run.settle("bad", status="failed", reason="role_failed", message="quota")
    run.end()
    assert (await good).status == "ok"
    assert (await bad).message == "quota"
    with pytest.raises(ApplyError, match="without an outcome"):
        await silent
    assert {outcome.name: outcome.status for outcome in hub.records[0].outcomes} == {
        "good": "ok",
        "bad": "failed",
        "silent": "failed",
    }


async def test_a_run_that_crashes_fails_its_users_and_no_later_ones(hub: Hub) -> None:
    spawns = [hub.spawn("alice"), hub.spawn("bob")]
    run = await hub.run(1)
    later = hub.spawn("carol")
    await hub.settled()
    run.end(ApplyError("it was killed"))
    errors = await asyncio.gather(*spawns, return_exceptions=True)
    assert [type(error) for error in errors] == [ApplyError] * 2
    assert errors[0] is not errors[1], "one exception object raised in two tasks"
    (await hub.run(2)).succeed()
    assert (await later).status == "ok"


async def test_an_outcome_for_somebody_else_is_not_believed(hub: Hub, log: Lines) -> None:
    spawn = hub.spawn("alice")
    run = await hub.run(1)
    run.on_event(OutcomeEvent(outcome=Outcome(key="alice", name="mallory", status="ok")))
    run.on_event(OutcomeEvent(outcome=Outcome(key="bob", name="bob", status="ok")))
    await hub.settled()
    assert not spawn.done()
    run.end()
    with pytest.raises(ApplyError):
        await spawn
    assert sum("nobody asked for" in line for line in log.lines) == 2


async def test_a_malformed_place_is_refused_before_anything_starts(hub: Hub) -> None:
    with pytest.raises(RefusedError):
        await hub.spawn("{{ lookup('pipe', 'id') }}")
    assert not hub.runs


# Shared work


async def test_named_servers_and_double_clicks_share_the_work(hub: Hub) -> None:
    spawns = [hub.spawn("alice", directory="/v/alice", server_name=name) for name in ("", "a", "b")]
    run = await hub.run(1)
    late = hub.spawn("alice", directory="/v/alice", server_name="c")
    await hub.settled()
    assert run.names == ["alice"]
    run.succeed()
    assert {(await spawn).status for spawn in [*spawns, late]} == {"ok"}
    assert len(hub.runs) == 1


async def test_named_servers_with_a_directory_each_are_separate_work_in_one_run(hub: Hub) -> None:
    spawns = [hub.spawn("alice", directory=f"/v/alice-{name}") for name in "abc"]
    run = await hub.run(1)
    assert [user["key"] for user in run.request.users] == ["alice", "alice#2", "alice#3"]
    run.settle("alice#2", status="failed", message="quota")
    run.settle("alice", "alice#3")
    assert [(await spawn).status for spawn in spawns] == ["ok", "failed", "ok"]
    run.end()


async def test_another_owner_is_not_the_same_work(hub: Hub) -> None:
    old = hub.spawn("alice", directory="/v/alice", uid=1000)
    run = await hub.run(1)
    new = hub.spawn("alice", directory="/v/alice", uid=1001)
    await hub.settled()
    run.succeed()
    await old
    assert not new.done()
    second = await hub.run(2)
    assert second.request.users[0]["uid"] == 1001
    second.succeed()
    await new


async def test_a_retry_after_a_failure_is_new_work_though_the_run_goes_on(hub: Hub) -> None:
    alice, bob = hub.spawn("alice"), hub.spawn("bob")
    run = await hub.run(1)
    run.settle("alice", status="failed", message="quota")
    assert (await alice).status == "failed"
    retry = hub.spawn("alice")
    await hub.settled()
    run.succeed()
    await bob
    assert not retry.done()
    (await hub.run(2)).succeed()
    assert (await retry).status == "ok"


# Leaving


async def test_a_user_who_cancels_cancels_no_other(hub: Hub) -> None:
    one, two = hub.spawn("alice", server_name="1"), hub.spawn("alice", server_name="2")
    run = await hub.run(1)
    one.cancel()
    await asyncio.wait({one})
    assert one.cancelled()
    assert run.stopped is None
    run.succeed()
    assert (await two).status == "ok"


async def test_the_last_to_leave_stops_the_run_and_waits_for_nothing(hub: Hub) -> None:
    spawns = [hub.spawn("alice"), hub.spawn("bob")]
    run = await hub.run(1)
    for spawn in spawns:
        assert run.stopped is None
        spawn.cancel()
        await asyncio.wait({spawn}, timeout=0.5)
        assert spawn.cancelled()
    assert run.stopped is not None
    back = hub.spawn("alice")
    await hub.settled()
    assert len(hub.runs) == 1, "a second run while the stopped one still works"
    run.end(run.stopped)
    (await hub.run(2)).succeed()
    assert (await back).status == "ok"


async def test_a_run_goes_on_only_for_those_without_an_outcome(hub: Hub) -> None:
    leaver, stayer = hub.spawn("leaver"), hub.spawn("stayer")
    run = await hub.run(1)
    leaver.cancel()
    await asyncio.wait({leaver})
    assert run.stopped is None
    run.settle("stayer")
    await stayer
    assert run.stopped is not None, "it works on for somebody who has gone"
    run.end(run.stopped)


async def test_a_user_who_leaves_the_queue_is_not_in_the_next_run(hub: Hub) -> None:
    first = hub.spawn("alice")
    run = await hub.run(1)
    leaver, stayer = hub.spawn("leaver"), hub.spawn("stayer")
    await hub.settled()
    leaver.cancel()
    await asyncio.wait({leaver})
    run.succeed()
    second = await hub.run(2)
    assert second.names == ["stayer"]
    second.succeed()
    await asyncio.gather(first, stayer)


async def test_the_deadline_is_the_waiters_own(hub: Hub) -> None:
    patient, hasty = hub.spawn("patient"), hub.spawn("hasty", timeout=0.05)
    run = await hub.run(1)
    with pytest.raises(DeadlineError):
        await hasty
    run.succeed()
    assert (await patient).status == "ok"


async def test_a_run_that_is_cancelled_with_the_hub_starts_no_other(hub: Hub) -> None:
    first = hub.spawn("alice")
    await hub.run(1)
    second = hub.spawn("bob")
    await hub.settled()
    await hub.dispatcher.close()
    with pytest.raises(ApplyError):
        await first
    await asyncio.sleep(0.05)
    assert len(hub.runs) == 1
    second.cancel()


async def test_nothing_is_kept_of_users_who_are_done(hub: Hub) -> None:
    for number in range(3):
        spawn = hub.spawn(f"u{number}", storage_host=f"s{number}")
        (await hub.run(number + 1)).succeed()
        await spawn
    await hub.settled()
    assert hub.dispatcher.idle


# Progress


async def test_a_student_reads_what_happens(hub: Hub) -> None:
    spawns = [hub.spawn("alice")]
    run = await hub.run(1)
    spawns += [hub.spawn("bob"), hub.spawn("carol")]
    await hub.settled()
    run.on_event(Accepted(run="r1", storage_host="localhost"))
    run.on_event(RoleStarted(role="user_dir", users=1))
    run.on_event(RoleStarted(role="tutorials", users=50))
    run.on_event(RoleStarted(role="site_quota_v2", users=2))
    assert hub.said("alice") == [
        "Preparing your directory",
        "Copying tutorials, with 49 others",
        "Making the last preparations, with 1 other",
    ]
    assert hub.said("bob") == ["Waiting for 1 other"]
    assert hub.said("carol") == ["Waiting for 2 others"]
    run.succeed()
    (await hub.run(2)).succeed()
    await asyncio.gather(*spawns)


# Clean-up


async def test_servers_that_stop_together_are_cleaned_up_in_one_run(log: Lines) -> None:
    delay = 0.5
    hub = Hub(log, cleanup_delay=delay)
    await asyncio.sleep(delay - asyncio.get_running_loop().time() % delay)  # Not across the end of a delay.
    for number in range(30):
        hub.dispatcher.cleanup(Place(f"u{number}"), never)
    run = await hub.run(1)
    assert run.request.operation == "cleanup"
    assert len(run.names) == 30
    run.succeed()
    await hub.settled()
    assert len(hub.runs) == 1


async def test_a_new_spawn_withdraws_the_clean_up(hub: Hub) -> None:
    hub.dispatcher.cleanup(Place("alice"), never)
    spawn = hub.spawn("alice")
    (await hub.run(1)).succeed()
    await spawn
    await asyncio.sleep(0.1)
    assert [run.request.operation for run in hub.runs] == ["bootstrap"]
    assert not hub.dispatcher.waiting_cleanups()


async def test_a_clean_up_withdrawn_by_a_spawn_that_fails_still_comes(hub: Hub) -> None:
    hub.dispatcher.cleanup(Place("alice"), never)
    spawn = hub.spawn("alice")
    run = await hub.run(1)
    run.settle(status="failed", reason="role_failed")
    run.end()
    assert (await spawn).status == "failed"
    second = await hub.run(2)
    assert second.request.operation == "cleanup"
    second.succeed()


async def test_a_spawn_waits_for_the_clean_up_that_has_begun(hub: Hub) -> None:
    hub.dispatcher.cleanup(Place("alice"), never)
    run = await hub.run(1)
    spawn = hub.spawn("alice")
    await hub.settled()
    assert len(hub.runs) == 1, "clean-up and bootstrap of one directory at once"
    assert hub.said("alice") == ["Waiting for the clean-up after your last server"]
    run.succeed()
    second = await hub.run(2)
    assert second.request.operation == "bootstrap"
    second.succeed()
    await spawn


async def test_a_clean_up_waits_for_the_users_last_server(hub: Hub) -> None:
    active = True
    hub.dispatcher.cleanup(Place("alice", directory="/v/alice-a"), lambda: active)
    await asyncio.sleep(0.1)
    assert not hub.runs
    active = False
    hub.dispatcher.cleanup(Place("alice", directory="/v/alice-b"), lambda: active)
    run = await hub.run(1)
    assert {user["directory"] for user in run.request.users} == {"/v/alice-a", "/v/alice-b"}
    run.succeed()


async def test_spawns_go_before_clean_ups(hub: Hub) -> None:
    first = hub.spawn("alice")
    run = await hub.run(1)
    hub.dispatcher.cleanup(Place("bob"), never)
    await asyncio.sleep(0.1)
    second = hub.spawn("carol")
    await hub.settled()
    run.succeed()
    await first
    (await hub.run(2)).succeed()
    await second
    (await hub.run(3)).succeed()
    assert [run.request.operation for run in hub.runs] == ["bootstrap", "bootstrap", "cleanup"]


async def test_a_failed_clean_up_is_a_line_in_the_log(hub: Hub, log: Lines) -> None:
    hub.dispatcher.cleanup(Place("alice"), never)
    (await hub.run(1)).end(UnreachableError("storage1 is down"))
    await until(lambda: any("clean-up" in line and "storage1 is down" in line for line in log.lines), 2)


# Observing


async def test_observing_asks_for_a_check(log: Lines) -> None:
    hub = Hub(log, check=True)
    spawn = hub.spawn("alice")
    run = await hub.run(1)
    assert run.request.check
    run.succeed()
    await spawn
    assert hub.records[0].check


async def test_a_thousand_waiting_users_cost_little(hub: Hub) -> None:
    import tracemalloc

    first = hub.spawn("first")
    run = await hub.run(1)
    tracemalloc.start()
    spawns = [hub.spawn(f"student{number}", directory=f"/v/student{number}") for number in range(1000)]
    await hub.settled()
    per_user = tracemalloc.get_traced_memory()[0] / 1000
    tracemalloc.stop()
    run.succeed()
    await first
    for number in (2, 3):
        (await hub.run(number)).succeed()
    await asyncio.gather(*spawns)
    assert per_user < 10_000


def test_a_place_is_the_same_work_whatever_the_server_is_called() -> None:
    place = Place("alice", directory="/v/alice")
    assert place == dataclasses.replace(place, server_name="b")
    assert place.job_key == dataclasses.replace(place, server_name="b", groups=("students",)).job_key
    others: list[dict[str, Any]] = [
        {"name": "bob"},
        {"account": "al"},
        {"also": ("/w/alice",)},
        {"storage_host": "nas"},
        {"directory": None},
    ]
    keys = {dataclasses.replace(place, **other).job_key for other in others}
    assert len(keys - {place.job_key}) == len(others)


async def test_two_users_of_one_directory_are_both_sent_to_the_storage_host(hub: Hub) -> None:
    """Only the storage host knows whose directory it is."""
    spawns = [
        asyncio.create_task(
            hub.dispatcher.wait(
                Place(name, "/v/x", uid=1000, gid=100), timeout=20, on_progress=lambda *_: None
            )
        )
        for name in ("mallory", "victim")
    ]
    await asyncio.sleep(0)
    run = await hub.run(1)
    assert [user["name"] for user in run.request.users] == ["mallory", "victim"]
    run.succeed()
    assert [(await spawn).name for spawn in spawns] == ["mallory", "victim"]
