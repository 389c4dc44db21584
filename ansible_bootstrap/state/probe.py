"""Probes of users' directories: calls that may hang for ever, in threads beside the event loop.

A directory that hangs (NFS, a FUSE mount of a student) keeps its thread until it returns, if it ever does. So there are
three limits: one probe at a time for each user, :data:`MOST_PER_MOUNT` for each mount, :data:`ALL_THREADS` for all. A
mount that hangs takes two threads, and probes of other mounts go on.

As long as nothing hangs, one thread makes all probes that wait, and tells the loop of all that have returned since the
loop last listened. A thread for each probe would be woken for each, and the loop stands still whenever a thread takes
the interpreter's lock. The lock here is never held during a probe.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from ansible_bootstrap.storage._mounts import mounts
from ansible_bootstrap.threads import Pool, call, within

T = TypeVar("T")

HANG_SECONDS: Final = 0.05
"""After which a thread that is at the same directory is joined by another."""

MOST_PER_MOUNT: Final = 2
"""Most probes at once of directories on one mount: one that hangs does not tell that the mount does, two do."""

ALL_THREADS: Final = 64
"""Most threads, with those that hang."""

THREADS: Final = Pool("probe", ALL_THREADS)

FRESH_SECONDS: Final = 5.0
"""For which the table of mounts is believed."""


@dataclass(eq=False, slots=True)
class _Probe:
    user: str
    mount: str
    func: Callable[[], Any]
    answer: asyncio.Future[Any]


class Probes:
    """Calls that probe a user's directory. All methods are called on one event loop, the calls in threads."""

    def __init__(self) -> None:
        self._mounts = Mounts()
        self._lock = threading.Lock()
        """Of the next two."""
        self._waiting: dict[_Probe, None] = {}
        """An ordered set: probes that no thread has begun."""
        self._threads: dict[object, tuple[float, _Probe | None]] = {}
        """Since when each thread is at work at a probe, by ``time.monotonic``; None before its first."""
        self._returned: deque[Callable[[], None]] = deque()
        self._told = False
        """Whether the loop is going to take what has returned; cleared before it takes it."""
        self._watch: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether there is no probe, no thread and no timer."""
        return not (self._waiting or self._threads or self._watch)

    def under_way(self) -> list[str]:
        """Return the users of all probes that wait or are being made."""
        with self._lock:
            begun = [probe for _, probe in self._threads.values() if probe]
            return [probe.user for probe in (*begun, *self._waiting)]

    async def run(self, user: str, directory: str, func: Callable[[], T], seconds: float) -> T:
        """Return what ``func`` returns, once the same user's earlier probes have really ended.

        Raises:
            TimeoutError: no answer within ``seconds``.
            RuntimeError: no thread could be made.
            Exception: whatever ``func`` raises.
        """
        with self._begun([(user, directory, func)]) as (answer,):
            return await within(seconds, answer)

    async def run_all(
        self, calls: Sequence[tuple[str, str, Callable[[], T]]], patience: float, limit: float
    ) -> list[T]:
        """Return what the calls return, in their order, without those that raised or did not return in time.

        Args:
            calls: users' names, their directories, and calls.
            patience: seconds without any answer after which no more are waited for.
            limit: seconds for all.

        Raises:
            RuntimeError: no thread could be made.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + limit
        with self._begun(calls) as answers:
            left = set(answers)
            while left and (now := loop.time()) < end:
                done, left = await asyncio.wait(left, timeout=min(patience, end - now))
                if not done:
                    break
        return [a.result() for a in answers if not a.cancelled() and a.exception() is None]

    # -- on the loop --------------------------------------------------------------------------

    @contextlib.contextmanager
    def _begun(
        self, calls: Sequence[tuple[str, str, Callable[[], Any]]]
    ) -> Iterator[list[asyncio.Future[Any]]]:
        """Have the calls made, and give their answers; afterwards those that no thread has begun are dropped."""
        loop = asyncio.get_running_loop()
        probes = [
            _Probe(user, self._mounts.mount_of(directory), func, loop.create_future())
            for user, directory, func in calls
        ]
        with self._lock:
            self._waiting.update(dict.fromkeys(probes))
        try:
            self._attend()
            yield [probe.answer for probe in probes]
        finally:
            with self._lock:
                for probe in probes:
                    probe.answer.cancel()  # Without effect on one that has come.
                    self._waiting.pop(probe, None)

    def _attend(self) -> None:
        """Start a thread if a probe can begin and all threads hang; do so again in a while if any probe waits.

        Raises:
            RuntimeError: no thread could be made.
        """
        if not self._waiting:
            return
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(HANG_SECONDS, self._attend_again)
        now, thread = time.monotonic(), object()
        with self._lock:
            hung = all(now - since >= HANG_SECONDS for since, _ in self._threads.values())
            if hung and len(self._threads) < ALL_THREADS and self._next() is not None:
                THREADS.submit(partial(self._work, thread))
                self._threads[thread] = now, None

    def _attend_again(self) -> None:
        self._watch = None
        with contextlib.suppress(RuntimeError):  # It is tried again in a while.
            self._attend()

    def _take_returned(self) -> None:
        self._told = False
        while self._returned:
            self._returned.popleft()()

    # -- in a thread --------------------------------------------------------------------------

    def _work(self, thread: object) -> None:
        while (probe := self._take(thread)) is not None:
            self._returned.append(call(probe.func, probe.answer))
            if not self._told:
                self._told = True
                with contextlib.suppress(RuntimeError):  # The loop has closed in the meantime.
                    probe.answer.get_loop().call_soon_threadsafe(self._take_returned)

    def _take(self, thread: object) -> _Probe | None:
        """Return the next probe for a thread; None, and the thread is at work no longer, if none can begin."""
        with self._lock:
            del self._threads[thread]
            probe = self._next()
            if probe is not None:
                del self._waiting[probe]
                self._threads[thread] = time.monotonic(), probe
            return probe

    def _next(self) -> _Probe | None:
        """Return the first probe that can begin. One that cannot is taken by the thread that it waits for."""
        at_work = [probe for _, probe in self._threads.values() if probe]
        users = {probe.user for probe in at_work}
        at_mount = Counter(probe.mount for probe in at_work)
        can = (p for p in self._waiting if p.user not in users and at_mount[p.mount] < MOST_PER_MOUNT)
        return next(can, None)


class Mounts:
    """The mounts of this process."""

    def __init__(self) -> None:
        self._points: set[str] = set()
        self._read = -FRESH_SECONDS

    def mount_of(self, path: str) -> str:
        """Return the mount point that is the longest prefix of an absolute path; ``/`` if there is none."""
        if time.monotonic() - self._read >= FRESH_SECONDS:
            self._read = time.monotonic()
            self._points = {mount.point for mount in mounts().values()}
        while path not in self._points and path.strip("/"):
            path = path.rstrip("/").rpartition("/")[0]
        return path or "/"
