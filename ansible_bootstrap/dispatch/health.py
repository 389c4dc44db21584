"""Which storage hosts are down and which users' storage hangs, as the runs have told.

A storage host is *down* after a run that could not reach it, or that told nothing in all its time while no other run
there had an answer. Then one user may try after each pause (the probe), and all others are answered at once. Users who
were not ready in time say nothing against a host that was up, however many they are: their own directories may hang.
A storage that is silent for all its users is told as unreachable. Only a host that could not be reached gets longer
pauses, so that a user with a directory that hangs cannot prolong an outage as its probe.

A user *hangs* after not being ready in time although others of the same run were: the next try is a run of that user
alone. If that takes too long, too, the user is *held*: every further spawn is refused at once for some minutes.
What was noted of users after their host was found down is forgotten when the host is back.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Final

from ansible_bootstrap.dispatch.job import UserKey, user_key
from ansible_bootstrap.dispatch.run import Run
from ansible_bootstrap.errors import BY_REASON, AnsibleBootstrapError, DeadlineError, Reason
from ansible_bootstrap.place import Place

FIRST_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 60.0
"""Seconds between the end of one try and the next, on a storage host that is down."""

HOLD_SECONDS: Final = 300.0
"""For which a user is refused at once after a run of that user alone was not ready in time."""

MAX_HUNG: Final = 10_000
"""Most users who are remembered as hanging; the oldest are forgotten first."""

_NO_ANSWER: Final = frozenset({"unreachable", "timeout", "apply_failed"})
"""Reasons of outcomes that do not show that the storage host works."""


@dataclass(slots=True)
class Down:
    """A storage host that is down."""

    reason: Reason
    why: str
    since: float
    """As ``time.time``: when a run found it down."""
    pause: float
    due: float
    """As ``time.monotonic``: when the next user may try."""
    failures: int = 0
    """Runs in succession that found it down."""

    @property
    def left(self) -> float:
        """Seconds until the next user may try."""
        return self.due - time.monotonic()


@dataclass(slots=True)
class _Hung:
    since: float
    until: float = 0.0
    """As ``time.monotonic``; 0 for a user who has not been tried alone."""


class Health:
    """Kept as long as the hub runs: a few hundred bytes for each storage host and each user who hangs."""

    def __init__(self) -> None:
        self._down: dict[str, Down] = {}
        self._hung: dict[UserKey, _Hung] = {}
        self._answered: dict[str, float] = {}
        """As ``time.monotonic``: when a storage host last had an answer for one of its users."""

    def down(self, host: str) -> Down | None:
        """Return what is known of a storage host that is down, None for one that is up."""
        return self._down.get(host)

    def rests(self, host: str) -> bool:
        """Whether that storage host is in a pause: no user may try it now."""
        down = self._down.get(host)
        return down is not None and down.left > 0

    def refusal(self, host: str) -> AnsibleBootstrapError:
        """Return what to answer for a storage host that is down."""
        down = self._down[host]
        return BY_REASON[down.reason](
            f"storage host {host} has been down since {_clock(down.since)}: {down.why}; the first user who comes after "
            f"{_clock(time.time() + down.left)} is its next try: check that it runs and that its disk answers"
        )

    def hangs(self, place: Place) -> bool:
        """Whether this user's next try is to be a run of that user alone."""
        return user_key(place) in self._hung

    def held(self, place: Place) -> DeadlineError | None:
        """Return why this user is refused at once, None if the user is not."""
        hung = self._hung.get(user_key(place))
        if hung is None or (left := hung.until - time.monotonic()) <= 0:
            return None
        return DeadlineError(
            f"the storage of {place.name} on {place.storage_host} has not answered since {_clock(hung.since)}, nor in "
            "a run of its own: look there for a mount in the directory that hangs, and end it; the next spawn after "
            f"{_clock(time.time() + left)} tries again, `ansible-bootstrap run {place.name}` at once"
        )

    def suspect(self, user: UserKey) -> None:
        """That user was not ready in time."""
        self._hung.setdefault(user, _Hung(time.time()))
        if len(self._hung) > MAX_HUNG:
            del self._hung[next(iter(self._hung))]

    def answers(self, place: Place) -> None:
        """The user's storage works, or has at least said what is wrong."""
        self._hung.pop(user_key(place), None)
        self._answered[place.storage_host] = time.monotonic()

    def learn(self, run: Run) -> Down | None:
        """Draw the conclusions from a run that has ended.

        Returns:
            What is known of the storage host, if the run found it down.
        """
        record = run.record
        host, outcomes = record.storage_host, record.outcomes
        if any(outcome.reason not in _NO_ANSWER for outcome in outcomes[: run.said]):
            self._back(host)
            return None
        reasons = {outcome.reason for outcome in outcomes}
        early = run.said < len(outcomes) and not run.hung and "timeout" in reasons
        if record.abandoned or early or not outcomes or not reasons <= {"unreachable", "timeout"}:
            return None
        unreachable = "unreachable" in reasons
        if not unreachable:
            if len(run.names) == 1 and run.operation == "bootstrap":
                (name,) = run.names
                self.suspect((host, name))
                self._hung[host, name].until = time.monotonic() + HOLD_SECONDS
            answered = self._answered.get(host, -math.inf) > time.monotonic() - record.seconds
            if host not in self._down and (len(run.names) == 1 or run.said or answered):
                return None
        why = record.error or outcomes[-1].message
        down = self._down.setdefault(host, Down("timeout", why, time.time(), FIRST_PAUSE, 0.0))
        if unreachable and down.failures:
            down.pause = min(2 * down.pause, LONGEST_PAUSE)
        down.reason, down.why = "unreachable" if unreachable else "timeout", why[:500]
        down.due = time.monotonic() + down.pause
        down.failures += 1
        return down

    def _back(self, host: str) -> None:
        down = self._down.pop(host, None)
        if down is not None:
            self._hung = {
                user: hung for user, hung in self._hung.items() if user[0] != host or hung.since <= down.since
            }


def _clock(when: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when))
