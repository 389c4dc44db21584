"""The ledger for a hub: bounded looks, gathered notes, and a broken disk that is one warning."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_fakes import Lines, until
from hub_fakes import SeeingLedger as Ledger

from ansible_bootstrap.errors import ApplyError
from ansible_bootstrap.hub.current_fingerprints import CurrentFingerprints, Fingerprints
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import Outcome, RoleFingerprint
from ansible_bootstrap.state import bookkeeper, probe
from ansible_bootstrap.state.bookkeeper import Bookkeeper
from ansible_bootstrap.state.ledger import FILE, Entry, completed
from ansible_bootstrap.state.probe import Mounts

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


async def test_a_noted_user_is_known_to_this_hub_and_the_next(books: Bookkeeper, ledger: Ledger) -> None:
    assert await books.look(place()) is None
    books.complete(place(), ok(), FINGERPRINTS)
    await books.written()
    assert await books.look(place()) and ledger.look(place())


async def test_a_hundred_notes_are_few_transactions(
    books: Bookkeeper, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    note = ledger.note
    monkeypatch.setattr(
        ledger, "note", lambda entries, until: (sizes.append(len(entries)), note(entries, until=until))
    )
    for number in range(100):
        books.complete(place(f"u{number}"), ok(f"u{number}"), FINGERPRINTS)
    await books.written()
    assert sum(sizes) == 100 and len(sizes) <= 2
    assert ledger.look(place("u99"))


async def test_a_file_system_that_hangs_makes_unknown_and_does_not_block(
    books: Bookkeeper, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, log: Lines
) -> None:
    released = threading.Event()
    ledger.note([completed(place(f"u{number}"), "", FINGERPRINTS) for number in range(30)])
    monkeypatch.setattr(ledger, "holds", lambda entry: released.wait(30))
    try:
        began = time.monotonic()
        answers = await asyncio.gather(*(books.look(place(f"u{number}")) for number in range(30)))
        assert answers == [None] * 30
        assert time.monotonic() - began < 5
        assert "took more than 0.2 s" in log.lines[0]
    finally:
        released.set()


async def test_an_unknown_user_costs_no_thread(
    books: Bookkeeper, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.note([completed(place("bob"), "", FINGERPRINTS)])
    monkeypatch.setattr("ansible_bootstrap.threads.Pool.submit", lambda *_: pytest.fail("a thread"))
    assert await books.look(place()) is None and books.place_of("alice") is None


async def test_a_ledger_that_another_has_locked_holds_up_no_loop(
    books: Bookkeeper, ledger: Ledger, tmp_path: Path
) -> None:
    ledger.note([completed(place(), "", FINGERPRINTS)])
    other = sqlite3.connect(tmp_path / "state" / FILE, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("PRAGMA journal_mode = DELETE")
    other.execute("BEGIN EXCLUSIVE")
    try:
        began = time.monotonic()
        assert await books.look(place()) is None
        assert time.monotonic() - began < 1
    finally:
        other.close()
    assert await books.look(place())


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Looking at any directory of mallory hangs until this is set."""
    released = threading.Event()
    lstat = os.lstat

    def hangs(path: str) -> os.stat_result:
        if "mallory" in path:
            released.wait(30)
        return lstat(path)

    monkeypatch.setattr("ansible_bootstrap.state.ledger.os.lstat", hangs)
    yield released
    released.set()


def under_way(books: Bookkeeper, user: str) -> bool:
    """Whether a probe for this user waits, or is made."""
    return user in books.probes.under_way()


async def test_one_user_whose_directory_hangs_takes_the_quick_way_from_nobody_else(
    books: Bookkeeper, ledger: Ledger, hanging: threading.Event
) -> None:
    servers = [replace(place("mallory", str(number)), directory=f"/mallory/{number}") for number in range(40)]
    ledger.note([completed(server, "", FINGERPRINTS) for server in servers])
    ledger.note([completed(place(), "", FINGERPRINTS)])
    clicks = asyncio.gather(*(books.look(server) for server in servers))
    assert await books.look(place())
    assert await clicks == [None] * 40
    assert await books.look(place()) and await books.look(servers[0]) is None
    hanging.set()
    end = time.monotonic() + 10
    while not await books.look(servers[0]):
        assert time.monotonic() < end


async def test_one_user_whose_directory_hangs_takes_nobody_elses_note_along(
    books: Bookkeeper, ledger: Ledger, hanging: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bookkeeper, "SEEN_SECONDS", 1.0)
    for name in ("alice", "mallory", "bob"):
        books.complete(place(name), ok(name), FINGERPRINTS)
    await books.written()
    hanging.set()
    assert ledger.look(place()) and ledger.look(place("bob")) and ledger.look(place("mallory")) is None


async def test_a_whole_class_is_noted_by_one_thread(
    books: Bookkeeper, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[object] = []
    submit = probe.THREADS.submit
    monkeypatch.setattr(probe.THREADS, "submit", lambda job: (threads.append(job), submit(job)))
    monkeypatch.setattr(probe, "HANG_SECONDS", 1.0)
    for number in range(300):
        books.complete(place(f"u{number}"), ok(f"u{number}"), FINGERPRINTS)
    await books.written()
    assert len(threads) <= 2  # One for each transaction.
    assert all(ledger.look(place(f"u{number}")) for number in range(300))


async def test_a_user_under_probe_is_noted_after_the_probe(
    books: Bookkeeper, ledger: Ledger, hanging: threading.Event
) -> None:
    ledger.note([completed(place("mallory"), "", OTHERS)])
    look = asyncio.ensure_future(books.look(place("mallory")))
    await until(lambda: under_way(books, "mallory"))
    books.complete(place("mallory"), ok("mallory"), FINGERPRINTS)
    await asyncio.sleep(0.05)
    began = time.monotonic()
    hanging.set()
    await books.written()
    assert time.monotonic() - began < 1  # At once, not when its time is over.
    assert await look
    entry = ledger.look(place("mallory"))
    assert entry is not None and entry.has(FINGERPRINTS)


async def test_a_user_who_is_being_looked_at_holds_no_second_thread(
    books: Bookkeeper, ledger: Ledger, hanging: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bookkeeper, "SEEN_SECONDS", 0.3)
    ledger.note([completed(place("mallory"), "", OTHERS)])
    look = asyncio.ensure_future(books.look(place("mallory")))
    await until(lambda: under_way(books, "mallory"))
    more: list[object] = []
    monkeypatch.setattr(probe.THREADS, "submit", more.append)
    books.complete(place("mallory"), ok("mallory"), FINGERPRINTS)
    await books.written()
    assert await look is None and not more
    hanging.set()
    await until(lambda: not under_way(books, "mallory"))


async def test_directories_that_hang_take_no_more_threads_than_there_are(
    books: Bookkeeper, ledger: Ledger, hanging: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "HANG_SECONDS", 0.02)
    monkeypatch.setattr(Mounts, "mount_of", lambda mounts, path: path)
    names = [name for number in range(5) for name in (f"mallory{number}", f"u{number}")]
    for name in names:
        books.complete(place(name), ok(name), FINGERPRINTS)
    await books.written()
    assert all(ledger.recorded(place(f"u{number}")) for number in range(5))
    assert not any(ledger.recorded(place(f"mallory{number}")) for number in range(5))
    books.complete(place("mallory0"), ok("mallory0"), FINGERPRINTS)
    await asyncio.sleep(0.1)
    hanging.set()  # Once the probe has returned, the user may be probed again.
    await books.written()
    assert ledger.look(place("mallory0"))


async def test_a_user_probed_beside_a_directory_that_hangs_is_free_again_soon(
    books: Bookkeeper, ledger: Ledger, hanging: threading.Event
) -> None:
    ledger.note([completed(place(name), "", OTHERS) for name in ("alice", "bob")])
    for name in ("alice", "mallory", "bob"):
        books.complete(place(name), ok(name), FINGERPRINTS)
    await until(lambda: under_way(books, "mallory"))
    others = ("alice", "bob")
    # Sooner than mallory's time is over.
    await until(lambda: not any(under_way(books, name) for name in others), 1)
    assert await books.look(place()) and await books.look(place("bob"))
    hanging.set()
    await books.written()


async def test_slow_directories_are_noted_as_long_as_it_gets_on(
    books: Bookkeeper, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bookkeeper, "SEEN_SECONDS", 0.3)
    lstat = os.lstat
    monkeypatch.setattr(
        "ansible_bootstrap.state.ledger.os.lstat", lambda path: (time.sleep(0.03), lstat(path))[1]
    )
    for number in range(30):
        books.complete(place(f"u{number}"), ok(f"u{number}"), FINGERPRINTS)
    await books.written()
    assert all(ledger.recorded(place(f"u{number}")) for number in range(30))


async def test_a_look_that_fails_costs_its_own_note_only(
    books: Bookkeeper, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bookkeeper.probed

    def broken(entry: Entry) -> Entry:
        if entry.place.name == "mallory":
            raise MemoryError
        return real(entry)

    monkeypatch.setattr(bookkeeper, "probed", broken)
    for name in ("alice", "mallory", "bob"):
        books.complete(place(name), ok(name), FINGERPRINTS)
    await books.written()
    assert ledger.recorded(place()) and ledger.recorded(place("bob"))
    assert not under_way(books, "mallory")
    assert ledger.recorded(place("mallory")) is None


async def test_without_a_thread_nothing_is_noted_and_the_next_is(
    books: Bookkeeper, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, log: Lines
) -> None:
    def no_thread(job: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(probe.THREADS, "submit", no_thread)
        books.complete(place(), ok(), FINGERPRINTS)
        await books.written()
    assert ledger.recorded(place()) is None and "can't start new thread" in log.lines[0]
    books.complete(place(), ok(), FINGERPRINTS)
    await books.written()
    assert ledger.recorded(place())


async def test_two_directories_of_one_user_are_both_noted(books: Bookkeeper, ledger: Ledger) -> None:
    servers = [replace(place("alice", name), directory=f"/nowhere/alice/{name}") for name in ("cpu", "gpu")]
    for server in servers:
        books.complete(server, ok().model_copy(update={"directory": server.directory}), FINGERPRINTS)
    await books.written()
    assert all(ledger.look(server) for server in servers)


async def test_forgetting_does_not_wait_for_a_directory_that_hangs(
    books: Bookkeeper, ledger: Ledger, hanging: threading.Event
) -> None:
    ledger.note([completed(place(), "", FINGERPRINTS)])
    books.complete(place("mallory"), ok("mallory"), FINGERPRINTS)
    await asyncio.wait_for(books.forget("alice"), 1.5)  # Less than a look may take.
    assert ledger.look(place()) is None


async def test_forgetting_undoes_what_was_noted_before_and_is_not_written_yet(
    books: Bookkeeper, ledger: Ledger
) -> None:
    ledger.complete([])
    books.complete(place(), ok(), FINGERPRINTS, time.monotonic() - 1)
    await books.forget("alice")
    await books.written()
    assert ledger.look(place()) is None


async def test_a_user_whom_the_disk_could_not_forget_is_unknown_to_this_hub(
    books: Bookkeeper, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    books.complete(place(), ok(), FINGERPRINTS)
    await books.written()
    with monkeypatch.context() as context:
        context.setattr(ledger, "forget", lambda names: 1 / 0)
        before = time.monotonic()
        with pytest.raises(ZeroDivisionError):
            await books.forget("alice")
    assert ledger.look(place()) and await books.look(place()) is None and books.noted(place()) is None
    books.complete(place(), ok(), FINGERPRINTS, before - 1)  # A run that was in the air.
    await books.written()
    assert await books.look(place()) is None
    books.complete(place(), ok(), FINGERPRINTS)
    await books.written()
    assert await books.look(place())


async def test_an_older_forget_that_worked_does_not_end_a_newer_one_that_failed(
    books: Bookkeeper, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    books.complete(place(), ok(), FINGERPRINTS)
    await books.written()
    go_on = threading.Event()
    begun: list[Sequence[str]] = []

    def forget(names: Sequence[str]) -> None:
        begun.append(names)
        if len(begun) > 1:
            raise OSError
        go_on.wait(10)  # It was in time for what the ledger had then; the entry is newer.

    monkeypatch.setattr(ledger, "forget", forget)
    older = asyncio.create_task(books.forget("alice"))
    await until(lambda: begun)
    with pytest.raises(OSError):
        await books.forget("alice")
    go_on.set()
    await older
    assert ledger.look(place()) and await books.look(place()) is None


async def test_a_run_that_begins_at_the_moment_of_a_forget_that_failed_is_noted(
    books: Bookkeeper, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    with monkeypatch.context() as context:
        context.setattr(bookkeeper, "time", SimpleNamespace(monotonic=lambda: now))
        context.setattr(ledger, "forget", lambda names: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await books.forget("alice")
    for since, known in ((now - 0.001, False), (now, True)):
        books.complete(place(), ok(), FINGERPRINTS, since)
        await books.written()
        assert bool(await books.look(place())) == known


@pytest.mark.parametrize(("whose", "known"), [("alice", False), ("bob", True)])
async def test_a_look_that_a_clean_up_of_the_user_has_overtaken_knows_nobody(
    books: Bookkeeper, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, whose: str, known: bool
) -> None:
    ledger.note([completed(place(), "", FINGERPRINTS)])
    reached, go_on = threading.Event(), threading.Event()
    holds = ledger.holds

    def slow(entry: Entry) -> bool:
        reached.set()
        go_on.wait(10)
        return holds(entry)

    monkeypatch.setattr(bookkeeper, "PROBE_SECONDS", 10.0)
    monkeypatch.setattr(ledger, "holds", slow)
    looking = asyncio.create_task(books.look(place()))
    await until(reached.is_set)
    await books.doubt([place(whose)], 60)
    go_on.set()
    assert bool(await looking) == known
    assert not books._asked


async def test_after_a_clean_up_only_unchanged_users_are_known(books: Bookkeeper, ledger: Ledger) -> None:
    ledger.note([completed(place(name), "", FINGERPRINTS) for name in ("alice", "bob")])
    token = await books.doubt([place(), place("bob")], 60)
    assert await books.look(place()) is None is await books.look(place("bob"))
    await books.after_cleanup(token, [("nas1", "alice")], [("nas1", "bob")], time.monotonic())
    assert await books.look(place()) and await books.look(place("bob")) is None


async def test_the_place_of_the_default_server_is_found_again(books: Bookkeeper, ledger: Ledger) -> None:
    books.note_place(place("alice", "two"))
    await books.written()
    assert books.place_of("alice") is None
    books.note_place(place())
    await books.written()
    assert books.place_of("alice") == place()
    assert Bookkeeper(ledger, Lines().logger, "other settings").place_of("alice") is None


async def test_a_place_is_written_once(
    books: Bookkeeper, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Place] = []
    note = ledger.note_places

    def counted(places: list[Place], under: str) -> None:
        written.extend(places)
        note(places, under)

    monkeypatch.setattr(ledger, "note_places", counted)
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
        assert books.place_of("alice") is None
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


async def test_a_run_that_began_before_the_settings_were_changed_is_no_news(
    described: Described, log: Lines, clock: Clock
) -> None:
    described.answer = OTHERS
    current = CurrentFingerprints(described, log.logger, clock)
    await current.current()
    clock.now += 30
    current.renewed(FINGERPRINTS, 100)  # An outcome of a run that has taken so long.
    assert await current.current() == OTHERS
    current.renewed(FINGERPRINTS, 10)
    assert await current.current() == FINGERPRINTS


async def test_an_answer_is_as_old_as_its_question(described: Described, log: Lines, clock: Clock) -> None:
    described.gate.clear()
    current = CurrentFingerprints(described, log.logger, clock)
    asked = asyncio.create_task(current.current())
    await until(lambda: described.asked)
    clock.now += 10
    current.renewed(OTHERS, 5)  # Of a run that began after the question.
    described.gate.set()
    assert await asked == OTHERS


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
