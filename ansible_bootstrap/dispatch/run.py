"""A run under way: its request, what its events tell, and which users are left without an outcome when it ends."""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
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
"""Most time between the look at what is known of a user and the job; usually one millisecond."""

QUIET_SECONDS: Final = 10.0
"""A run without an event for so long may hang."""


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
        storage_host: of all its jobs.
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
        cleanups: Mapping[JobKey, Cleanup] = MappingProxyType({}),
    ) -> None:
        self.operation = operation
        self.jobs = jobs
        """Those without an outcome yet."""
        self.keys = _keys(jobs)
        """All jobs, with or without an outcome, by their user's key in the request."""
        self.names = frozenset(job.place.name for job in jobs.values())
        """Of all users."""
        self.done = done_by_all(jobs.values()) if operation == "bootstrap" else {}
        self.cleanups = dict(cleanups)
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
        """As ``time.monotonic``: when what its outcomes rest on was known; before it began, if it leaves out roles."""
        if self.done:
            self.since = min(self.since, *(job.looked for job in jobs.values())) - LOOK_SECONDS
        self.fingerprints: tuple[RoleFingerprint, ...] = ()
        """Of all roles, as of this run."""
        self.error: AnsibleBootstrapError | None = None
        """Why users without an outcome have none when it ends."""
        self.orderly = False
        """Whether the apply program has ended as it should."""
        self.abandoned = False
        """Whether it was stopped because nobody waited any more."""
        self.late = False
        """Whether a waiter's time ended while it was under way."""
        self.said = 0
        """How many outcomes the run itself has told."""
        self._diff = diff
        self._log = log
        self._settled = settled
        self._began = time.monotonic()
        self._last_sign = math.inf
        """As ``time.monotonic``; a run that has not begun (its clean-up waits for the ledger) is not quiet."""
        self._limit = 0.0
        self._process: Process | None = None
        self._roles: tuple[str, ...] = ()
        self._at_work: tuple[str, float] | None = None
        """The role at work, and since when as ``time.monotonic``: until the next begins, or the run ends."""
        self._shown: tuple[str, float] = ("", 0.0)

    @property
    def quiet(self) -> bool:
        """Whether it has given no sign for so long that it may hang."""
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

    def join(self, waiter: Waiter, key: JobKey) -> None:
        """Add a waiter to one of the jobs, and show where it is."""
        self.jobs[key].waiters.append(waiter)
        if self._shown[0]:
            waiter.say(*self._shown)

    def abandon_if_unwanted(self) -> None:
        """Stop the run if nobody wants what is left of it."""
        wanted = not self.jobs or any(job.wanted for job in self.jobs.values())
        if self.operation == "bootstrap" and not wanted and not self.abandoned:
            self.abandoned = True
            self.record.abandoned = not self.late
            if self._process is not None:
                self._process.stop(self._nobody_waits())

    def conclude(self) -> None:
        """Close the record. A user without an outcome has failed: silence is never success."""
        self._end_role()
        self.record.seconds = time.monotonic() - self._began
        error = self.error or ApplyError("the run ended without an outcome for this user")
        details = f"run {self.record.run}: {error.details or error.message}"
        if self.jobs:
            self.record.error = error.details
            if self.operation == "cleanup":
                self._log.warning("ansible_bootstrap: clean-up of %d users: %s", len(self.jobs), details)
        for name, key in self.keys.items():
            if (job := self.jobs.pop(key, None)) is None:
                continue
            silent = Outcome(
                key=name,
                name=job.place.name,
                status="failed",
                reason=error.reason,
                message=error.details or error.message,
                storage_host=job.place.storage_host,
                directory=job.place.directory or "",
                seconds=round(self.record.seconds, 3),
                run=self.record.run,
            )
            self._note(silent)
            job.fail(BY_REASON[error.reason], details)
        log_run(self._log, self.record)

    # -- events -------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        self._last_sign = time.monotonic()
        match event:
            case Accepted():
                self.record.run = event.run
                self.fingerprints = event.fingerprints
                self._roles = event.roles
            case RoleStarted():
                self._end_role()
                self._at_work = event.role, time.monotonic()
                self._show(event.role, event.users)
            case OutcomeEvent(outcome=outcome):
                self._settle(outcome)
            case Fetched():
                self.record.fetched += event.count
            case Refused():
                self.record.error = event.message
            case End():
                self._end_role()
                self.record.way = event.way
            case _:
                pass

    def _show(self, role: str, users: int) -> None:
        share = self._shown[1]
        if role in self._roles:
            share = max(share, self._roles.index(role) / len(self._roles))
        self._shown = (sentences.at_work(role, users), share)
        for job in self.jobs.values():
            job.say(*self._shown)

    def _end_role(self) -> None:
        if self._at_work is not None:
            role, began = self._at_work
            self._at_work = None
            self.record.roles[role] = self.record.roles.get(role, 0.0) + time.monotonic() - began

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
        if not self.record.abandoned:  # Else it is no failure of the user's.
            log_user(self._log, self.record, outcome)


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
