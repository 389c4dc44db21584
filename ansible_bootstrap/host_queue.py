"""Who waits on one storage host, and in which order they board its next run.

Three classes: spawns that somebody waits for, logins (work begun so that it is done when the student presses Start),
and clean-ups, which are kept in ``cleanups.py``. A run takes waiting spawns, first come first served, and fills up
with logins. A login whose user presses Start becomes a spawn, with the place in the order of one who has just come;
if that spawn is cancelled, it is a login again.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from itertools import islice

from . import sentences
from .flights import Flight
from .places import Place
from .works import NOTHING_DONE, Waiter, Work, WorkKey


class HostQueue:
    """The works of one storage host, and its run in flight.

    Args:
        name: of the host.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.flight: Flight | None = None
        self.resting = False
        """Whether its last run has just landed, and the next has to wait until the hub has time."""
        self.spawns: dict[WorkKey, Work] = {}
        """Those that somebody waits for, the oldest first."""
        self.logins: dict[WorkKey, Work] = {}
        """Those that nobody waits for yet."""
        self.cleaned_last = False
        """Whether the last run that boarded was a clean-up."""

    @property
    def busy(self) -> bool:
        """Whether no run may begin here now."""
        return self.flight is not None or self.resting

    def join(self, place: Place, waiter: Waiter) -> Work:
        """Take a spawn into the work of this place, in flight or waiting, which begins with it if there is none."""
        key = place.work_key
        flying = self._flying(place, waiter.done)
        if flying is not None and self.flight is not None:
            self.flight.join(waiter, flying)
            return flying
        cleaned = self.is_cleaned(place)
        if cleaned:
            waiter.done = NOTHING_DONE  # What was known of the user is about to go.
        work = self.spawns.get(key)
        if work is None:
            work = self.spawns[key] = self.logins.pop(key) if key in self.logins else Work(place)
            work.since = time.monotonic()
        if work.place != place:
            work.doubt()  # It was of another place.
            work.place = place  # What the spawner said last is right.
        work.waiters.append(waiter)
        if cleaned:
            waiter.say(sentences.AFTER_CLEANUP, 0.0)
        elif self.flight is not None and (behind := len(self.flight.works) + self._ahead(work)):
            work.behind = behind
            waiter.say(sentences.behind(behind), 0.0)
        return work

    def leave(self, work: Work, waiter: Waiter) -> None:
        """One who waited does so no longer, with an outcome or without."""
        work.waiters.remove(waiter)
        key = work.place.work_key
        if not work.waiters and self.spawns.get(key) is work:
            del self.spawns[key]
            if work.login is not None:
                self.logins[key] = work
        if self.flight is not None:
            self.flight.abandon_if_unwanted()

    def prepare(self, place: Place, done: Mapping[str, str]) -> bool:
        """Take a login in.

        Returns:
            False if there is nothing to add: the work waits already, or is in flight.
        """
        key = place.work_key
        if key in self.spawns or self._flying(place, done) is not None:
            return False
        if self.is_cleaned(place):
            done = NOTHING_DONE
        work = self.logins.get(key)
        if work is not None:
            work.place, work.login, work.looked = place, done, time.time()
            return False
        self.logins[key] = Work(place, login=done)
        return True

    def board(self, most: int) -> dict[WorkKey, Work]:
        """Take out who goes into the next run: spawns, and logins if there is room."""
        boarded: dict[WorkKey, Work] = {}
        for waiting in (self.spawns, self.logins):
            for key in list(islice(waiting, most - len(boarded))):
                boarded[key] = waiting.pop(key)
        return boarded

    def doubt(self, names: Collection[str]) -> None:
        """A clean-up of these users begins: what was known of them is so no longer, in whichever directory."""
        if names:
            for waiting in (self.spawns, self.logins):
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
        return (
            self.flight is not None and self.flight.operation == "cleanup" and place.name in self.flight.names
        )

    def waiting(self) -> tuple[int, float]:
        """Return how many works wait, and for how many seconds the oldest has."""
        sinces = [work.since for works in (self.spawns, self.logins) for work in works.values()]
        return len(sinces), max(0.0, time.monotonic() - min(sinces)) if sinces else 0.0

    def _flying(self, place: Place, done: Mapping[str, str]) -> Work | None:
        """Return the work of this place in flight, unless that run leaves out what this user needs done."""
        flight = self.flight
        if flight is None or flight.operation != "bootstrap" or flight.abandoned:
            return None
        work = flight.works.get(place.work_key)
        fits = work is not None and work.place == place and flight.done.items() <= done.items()
        return work if fits else None

    def _ahead(self, work: Work) -> int:
        if next(reversed(self.spawns.values())) is work:
            return len(self.spawns) - 1
        return list(self.spawns.values()).index(work)
