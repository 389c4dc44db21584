"""How many users the storage hosts take at a time, as earlier runs have told."""

from __future__ import annotations

import os

from .flights import Flight
from .pace import Pace
from .protocol import Operation


class TrackRecord:
    """Kept as long as the hub runs; a few hundred bytes for each storage host.

    Args:
        batch_size: most users in one run.
        target: seconds that a run should take.
    """

    def __init__(self, batch_size: int, target: float) -> None:
        self._batch_size = batch_size
        self._target = target
        self._paces: dict[tuple[str, str], Pace] = {}

    def batch(self, host: str, operation: Operation) -> int:
        """Return how many users the next run may have."""
        return self._pace(host, operation).size

    def learn(self, flight: Flight) -> None:
        """Draw the conclusions from a run that has landed."""
        record = flight.record
        pace = self._pace(record.storage_host, flight.operation)
        if flight.orderly and not any(outcome.reason == "unreachable" for outcome in record.outcomes):
            pace.landed(record.users, record.seconds)
        elif flight.error is not None and flight.error.reason == "timeout":
            pace.ran_out_of_time(record.users, record.seconds)

    def _pace(self, host: str, operation: str) -> Pace:
        pace = self._paces.get((host, operation))
        if pace is None:
            floor = 2 * (os.cpu_count() or 2)
            pace = self._paces[host, operation] = Pace(self._batch_size, floor, self._target)
        return pace
