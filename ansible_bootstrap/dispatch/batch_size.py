"""How many users the next run on a storage host takes, so that no user waits behind a run without an end.

A user who comes during a run waits for its end, so runs are kept to about :data:`TARGET_SECONDS`. What a user costs
differs by a factor of a hundred (a directory, a tutorial of 200 files, a site role), and only runs tell. The rule
is that of TCP's congestion window: down at once, to what would have been right; up by doubling.

Two things keep it from doing harm:

- Part of a run is its start (Ansible, ssh, a slow storage host), and smaller batches only pay for that more often. So
  the last few runs are taken for a line, start + users x seconds for each, and a run may always be as long as twice
  its start. Without this, a storage host that takes twelve seconds for anything would have its class of 500 cut into
  runs of four.
- A run that was not full says nothing about a larger one, so it lets nothing grow
  (ref: https://www.rfc-editor.org/rfc/rfc7661, "application-limited").
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from typing import Final

from ansible_bootstrap.dispatch.run import Run
from ansible_bootstrap.protocol import Operation

TARGET_SECONDS: Final = 10.0
"""For one run."""

REMEMBERED_RUNS: Final = 4
"""Few, for what made one run long may be over: the first user waits for a download, the others do not."""


class Pace:
    """Sets the size of batches on one storage host.

    Args:
        ceiling: most users in a run.
        floor: users that a run may always have.
        target: seconds that a run should take.
    """

    def __init__(self, ceiling: int, floor: int, target: float = TARGET_SECONDS) -> None:
        self._ceiling = ceiling
        self._target = target
        self._floor = min(floor, ceiling)
        self._runs: deque[tuple[int, float]] = deque(maxlen=REMEMBERED_RUNS)
        self.size = ceiling
        """Users that the next run may have."""

    def finished(self, users: int, seconds: float) -> None:
        """A run with so many users has ended as it should."""
        self._runs.append((users, seconds))
        line = self._line()
        # If the runs do not tell what makes them long, see whether fewer users help.
        start, each = line or (0.0, seconds / users)
        target = max(self._target, 2 * start)
        if seconds > target and users > self._floor:
            self._shrink(users, (target - start) / each if each else users * target / seconds)
            return
        short = seconds - start <= (target - start) / 2
        at_a_loss = line is None and seconds > target  # At the floor: see whether more users cost more.
        if users >= self.size and (short or at_a_loss):
            self.size = min(2 * self.size, self._ceiling)

    def ran_out_of_time(self, users: int, seconds: float) -> None:
        """A run was given up after so many seconds; how long it would have taken is not known."""
        if seconds > self._target:
            self._shrink(users, users * self._target / seconds)

    def _shrink(self, users: int, right: float) -> None:
        if users > self._floor:  # Or fewer users would not help.
            self.size = max(self._floor, min(self.size, int(right)))

    def _line(self) -> tuple[float, float] | None:
        """Return the seconds that a run takes to start, and those for each user, if the last runs differ enough."""
        (fewest, short), (most, long) = min(self._runs), max(self._runs)
        if most < 2 * fewest:
            return None
        each = max(0.0, long - short) / (most - fewest)
        return max(0.0, short - each * fewest), each


class TrackRecord:
    """The paces of all storage hosts and operations. Kept as long as the hub runs; a few hundred bytes for each.

    Args:
        batch_size: most users in one run.
        target: seconds that a run should take.
    """

    def __init__(self, batch_size: int, target: float) -> None:
        floor = 2 * (os.cpu_count() or 2)
        self._paces = defaultdict[tuple[str, str], Pace](lambda: Pace(batch_size, floor, target))

    def batch(self, host: str, operation: Operation) -> int:
        """Return how many users the next run may have."""
        return self._paces[host, operation].size

    def learn(self, run: Run) -> None:
        """Draw the conclusions from a run that has ended."""
        record = run.record
        pace = self._paces[record.storage_host, run.operation]
        if run.orderly and not any(outcome.reason == "unreachable" for outcome in record.outcomes):
            pace.finished(record.users, record.seconds)
        elif run.error is not None and run.error.reason == "timeout":
            pace.ran_out_of_time(record.users, record.seconds)
