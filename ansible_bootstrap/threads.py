"""Blocking calls off the hub's event loop, in daemon threads.

Rejected: ``asyncio.to_thread`` and every ``ThreadPoolExecutor``. The interpreter joins their threads
at exit, so one hung LDAP lookup would keep the hub from stopping. And a thread per call: a hung
directory server would leave one for each student who tries.

Looking at users' directories has threads of its own (``state/probe.py``): an NFS server that hangs takes all of them,
and must not take those that everything else needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

MAX_THREADS: Final = 8
"""Most calls at work at once; others queue until their own timeout."""


class Pool:
    """Daemon threads, made as they are needed.

    Args:
        name: of the threads.
        size: most calls at work at once; others queue until their own timeout.
    """

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._busy = 0

    def submit(self, job: Callable[[], None]) -> None:
        """Have the job done; it must not raise.

        Raises:
            RuntimeError: no thread could be made for it.
        """
        with self._lock:
            if self._busy >= self._threads < self._size:
                name = f"ansible-bootstrap-{self._name}-{self._threads + 1}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
                self._threads += 1
            self._busy += 1
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            finally:
                with self._lock:
                    self._busy -= 1


_POOL: Final = Pool("work", MAX_THREADS)


async def in_thread(func: Callable[[], T], *, timeout: float) -> T:  # noqa: ASYNC109 - a bound is the point
    """Call ``func`` in a daemon thread and return what it returns.

    Raises:
        TimeoutError: no answer within ``timeout`` seconds. The call itself cannot be stopped; what it
            returns later is dropped.
        RuntimeError: no thread could be made.
        Exception: whatever ``func`` raises.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def deliver(value: T | None, error: Exception | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(value)  # type: ignore[arg-type]

    def job() -> None:
        if answer.done():  # Nobody waits any more: do not start late.
            return
        value, error = None, None
        try:
            value = func()
        except Exception as problem:
            error = problem
        with contextlib.suppress(RuntimeError):  # The loop has closed in the meantime.
            loop.call_soon_threadsafe(deliver, value, error)

    def expire() -> None:
        deliver(None, TimeoutError(f"no answer within {timeout:g} s"))

    _POOL.submit(job)
    # Not asyncio.timeout: in a turn of the loop that took longer it would drop an answer that has come.
    expiry = loop.call_later(timeout, expire)
    try:
        return await answer
    finally:
        expiry.cancel()
        answer.cancel()  # Without effect on one that has come; of a later one nobody would take what it raises.
