"""A spawner without a process per user: what is left of a spawn is the hub's own work, and the hook."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from jupyterhub.spawner import Spawner
from jupyterhub.utils import maybe_future
from traitlets import Int, Unicode


class SharedServerSpawner(Spawner):  # type: ignore[misc, unused-ignore]
    """Every user's server is the one that listens at :attr:`port` (``shared_server``)."""

    port = Int(help="Port of the shared server.").tag(config=True)
    notes = Unicode(help="File that gets a line for each hook: name, begin, end.").tag(config=True)

    running = False

    async def run_pre_spawn_hook(self) -> None:
        """Note when the hook began and ended, by the clock that all processes share."""
        begin = time.monotonic()
        try:
            await maybe_future(super().run_pre_spawn_hook())  # Not a coroutine in the base class.
        finally:
            self._note(begin, time.monotonic())

    def _note(self, begin: float, end: float) -> None:
        with Path(self.notes).open("a") as notes:
            notes.write(f"{self.user.name} {begin:.4f} {end:.4f}\n")

    async def start(self) -> tuple[str, int]:
        self.running = True
        return "127.0.0.1", self.port

    async def stop(self, now: bool = False) -> None:
        self.running = False

    async def poll(self) -> int | None:
        return None if self.running else 0

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "running": self.running}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.running = bool(state.get("running"))

    def clear_state(self) -> None:
        super().clear_state()
        self.running = False
