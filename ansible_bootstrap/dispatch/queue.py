"""Who waits on one storage host, and in which order they board its next run.

Three classes: spawns that somebody waits for, logins (work begun so that it is done when the student presses Start),
and clean-ups, which are kept in ``cleanups.py``. A run takes waiting spawns, first come first served, and fills up
with logins. A login whose user presses Start becomes a spawn, with the place in the order of one who has just come;
if that spawn is cancelled, it is a login again.

Beside its ordinary run a storage host may have a *lone* one, for a user whose storage hangs; no user is in both.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

from ansible_bootstrap.dispatch import sentences
from ansible_bootstrap.dispatch.job import NOTHING_DONE, Spawn, Waiter, Work, WorkKey
from ansible_bootstrap.dispatch.run import Flight
from ansible_bootstrap.place import Place


class HostQueue:
    """The works of one storage host, and its runs in flight.

    Args:
        name: of the host.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.flight: Flight | None = None
        """The ordinary run."""
        self.lone: Flight | None = None
        """A run that hangs, or of a user of whom that is to be feared."""
        self.resting = False
        """Whether its last run has just landed, and the next has to wait until the hub has time."""
        self.spawns: dict[WorkKey, Work] = {}
        """Those that somebody waits for, the oldest first."""
        self.logins: dict[WorkKey, Work] = {}
        """Those that nobody waits for yet."""
        self.alone: dict[WorkKey, Work] = {}
        """Those that wait for a lone run, the oldest first."""
        self.cleaned_last = False
        """Whether the last run that boarded was a clean-up."""

    @property
    def busy(self) -> bool:
        """Whether no ordinary run may begin here now."""
        return self.flight is not None or self.resting

    @property
    def flights(self) -> list[Flight]:
        """The runs in flight, two at most."""
        return [flight for flight in (self.flight, self.lone) if flight is not None]

    def has(self, place: Place) -> bool:
        """Whether the work of this place waits, or is in flight."""
        works = (self.spawns, self.logins, self.alone, *(flight.works for flight in self.flights))
        return any(place.work_key in some for some in works)

    def join(self, place: Place, waiter: Waiter, *, alone: bool = False) -> Work:
        """Take a waiter into the work of this place, in flight or waiting, which begins with it if there is none.

        Args:
            place: whose storage, and where.
            waiter: who waits.
            alone: whether the work is to have a run of its own.
        """
        key = place.work_key
        for flight in self.flights:
            if (flying := _flying(flight, place, waiter.done)) is not None:
                flight.join(waiter, flying)
                return flying
        cleaned = self.is_cleaned(place)
        if cleaned:
            waiter.done = NOTHING_DONE  # What was known of the user is about to go.
        waiting = self.alone if alone or key in self.alone else self.spawns
        work = waiting.get(key)
        if work is None:
            known = next((some.pop(key) for some in (self.spawns, self.logins) if key in some), None)
            work = waiting[key] = known or Work(place)
            work.since = time.monotonic()
        if work.place != place:
            work.doubt()  # It was of another place.
            work.place = place  # What the spawner said last is right.
        work.waiters.append(waiter)
        if cleaned:
            waiter.say(sentences.AFTER_CLEANUP, 0.0)
        elif waiting is self.alone:
            pass
        elif self.flight is not None and (behind := len(self.flight.works) + self._ahead(work)):
            work.behind = behind
            waiter.say(sentences.behind(behind), 0.0)
        return work

    def leave(self, work: Work, waiter: Spawn) -> None:
        """One who waited does so no longer, with an outcome or without."""
        work.waiters.remove(waiter)
        key = work.place.work_key
        if not work.waiters and self.spawns.get(key) is work:
            del self.spawns[key]
            if work.login is not None:
                self.logins[key] = work
        if not work.wanted and self.alone.get(key) is work:
            del self.alone[key]
        for flight in self.flights:
            flight.abandon_if_unwanted()

    def prepare(self, place: Place, done: Mapping[str, str]) -> bool:
        """Take a login in.

        Returns:
            False if there is nothing to add: the work waits already, or is in flight.
        """
        key = place.work_key
        flying = any(_flying(flight, place, done) is not None for flight in self.flights)
        if key in self.spawns or key in self.alone or flying:
            return False
        if self.is_cleaned(place):
            done = NOTHING_DONE
        work = self.logins.get(key)
        if work is not None:
            work.place, work.login, work.looked = place, done, time.monotonic()
            return False
        self.logins[key] = Work(place, login=done)
        return True

    def board(self, most: int) -> dict[WorkKey, Work]:
        """Take out who goes into the next ordinary run: spawns, and logins if there is room."""
        boarded: dict[WorkKey, Work] = {}
        elsewhere = self.lone.names if self.lone is not None else ()
        for waiting in (self.spawns, self.logins):
            for key, work in list(waiting.items()):
                if len(boarded) == most:
                    break
                if work.place.name not in elsewhere:
                    boarded[key] = waiting.pop(key)
        return boarded

    def next_alone(self) -> Work | None:
        """Return who goes into the next lone run, if one may begin now."""
        elsewhere = self.flight.names if self.flight is not None else ()
        waiting = () if self.lone is not None else self.alone.values()
        return next((work for work in waiting if work.place.name not in elsewhere), None)

    def drain(self) -> list[Work]:
        """Take out all who wait."""
        works = [work for waiting in (self.spawns, self.alone, self.logins) for work in waiting.values()]
        for waiting in (self.spawns, self.alone, self.logins):
            waiting.clear()
        return works

    def doubt(self, names: Collection[str]) -> None:
        """A clean-up of these users begins: what was known of them is so no longer, in whichever directory."""
        if names:
            for waiting in (self.spawns, self.logins, self.alone):
                for work in waiting.values():
                    if work.place.name in names:
                        work.doubt()

    def tell_the_others(self) -> None:
        """Say how many come first to those whom a full run has left behind."""
        flying = len(self.flight.works) if self.flight is not None else 0
        for ahead, work in enumerate(self.spawns.values()):
            if (behind := flying + ahead) and behind != work.behind:
                work.behind = behind
                work.say(sentences.behind(behind))

    def is_cleaned(self, place: Place) -> bool:
        """Whether a clean-up of that user is in flight, even if of a directory by another name."""
        return any(flight.operation == "cleanup" and place.name in flight.names for flight in self.flights)

    def waiting(self) -> tuple[int, float]:
        """Return how many works wait, and for how many seconds the oldest has."""
        sinces = [work.since for works in (self.spawns, self.logins, self.alone) for work in works.values()]
        return len(sinces), max(0.0, time.monotonic() - min(sinces)) if sinces else 0.0

    def _ahead(self, work: Work) -> int:
        if next(reversed(self.spawns.values())) is work:
            return len(self.spawns) - 1
        return list(self.spawns.values()).index(work)


def _flying(flight: Flight, place: Place, done: Mapping[str, str]) -> Work | None:
    """Return the work of this place in that run, unless the run leaves out what this user needs done."""
    if flight.operation != "bootstrap" or flight.abandoned:
        return None
    work = flight.works.get(place.work_key)
    fits = work is not None and work.place == place and flight.done.items() <= done.items()
    return work if fits else None
