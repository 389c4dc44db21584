"""Which roles a run leaves out, because all its users have them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from fake_runs import Hub, busy, cancel, never
from hub_fakes import Lines, until

from ansible_bootstrap.dispatch import cleanups
from ansible_bootstrap.place import Place


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
    hub = Hub(log)
    first, run = await busy(hub, "other")
    came = time.time()
    spawn = hub.spawn("alice", done={"user_dir": "1"})
    await hub.settled()
    waited = time.time()
    run.succeed()
    await first
    (await hub.run(2)).succeed()
    await spawn
    told = [since for *_, since in hub.completed]
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


async def test_an_unknown_user_makes_the_run_do_every_role(hub: Hub) -> None:
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


async def test_a_user_who_needs_more_than_the_run_in_flight_waits_for_the_next(hub: Hub) -> None:
    """Their server ended early, say, and they are not known any more."""
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
    await until(lambda: hub.dispatcher.due_cleanups)
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


async def test_what_the_last_login_knew_counts(hub: Hub) -> None:
    first, run = await busy(hub)
    for done in ({"user_dir": "1", "script": "2"}, {"user_dir": "1"}):
        hub.dispatcher.prepare(Place("alice"), done)
    run.succeed()
    second = await hub.run(2)
    assert second.request.done == {"user_dir": "1"}
    second.succeed()
    await first
    await until(lambda: len(hub.records) == 2)


class Row:
    """A row of a roster: looked up a while ago."""

    def __init__(self) -> None:
        self.done = {"user_dir": "1"}

    def say(self, text: str, share: float) -> None:
        pass

    def settle(self, answer: object) -> None:
        pass


async def test_what_a_run_rests_on_is_as_old_as_the_look_at_a_row(hub: Hub) -> None:
    looked = time.monotonic() - 50
    hub.dispatcher.enter(Place("alice"), Row(), looked)
    (await hub.run(1)).succeed()
    await until(lambda: hub.records)
    assert hub.completed[0][3] <= looked
