"""Lets those who have waited together go on one after the other, a few in each turn of the event loop.

A run releases a hundred spawns in the same moment. What each does next (the hub's database, the spawner, the proxy)
takes some milliseconds; done by all in one turn of the loop, it is a second in which the hub answers nobody. A few in
a turn, everything else that the hub has to do comes in between, and where there is nothing else, a turn takes no time.

Rejected: one in a turn. In a storm the turns are long whatever we do, and half of a class waited two seconds more.
Five: those go on in step, so that each later turn has five of every step, too; the hub answered more slowly, and the
last of a class of 300 was served a second later than with three. Two were no better.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final

IN_A_TURN: Final = 3


class Turnstile:
    """All methods are called on one event loop."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    def let_through(self, future: asyncio.Future[None]) -> None:
        """Have the future done when its turn has come."""
        self._waiting.append(future)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        left = IN_A_TURN
        while self._waiting and left:
            future = self._waiting.popleft()
            if not future.done():  # Else whoever waited has given up.
                future.set_result(None)
                left -= 1
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._turn)


MOST_REST: Final = 1.0
"""Seconds after which it has to have time."""

LONG_TURN: Final = 0.01
"""Seconds; a turn of the event loop that takes as long has done something, and likely something waits for the next."""

_SHORT_TURNS: Final = 2
"""So many in succession, and the loop has time."""


async def loop_has_time() -> None:
    """Return when the event loop has nothing to do, at the latest after :data:`MOST_REST`.

    In an idle hub, that is at once. A hub in a storm that has to share its processors with runs serves nobody sooner:
    fewer and larger runs, then.
    """
    now, short = time.monotonic(), 0
    end = now + MOST_REST
    while short < _SHORT_TURNS and now < end:
        await asyncio.sleep(0)
        before, now = now, time.monotonic()
        short = short + 1 if now - before < LONG_TURN else 0
