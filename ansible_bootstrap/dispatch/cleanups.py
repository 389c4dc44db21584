"""Clean-ups that wait: *parked* until their user has no server any more, then *due* until a run takes them.

A clean-up takes away what a spawn needs, so it gives way: the user's next spawn withdraws it, and runs for waiting
users go first. But not for ever: a clean-up that has been due for :data:`PATIENCE_SECONDS` is overdue, and the
dispatcher lets it go next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from ansible_bootstrap.dispatch.job import JobKey, UserKey, user_key
from ansible_bootstrap.dispatch.observer import Observer, tell
from ansible_bootstrap.place import Place

MAX_CLEANUPS: Final = 20_000
"""Most clean-ups that wait; any more are dropped: a clean-up is tried again at the user's next stop."""

PATIENCE_SECONDS: Final = 300.0
"""For which a clean-up that is due lets all others go first."""

FORGET_SECONDS: Final = 5.0
"""For the observer's ``before_cleanup``."""

RETRY_SECONDS: Final = 60.0
"""Until a clean-up that could not begin is due again."""

Active = Callable[[], bool]
"""Whether the user has an active server."""


@dataclass(eq=False, slots=True)
class Cleanup:
    """A clean-up that is due."""

    place: Place
    active: Active
    since: float
    """As ``loop.time``: when it fell due first."""


@dataclass(eq=False, slots=True)
class _Parked:
    """Clean-ups of one user that wait for their delay, or for the user's last server to stop."""

    active: Active
    places: dict[JobKey, Place] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None


class Cleanups:
    """The clean-ups that wait, on all storage hosts. All methods are called on one event loop.

    Args:
        log: for the admin.
        delay: seconds in which further clean-ups join the same run.
        observer: is told what waits, and what begins.
        on_due: called with a storage host that has one more clean-up that is due.
    """

    def __init__(
        self, log: logging.Logger, delay: float, observer: Observer, on_due: Callable[[str], None]
    ) -> None:
        self._log = log
        self._delay = delay
        self._observer = observer
        self._on_due = on_due
        self._parked: dict[UserKey, _Parked] = {}
        self._due: dict[str, dict[JobKey, Cleanup]] = {}

    @property
    def parked(self) -> int:
        """How many are parked."""
        return sum(len(parked.places) for parked in self._parked.values())

    @property
    def due(self) -> int:
        """How many are due."""
        return sum(map(len, self._due.values()))

    def add(self, place: Place, active: Active) -> None:
        """Park a clean-up until its delay is over and the user has no active server."""
        user = user_key(place)
        if user not in self._parked and len(self._parked) + self.due >= MAX_CLEANUPS:
            self._log.warning("ansible_bootstrap: too many clean-ups wait; one is dropped")
            return
        parked = self._parked.setdefault(user, _Parked(active))
        parked.places[place.job_key] = place
        parked.active = active
        self._wake(user, self._next_end_of_delay())
        tell(self._log, self._observer.cleanup_asked, place)

    def restore(self, places: Iterable[Place], active: Callable[[str], bool]) -> None:
        """Take over what an earlier hub has left, but for what waits already."""
        for place in places:
            if self.waits(place):
                continue
            if (parked := self._parked.get(user_key(place))) is not None:
                parked.places[place.job_key] = place
            else:
                self.add(place, partial(active, place.name))

    def withdraw(self, place: Place) -> Active | None:
        """The user is back: what has not begun does not begin.

        Returns:
            For :meth:`add`, should the server not start after all; None if nothing was withdrawn.
        """
        key, user = place.job_key, user_key(place)
        due = self._pop_due(place.storage_host, key)
        withdrawn = due.active if due is not None else None
        if (parked := self._parked.get(user)) is not None:
            if parked.places.pop(key, None) is not None:
                withdrawn = parked.active
            if not parked.places:
                if parked.timer is not None:
                    parked.timer.cancel()
                del self._parked[user]
        return withdrawn

    def waits(self, place: Place) -> bool:
        """Whether this very clean-up is still to come."""
        key, parked = place.job_key, self._parked.get(user_key(place))
        return key in self._due.get(place.storage_host, {}) or (parked is not None and key in parked.places)

    def settled(self, place: Place) -> None:
        """A clean-up is done, or needless; the observer is told unless it has been asked for again meanwhile."""
        if not self.waits(place):
            tell(self._log, self._observer.cleanup_settled, place)

    def is_due(self, host: str) -> bool:
        """Whether that storage host has a clean-up to be done now."""
        return host in self._due

    def is_overdue(self, host: str) -> bool:
        """Whether a clean-up on that storage host has let others go first for long enough."""
        oldest = next(iter(self._due.get(host, {}).values()), None)
        return oldest is not None and self._now() - oldest.since >= PATIENCE_SECONDS

    def take(self, host: str, most: int, but: Collection[str] = ()) -> dict[JobKey, Cleanup]:
        """Take out, for a run, the clean-ups that have waited longest; may be none after all.

        Args:
            host: the storage host.
            most: at most so many.
            but: names of users whose clean-ups stay.
        """
        taken: dict[JobKey, Cleanup] = {}
        for key, cleanup in list(self._due.get(host, {}).items()):
            if len(taken) == most:
                break
            if cleanup.place.name in but:
                continue
            self._pop_due(host, key)
            if cleanup.active():  # By now, with another server.
                self._park(cleanup)
            else:
                taken[key] = cleanup
        return taken

    async def may_begin(self, cleanups: Collection[Cleanup]) -> bool:
        """Ask the observer: no user may be known as complete once a clean-up has begun.

        Returns:
            False if the observer failed or gave no answer; the clean-ups wait again.
        """
        try:
            async with asyncio.timeout(FORGET_SECONDS):
                await self._observer.before_cleanup([cleanup.place for cleanup in cleanups])
            return True
        except TimeoutError:
            why = f"no answer within {FORGET_SECONDS:g} s"
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        self._log.warning(
            "ansible_bootstrap: the clean-up of %d users is put off, for they cannot be made unknown: %s",
            len(cleanups),
            why,
        )
        self.put_back(cleanups)
        return False

    def put_back(self, cleanups: Iterable[Cleanup]) -> None:
        """Let clean-ups that a run has taken wait again, for :data:`RETRY_SECONDS`."""
        for cleanup in cleanups:
            is_parked = user_key(cleanup.place) in self._parked
            self._park(cleanup)
            if not is_parked:
                self._wake(user_key(cleanup.place), self._now() + RETRY_SECONDS)

    # -- inner --------------------------------------------------------------------------------

    def _park(self, cleanup: Cleanup) -> None:
        parked = self._parked.setdefault(user_key(cleanup.place), _Parked(cleanup.active))
        parked.places.setdefault(cleanup.place.job_key, cleanup.place)

    def _wake(self, user: UserKey, when: float) -> None:
        parked = self._parked[user]
        if parked.timer is not None:
            parked.timer.cancel()
        parked.timer = asyncio.get_running_loop().call_at(when, self._fall_due, user)

    def _fall_due(self, user: UserKey) -> None:
        parked = self._parked[user]
        if parked.active():
            return  # The stop of that server asks again.
        del self._parked[user]
        host, now = user[0], self._now()
        due = self._due.setdefault(host, {})
        for key, place in parked.places.items():
            since = due[key].since if key in due else now
            due[key] = Cleanup(place, parked.active, since)
        self._on_due(host)

    def _pop_due(self, host: str, key: JobKey) -> Cleanup | None:
        due = self._due.get(host, {})
        cleanup = due.pop(key, None)
        if not due:
            self._due.pop(host, None)
        return cleanup

    def _next_end_of_delay(self) -> float:
        """Return a time in one to two delays: clean-ups asked for within the same delay are due at the same moment."""
        now = self._now()
        return (now // self._delay + 2) * self._delay if self._delay > 0 else now

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
