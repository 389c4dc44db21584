"""What an admin writes into ``jupyterhub_config.py``."""

from __future__ import annotations

import asyncio
import contextlib

from traitlets.config import Config

from ansible_bootstrap.hub.chain import chain
from ansible_bootstrap.hub.core import UP_SECONDS, when_up
from ansible_bootstrap.hub.hooks import post_stop_hook, pre_spawn_hook
from ansible_bootstrap.hub.login import post_auth_hook


def setup(c: Config) -> None:
    """Install the hooks and the progress in a hub's configuration.

    Hooks that are there already, also those of one spawner or authenticator class
    (``c.DockerSpawner.pre_spawn_hook``), are kept and called after ours (at login: before). Call it last: a hook
    that is set afterwards replaces ours. Clean-ups that waited when an earlier hub was killed come once the hub is
    up; without ``setup``, with :func:`bootstrapped` alone, at the first spawn or stop.

    Args:
        c: the configuration object of ``jupyterhub_config.py``.
    """
    chain(c, "pre_spawn_hook", pre_spawn_hook, "Spawner")
    chain(c, "post_stop_hook", post_stop_hook, "Spawner")
    chain(c, "post_auth_hook", post_auth_hook, "Authenticator")
    with contextlib.suppress(RuntimeError):  # No loop: not in a hub, which reads its configuration in one.
        loop = asyncio.get_running_loop()
        loop.call_later(UP_SECONDS, when_up, loop)
