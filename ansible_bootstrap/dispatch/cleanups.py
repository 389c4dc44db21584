"""Clean-ups that wait: parked until their user has no server any more, then due until a run takes them.

A clean-up takes away what a spawn needs, so it gives way: the user's next spawn withdraws it, and runs for those
who wait go first. But not for ever: one that has been due for :data:`PATIENCE_SECONDS` is overdue, and the
dispatcher lets it go next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from ansible_bootstrap.dispatch.job import JobKey
from ansible_bootstrap.place import Place

MAX_CLEANUPS: Final = 20_000
"""Most users whose clean-ups wait; beyond, they are dropped: a clean-up is tried again at the next stop."""

PATIENCE_SECONDS: Final = 300.0
"""For which a clean-up that is due lets all others go first."""

FORGET_SECONDS: Final = 5.0
"""For forgetting, before a clean-up begins, that its users are complete."""

RETRY_SECONDS: Final = 60.0
"""Until a clean-up that could not begin is due again."""

Active = Callable[[], bool]
"""Whether the user has an active server."""


@dataclass(eq=False, slots=True)
class Cleanup:
    """One that is due."""

    place: Place
    active: Active
    since: float


@dataclass(eq=False, slots=True)
class _Parked:
    """Clean-ups of one user that wait for their delay, or for the user's last server to stop."""

    places: dict[JobKey, Place] = field(default_factory=dict)
    active: Active = bool
    timer: asyncio.TimerHandle | None = None


async def nothing_to_forget(places: Sequence[Place]) -> None:
    """For those who remember nobody."""


class Cleanups:
    """The clean-ups that wait, on all storage hosts. All methods are called on one event loop.

    Args:
        log: for the admin.
        delay: seconds in which further clean-ups join the same run.
        keep: called with each clean-up that waits from now on, and with None once it no longer does.
        forget: awaited with the places of a clean-up before it begins.
        on_due: called with the storage host that has one more that is due.
    """

    def __init__(
        self,
        log: logging.Logger,
        delay: float,
        keep: Callable[[JobKey, Place | None], None],
        forget: Callable[[Sequence[Place]], Awaitable[None]],
        on_due: Callable[[str], None],
    ) -> None:
        self._log = log
        self._delay = delay
        self._keep = keep
        self._forget = forget
        self._on_due = on_due
        self._parked: dict[tuple[str, str], _Parked] = {}
        self._due: dict[str, dict[JobKey, Cleanup]] = {}

    def add(self, place: Place, active: Active) -> None:
        """Park a clean-up until its delay is over and the user has no active server."""
        who = (place.storage_host, place.name)
        if who not in self._parked and len(self._parked) + sum(map(len, self._due.values())) >= MAX_CLEANUPS:
            self._log.warning("ansible_bootstrap: too many clean-ups wait; one is dropped")
            return
        parked = self._parked.setdefault(who, _Parked())
        parked.places[place.job_key] = place
        parked.active = active
        self._wake(who, parked, self._next_end_of_delay())
        self._keep(place.job_key, place)

    def restore(self, places: Iterable[Place], active: Callable[[str], bool]) -> None:
        """Take over what an earlier hub has left, but for what waits already."""
        for place in places:
            if self.waits(place):
                continue
            parked = self._parked.get((place.storage_host, place.name))
            if parked is not None:
                parked.places[place.job_key] = place
            else:
                self.add(place, partial(active, place.name))

    def withdraw(self, place: Place) -> Active | None:
        """The user is back: what has not begun does not begin.

        Returns:
            For :meth:`add`, should the server not start after all; None if nothing was withdrawn.
        """
        key = place.job_key
        withdrawn: Active | None = None
        if (cleanup := self._pop_due(place.storage_host, key)) is not None:
            withdrawn = cleanup.active
        who = (place.storage_host, place.name)
        if (parked := self._parked.get(who)) is not None:
            if parked.places.pop(key, None) is not None:
                withdrawn = parked.active
            if not parked.places:
                if parked.timer is not None:
                    parked.timer.cancel()
                del self._parked[who]
        return withdrawn

    def waits(self, place: Place) -> bool:
        """Whether this very clean-up is still to come."""
        parked = self._parked.get((place.storage_host, place.name))
        return place.job_key in self._due.get(place.storage_host, {}) or (
            parked is not None and place.job_key in parked.places
        )

    def settled(self, place: Place) -> None:
        """It is done, or needless; unless it has been asked for again meanwhile, there is nothing to keep."""
        if not self.waits(place):
            self._keep(place.job_key, None)

    def is_due(self, host: str) -> bool:
        """Whether that storage host has any to be done now."""
        return host in self._due

    def is_overdue(self, host: str) -> bool:
        """Whether that storage host has any that has let others go first for long enough."""
        oldest = next(iter(self._due.get(host, {}).values()), None)
        return oldest is not None and self._now() - oldest.since >= PATIENCE_SECONDS

    def take(self, host: str, most: int, but: Collection[str] = ()) -> dict[JobKey, Cleanup]:
        """Take those that have waited longest out, for a run; may be none after all.

        Args:
            host: the storage host.
            most: so many.
            but: not those of users of these names.
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
        """Have the users of these forgotten: nobody may be known as complete once their clean-up has begun.

        Returns:
            False if that could not be done, and they wait again.
        """
        forgetting = asyncio.ensure_future(self._forget_all(cleanups))
        try:
            await asyncio.wait({forgetting}, timeout=FORGET_SECONDS)
            if forgetting.done():
                forgetting.result()
                return True
            why = f"no answer within {FORGET_SECONDS:g} s"
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        finally:
            forgetting.add_done_callback(_retrieve)
            forgetting.cancel()
        self._log.warning(
            "ansible_bootstrap: the clean-up of %d users is put off, for they cannot be made unknown: %s",
            len(cleanups),
            why,
        )
        self.put_back(cleanups)
        return False

    def put_back(self, cleanups: Iterable[Cleanup]) -> None:
        """Let those that a run has taken wait again, for :data:`RETRY_SECONDS`."""
        for cleanup in cleanups:
            who = (cleanup.place.storage_host, cleanup.place.name)
            if who not in self._parked:
                self._wake(who, self._park(cleanup), self._now() + RETRY_SECONDS)
            else:
                self._park(cleanup)

    def count(self) -> int:
        """Return how many wait, parked or due."""
        due = sum(map(len, self._due.values()))
        return due + sum(len(parked.places) for parked in self._parked.values())

    # -- inner --------------------------------------------------------------------------------

    async def _forget_all(self, cleanups: Collection[Cleanup]) -> None:
        await self._forget([cleanup.place for cleanup in cleanups])

    def _park(self, cleanup: Cleanup) -> _Parked:
        who = (cleanup.place.storage_host, cleanup.place.name)
        parked = self._parked.setdefault(who, _Parked(active=cleanup.active))
        parked.places.setdefault(cleanup.place.job_key, cleanup.place)
        return parked

    def _wake(self, who: tuple[str, str], parked: _Parked, when: float) -> None:
        if parked.timer is not None:
            parked.timer.cancel()
        parked.timer = asyncio.get_running_loop().call_at(when, self._fall_due, who)

    def _fall_due(self, who: tuple[str, str]) -> None:
        parked = self._parked[who]
        if parked.active():
            return  # The stop of that server asks again.
        del self._parked[who]
        now = self._now()
        due = self._due.setdefault(who[0], {})
        for key, place in parked.places.items():
            since = due[key].since if key in due else now
            due[key] = Cleanup(place, parked.active, since)
        self._on_due(who[0])

    def _pop_due(self, host: str, key: JobKey) -> Cleanup | None:
        due = self._due.get(host, {})
        cleanup = due.pop(key, None)
        if not due:
            self._due.pop(host, None)
        return cleanup

    def _next_end_of_delay(self) -> float:
        """After one to two delays: all who stop within the same delay are due at the same moment."""
        now = self._now()
        return (now // self._delay + 2) * self._delay if self._delay > 0 else now

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _retrieve(future: asyncio.Future[None]) -> None:
    """Asyncio complains of exceptions that nobody looked at."""
    if not future.cancelled():
        future.exception()
