"""The hooks of ``c.Spawner``, for a configuration that names them itself; ``setup(c)`` needs none."""

from __future__ import annotations

from typing import Any

from ansible_bootstrap.hub.page import show_progress
from ansible_bootstrap.hub.spawns import bootstrap, note_place, stopped


async def pre_spawn_hook(spawner: Any) -> None:
    """Return when the user's storage is ready.

    A hook of the site's own calls it after whatever it sets on the spawner.

    Raises:
        BootstrapError: it is not ready, with one sentence for the user; the log has the details.
    """
    if getattr(spawner, "shows_bootstrap", False):
        return  # Its class does so, after this hook.
    show_progress(spawner)
    await bootstrap(spawner)
    note_place(spawner)


async def post_stop_hook(spawner: Any) -> None:
    """Note that there is something to clean up, and return.

    Never raises, and never waits for a clean-up, only until it is noted on disk. Source: ``User.stop`` calls it
    also after a failed spawn, and at the hub's start for servers that died meanwhile.
    """
    if not getattr(spawner, "shows_bootstrap", False):
        await stopped(spawner)
