"""Looks at users' directories, beside the event loop and as few threads at a time as get on.

A directory that hangs (NFS, a student's own FUSE mount) takes a thread until it returns, if it ever does. So there is
one look at a time for each user, further threads join only those that hang, and there is a most of them. All that is on
a mount hangs with it: two looks that hang are enough to tell, and looks at other mounts go on. On a mount that has hung
for long, no look begins until one there has come back.

As long as none hangs, one thread does all looks that have come up and tells the loop of all that it has done since the
loop last listened. A thread for each would be woken for each, and the loop stands still whenever a thread takes the
interpreter's lock from it.

No lock of ours: one that a waiting thread holds would stop the loop. What threads and loop share are a deque at each
end, a dict of which each thread has one key, and a flag that is cleared before what it speaks of is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from ansible_bootstrap.threads import MAX_THREADS, Pool

T = TypeVar("T")

HANG_SECONDS: Final = 0.05
"""After which a thread that is at the same directory is joined by another."""

MOST_HUNG: Final = 2
"""Looks that hang on one mount."""

LONG_SECONDS: Final = 30.0
"""After which one look that hangs is enough for no other to begin on its mount."""

STUCK_SECONDS: Final = 1.0
"""After which a thread that hangs is not counted with those that work."""

ALL_THREADS: Final = 64
"""Most threads, with those that hang."""

THREADS: Final = Pool("look", ALL_THREADS)


@dataclass(eq=False, slots=True)
class _Look:
    name: str
    mount: str
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
        self._held: dict[str, deque[_Look]] = {}
        """Those that wait for their mount to come back."""
        self._mounts = Mounts()
        self._came_back: dict[str, float] = {}
        """When a look last returned from a mount on which others were held."""
        self._threads: dict[object, tuple[float, str]] = {}
        """Those at work: since when each has been at its present look, by ``time.monotonic``, and on which mount."""
        self._returned: deque[tuple[_Look, Any, Exception | None]] = deque()
        self._told = False
        """Whether the loop is going to take what has returned."""
        self._watch: asyncio.TimerHandle | None = None

    def under_way(self, name: str) -> bool:
        """Whether somebody looks at a directory of this user, or is going to."""
        return name in self._users

    async def at(self, name: str, directory: str, call: Callable[[], T], seconds: float) -> T:
        """Return what ``call`` returns, once the same user's earlier looks have really ended.

        Raises:
            TimeoutError: no answer within ``seconds``.
            RuntimeError: no thread could be made.
            Exception: whatever ``call`` raises.
        """
        look = self._begin(name, directory, call)
        # Not asyncio.timeout: in a turn of the loop that took longer it would drop an answer that has come.
        expiry = asyncio.get_running_loop().call_later(seconds, look.expire)
        try:
            answer: T = await look.answer
            return answer
        finally:
            expiry.cancel()
            self._give_up(look)

    async def at_all(
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
        looks: list[_Look] = []
        try:
            for name, directory, call in calls:
                looks.append(self._begin(name, directory, call))
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

    def _begin(self, name: str, directory: str, call: Callable[[], Any]) -> _Look:
        look = _Look(name, self._mounts.mount_of(directory), call, asyncio.get_running_loop().create_future())
        if name in self._users:
            self._users[name].append(look)
            return look
        self._users[name] = deque()
        self._held.get(look.mount, self._waiting).append(look)
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
        threads = list(self._threads.values())
        hung = [(since, mount) for since, mount in threads if now - since >= HANG_SECONDS]
        self._hold(now, hung)
        if not self._waiting:
            return
        stuck = sum(now - since >= STUCK_SECONDS for since, _ in hung)
        if len(hung) == len(threads) < min(ALL_THREADS, MAX_THREADS + stuck):
            self._start(now)
        self._watch = asyncio.get_running_loop().call_later(HANG_SECONDS, self._attend_again)

    def _hold(self, now: float, hung: Sequence[tuple[float, str]]) -> None:
        """Keep the threads from looks on mounts that hang."""
        # What has hung since before the mount came back is that one directory's trouble.
        hung = [(since, mount) for since, mount in hung if since > self._came_back.get(mount, 0.0)]
        count = Counter(mount for _, mount in hung)
        dead = {mount for since, mount in hung if now - since >= LONG_SECONDS or count[mount] >= MOST_HUNG}
        for look in list(self._waiting) if dead else ():
            if look.mount in dead:
                with contextlib.suppress(ValueError):  # A thread has just taken it.
                    self._waiting.remove(look)
                    self._held.setdefault(look.mount, deque()).append(look)

    def _attend_again(self) -> None:
        with contextlib.suppress(RuntimeError):  # The next look tries again.
            self._attend()

    def _start(self, now: float) -> None:
        thread = object()
        self._threads[thread] = now, ""
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
        for waiting in (self._waiting, self._held.get(look.mount, deque())):
            with contextlib.suppress(ValueError):
                waiting.remove(look)
                self._end(look)
                return

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
            if look.mount in self._held:
                self._came_back[look.mount] = time.monotonic()
                self._waiting.extend(self._held.pop(look.mount))
                self._attend_again()
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
                self._threads[thread] = time.monotonic(), ""
                continue
            self._threads[thread] = time.monotonic(), look.mount
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


MOUNTS: Final = Path("/proc/self/mountinfo")

FRESH_SECONDS: Final = 5.0
"""For which what was read is believed."""


class Mounts:
    """The mounts of this process."""

    def __init__(self) -> None:
        self._points: frozenset[str] = frozenset()
        self._read = -FRESH_SECONDS

    def mount_of(self, path: str) -> str:
        """Return the mount point that is the longest prefix of an absolute path; ``/`` if there is none."""
        if time.monotonic() - self._read >= FRESH_SECONDS:
            self._read = time.monotonic()
            self._points = _points()
        while path not in self._points and path.strip("/"):
            path = path.rstrip("/").rpartition("/")[0]
        return path or "/"


def _points() -> frozenset[str]:
    """Return all mount points; none where the kernel has no such table."""
    try:
        lines = MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return frozenset()
    fields = (line.split(" ") for line in lines)
    return frozenset(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), part[4]) for part in fields)
