"""Blocking calls off the hub's event loop, in daemon threads.

Rejected: ``asyncio.to_thread`` and every ``ThreadPoolExecutor``. The interpreter joins their threads
at exit, so one hung LDAP lookup would keep the hub from stopping. And a thread per call: a hung
directory server would leave one for each student who tries.

Probes of users' directories have threads of their own (``state/probe.py``): a hung NFS server must not take the
threads that everything else needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

T = TypeVar("T")

MAX_THREADS: Final = 8
"""Most calls at work at once; others queue until their own timeout."""


class Pool:
    """Daemon threads, made as they are needed.

    Args:
        name: of the threads.
        size: most jobs at work at once; others queue.
    """

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._busy = 0

    def submit(self, job: Callable[[], None]) -> None:
        """Have a thread do the job, which must not raise.

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


async def in_thread(
    func: Callable[[], T],
    *,
    timeout: float,  # noqa: ASYNC109 - a bound is the point
    pool: Pool | None = None,
) -> T:
    """Call ``func`` in a daemon thread, of a pool that all share if none is given, and return what it returns.

    Raises:
        TimeoutError: no answer within ``timeout`` seconds. The call itself cannot be stopped; what it
            returns later is dropped.
        RuntimeError: no thread could be made.
        Exception: whatever ``func`` raises.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def job() -> None:
        if not answer.done():  # Else the caller waits no longer: the call must not start late.
            result = call(func, answer)
            with contextlib.suppress(RuntimeError):  # The loop has closed in the meantime.
                loop.call_soon_threadsafe(result)

    (pool or _POOL).submit(job)
    return await within(timeout, answer)


def call(func: Callable[[], T], answer: asyncio.Future[T]) -> Callable[[], None]:
    """Call ``func``, and return what gives its result to the answer, on its loop, if that still waits for one."""
    try:
        give: Callable[[], None] = partial(answer.set_result, func())
    except Exception as error:
        give = partial(answer.set_exception, error)
    return lambda: None if answer.done() else give()


async def within(seconds: float, answer: asyncio.Future[T]) -> T:
    """Return the answer, or raise ``TimeoutError`` after so many seconds; a later one is dropped.

    Not ``asyncio.timeout``: in a turn of the loop that took longer, that drops an answer that has come.
    """

    def expire() -> None:
        if not answer.done():
            answer.set_exception(TimeoutError(f"no answer within {seconds:g} s"))

    expiry = asyncio.get_running_loop().call_later(seconds, expire)
    try:
        return await answer
    finally:
        expiry.cancel()
        answer.cancel()  # Without effect on one that has come; an error that comes later is not logged.
