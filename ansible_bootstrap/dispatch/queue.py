"""The jobs that wait on one storage host, and the order in which its next run takes them.

There are three classes: spawns; logins (jobs begun so that they are done when the student presses Start); and
clean-ups, which are kept in ``cleanups.py``. A run takes waiting spawns, first come first served, and fills up with
logins. A login whose user presses Start becomes a spawn, behind those that wait already; if that spawn is cancelled,
it is a login again.

Beside its ordinary run a storage host may have a *lone* one, for a user whose storage hangs; no user is in both.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

from ansible_bootstrap.dispatch import sentences
from ansible_bootstrap.dispatch.job import NOTHING_DONE, Job, JobKey, Spawn, Waiter
from ansible_bootstrap.dispatch.run import Run
from ansible_bootstrap.place import Place


class HostQueue:
    """The jobs of one storage host, and its runs under way.

    Args:
        name: of the host.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.run: Run | None = None
        """The ordinary run."""
        self.lone: Run | None = None
        """A run that hangs, or the run of a user who may hang."""
        self.spawns: dict[JobKey, Job] = {}
        """Jobs with waiters, the oldest first."""
        self.logins: dict[JobKey, Job] = {}
        """Jobs without waiters yet."""
        self.alone: dict[JobKey, Job] = {}
        """Jobs that wait for a lone run, the oldest first."""
        self.cleaned_last = False
        """Whether the last run was a clean-up."""

    @property
    def runs(self) -> list[Run]:
        """The runs under way, two at most."""
        return [run for run in (self.run, self.lone) if run is not None]

    @property
    def lone_names(self) -> Collection[str]:
        """The users of the lone run: they may not be in the ordinary one."""
        return self.lone.names if self.lone is not None else ()

    @property
    def jobs(self) -> list[Job]:
        """All that wait."""
        return [job for jobs in (self.spawns, self.alone, self.logins) for job in jobs.values()]

    def has(self, place: Place) -> bool:
        """Whether the job of this place waits, or is under way."""
        jobs = (self.spawns, self.logins, self.alone, *(run.jobs for run in self.runs))
        return any(place.job_key in some for some in jobs)

    def join(self, place: Place, waiter: Waiter, *, alone: bool) -> Job:
        """Add a waiter to the job of this place, under way or waiting; if there is none, it begins.

        Args:
            place: the user's storage.
            waiter: waits for the outcome.
            alone: whether the job is to have a run of its own.
        """
        key = place.job_key
        if (under_way := self._under_way(place, waiter.done)) is not None:
            under_way.join(waiter, key)
            return under_way.jobs[key]
        cleaned = self.is_cleaned(place)
        if cleaned:
            waiter.done = NOTHING_DONE  # What was known of the user is about to go.
        waiting = self.alone if alone or key in self.alone else self.spawns
        job = waiting.get(key)
        if job is None:
            known = next((jobs.pop(key) for jobs in (self.spawns, self.logins) if key in jobs), None)
            job = waiting[key] = known or Job(place)
            job.since = time.monotonic()
        if job.place != place:
            job.doubt()  # It was of another place.
            job.place = place  # What the spawner said last is right.
        job.waiters.append(waiter)
        if cleaned:
            waiter.say(sentences.AFTER_CLEANUP, 0.0)
        elif waiting is self.spawns and self.run is not None and (behind := self._behind(job)):
            job.behind = behind
            waiter.say(sentences.behind(behind), 0.0)
        return job

    def leave(self, job: Job, waiter: Spawn) -> None:
        """Take a waiter out of its job, with an outcome or without."""
        job.waiters.remove(waiter)
        key = job.place.job_key
        if not job.waiters and self.spawns.get(key) is job:
            del self.spawns[key]
            if job.login is not None:
                self.logins[key] = job
        if not job.wanted and self.alone.get(key) is job:
            del self.alone[key]
        for run in self.runs:
            run.abandon_if_unwanted()

    def prepare(self, place: Place, done: Mapping[str, str]) -> bool:
        """Begin the job of a login.

        Returns:
            False if there is nothing to add: the job waits already, or is under way.
        """
        key = place.job_key
        if key in self.spawns or key in self.alone or self._under_way(place, done) is not None:
            return False
        if self.is_cleaned(place):
            done = NOTHING_DONE
        if (job := self.logins.get(key)) is not None:
            job.place, job.login, job.looked = place, done, time.monotonic()
            return False
        self.logins[key] = Job(place, login=done)
        return True

    def take_batch(self, most: int) -> dict[JobKey, Job]:
        """Take out the jobs of the next ordinary run: spawns, and logins if there is room."""
        batch: dict[JobKey, Job] = {}
        for waiting in (self.spawns, self.logins):
            for key, job in list(waiting.items()):
                if len(batch) == most:
                    break
                if job.place.name not in self.lone_names:
                    batch[key] = waiting.pop(key)
        return batch

    def next_alone(self) -> Job | None:
        """Return the job of the next lone run, if one may begin now."""
        if self.lone is not None:
            return None
        elsewhere = self.run.names if self.run is not None else ()
        return next((job for job in self.alone.values() if job.place.name not in elsewhere), None)

    def make_way(self) -> None:
        """Let the next run begin beside one that gives no sign, unless there is a lone run already."""
        if self.run is not None and self.run.quiet and self.lone is None:
            self.run, self.lone = None, self.run

    def ended(self, run: Run) -> None:
        """A run is over."""
        if self.lone is run:
            self.lone = None
        else:
            self.run = None

    def drain(self) -> list[Job]:
        """Take out all jobs that wait."""
        jobs = self.jobs
        for waiting in (self.spawns, self.alone, self.logins):
            waiting.clear()
        return jobs

    def doubt(self, names: Collection[str]) -> None:
        """A clean-up of these users begins: what was known of them is so no longer, in whichever directory."""
        for job in self.jobs:
            if job.place.name in names:
                job.doubt()

    def tell_the_others(self) -> None:
        """Tell users left behind by a full run how many come before them."""
        under_way = len(self.run.jobs) if self.run is not None else 0
        for ahead, job in enumerate(self.spawns.values()):
            if (behind := under_way + ahead) and behind != job.behind:
                job.behind = behind
                job.say(sentences.behind(behind))

    def is_cleaned(self, place: Place) -> bool:
        """Whether a clean-up of that user is under way, even if of a directory by another name."""
        return any(run.operation == "cleanup" and place.name in run.names for run in self.runs)

    def waiting(self) -> tuple[int, float]:
        """Return how many jobs wait, and for how many seconds the oldest has."""
        sinces = [job.since for job in self.jobs]
        return len(sinces), max(0.0, time.monotonic() - min(sinces)) if sinces else 0.0

    def _behind(self, job: Job) -> int:
        """Return how many users come before this job, which waits behind a run."""
        under_way = len(self.run.jobs) if self.run is not None else 0
        if next(reversed(self.spawns.values())) is job:
            return under_way + len(self.spawns) - 1
        return under_way + list(self.spawns.values()).index(job)

    def _under_way(self, place: Place, done: Mapping[str, str]) -> Run | None:
        """Return the run that does the job of this place, unless it leaves out what this user needs done."""
        for run in self.runs:
            job = run.jobs.get(place.job_key)
            bootstraps = run.operation == "bootstrap" and not run.abandoned
            if bootstraps and job and job.place == place and run.done.items() <= done.items():
                return run
        return None
