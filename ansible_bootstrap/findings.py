"""Checks of the storage that both ``ansible-bootstrap doctor`` and the hub's start make."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.dispatch.client import ApplyClient
from ansible_bootstrap.errors import AnsibleBootstrapError, ApplyError
from ansible_bootstrap.protocol import Described, Event, Finding, Operation, Probed, Request
from ansible_bootstrap.storage._mounts import mounts

ASK_SECONDS: Final = 60.0

SYSTEM: Final = Path("/")
"""The root of the files that say what kind of machine this is."""

_CONTAINER: Final = re.compile("docker|containerd|kubepods|libpod")


async def ask(client: ApplyClient, operation: Operation, storage_host: str = "") -> Event:
    """Return what the apply program says to ``describe`` or ``probe``.

    Raises:
        AnsibleBootstrapError: it cannot be asked.
    """
    said: list[Event] = []
    users = [{"name": "probe", "storage_host": storage_host}] if storage_host else []
    run = await client.start(Request(operation=operation, users=users), said.append, limit=ASK_SECONDS)
    await run.finish()
    for event in said:
        if isinstance(event, Described | Probed):
            return event
    raise ApplyError(f"the apply program does not know {operation!r}: both sides need the same version")


async def probe(client: ApplyClient, host: str) -> tuple[Sequence[Finding], dict[str, object]]:
    """Return what a storage host's probe finds, and what it says of the host."""
    try:
        answer = await ask(client, "probe", host)
    except AnsibleBootstrapError as error:
        return [Finding(level="error", what=_at(host, error.details or error.message))], {}
    if not isinstance(answer, Probed):
        return [], {}
    said = [finding.model_copy(update={"what": _at(host, finding.what)}) for finding in answer.findings]
    return said, dict(answer.about)


def _at(host: str, what: str) -> str:
    return what if host == "localhost" or what.startswith(host) else f"{host}: {what}"


def outside_of_container(settings: AnsibleBootstrap, spawner_class: object) -> Sequence[Finding]:
    """Servers that run beside the hub's container mount the host's directories, not those in it. Blocks on the disk."""
    names = {f"{cls.__module__}.{cls.__name__}" for cls in getattr(spawner_class, "__mro__", ())}
    inside = names & {
        "jupyterhub.spawner.LocalProcessSpawner",
        "systemdspawner.systemdspawner.SystemdSpawner",
    }
    if not settings.embedded or settings.storage_host != "localhost" or inside or not _in_container():
        return []
    return [
        Finding(
            level="error",
            what=f"the hub runs in a container, and {root} is not a mount: what is prepared here is not on the host",
            mend=f"docker run -v {root}:{root} …",
        )
        for root in (*settings.roots(), *filter(None, (settings.records_dir,)))
        if mount_of(root)[0] == "/"
    ]


def _in_container() -> bool:
    if any((SYSTEM / mark).exists() for mark in (".dockerenv", "run/.containerenv")):
        return True
    with contextlib.suppress(OSError):
        return bool(_CONTAINER.search((SYSTEM / "proc/1/cgroup").read_text()))
    return False


def mount_of(path: str) -> tuple[str, str]:
    """Return the mount point that the path is below, and the type of its file system."""
    real = f"{os.path.realpath(path)}/"
    above = [mount for mount in reversed(mounts().values()) if real.startswith(f"{mount.point.rstrip('/')}/")]
    mount = max(above, key=lambda mount: len(mount.point), default=None)  # Of two at one point, the later.
    return (mount.point, mount.filesystem) if mount else ("/", "")
