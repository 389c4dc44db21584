"""Clean-ups that outlive their hub: the file, what is written when, and what a hub makes of what it finds."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_fakes import FakeApply, Lines, until

from ansible_bootstrap.dispatch.client import ApplyClient
from ansible_bootstrap.dispatch.dispatcher import Dispatcher
from ansible_bootstrap.dispatch.observer import Observer
from ansible_bootstrap.hub.core import is_active
from ansible_bootstrap.place import Place
from ansible_bootstrap.state.pending_cleanups import FILE, CleanupFile, PendingCleanups

ALICE = Place("alice", directory="/v/alice", uid=1000, gid=100, storage_host="s1", groups=("a", "b"))
BOB = Place("bob", storage_host="s1")


def never(*args: Any) -> bool:
    return False


class Hub(Observer):
    """What a hub has of it, with the fake apply program."""

    def __init__(self, state: Path, apply: FakeApply, log: Lines, delay: float = 0.02) -> None:
        self.state = state
        self.pending = PendingCleanups(state, log.logger)

        async def command() -> list[str]:
            return apply.command

        self.dispatcher = Dispatcher(ApplyClient(command, log.logger), log.logger, self, cleanup_delay=delay)

    def cleanup_asked(self, place: Place) -> None:
        self.pending.note(place.job_key, place)

    def cleanup_settled(self, place: Place) -> None:
        self.pending.note(place.job_key, None)

    async def restored(self, active: Any = never) -> Hub:
        self.dispatcher.restore(await self.pending.load(), active)
        return self

    async def on_disk(self) -> list[str]:
        await self.pending.written(5)
        return sorted(place.name for place in CleanupFile(self.state).read().values())


@pytest.fixture
def start(tmp_path: Path, apply: FakeApply, log: Lines) -> Any:
    return partial(Hub, tmp_path / "state", apply, log)


def names(apply: FakeApply) -> list[str]:
    return [name for run in apply.cleanups for name in run["users"]]


def test_the_file_keeps_places_as_they_are(tmp_path: Path) -> None:
    file = CleanupFile(tmp_path / "state")
    assert file.read() == {}
    file.write({ALICE.job_key: None})
    assert not (tmp_path / "state").exists(), "made only to forget something"
    file.write({ALICE.job_key: ALICE, BOB.job_key: BOB})
    assert CleanupFile(tmp_path / "state").read() == {ALICE.job_key: ALICE, BOB.job_key: BOB}
    file.write({ALICE.job_key: None, ("s1", "nobody"): None})
    assert list(file.read().values()) == [BOB]
    assert (tmp_path / "state" / FILE).stat().st_mode & 0o777 == 0o600


def test_one_user_on_two_hosts_has_two_entries(tmp_path: Path) -> None:
    file = CleanupFile(tmp_path)
    here, there = BOB, replace(BOB, storage_host="s2")
    file.write({here.job_key: here, there.job_key: there})
    assert file.read() == {here.job_key: here, there.job_key: there}
    file.write({there.job_key: None})
    assert file.read() == {here.job_key: here}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"name": "root", "groups": []}', '{"name": "x", "evil": 1, "groups": []}']
)
def test_a_row_that_is_no_place_is_dropped(tmp_path: Path, text: str) -> None:
    file = CleanupFile(tmp_path)
    file.write({BOB.job_key: BOB})
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("INSERT INTO cleanups VALUES ('s1', 'x', ?)", (text,))
    assert list(file.read().values()) == [BOB]
    with sqlite3.connect(tmp_path / FILE) as database:
        assert database.execute("SELECT count(*) FROM cleanups").fetchone() == (1,)


async def test_a_clean_up_is_on_disk_until_it_is_done_and_no_longer(start: Any, apply: FakeApply) -> None:
    apply.do(cleanup={"delay": 0.3})
    hub = start()
    hub.dispatcher.cleanup(ALICE, never)
    assert await hub.on_disk() == ["alice"]
    await until(lambda: apply.cleanups)
    assert await hub.on_disk() == ["alice"], "in flight it is not done"
    await until(lambda: apply.noted("end"))
    await asyncio.sleep(0.1)
    assert await hub.on_disk() == []
    await (await start().restored()).on_disk()
    await asyncio.sleep(0.2)
    assert names(apply) == ["alice"], "done twice"


async def test_what_an_earlier_hub_has_left_is_done_once(start: Any, apply: FakeApply) -> None:
    earlier = start(delay=60)
    for place in (ALICE, BOB):
        earlier.dispatcher.cleanup(place, never)
    assert await earlier.on_disk() == ["alice", "bob"]
    hub = start()
    # The hub itself asks at its start for servers that died meanwhile.
    hub.dispatcher.cleanup(ALICE, never)
    await hub.restored()
    await until(lambda: len(names(apply)) >= 2 and not apply.alive())
    await asyncio.sleep(0.2)
    assert sorted(names(apply)) == ["alice", "bob"]
    assert await hub.on_disk() == []


async def test_a_user_with_a_server_is_left_alone_until_it_stops(start: Any, apply: FakeApply) -> None:
    earlier = start(delay=60)
    earlier.dispatcher.cleanup(ALICE, never)
    await earlier.on_disk()
    asked: list[str] = []
    hub = await start().restored(lambda name: not asked.append(name))
    await until(lambda: asked)
    await asyncio.sleep(0.1)
    assert (names(apply), asked) == ([], ["alice"])
    assert await hub.on_disk() == ["alice"]
    hub.dispatcher.cleanup(ALICE, never)
    await until(lambda: names(apply) == ["alice"])


async def test_a_spawn_withdraws_what_an_earlier_hub_has_left_when_it_succeeds(
    start: Any, apply: FakeApply
) -> None:
    earlier = start(delay=60)
    earlier.dispatcher.cleanup(ALICE, never)
    await earlier.on_disk()
    apply.do(fail={"alice": {"message": "quota"}})
    hub = await start(delay=0.5).restored()
    for status, left in (("failed", ["alice"]), ("ok", [])):
        outcome = await hub.dispatcher.wait(ALICE, timeout=10, on_progress=lambda text, share: None)
        assert outcome.status == status
        assert await hub.on_disk() == left
        apply.do()
    await asyncio.sleep(1.2)
    assert not names(apply)


async def test_a_spawn_before_the_file_was_read_counts(start: Any, apply: FakeApply) -> None:
    earlier = start(delay=60)
    earlier.dispatcher.cleanup(ALICE, never)
    await earlier.on_disk()
    hub = start()
    assert (await hub.dispatcher.wait(ALICE, timeout=10, on_progress=lambda text, share: None)).status == "ok"
    assert await hub.pending.load() == []
    assert await hub.on_disk() == []


@pytest.mark.parametrize(
    "control", [{"behave": "die"}, {"fail": {"alice": {"reason": "unreachable"}}}], ids=["silence", "host"]
)
async def test_a_clean_up_without_an_outcome_is_for_the_next_hub(
    start: Any, apply: FakeApply, control: dict[str, Any]
) -> None:
    apply.do(cleanup=control)
    hub = start()
    hub.dispatcher.cleanup(ALICE, never)
    await until(lambda: apply.cleanups and not apply.alive())
    await asyncio.sleep(0.3)
    assert await hub.on_disk() == ["alice"]
    assert len(apply.cleanups) == 1, "not in a loop"
    apply.do()
    hub = await start().restored()
    await until(lambda: len(apply.cleanups) == 2 and not apply.alive())
    await asyncio.sleep(0.1)
    assert await hub.on_disk() == []


async def test_a_failed_clean_up_has_its_outcome(start: Any, apply: FakeApply) -> None:
    apply.do(cleanup={"fail": {"alice": {"message": "busy"}}})
    hub = start()
    hub.dispatcher.cleanup(ALICE, never)
    await until(lambda: apply.noted("end"))
    await asyncio.sleep(0.1)
    assert await hub.on_disk() == []


async def test_a_disk_that_fails_is_one_warning_and_no_more(start: Any, apply: FakeApply, log: Lines) -> None:
    hub = start()
    hub.state.write_text("not a directory")
    await hub.restored()
    for place in (ALICE, BOB):
        hub.dispatcher.cleanup(place, never)
        await hub.pending.written(5)
    await until(lambda: sorted(names(apply)) == ["alice", "bob"])
    (warning,) = [line for line in log.lines if "cannot be kept" in line]
    assert "state_dir" in warning


async def test_what_could_not_be_written_is_written_with_the_next(start: Any, log: Lines) -> None:
    hub = start(delay=60)
    hub.state.write_text("not a directory")
    hub.dispatcher.cleanup(ALICE, never)
    await hub.pending.written(5)
    hub.state.unlink()
    hub.dispatcher.cleanup(BOB, never)
    assert await hub.on_disk() == ["alice", "bob"]


async def test_many_changes_are_few_transactions_and_the_last_one_holds(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    write = CleanupFile.write

    def counted(self: CleanupFile, changes: Any) -> None:
        writes.append(len(changes))
        write(self, changes)

    monkeypatch.setattr(CleanupFile, "write", counted)
    hub = start()
    places = [Place(f"u{number}", storage_host="s1") for number in range(500)]
    for place in places:
        hub.pending.note(place.job_key, place)
    for place in places[1:]:
        hub.pending.note(place.job_key, None)
    assert await hub.on_disk() == ["u0"]
    assert len(writes) <= 2
    await hub.pending.load()
    hub.pending.note(places[0].job_key, places[0])
    hub.pending.note(places[7].job_key, None)
    await hub.pending.written(5)
    assert len(writes) <= 2, "nothing had changed"


@pytest.mark.parametrize(
    ("users", "active"),
    [
        (None, True),
        ({}, False),
        ({"alice": SimpleNamespace(active=False)}, False),
        ({"alice": SimpleNamespace(active=True)}, True),
        ({"alice": object()}, True),
    ],
)
def test_a_user_of_unknown_activity_counts_as_active(users: Any, active: bool) -> None:
    assert is_active(users, "alice") is active
