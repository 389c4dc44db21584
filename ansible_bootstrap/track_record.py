"""What earlier runs have told about the storage hosts: how many users they take at a time, and which are in trouble."""

from __future__ import annotations

import os

from .flights import Flight
from .pace import Pace
from .protocol import Operation


class TrackRecord:
    """Kept as long as the hub runs; a few hundred bytes for each storage host.

    Args:
        batch_size: most users in one run.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._paces: dict[tuple[str, str], Pace] = {}
        self._troubled: set[str] = set()

    def in_trouble(self, host: str) -> bool:
        """Whether that host's last run ended badly as a whole."""
        return host in self._troubled

    def batch(self, host: str, operation: Operation) -> int:
        """Return how many users the next run may have."""
        return self._pace(host, operation).size

    def learn(self, flight: Flight, *, silent: bool) -> None:
        """Draw the conclusions from a run that has landed.

        Args:
            flight: the run.
            silent: whether it left users without an outcome.
        """
        record = flight.record
        unreachable = [outcome.reason == "unreachable" for outcome in record.outcomes]
        if silent or all(unreachable):
            if not record.abandoned:  # Else they changed their minds; the host has done nothing.
                self._troubled.add(record.storage_host)
        else:
            self._troubled.discard(record.storage_host)
        pace = self._pace(record.storage_host, flight.operation)
        if flight.orderly and not any(unreachable):
            pace.landed(record.users, record.seconds)
        elif flight.error is not None and flight.error.reason == "timeout":
            pace.ran_out_of_time(record.users, record.seconds)

    def _pace(self, host: str, operation: str) -> Pace:
        pace = self._paces.get((host, operation))
        if pace is None:
            floor = 2 * (os.cpu_count() or 2)
            pace = self._paces[host, operation] = Pace(self._batch_size, floor)
        return pace
