"""Blocking calls off the hub's event loop, in daemon threads.

Rejected: ``asyncio.to_thread`` and every ``ThreadPoolExecutor``. The interpreter joins their threads
at exit, so one hung LDAP lookup would keep the hub from stopping. And a thread per call: a hung
directory server would leave one for each student who tries.
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

_jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
_lock = threading.Lock()
_threads = 0
_busy = 0


async def in_thread(func: Callable[[], T], *, timeout: float) -> T:  # noqa: ASYNC109 - a bound is the point
    """Call ``func`` in a daemon thread and return what it returns.

    Raises:
        TimeoutError: no answer within ``timeout`` seconds. The call itself cannot be stopped; what it
            returns later is dropped.
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

    _submit(job)
    await asyncio.wait({answer}, timeout=timeout)
    if not answer.done():
        answer.cancel()
        raise TimeoutError(f"no answer within {timeout:g} s")
    return answer.result()


def _submit(job: Callable[[], None]) -> None:
    global _threads, _busy  # noqa: PLW0603 - one pool for the process
    with _lock:
        _busy += 1
        if _busy > _threads and _threads < MAX_THREADS:
            _threads += 1
            threading.Thread(target=_work, name=f"ansible-bootstrap-{_threads}", daemon=True).start()
    _jobs.put(job)


def _work() -> None:
    global _busy  # noqa: PLW0603
    while True:
        job = _jobs.get()
        try:
            job()
        finally:
            with _lock:
                _busy -= 1
