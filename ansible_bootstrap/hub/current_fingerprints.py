"""The fingerprints of all roles that a complete user must have, as the hub knows them.

They are described once and renewed beside the logins. Younger than :data:`FRESH_SECONDS` they are taken as they are.
Older ones are taken, and renewed in the background. Older than :data:`STALE_SECONDS`, the login waits for new ones:
10 ms embedded, one start of the apply program otherwise. Every run brings the newest as well.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from ansible_bootstrap.errors import reason_for_log
from ansible_bootstrap.protocol import RoleFingerprint

Fingerprints = tuple[RoleFingerprint, ...]

FRESH_SECONDS: Final = 60.0
STALE_SECONDS: Final = 600.0
WAIT_SECONDS: Final = 15.0
"""Longest that a login waits for them; then its user is bootstrapped as if unknown."""

RETRY_SECONDS: Final = 10.0
"""Between two attempts while describing fails; no login waits in between."""


class CurrentFingerprints:
    """The fingerprints, and how old they are. All methods are called on one event loop.

    Args:
        describe: asks the apply side.
        log: told when it fails.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        describe: Callable[[], Awaitable[Fingerprints]],
        log: logging.Logger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._describe = describe
        self._log = log
        self._clock = clock
        self._known: Fingerprints | None = None
        self._at = 0.0
        self._failed = float("-inf")
        self._task: asyncio.Task[None] | None = None

    def renewed(self, fingerprints: Fingerprints, age: float = 0.0) -> None:
        """Take the fingerprints of a run, unless newer ones are known.

        Args:
            fingerprints: of all roles.
            age: of them, in seconds. A run that began before the settings were changed may last long after.
        """
        at = self._clock() - age
        if fingerprints and (self._known is None or at >= self._at):
            self._known, self._at = fingerprints, at

    async def current(self) -> Fingerprints | None:
        """Return the fingerprints; None if the apply side cannot say at the moment."""
        age = self._clock() - self._at
        if self._known is None or age > FRESH_SECONDS:
            task = self._renew()
            if task is not None and (self._known is None or age > STALE_SECONDS):
                await asyncio.wait({task}, timeout=WAIT_SECONDS)
        usable = self._known is not None and self._clock() - self._at <= STALE_SECONDS
        return self._known if usable else None

    def _renew(self) -> asyncio.Task[None] | None:
        if self._task is not None and not self._task.done():
            return self._task
        if self._clock() - self._failed < RETRY_SECONDS:
            return None
        self._task = asyncio.get_running_loop().create_task(self._work())
        return self._task

    async def _work(self) -> None:
        began = self._clock()
        try:
            fingerprints = await self._describe()
            self.renewed(fingerprints, self._clock() - began)
        except Exception as error:
            self._failed = self._clock()
            self._log.warning(
                "ansible_bootstrap: the roles' fingerprints cannot be made, so every login is a run: %s",
                reason_for_log(error),
            )
