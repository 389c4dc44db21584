"""Probes of directories, and calls in threads: bounded whatever hangs, few threads as long as nothing does."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_fakes import until

from ansible_bootstrap import threads
from ansible_bootstrap.state import probe
from ansible_bootstrap.state.probe import MOST_PER_MOUNT, Mounts, Probes
from ansible_bootstrap.storage import _mounts
from ansible_bootstrap.threads import MAX_THREADS, Pool, in_thread

LONG = 30.0
"""Seconds; nothing here takes so long."""


@pytest.fixture
def probes() -> Probes:
    return Probes()


class Hang:
    """A directory that hangs until it is released; counts the calls that hang there."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.begun = 0

    def __call__(self) -> str:
        self.begun += 1
        self.released.wait(LONG)
        return "late"


@pytest.fixture
def hang() -> Iterator[Hang]:
    hang = Hang()
    yield hang
    hang.released.set()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What threads have been asked to do."""
    jobs: list[Callable[[], None]] = []
    submit = probe.THREADS.submit
    monkeypatch.setattr(probe.THREADS, "submit", lambda job: (jobs.append(job), submit(job)))
    return jobs


async def quiet(probes: Probes) -> None:
    await until(lambda: probes.idle)


async def test_what_is_seen_is_returned_and_what_is_raised_is_raised(probes: Probes) -> None:
    assert await probes.run("alice", "/", lambda: 42, LONG) == 42
    with pytest.raises(ZeroDivisionError):
        await probes.run("alice", "/", lambda: 1 / 0, LONG)
    await quiet(probes)


async def test_an_answer_counts_although_the_loop_was_busy_until_it_was_too_late(probes: Probes) -> None:
    """In a storm, one turn of the hub's loop takes longer than a probe may."""
    look = asyncio.create_task(probes.run("alice", "/", lambda: 42, 0.1))
    call = asyncio.create_task(in_thread(lambda: 42, timeout=0.1))
    await asyncio.sleep(0)
    time.sleep(0.3)
    assert (await look, await call) == (42, 42)


async def test_all_that_come_up_together_are_one_threads_work_and_one_message(
    probes: Probes, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "HANG_SECONDS", 5.0)
    loop = asyncio.get_running_loop()
    told: list[Any] = []
    tell = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: (told.append(args), tell(*args)))
    all_have_come = threading.Event()
    together = [asyncio.create_task(probes.run("u", "/", lambda: all_have_come.wait(LONG), LONG))]
    together += [asyncio.create_task(probes.run(f"u{number}", "/", lambda: 1, LONG)) for number in range(199)]
    await asyncio.sleep(0)
    all_have_come.set()
    time.sleep(0.3)
    assert sum(await asyncio.gather(*together)) == 200
    assert len(started) == 1 and len(told) <= 3
    await quiet(probes)


async def test_a_directory_that_hangs_holds_up_the_next_for_a_moment_and_nobody_after_that(
    probes: Probes, hang: Hang
) -> None:
    hanging = asyncio.create_task(probes.run("mallory", "/", hang, LONG))
    assert await probes.run("alice", "/", lambda: 1, 1.0) == 1
    for _ in range(20):
        began = time.monotonic()
        assert await probes.run("alice", "/", lambda: 1, 1.0) == 1
    assert time.monotonic() - began < 1
    hang.released.set()
    assert await hanging == "late"
    await quiet(probes)


async def test_one_user_has_one_probe_at_a_time_in_turn(
    probes: Probes, hang: Hang, started: list[Any]
) -> None:
    seen: list[int] = []
    first = asyncio.create_task(probes.run("mallory", "/", hang, LONG))
    others = [
        asyncio.create_task(probes.run("mallory", "/", lambda number=number: seen.append(number), LONG))
        for number in range(5)
    ]
    await until(lambda: hang.begun)
    await asyncio.sleep(0.2)
    assert not seen and len(started) == 1
    hang.released.set()
    await asyncio.gather(first, *others)
    assert seen == [0, 1, 2, 3, 4]


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each directory below ``/m`` is on a mount of the first part of its name, all others on ``/``."""
    table(monkeypatch, tmp_path, "/", "/m/nfs", *(f"/m/{number}" for number in range(100)))


def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *points: str) -> Path:
    """Have these mounts and no others."""
    file = tmp_path / "mountinfo"
    lines = [
        f"{number} 35 98:0 / {point} rw master:1 - ext3 /dev/root rw\n"
        for number, point in enumerate(points, start=36)
    ]
    file.write_text("".join(lines))
    monkeypatch.setattr(_mounts, "MOUNTINFO", str(file))
    return file


async def answers(calls: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.usefixtures("mounts")
async def test_a_mount_that_hangs_delays_no_probe_of_another(probes: Probes, hang: Hang) -> None:
    """However many have their directories there, and however often they try."""
    for _ in range(3):
        there = [probes.run(f"mallory{n}", f"/m/nfs/{n}", hang, 0.3) for n in range(2 * MAX_THREADS)]
        elsewhere = [probes.run(f"u{n}", f"/m/{n}/home", lambda: 1, 1.0) for n in range(20)]
        trying, seen = await asyncio.gather(answers(there), answers(elsewhere))
        assert all(isinstance(answer, TimeoutError) for answer in trying)
        assert seen == [1] * 20
    assert hang.begun == MOST_PER_MOUNT
    hang.released.set()
    assert (
        await answers(probes.run(f"mallory{n}", f"/m/nfs/{n}", lambda: 2, LONG) for n in range(9)) == [2] * 9
    )
    await quiet(probes)


@pytest.mark.usefixtures("mounts")
async def test_two_probes_that_hang_hold_up_their_mount_until_one_has_come_back(
    probes: Probes, hang: Hang
) -> None:
    forever = Hang()
    first = asyncio.create_task(probes.run("mallory", "/m/nfs/1", forever, LONG))
    second = asyncio.create_task(probes.run("bob", "/m/nfs/2", hang, LONG))
    await until(lambda: forever.begun and hang.begun)
    held = asyncio.create_task(probes.run("alice", "/m/nfs/3", lambda: 1, LONG))
    await asyncio.sleep(0.3)
    assert not held.done()
    hang.released.set()
    assert (await second, await held) == ("late", 1)
    assert await probes.run("alice", "/m/nfs/3", lambda: 1, LONG) == 1, "it is mallory's directory that hangs"
    forever.released.set()
    await first
    await quiet(probes)


@pytest.mark.usefixtures("mounts")
async def test_mounts_of_their_own_that_hang_take_no_threads_from_the_others(
    probes: Probes, hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As each student's own FUSE mount; but there is a most of all threads."""
    monkeypatch.setattr(probe, "ALL_THREADS", 3 * MAX_THREADS)
    hanging = [
        asyncio.create_task(probes.run(f"mallory{n}", f"/m/{n}", hang, LONG)) for n in range(2 * MAX_THREADS)
    ]
    await until(lambda: hang.begun == len(hanging))
    assert await probes.run("alice", "/home/alice", lambda: 1, LONG) == 1
    hanging += [
        asyncio.create_task(probes.run(f"m{n}", f"/m/{50 + n}", hang, LONG)) for n in range(2 * MAX_THREADS)
    ]
    await until(lambda: hang.begun == 3 * MAX_THREADS)
    await asyncio.sleep(0.3)
    assert hang.begun == 3 * MAX_THREADS
    hang.released.set()
    assert await asyncio.gather(*hanging) == ["late"] * len(hanging)
    await quiet(probes)


def test_a_mount_is_the_longest_that_a_path_begins_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = table(monkeypatch, tmp_path, "/", "/home", "/home/a\\040b")
    mounts = Mounts()
    paths = ("/home/a b/c", "/home/a", "/home", "/homes/a", "/", "", "relative/path")
    assert [mounts.mount_of(path) for path in paths] == ["/home/a b", "/home", "/home", "/", "/", "/", "/"]
    file.unlink()
    assert Mounts().mount_of("/home/a") == "/"


async def test_a_caller_that_no_longer_waits_leaves_nothing_behind(probes: Probes, hang: Hang) -> None:
    """A student may try for as long as the directory hangs."""
    with pytest.raises(TimeoutError):
        await probes.run("mallory", "/", hang, 0.05)
    for _ in range(50):
        with pytest.raises(TimeoutError):
            await probes.run("mallory", "/", lambda: 1, 0.001)
    waiting = asyncio.create_task(probes.run("mallory", "/", lambda: 1, LONG))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert probes.under_way() == ["mallory"]
    hang.released.set()
    await quiet(probes)


async def test_many_are_returned_in_order_without_those_that_failed_or_hang(
    probes: Probes, hang: Hang
) -> None:
    def fails() -> int:
        raise OSError

    calls: list[tuple[str, str, Callable[[], Any]]] = [
        ("alice", "/", lambda: 1),
        ("mallory", "/", hang),
        ("bob", "/", fails),
        ("alice", "/", lambda: 2),
        ("mallory", "/", lambda: 3),
        ("carol", "/", lambda: 4),
    ]
    assert await probes.run_all(calls, 0.3, LONG) == [1, 2, 4]
    assert await probes.run_all([], 0.3, LONG) == []
    hang.released.set()
    await quiet(probes)


async def test_many_slow_ones_are_waited_for_as_long_as_it_gets_on_and_no_longer_than_the_limit(
    probes: Probes,
) -> None:
    calls = [(f"u{number}", "/", lambda: time.sleep(0.03)) for number in range(20)]
    assert len(await probes.run_all(calls, 0.3, LONG)) == 20
    assert 0 < len(await probes.run_all(calls, LONG, 0.3)) < 20
    await quiet(probes)


async def test_without_a_thread_it_is_said_at_once_and_the_next_probe_works(
    probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(job: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(probe.THREADS, "submit", no_thread)
        with pytest.raises(RuntimeError):
            await probes.run("alice", "/", lambda: 1, LONG)
        with pytest.raises(RuntimeError):
            await probes.run_all([("alice", "/", lambda: 1), ("bob", "/", lambda: 1)], LONG, LONG)
        assert not probes.under_way()
    assert await probes.run("alice", "/", lambda: 1, LONG) == 1


async def test_in_any_order_each_gets_its_own_answer(probes: Probes, started: list[Any]) -> None:
    """Threads that end just as the next probe comes, users who come twice, users who give up."""
    chance = random.Random(5)

    async def ask(number: int) -> None:
        await asyncio.sleep(chance.random() * 0.5)
        name, pause = f"u{chance.randrange(50)}", chance.choice([0, 0, 0, 0.001])
        call = asyncio.create_task(probes.run(name, "/", lambda: (time.sleep(pause), number)[1], LONG))
        if chance.random() < 0.2:
            await asyncio.sleep(chance.random() * 0.01)
            call.cancel()
        (answer,) = await asyncio.gather(call, return_exceptions=True)
        assert answer == number or isinstance(answer, asyncio.CancelledError)

    await asyncio.wait_for(asyncio.gather(*map(ask, range(1000))), LONG)
    await quiet(probes)


async def test_a_call_that_does_not_return_is_not_waited_for(hang: Hang) -> None:
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        await in_thread(hang, timeout=0.05)


async def test_a_call_that_has_waited_too_long_for_a_thread_does_not_begin(
    hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_POOL", Pool("test", 1))
    begun: list[int] = []
    calls = [in_thread(hang, timeout=0.05), in_thread(lambda: begun.append(1), timeout=0.05)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, TimeoutError) for answer in answers)
    hang.released.set()
    assert await in_thread(lambda: 42, timeout=LONG) == 42 and not begun


async def test_an_error_for_a_cancelled_caller_is_not_logged(probes: Probes, hang: Hang) -> None:
    troubles: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: troubles.append(context))
    calls: list[Any] = [("alice", "/", lambda: 1 / 0), ("mallory", "/", hang)]
    waiting = [
        asyncio.create_task(probes.run_all(calls, LONG, LONG)),
        asyncio.create_task(in_thread(lambda: 1 / 0, timeout=LONG)),
    ]
    await asyncio.sleep(0)
    time.sleep(0.1)  # The answers have come, and are delivered in the turn that cancels.
    for task in waiting:
        asyncio.get_running_loop().call_soon(task.cancel)
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers)
    del answers, waiting, task
    gc.collect()
    await asyncio.sleep(0)
    assert not troubles


async def test_a_thread_that_could_not_be_made_is_made_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_POOL", Pool("test", 1))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda thread: exec("raise RuntimeError('no thread')"))
        with pytest.raises(RuntimeError):
            await in_thread(lambda: 1, timeout=1.0)
    assert await in_thread(lambda: 42, timeout=LONG) == 42
