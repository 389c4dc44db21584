"""A spawner without a process per user: what is left of a spawn is the hub's own work, and the hook."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from jupyterhub.spawner import Spawner
from traitlets import Int, Unicode


class SharedServerSpawner(Spawner):  # type: ignore[misc, unused-ignore]
    """Every user's server is the one that listens at :attr:`port` (``shared_server``)."""

    port = Int(help="Port of the shared server.").tag(config=True)
    notes = Unicode(help="File that gets a line for each hook: name, begin, end.").tag(config=True)

    running = False
    hooks_began = 0.0

    def run_auth_state_hook(self, auth_state: Any) -> Any:
        """Note when the hooks begin: the hub calls this right before them."""
        self.hooks_began = time.monotonic()
        return super().run_auth_state_hook(auth_state)

    def _note(self) -> None:
        with Path(self.notes).open("a") as notes:
            notes.write(f"{self.user.name} {self.hooks_began:.4f} {time.monotonic():.4f}\n")

    async def start(self) -> tuple[str, int]:
        self._note()
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
