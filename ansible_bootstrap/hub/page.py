"""What the student sees while the storage is prepared: the spawn page's bar and its sentences.

The page shows one sentence at a time, so the spawner's first event replaces our last one. A notice that is to be read
("you can work without it") is therefore repeated beside each of the spawner's events. After a failure the spawner's
events are left out: they would announce a server that does not come, until the hub says that the spawn has failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from ansible_bootstrap.hub.spawns import Spawn, spawn_of

FIRST_PERCENT: Final = 5
LAST_PERCENT: Final = 45
"""The default spawner's own first event says 50."""

CHILD_SECONDS: Final = 0.2
"""Between two looks for the spawner that a WrapSpawner makes when it starts."""


def show_progress(spawner: Any) -> None:
    """Wrap ``spawner.progress`` once: the hub calls it for each listener that comes from now on.

    Where that cannot be, the spawn goes on without: WrapSpawner's is a property, which raises while there is no child.
    A class made by :func:`bootstrapped` shows the progress there, too.
    """
    if getattr(type(spawner), "shows_bootstrap", False) or "_ansible_bootstrap_wrapped" in spawner.__dict__:
        return
    spawner.__dict__["_ansible_bootstrap_wrapped"] = True
    with contextlib.suppress(Exception):
        theirs = spawner.progress
        spawner.progress = lambda: progress(spawner, theirs)


async def progress(spawner: Any, theirs: Callable[[], AsyncIterator[Any]]) -> AsyncIterator[Any]:
    """Our sentences from the first, then the spawner's own events, if a server starts."""
    spawn = spawn_of(spawner)
    notice = ""
    async for sentence, share in spawn.progress.follow():
        percent = FIRST_PERCENT + round(share * (LAST_PERCENT - FIRST_PERCENT))
        yield {"progress": percent, "message": sentence}  # No html_message: the page escapes this one.
        notice = sentence if share >= 1.0 else ""  # All is done, and still there is something to say.
    while _starts(spawner, spawn):
        try:
            events = theirs()
        except Exception:  # WrapSpawner's own start has yet to make the child.
            await asyncio.sleep(CHILD_SECONDS)
            continue
        async for event in events:
            yield _beside(notice, event) if notice else event
        return


def _starts(spawner: Any, spawn: Spawn) -> bool:
    """Whether a server comes now; with ``mode = "observe"``, whatever became of the storage."""
    if spawn is not spawner.__dict__.get("_ansible_bootstrap"):
        return False  # It has been stopped.
    return spawn.ready is not None or spawner.config.get("AnsibleBootstrap", {}).get("mode") == "observe"


def _beside(notice: str, event: Any) -> Any:
    """Return the event with our notice beside its text; a spawner may say the same event again, so it is a copy."""
    both = dict(event)
    if "message" in both:
        both["message"] = f"{both['message']} ({notice})"
    if "html_message" in both:
        both["html_message"] = f"{both['html_message']} ({html.escape(notice)})"
    return both
