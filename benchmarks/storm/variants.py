"""What an admin writes into ``jupyterhub_config.py`` for each variant. Read in the hub's process."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.machine import owner


def none(c: Any, storage: Path, archive: Path) -> None:
    """No hook: what the hub takes by itself."""


def ours(c: Any, storage: Path, archive: Path) -> None:
    """One call, and what is to be done."""
    from ansible_bootstrap import setup  # noqa: PLC0415 - the other variants must not pay for it

    c.AnsibleBootstrap.storage_root = str(storage)
    c.AnsibleBootstrap.place = f"{storage}/{{username}}"  # The spawner keeps nothing.
    c.AnsibleBootstrap.roles = ["user_dir", "tutorials"]
    c.AnsibleBootstrap.extra_vars = {
        "tutorials_sources": [{"name": "course", "path": str(archive), "dest": "tutorials"}]
    }
    c.AnsibleBootstrap.uid, c.AnsibleBootstrap.gid = owner()
    setup(c)


def naive(c: Any, storage: Path, archive: Path) -> None:
    """One ``ansible_runner.run`` for each spawn, in the loop's own threads."""
    from benchmarks.naive import bootstrap  # noqa: PLC0415

    async def hook(spawner: Any) -> None:
        if await asyncio.to_thread(bootstrap, spawner.user.name, storage, archive) != 0:
            raise RuntimeError("Ansible failed")

    c.Spawner.pre_spawn_hook = hook


def script(c: Any, storage: Path, archive: Path) -> None:
    """JupyterHub's example; the course comes from this machine instead of GitHub.

    Source: examples/bootstrap-script in JupyterHub's repository.
    """
    c.Spawner.pre_spawn_hook = partial(_run_script, str(storage), str(archive))


def _run_script(storage: str, archive: str, spawner: Any) -> None:
    uid, gid = owner()
    program = Path(__file__).with_name("bootstrap.sh")
    subprocess.check_call([str(program), spawner.user.name, storage, archive, f"{uid}:{gid}"])


VARIANTS: dict[str, Callable[[Any, Path, Path], None]] = {
    "none": none,
    "ours": ours,
    "naive": naive,
    "script": script,
}
