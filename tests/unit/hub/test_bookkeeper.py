"""The ledger for a hub: bounded looks, gathered notes, and a broken disk that is one warning."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
from hub_fakes import Lines, until

from ansible_bootstrap.bookkeeper import Bookkeeper
from ansible_bootstrap.described import CurrentFingerprints, Fingerprints
from ansible_bootstrap.errors import ApplyError
from ansible_bootstrap.ledger import FILE, Ledger
from ansible_bootstrap.places import Place
from ansible_bootstrap.protocol import Outcome, RoleFingerprint

FINGERPRINTS = (RoleFingerprint(role="user_dir", fingerprint="u1", revised=True),)
OTHERS = (RoleFingerprint(role="user_dir", fingerprint="u2", revised=True),)


def place(name: str = "alice", server_name: str = "") -> Place:
    return Place(name, directory=f"/nowhere/{name}", storage_host="nas1", server_name=server_name)


def ok(name: str = "alice") -> Outcome:
    return Outcome(key=name, name=name, status="ok", directory=f"/nowhere/{name}")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state")


@pytest.fixture
def books(ledger: Ledger, log: Lines) -> Bookkeeper:
    return Bookkeeper(ledger, log.logger, "d1")


async def test_who_was_noted_is_known_to_this_hub_and_the_next(books: Bookkeeper, ledger: Ledger) -> None:
    assert await books.look(place()) is None
    books.complete(place(), ok(), FINGERPRINTS)
    await books.written()
    assert await books.look(place()) and ledger.look(place())


async def test_a_hundred_notes_are_few_transactions(
    books: Bookkeeper, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    restore = ledger.restore
    monkeypatch.setattr(ledger, "restore", lambda entries: (sizes.append(len(entries)), restore(entries)))
    for number in range(100):
        books.complete(place(f"u{number}"), ok(f"u{number}"), FINGERPRINTS)
    await books.written()
    assert sum(sizes) == 100 and len(sizes) <= 2
    assert ledger.look(place("u99"))


async def test_a_file_system_that_hangs_makes_unknown_and_does_not_block(
    books: Bookkeeper, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, log: Lines
) -> None:
    released = threading.Event()
    monkeypatch.setattr(ledger, "look", lambda place: released.wait(30))
    try:
        began = time.monotonic()
        answers = await asyncio.gather(*(books.look(place(f"u{number}")) for number in range(30)))
        assert answers == [None] * 30
        assert time.monotonic() - began < 5
        assert "took more than 0.2 s" in log.lines[0]
    finally:
        released.set()


async def test_forgetting_comes_after_what_was_noted_before(books: Bookkeeper, ledger: Ledger) -> None:
    books.complete(place(), ok(), FINGERPRINTS)
    known = await books.forget([place()])
    assert [entry.place for entry in known] == [place()] and ledger.look(place()) is None
    await books.restore(known)
    assert ledger.look(place())


async def test_the_place_of_the_default_server_is_found_again(books: Bookkeeper, ledger: Ledger) -> None:
    books.note_place(place("alice", "two"))
    await books.written()
    assert await books.place_of("alice") is None
    books.note_place(place())
    await books.written()
    assert await books.place_of("alice") == place()
    assert await Bookkeeper(ledger, Lines().logger, "other settings").place_of("alice") is None


async def test_a_place_is_written_once(
    books: Bookkeeper, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Place] = []
    monkeypatch.setattr(ledger, "note_places", lambda places, under: written.extend(places))
    for _ in range(3):
        books.note_place(place())
        await books.written()
    assert written == [place()]


async def test_a_ledger_that_does_not_work_is_one_warning(tmp_path: Path, log: Lines) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / FILE).mkdir()
    books = Bookkeeper(Ledger(tmp_path / "state"), log.logger)
    for _ in range(2):
        books.complete(place(), ok(), FINGERPRINTS)
        books.note_place(place())
        await books.written()
        assert await books.look(place()) is None
        assert await books.place_of("alice") is None
    assert len(log.lines) == 1 and "every login is a run" in log.lines[0]


# Fingerprints


class Described:
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: Fingerprints | Exception = FINGERPRINTS
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> Fingerprints:
        self.asked += 1
        await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def described() -> Described:
    return Described()


class Clock:
    """Stands still until it is told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_a_storm_asks_once(described: Described, log: Lines, clock: Clock) -> None:
    current = CurrentFingerprints(described, log.logger, clock)
    assert await asyncio.gather(*(current.current() for _ in range(300))) == [FINGERPRINTS] * 300
    assert described.asked == 1


async def test_older_ones_are_renewed_beside_the_logins(
    described: Described, log: Lines, clock: Clock
) -> None:
    current = CurrentFingerprints(described, log.logger, clock)
    await current.current()
    described.answer = OTHERS
    described.gate.clear()
    clock.now += 120
    assert await current.current() == FINGERPRINTS  # Nobody waits.
    described.gate.set()
    await until(lambda: described.asked == 2)
    await asyncio.sleep(0)
    assert await current.current() == OTHERS
    assert described.asked == 2


async def test_after_a_quiet_time_new_ones_are_waited_for(
    described: Described, log: Lines, clock: Clock
) -> None:
    current = CurrentFingerprints(described, log.logger, clock)
    await current.current()
    described.answer = OTHERS
    clock.now += 3600
    assert await current.current() == OTHERS


async def test_what_a_run_says_saves_asking(described: Described, log: Lines, clock: Clock) -> None:
    current = CurrentFingerprints(described, log.logger, clock)
    current.renewed(OTHERS)
    assert await current.current() == OTHERS
    assert described.asked == 0


async def test_while_it_cannot_be_told_nobody_is_complete_and_nobody_waits(
    described: Described, log: Lines, clock: Clock
) -> None:
    current = CurrentFingerprints(described, log.logger, clock)
    described.answer = ApplyError("no such program")
    assert [await current.current() for _ in range(5)] == [None] * 5
    assert described.asked == 1 and len(log.lines) == 1 and "no such program" in log.lines[0]
    described.answer = FINGERPRINTS
    clock.now += 30
    assert await current.current() == FINGERPRINTS
