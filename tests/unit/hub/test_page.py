"""What follows our sentences on the spawn page: the spawner's own events, or nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from traitlets.config import Config

from ansible_bootstrap.hub.page import progress
from ansible_bootstrap.hub.spawns import spawn_of

PULLING = {"progress": 60, "message": "Pulling image", "html_message": "<b>Pulling</b> image"}


async def theirs() -> AsyncIterator[Any]:
    yield PULLING
    yield {"progress": 70}


async def shown(*said: tuple[str, float], ready: bool = True, mode: str = "enforce") -> list[Any]:
    """Everything the page gets of a start in which so much was said."""
    spawner = SimpleNamespace(config=Config({"AnsibleBootstrap": {"mode": mode}}))
    spawn = spawn_of(spawner)
    for sentence, share in said:
        spawn.progress.say(sentence, share)
    spawn.ready = 1.0 if ready else None
    spawn.progress.close()
    return [event async for event in progress(spawner, theirs)]


async def test_the_spawners_events_come_after_ours_as_they_are() -> None:
    assert await shown(("Copying tutorials", 0.5)) == [
        {"progress": 25, "message": "Copying tutorials"},
        PULLING,
        {"progress": 70},
    ]


async def test_a_notice_stays_beside_whatever_the_spawner_says() -> None:
    _, notice, pulling, bare = await shown(("Copying tutorials", 0.5), ("You can work without <it>", 1.0))
    assert notice == {"progress": 45, "message": "You can work without <it>"}
    assert pulling == {
        "progress": 60,
        "message": "Pulling image (You can work without <it>)",
        "html_message": "<b>Pulling</b> image (You can work without &lt;it&gt;)",
    }
    assert bare == {"progress": 70}
    assert PULLING["message"] == "Pulling image"


@pytest.mark.parametrize(("mode", "events"), [("enforce", 1), ("observe", 3)])
async def test_no_server_is_announced_that_does_not_come(mode: str, events: int) -> None:
    assert len(await shown(("Copying tutorials", 0.5), ready=False, mode=mode)) == events
