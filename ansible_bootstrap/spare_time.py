"""When a busy event loop has time for the next run."""

from __future__ import annotations

import asyncio
import time
from typing import Final

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
