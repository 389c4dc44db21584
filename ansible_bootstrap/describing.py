"""Ask the apply side which fingerprint each role has now: a user who has all of them is complete."""

from __future__ import annotations

from functools import partial

from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.dispatch.client import ApplyClient
from ansible_bootstrap.errors import AnsibleBootstrapError, ApplyError
from ansible_bootstrap.fingerprints import describe
from ansible_bootstrap.protocol import Described, Event, Request, RoleFingerprint
from ansible_bootstrap.settings import make_settings
from ansible_bootstrap.threads import in_thread


async def ask_fingerprints(
    config: AnsibleBootstrap, client: ApplyClient, seconds: float
) -> tuple[RoleFingerprint, ...]:
    """Return the fingerprint of each role.

    An embedded apply side has the same files and settings, so they are read here, which takes 10 ms and no process.

    Args:
        config: the hub's settings.
        client: starts the apply program, if it is not embedded.
        seconds: how long it may take.

    Raises:
        AnsibleBootstrapError: the apply side cannot say.
        TimeoutError: the files could not be read in time.
        RuntimeError: no thread could be made.
    """
    if config.embedded:
        settings = make_settings(config.apply_settings(), "c.AnsibleBootstrap")
        return await in_thread(partial(describe, settings), timeout=seconds)
    said: list[Described] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Described):
            said.append(event)

    run = await client.start(Request(operation="describe"), on_event, limit=seconds)
    try:
        await run.finish()
    except AnsibleBootstrapError:
        if not said:
            raise
    if not said:
        raise ApplyError("the apply program described nothing")
    return said[0].roles
