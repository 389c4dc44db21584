"""Looks at users' directories, beside the event loop and as few threads at a time as get on.

A directory that hangs (NFS, a student's own FUSE mount) takes a thread until it returns, if it ever does. So there is
one look at a time for each user, further threads join only those that hang, and there is a most of them.

As long as none hangs, one thread does all looks that have come up and tells the loop of all that it has done since the
loop last listened. A thread for each would be woken for each, and the loop stands still whenever a thread takes the
interpreter's lock from it.

No lock of ours: one that a waiting thread holds would stop the loop. What threads and loop share are a deque at each
end, a dict of which each thread has one key, and a flag that is cleared before what it speaks of is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from .threads import MAX_THREADS, Pool

T = TypeVar("T")

HANG_SECONDS: Final = 0.05
"""After which a thread that is at the same directory is joined by another."""

THREADS: Final = Pool("look", MAX_THREADS)


@dataclass(eq=False, slots=True)
class _Look:
    name: str
    call: Callable[[], Any]
    answer: asyncio.Future[Any]
    over: bool = False
    """Whether it has returned, or will never begin."""

    def expire(self) -> None:
        if not self.answer.done():
            self.answer.set_exception(TimeoutError())


class Looks:
    """Calls that look at a user's directory. All methods are called on one event loop, the calls in threads."""

    def __init__(self) -> None:
        self._users: dict[str, deque[_Look]] = {}
        """At whose directories a look has been begun or is to begin, and what is to follow."""
        self._waiting: deque[_Look] = deque()
        self._threads: dict[object, float] = {}
        """Those at work, and since when each has been at its present look, by ``time.monotonic``."""
        self._returned: deque[tuple[_Look, Any, Exception | None]] = deque()
        self._told = False
        """Whether the loop is going to take what has returned."""
        self._watch: asyncio.TimerHandle | None = None

    def under_way(self, name: str) -> bool:
        """Whether somebody looks at a directory of this user, or is going to."""
        return name in self._users

    async def at(self, name: str, call: Callable[[], T], seconds: float) -> T:
        """Return what ``call`` returns, once the same user's earlier looks have really ended.

        Raises:
            TimeoutError: no answer within ``seconds``.
            RuntimeError: no thread could be made.
            Exception: whatever ``call`` raises.
        """
        look = self._begin(name, call)
        # Not asyncio.timeout: in a turn of the loop that took longer it would drop an answer that has come.
        expiry = asyncio.get_running_loop().call_later(seconds, look.expire)
        try:
            answer: T = await look.answer
            return answer
        finally:
            expiry.cancel()
            self._give_up(look)

    async def at_all(
        self, calls: Sequence[tuple[str, Callable[[], T]]], patience: float, limit: float
    ) -> list[T]:
        """Return what the calls return, in their order, without those that raised or did not return in time.

        Args:
            calls: users' names and calls.
            patience: seconds without any answer after which no more are waited for.
            limit: seconds for all.

        Raises:
            RuntimeError: no thread could be made.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + limit
        looks: list[_Look] = []
        try:
            for name, call in calls:
                looks.append(self._begin(name, call))
            left = {look.answer for look in looks}
            while left and (now := loop.time()) < end:
                done, left = await asyncio.wait(left, timeout=min(patience, end - now))
                if not done:
                    break
        finally:
            for look in looks:
                self._give_up(look)
        answers = (look.answer for look in looks)
        return [a.result() for a in answers if not a.cancelled() and a.exception() is None]

    # -- on the loop --------------------------------------------------------------------------

    def _begin(self, name: str, call: Callable[[], Any]) -> _Look:
        look = _Look(name, call, asyncio.get_running_loop().create_future())
        if name in self._users:
            self._users[name].append(look)
            return look
        self._users[name] = deque()
        self._waiting.append(look)
        try:
            self._attend()
        except RuntimeError:
            self._give_up(look)
            raise
        return look

    def _attend(self) -> None:
        """Let a thread begin if something waits and those at work hang, and see again in a while.

        Raises:
            RuntimeError: no thread could be made.
        """
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if not self._waiting:
            return
        now = time.monotonic()
        hang = all(now - since >= HANG_SECONDS for since in list(self._threads.values()))
        if hang and len(self._threads) < MAX_THREADS:
            self._start(now)
        self._watch = asyncio.get_running_loop().call_later(HANG_SECONDS, self._attend_again)

    def _attend_again(self) -> None:
        with contextlib.suppress(RuntimeError):  # The next look tries again.
            self._attend()

    def _start(self, now: float) -> None:
        thread = object()
        self._threads[thread] = now
        try:
            THREADS.submit(partial(self._work, thread))
        except RuntimeError:
            del self._threads[thread]
            raise

    def _give_up(self, look: _Look) -> None:
        """Nobody waits for it any more; without effect on one that is over."""
        look.answer.cancel()
        if look.over:
            return
        with contextlib.suppress(ValueError):
            self._users[look.name].remove(look)
            look.over = True
            return
        with contextlib.suppress(ValueError):
            self._waiting.remove(look)
            self._end(look)

    def _end(self, look: _Look) -> None:
        look.over = True
        following = self._users[look.name]
        if following:
            self._waiting.append(following.popleft())
            self._attend_again()
        else:
            del self._users[look.name]

    def _take(self) -> None:
        self._told = False
        while self._returned:
            look, value, error = self._returned.popleft()
            if not look.answer.done():
                if error is not None:
                    look.answer.set_exception(error)
                else:
                    look.answer.set_result(value)
            self._end(look)

    # -- in a thread --------------------------------------------------------------------------

    def _work(self, thread: object) -> None:
        while True:
            try:
                look = self._waiting.popleft()
            except IndexError:
                del self._threads[thread]
                if not self._waiting:  # What comes after this finds no thread, and begins one.
                    return
                self._threads[thread] = time.monotonic()
                continue
            self._threads[thread] = time.monotonic()
            value, error = None, None
            try:
                value = look.call()
            except Exception as problem:
                error = problem
            self._returned.append((look, value, error))
            if not self._told:
                self._told = True
                with contextlib.suppress(RuntimeError):  # The loop has closed in the meantime.
                    look.answer.get_loop().call_soon_threadsafe(self._take)
