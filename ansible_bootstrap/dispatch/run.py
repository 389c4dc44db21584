"""A run under way: its request, what its events tell, and which users are left without an outcome when it ends."""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Protocol

from ansible_bootstrap.dispatch import sentences
from ansible_bootstrap.dispatch.cleanups import Cleanup
from ansible_bootstrap.dispatch.job import Job, JobKey, Waiter, done_by_all
from ansible_bootstrap.dispatch.run_log import log_run, log_user
from ansible_bootstrap.dispatch.spare import SpareLostError
from ansible_bootstrap.errors import BY_REASON, AnsibleBootstrapError, ApplyError, DeadlineError
from ansible_bootstrap.protocol import (
    Accepted,
    End,
    Event,
    Fetched,
    Operation,
    Outcome,
    OutcomeEvent,
    Refused,
    Request,
    RoleFingerprint,
    RoleStarted,
)
from ansible_bootstrap.run_record import RunRecord

LOOK_SECONDS: Final = 2.0
"""From the look at what is known of a user to the beginning of the work; usually one millisecond."""

QUIET_SECONDS: Final = 10.0
"""Without an event, after which a run may hang."""


class Process(Protocol):
    """A run of the apply program, as ``client.ApplyRun``."""

    def stop(self, why: AnsibleBootstrapError) -> None:
        """End it; returns at once."""

    async def finish(self) -> None:
        """Return when it has ended well, or raise why not."""


class Client(Protocol):
    """Starts runs, as ``client.ApplyClient``."""

    def start(
        self, request: Request, on_event: Callable[[Event], None], *, limit: float, cold: bool = False
    ) -> Coroutine[Any, Any, Process]:
        """Start one run."""


class Run:
    """One run of one operation on one storage host.

    Args:
        operation: for all its jobs.
        storage_host: where they are.
        jobs: those that it takes.
        check: only predict.
        diff: log what differs.
        log: for the admin.
        settled: called with each job that has an outcome of its own, before its waiters are released; returns whether
            they are to wait on, for another run.
        cleanups: what the jobs are made of, if the operation is ``cleanup``.
    """

    def __init__(
        self,
        operation: Operation,
        storage_host: str,
        jobs: dict[JobKey, Job],
        *,
        check: bool,
        diff: bool = False,
        log: logging.Logger,
        settled: Callable[[Run, Job, Outcome], bool],
        cleanups: dict[JobKey, Cleanup] | None = None,
    ) -> None:
        self.operation = operation
        self.jobs = jobs
        """Those without an outcome yet."""
        self.members = frozenset(jobs)
        """All, with or without an outcome."""
        self.keys = _keys(jobs)
        """The same by their key in the request."""
        self.names = frozenset(job.place.name for job in jobs.values())
        """Of all users."""
        self.done = done_by_all(jobs.values()) if operation == "bootstrap" else {}
        self.cleanups = cleanups or {}
        """Those that are still to be done."""
        self.record = RunRecord(
            run=uuid.uuid4().hex[:12],
            operation=operation,
            storage_host=storage_host,
            started=time.time(),
            users=len(jobs),
            check=check,
        )
        self.since = time.monotonic()
        """By ``time.monotonic``, when what its outcomes rest on was known: if it leaves out roles, before it began."""
        if self.done:
            self.since = min(self.since, *(job.looked for job in jobs.values())) - LOOK_SECONDS
        self.fingerprints: tuple[RoleFingerprint, ...] = ()
        """Of all roles, as of this run."""
        self.error: AnsibleBootstrapError | None = None
        """Why those who have no outcome when it ends have none."""
        self.orderly = False
        """Whether the apply program has ended as it should."""
        self.abandoned = False
        self.late = False
        """Whether somebody gave up waiting while it was under way."""
        self.said = 0
        """How many outcomes the run itself has told."""
        self._diff = diff
        self._log = log
        self._settled = settled
        self._began = time.monotonic()
        self._last_sign = math.inf
        """By ``time.monotonic``; a run that has not begun (its clean-up waits for the ledger) is not quiet."""
        self._limit = 0.0
        self._process: Process | None = None
        self._roles: tuple[str, ...] = ()
        self._clock = RoleClock(self.record)
        self._shown: tuple[str, float] = ("", 0.0)

    @property
    def quiet(self) -> bool:
        """Whether nothing has been heard of it for so long that it may hang."""
        return time.monotonic() - self._last_sign >= QUIET_SECONDS

    @property
    def hung(self) -> bool:
        """Whether it has ended without a sign for long, and had about all the time that a run may have."""
        return self.quiet and self.record.seconds >= 0.9 * self._limit

    async def carry_out(self, client: Client, limit: float) -> None:
        """Run it to its end.

        Args:
            client: starts it.
            limit: seconds that it may take.

        Raises:
            AnsibleBootstrapError: it could not be started, or has not ended as it should.
        """
        self._began = self._last_sign = time.monotonic()
        self._limit = limit
        users = [self.jobs[key].place.user(name).model_dump() for name, key in self.keys.items()]
        request = Request(
            operation=self.operation, users=users, check=self.record.check, diff=self._diff, done=self.done
        )
        try:
            await self._finish(await client.start(request, self._on_event, limit=limit))
        except SpareLostError as error:
            self._log.warning("ansible_bootstrap: the run is started again: %s", error.details)
            await self._finish(await client.start(request, self._on_event, limit=limit, cold=True))
        self.orderly = not self.abandoned

    async def _finish(self, process: Process) -> None:
        self._process = process
        if self.abandoned:
            process.stop(self._nobody_waits())
        await process.finish()

    def join(self, waiter: Waiter, job: Job) -> None:
        """One more waits for a job under way, and is told where it is."""
        job.waiters.append(waiter)
        if self._shown[0]:
            waiter.say(*self._shown)

    def abandon_if_unwanted(self) -> None:
        """Stop the run if nobody wants what is left of it."""
        if (
            self.operation == "bootstrap"
            and self.jobs
            and not self.abandoned
            and not any(job.wanted for job in self.jobs.values())
        ):
            self.abandoned = True
            self.record.abandoned = not self.late
            if self._process is not None:
                self._process.stop(self._nobody_waits())

    def conclude(self) -> None:
        """Close the record. Whoever has no outcome has failed: silence is never success."""
        self._clock.stop()
        self.record.seconds = time.monotonic() - self._began
        error = self.error or ApplyError("the run ended without an outcome for this user")
        details = f"run {self.record.run}: {error.details or error.message}"
        if self.jobs:
            self.record.error = error.details
            if self.operation == "cleanup":
                self._log.warning("ansible_bootstrap: clean-up of %d users: %s", len(self.jobs), details)
        for name, key in self.keys.items():
            job = self.jobs.get(key)
            if job is not None:
                self._note(self._silent(name, job.place.storage_host, error, job))
                job.fail(BY_REASON[error.reason], details)
        self.jobs.clear()
        log_run(self._log, self.record)

    # -- events -------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        self._last_sign = time.monotonic()
        self._clock.take(event)
        match event:
            case Accepted():
                self.record.run = event.run
                self.fingerprints = event.fingerprints
                self._roles = event.roles
            case RoleStarted():
                self._begin_role(event.role, event.users)
            case OutcomeEvent(outcome=outcome):
                self._settle(outcome)
            case Refused():
                self.record.error = event.message
            case _:
                pass

    def _begin_role(self, role: str, users: int) -> None:
        share = self._shown[1]
        if role in self._roles:
            share = max(share, self._roles.index(role) / len(self._roles))
        self._shown = (sentences.at_work(role, users), share)
        for job in self.jobs.values():
            job.say(*self._shown)

    def _settle(self, outcome: Outcome) -> None:
        key = self.keys.get(outcome.key)
        job = self.jobs.get(key) if key else None
        if key is None or job is None or job.place.sent_name != outcome.name:
            self._log.warning("ansible_bootstrap: run %s has an outcome nobody asked for", self.record.run)
            return
        outcome = outcome.model_copy(update={"name": job.place.name})
        del self.jobs[key]
        self._note(outcome)
        self.said += 1
        if not self._settled(self, job, outcome):
            job.settle(outcome)
        self.abandon_if_unwanted()

    def _nobody_waits(self) -> AnsibleBootstrapError:
        if self.late:
            return DeadlineError("nobody waits for the run any more, it took too long")
        return ApplyError("nobody waits for the run any more")

    def _note(self, outcome: Outcome) -> None:
        self.record.outcomes.append(outcome)
        if not self.record.abandoned:  # Else it is no failure of theirs.
            log_user(self._log, self.record, outcome)

    def _silent(self, key: str, host: str, error: AnsibleBootstrapError, job: Job) -> Outcome:
        return Outcome(
            key=key,
            name=job.place.name,
            status="failed",
            reason=error.reason,
            message=error.details or error.message,
            storage_host=host,
            directory=job.place.directory or "",
            seconds=round(self.record.seconds, 3),
            run=self.record.run,
        )


def _keys(jobs: Mapping[JobKey, Job]) -> dict[str, JobKey]:
    keys: dict[str, JobKey] = {}
    for key, job in jobs.items():
        name, number = job.place.name, 2
        while name in keys:  # One user's named servers with a directory each.
            name, number = f"{job.place.name}#{number}", number + 1
        keys[name] = key
    return keys


class Slots:
    """How many runs there may be at once. A run that gives no sign of life takes no slot from the others.

    Args:
        at_work: most runs that give signs of life.
        most: most runs in all.
    """

    def __init__(self, at_work: int, most: int) -> None:
        self._at_work = at_work
        self._most = most
        self._runs: set[Run] = set()

    @property
    def free(self) -> bool:
        """Whether one more may begin."""
        at_work = sum(not run.quiet for run in self._runs)
        return at_work < self._at_work and len(self._runs) < self._most

    def take(self, run: Run) -> None:
        """The run begins."""
        self._runs.add(run)

    def give_back(self, run: Run) -> None:
        """The run is over; without effect on one that has no slot here."""
        self._runs.discard(run)


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
