"""What a run's events say of its roles, for the run's record: how long each took, what was fetched, how it was done."""

from __future__ import annotations

import time

from .history import RunRecord
from .protocol import End, Event, Fetched, RoleStarted


class RoleClock:
    """A role is at work until the next begins, or the run ends.

    Args:
        record: where it is noted.
    """

    def __init__(self, record: RunRecord) -> None:
        self._record = record
        self._at_work: tuple[str, float] | None = None

    def take(self, event: Event) -> None:
        """Take an event as it comes; those that are not about roles are nothing to us."""
        match event:
            case RoleStarted():
                self.stop()
                self._at_work = event.role, time.monotonic()
            case Fetched():
                self._record.fetched += event.count
            case End():
                self.stop()
                self._record.way = event.way

    def stop(self) -> None:
        """The run has ended, however."""
        if self._at_work is not None:
            role, began = self._at_work
            self._at_work = None
            self._record.roles[role] = self._record.roles.get(role, 0.0) + time.monotonic() - began
