"""Clean-ups beside spawns: which goes first, what is withdrawn, and what is told to the ledger before one begins."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from fake_runs import Hub, assert_empty, busy, never
from hub_fakes import Lines, until

from ansible_bootstrap.dispatch import cleanups
from ansible_bootstrap.place import Place


async def test_a_clean_up_does_not_wait_for_ever(log: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind spawns that never cease; and once it has gone, they are not held up by the next one."""
    hub = Hub(log, batch_size=1)
    first, run = await busy(hub)
    for name in ("bob", "carol"):
        hub.dispatcher.cleanup(Place(name), never)
    await until(lambda: hub.dispatcher.due_cleanups == 2)
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
    await until(lambda: hub.dispatcher.due_cleanups)
    active = True
    run.succeed()
    await first
    await until(lambda: not hub.dispatcher.due_cleanups)
    assert len(hub.runs) == 1
    active = False
    hub.dispatcher.cleanup(Place("alice", directory="/v/alice-b"), lambda: active)
    second = await hub.run(2)
    assert {user["directory"] for user in second.request.users} == {"/v/alice-a", "/v/alice-b"}
    second.succeed()


async def test_a_clean_up_that_was_due_comes_after_all_if_the_spawn_fails(hub: Hub) -> None:
    first, run = await busy(hub)
    hub.dispatcher.cleanup(Place("alice"), never)
    await until(lambda: hub.dispatcher.due_cleanups)
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
    hub = Hub(log)
    alice = Place("alice")
    hub.dispatcher.cleanup(alice, never)
    run = await hub.run(1)
    hub.dispatcher.cleanup(alice, never)
    run.succeed()
    await until(lambda: hub.records)
    assert hub.kept == [alice, alice]
    (await hub.run(2)).succeed()
    await until(lambda: hub.kept == [alice, alice, None])


async def test_a_user_is_forgotten_before_their_clean_up_begins(log: Lines) -> None:
    forgotten: list[str] = []
    go = asyncio.Event()

    async def forget(places: Sequence[Place]) -> None:
        await go.wait()
        forgotten.extend(place.name for place in places)

    hub = Hub(log, forget=forget)
    for name in ("alice", "bob"):
        hub.dispatcher.cleanup(Place(name), never)
    await until(lambda: hub.dispatcher.running)
    await hub.settled()
    assert not hub.runs
    assert not hub.dispatcher.claim_untouched(Place("alice")), "it has begun: who is known is no longer so"
    go.set()
    run = await hub.run(1)
    assert (run.request.operation, sorted(forgotten)) == ("cleanup", ["alice", "bob"])
    run.succeed()
    await until(lambda: hub.records)


@pytest.mark.parametrize("trouble", ["raises", "hangs"])
async def test_a_user_who_cannot_be_forgotten_is_not_cleaned_up_now(
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

    hub = Hub(log, forget=forget)
    alice = Place("alice")
    hub.dispatcher.cleanup(alice, never)
    await until(lambda: any("put off" in line for line in log.lines))
    await hub.settled()
    assert not hub.runs
    assert not hub.records
    assert hub.kept == [alice], "a hub that is killed now must still know of it"
    assert hub.dispatcher.waiting_cleanups() == 1
    broken = False
    run = await hub.run(1)
    assert run.request.operation == "cleanup"
    run.succeed()
    await until(lambda: hub.kept == [alice, None])
    await until(lambda: not hub.dispatcher.running)
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
    await until(lambda: hub.dispatcher.running)
    spawn = hub.spawn("alice")
    await hub.settled()
    go.set()
    run = await hub.run(1)
    assert run.request.operation == "bootstrap"
    run.succeed()
    assert (await spawn).status == "ok"
    await until(lambda: not hub.dispatcher.running)
    await hub.settled()
    assert_empty(hub)


async def test_a_known_user_withdraws_the_clean_up_without_a_run(log: Lines) -> None:
    hub = Hub(log)
    alice = Place("alice")
    hub.dispatcher.cleanup(alice, never)
    assert hub.dispatcher.claim_untouched(alice)
    assert hub.dispatcher.claim_untouched(Place("bob")), "of whom nothing waits"
    assert hub.kept == [alice, None]
    assert_empty(hub)


async def test_a_user_known_under_another_name_of_the_directory_waits_for_the_clean_up_too(hub: Hub) -> None:
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


async def test_a_clean_up_doubts_a_login_that_waits_under_another_name_of_the_directory(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleanups, "PATIENCE_SECONDS", 0.0)
    first, run = await busy(hub, "other", storage_host="s1")
    hub.dispatcher.prepare(Place("alice", "/v/alice", storage_host="s1"), {"user_dir": "1"})
    hub.dispatcher.cleanup(Place("alice", storage_host="s1"), never)
    await until(lambda: hub.dispatcher.due_cleanups)
    run.succeed()
    await first
    cleanup = await hub.run(2)
    assert cleanup.request.operation == "cleanup"
    cleanup.succeed()
    again = await hub.run(3)
    assert (again.names, again.request.done) == (["alice"], {})
    again.succeed()
    await until(lambda: len(hub.records) == 3)


async def test_a_clean_up_that_waits_is_not_taken_over_from_the_earlier_hub_as_well(hub: Hub) -> None:
    first, run = await busy(hub)
    hub.dispatcher.cleanup(Place("alice"), never)
    await until(lambda: hub.dispatcher.due_cleanups)
    hub.dispatcher.restore([Place("alice"), Place("bob")], lambda name: False)
    assert hub.dispatcher.waiting_cleanups() == 2
    await until(lambda: hub.dispatcher.due_cleanups == 2)
    run.succeed()
    await first
    cleaning = await hub.run(2)
    assert cleaning.names == ["alice", "bob"]
    cleaning.succeed()
