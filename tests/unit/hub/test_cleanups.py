"""Clean-ups, and users who are made unknown: what overtakes what."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
from fake_runs import Hub, cancel, never
from hub_fakes import Lines, until
from hub_fakes import SeeingLedger as Ledger

from ansible_bootstrap.dispatch import cleanups
from ansible_bootstrap.dispatch.cleanups import Cleanups
from ansible_bootstrap.dispatch.observer import Observer
from ansible_bootstrap.errors import ApplyError
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import RoleFingerprint
from ansible_bootstrap.state.bookkeeper import Bookkeeper
from ansible_bootstrap.state.ledger import completed

ALICE = Place("alice", storage_host="s1")
FINGERPRINTS = (RoleFingerprint(role="user_dir", fingerprint="u1", revised=True),)


async def test_one_that_is_asked_for_again_is_as_old_as_before(
    log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a user who starts and stops a server now and again would put it off for ever."""
    monkeypatch.setattr(cleanups, "PATIENCE_SECONDS", 1.0)
    waiting = Cleanups(log.logger, 0.0, Observer(), lambda host: None)
    began = time.monotonic()
    waiting.add(ALICE, never)
    await until(lambda: waiting.is_due("s1"))
    await asyncio.sleep(0.7)
    waiting.add(ALICE, never)
    await until(lambda: not waiting.parked)
    await until(lambda: waiting.is_overdue("s1"), 3)
    assert time.monotonic() - began < 1.5, "its age began anew"
    assert list(waiting.take("s1", 10)) == [ALICE.job_key]
    assert not waiting.is_due("s1")


async def test_one_that_is_put_back_does_not_delay_the_same_one_asked_for_meanwhile(log: Lines) -> None:
    waiting = Cleanups(log.logger, 0.0, Observer(), lambda host: None)
    waiting.add(ALICE, never)
    await until(lambda: waiting.due)
    taken = waiting.take("s1", 10)
    waiting.add(ALICE, never)
    waiting.put_back(taken.values())
    await until(lambda: waiting.due, 5)
    assert not waiting.parked


def test_the_end_of_a_clean_up_says_nothing_of_what_another_has_doubted_since(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "state")
    ledger.complete([completed(ALICE, "", FINGERPRINTS)])
    first = ledger.doubt([ALICE], 60)
    ledger.doubt([ALICE], 0)  # by a hub that was killed: nobody will say how it ended
    ledger.cleaned(first, [("s1", "alice")], [], time.time())
    assert ledger.look(ALICE) is None


async def test_an_older_order_to_forget_does_not_end_a_newer_one_that_failed(
    tmp_path: Path, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "state")
    books = Bookkeeper(ledger, log.logger)
    forget, first_may_end, calls = ledger.forget, threading.Event(), []

    def slow_then_broken(names: list[str]) -> int:
        calls.append(names)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        first_may_end.wait(10)
        return forget(names)

    monkeypatch.setattr(ledger, "forget", slow_then_broken)
    first = asyncio.create_task(books.forget("alice"))
    await until(lambda: calls)
    with pytest.raises(OSError, match="No space"):
        await books.forget("alice")
    first_may_end.set()
    await first
    ledger.complete([completed(ALICE, "", FINGERPRINTS)])  # by a command that knows nothing of it
    assert await books.look(ALICE) is None


async def test_a_run_that_is_abandoned_while_its_program_starts_is_stopped(hub: Hub) -> None:
    hub.may_start.clear()
    spawn = hub.spawn("alice")
    await hub.settled()
    await cancel(spawn)
    hub.may_start.set()
    run = await hub.run(1)
    await until(lambda: run.stopped is not None)
    assert isinstance(run.stopped, ApplyError)
    run.end(run.stopped)
    await until(lambda: hub.records)
    assert hub.records[0].abandoned
