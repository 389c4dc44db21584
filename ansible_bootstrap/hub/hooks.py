"""The hooks of ``c.Spawner``."""

from __future__ import annotations

from typing import Any

from ansible_bootstrap.hub.chain import call_chained
from ansible_bootstrap.hub.failure import log_name
from ansible_bootstrap.hub.page import show_progress
from ansible_bootstrap.hub.spawns import bootstrap, stopped


async def pre_spawn_hook(spawner: Any) -> None:
    """Return when the user's storage is ready; then call the hook that was there before us.

    Raises:
        BootstrapError: it is not ready, with one sentence for the user; the log has the details.
    """
    show_progress(spawner)
    await bootstrap(spawner)
    await call_chained("pre_spawn_hook", type(spawner), spawner)


async def post_stop_hook(spawner: Any) -> None:
    """Note that there is something to clean up, and return; then call the hook that was there before us.

    Never raises, and never waits for a clean-up, only until it is noted on disk. Source: ``User.stop`` calls it
    also after a failed spawn, and at the hub's start for servers that died meanwhile.
    """
    await stopped(spawner)
    try:
        await call_chained("post_stop_hook", type(spawner), spawner)
    except Exception:
        spawner.log.exception("post_stop_hook failed for %s", log_name(spawner))
