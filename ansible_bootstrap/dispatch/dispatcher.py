"""Bring waiting users and runs together. Pure asyncio: knows neither JupyterHub nor Ansible.

A *job* is one user's directory on one storage host that is to be made ready; *waiters* are the spawns that wait for it.
Each storage host has one ordinary run under way at most; users who wait when it ends go into the next. So there is
no delay to gather a batch when nothing runs, and the batches grow by themselves when much does, up to
what the storage host does in about ten seconds (``batch_size.py``).

A user who hangs delays nobody else. A user who is not ready in time in a run of several is tried once more in a *lone*
run, beside the storage host's ordinary one; a run that gives no sign takes that place, if it is free. A
storage host that is down answers at once, but for one user at a time who tries (``health.py``). A run that gives no
sign takes no slot from other storage hosts; lone runs and those that try have slots of their own (``Slots``).

Nobody shares a future: each waiter has its own, so that one who cancels takes nobody along. (In a hub a
CancelledError that reaches another spawn's hook leaves a server that is "ready" and does not exist;
ref: ``User.spawn`` in jupyterhub/user.py catches ``Exception`` only.)

Clean-up uses the same queue per host, so it never overlaps the bootstrap of the same directory. Spawns go
first, for somebody waits for them; then logins (``queue.py``), then clean-ups (``cleanups.py``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from ansible_bootstrap.dispatch.batch_size import TARGET_SECONDS, TrackRecord
from ansible_bootstrap.dispatch.cleanups import Cleanup, Cleanups, nothing_to_forget
from ansible_bootstrap.dispatch.health import Health
from ansible_bootstrap.dispatch.job import NOTHING_DONE, Job, JobKey, Say, Spawn, Waiter
from ansible_bootstrap.dispatch.loop_share import Turnstile, loop_has_time
from ansible_bootstrap.dispatch.queue import HostQueue
from ansible_bootstrap.dispatch.run import Client, Run, Slots
from ansible_bootstrap.errors import AnsibleBootstrapError, ApplyError, DeadlineError
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import Operation, Outcome, RoleFingerprint
from ansible_bootstrap.run_record import RunRecord

MAX_LOGINS: Final = 20_000
"""Most logins that wait; beyond, they are left to the spawn."""

CROWD: Final = 4
"""Times ``max_runs``: most runs at once, with those that give no sign."""

TICK_SECONDS: Final = 1.0
"""Between two looks at which runs give no sign."""


class Dispatcher:
    """Brings waiting users and runs together. All methods are called on one event loop.

    Args:
        client: starts runs.
        log: for the admin.
        batch_size: most users in one run.
        run_limit: seconds that one run may take.
        run_target: seconds that one run should take.
        check: only predict (``mode = "observe"``).
        diff: log what differs.
        cleanup_delay: seconds in which further clean-ups join the same run.
        max_runs: most runs at once that give signs of life, over all hosts.
        tries: runs in succession that find a storage host down, after which those who wait for it are answered.
        record: called with each run that has ended; must not block.
        complete: called with each user who has been bootstrapped (not: checked), the fingerprints of all roles
            as of that run, and the time (as ``time.monotonic``) as of which that is known; must not block.
        forget: awaited with the places of a clean-up before it begins. If it fails, or takes longer than
            five seconds, the clean-up is put off.
        keep: called with each clean-up that waits from now on, and with None once it no longer does, for a hub
            that is killed; must not block.
    """

    def __init__(
        self,
        client: Client,
        log: logging.Logger,
        *,
        batch_size: int = 500,
        run_limit: float = 120.0,
        run_target: float = TARGET_SECONDS,
        check: bool = False,
        diff: bool = False,
        cleanup_delay: float = 5.0,
        max_runs: int = 4,
        tries: int = 1,
        record: Callable[[RunRecord], None] = lambda record: None,
        complete: Callable[[Place, Outcome, Sequence[RoleFingerprint], float], None] = lambda *done: None,
        forget: Callable[[Sequence[Place]], Awaitable[None]] = nothing_to_forget,
        keep: Callable[[JobKey, Place | None], None] = lambda key, place: None,
    ) -> None:
        self._client = client
        self._log = log
        self._run_limit = run_limit
        self._check = check
        self._diff = diff
        self._tries = tries
        self._slots = Slots(max_runs, (CROWD - 1) * max_runs)
        self._few_slots = Slots((max_runs + 1) // 2, max_runs)
        """For lone runs, and those on storage hosts that are down."""
        self._record = record
        self._complete = complete
        self._cleanups = Cleanups(log, cleanup_delay, keep, forget, self._cleanup_due)
        self._track_record = TrackRecord(batch_size, run_target)
        self._health = Health()
        self._hosts: dict[str, HostQueue] = {}
        """Those that have something to do."""
        self._ready: dict[str, HostQueue] = {}
        """Hosts that could start a run, the longest waiting first."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.TimerHandle | None = None
        self._turnstile = Turnstile()
        self._pump_scheduled = False
        self._too_many_logins = False
        self._closed = False

    # -- spawns and logins --------------------------------------------------------------------

    async def wait(
        self,
        place: Place,
        *,
        timeout: float,  # noqa: ASYNC109
        on_progress: Say,
        done: Mapping[str, str] = NOTHING_DONE,
    ) -> Outcome:
        """Return what became of bootstrapping this place.

        Args:
            place: whose storage, and where.
            timeout: seconds after which the caller stops waiting.
            on_progress: shows a sentence to the student.
            done: roles that the user is known to have, with the fingerprint at which they got them: left out where
                all who share the run have them.

        Raises:
            DeadlineError: no outcome within ``timeout``, or the user's storage hangs and nothing was started.
            AnsibleBootstrapError: the run itself failed, and with it everybody in it without an outcome; or the
                storage host is down and nothing was started.
        """
        waiter = Spawn(asyncio.get_running_loop().create_future(), on_progress, done, self._turnstile)
        host, job = self.enter(place, waiter)
        withdrawn = self._cleanups.withdraw(place)
        ready = False
        try:
            await asyncio.wait({waiter.future}, timeout=timeout)
            match waiter.answer:
                case None:
                    for run in host.runs:
                        run.late = run.late or run.jobs.get(place.job_key) is job
                    raise DeadlineError(f"{place.name} was not ready within {timeout:g} s")
                case AnsibleBootstrapError() as error:
                    raise error
                case outcome:
                    ready = outcome.status == "ok"
                    return outcome
        finally:
            again = self._cleanups.withdraw(place) or withdrawn
            if ready:
                self._cleanups.settled(place)  # Not earlier: a hub may be killed while we wait.
            elif again is not None:
                self._cleanups.add(place, again)  # No server starts, so none will stop and ask for it again.
            waiter.future.cancel()
            host.leave(job, waiter)
            self._drop_if_idle(host)

    def enter(self, place: Place, waiter: Waiter, looked: float | None = None) -> tuple[HostQueue, Job]:
        """Let somebody wait for the bootstrap of this place; returns at once.

        Args:
            place: whose storage, and where.
            waiter: is told what becomes of it.
            looked: when what it knows of the user was looked up, as ``time.monotonic``; now, if it does not say.

        Raises:
            AnsibleBootstrapError: the storage host is down, or the user's storage hangs.
        """
        host = self._host(place.storage_host)
        refusal = self._refusal(host, place)
        if refusal is not None:
            self._drop_if_idle(host)
            raise refusal
        job = host.join(place, waiter, alone=self._health.hangs(place))
        job.looked = min(job.looked, looked or job.looked)
        self._offer(host)
        return host, job

    def prepare(self, place: Place, done: Mapping[str, str] = NOTHING_DONE) -> None:
        """Begin the job of a user who has logged in, for whom nobody waits yet; returns at once.

        A spawn that comes meanwhile joins the job. Whatever goes wrong is a line in the log.

        Args:
            place: whose storage, and where.
            done: as for :meth:`wait`.
        """
        logins = sum(len(host.logins) for host in self._hosts.values())
        if logins >= MAX_LOGINS:
            if not self._too_many_logins:
                self._log.warning("ansible_bootstrap: too many logins wait; the others are left to the spawn")
            self._too_many_logins = True
            return
        self._too_many_logins = self._too_many_logins and logins > MAX_LOGINS // 2
        host = self._host(place.storage_host)
        # A user who hangs is left to the spawn.
        if not self._health.hangs(place) and self._refusal(host, place) is None and host.prepare(place, done):
            self._offer(host)
        self._drop_if_idle(host)

    def claim_untouched(self, place: Place) -> bool:
        """A server starts without a run, for its user is known to be complete; withdraw the clean-up that waits.

        Returns:
            False if a clean-up of that user has begun there: wait for it, and be bootstrapped anew.
        """
        host = self._hosts.get(place.storage_host)
        if host is not None and host.is_cleaned(place):
            return False
        if self._cleanups.withdraw(place) is not None:
            self._cleanups.settled(place)
        return True

    def waiting(self) -> dict[str, tuple[int, float]]:
        """Return by storage host how many jobs wait for a run, and for how many seconds the oldest has."""
        return {name: host.waiting() for name, host in self._hosts.items() if host.waiting()[0]}

    # -- clean-ups ----------------------------------------------------------------------------

    def cleanup(self, place: Place, active: Callable[[], bool]) -> None:
        """Clean up after a server has stopped, a little later; returns at once.

        Args:
            place: whose storage, and where.
            active: whether the user has an active server when the time comes; if so, the clean-up waits
                until the next call for this user, which the stop of that server makes.
        """
        self._cleanups.add(place, active)

    def restore(self, places: Iterable[Place], active: Callable[[str], bool]) -> None:
        """Take over what an earlier hub has left to be cleaned up.

        Args:
            places: as ``keep`` was told.
            active: whether the user of that name has an active server.
        """
        runs = (run for host in self._hosts.values() for run in host.runs)
        under_way = {key for run in runs for key in run.jobs}
        self._cleanups.restore((place for place in places if place.job_key not in under_way), active)

    def waiting_cleanups(self) -> int:
        """Return how many clean-ups wait, for their time or for a run."""
        return self._cleanups.count()

    def _cleanup_due(self, name: str) -> None:
        self._offer(self._host(name))

    # -- runs ---------------------------------------------------------------------------------

    def _host(self, name: str) -> HostQueue:
        return self._hosts.setdefault(name, HostQueue(name))

    def _refusal(self, host: HostQueue, place: Place) -> AnsibleBootstrapError | None:
        """Return what to answer whoever comes now, None if they may wait."""
        if host.has(place):
            return None
        if (held := self._health.held(place)) is not None:
            return held
        down = self._health.down(host.name)
        if down is None or down.failures < self._tries:
            return None
        if self._health.hangs(place):
            taken = bool(host.lone or host.alone)
        else:
            taken = bool(host.run or host.spawns or host.logins)
        return self._health.refusal(host.name) if taken or down.left > 0 else None

    def _has_work(self, host: HostQueue) -> bool:
        return bool(host.spawns or host.logins or host.alone) or self._cleanups.is_due(host.name)

    def _drop_if_idle(self, host: HostQueue) -> None:
        busy = host.busy or host.lone is not None
        if not (busy or self._has_work(host)) and self._hosts.get(host.name) is host:
            del self._hosts[host.name]
            self._ready.pop(host.name, None)

    def _offer(self, host: HostQueue) -> None:
        """The host may have something to run; who joins before the loop's next turn joins that run."""
        if not host.busy and self._has_work(host):
            self._ready.setdefault(host.name, host)
        if (self._ready or host.alone) and not self._pump_scheduled and not self._closed:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._scheduled_pump)

    def _scheduled_pump(self) -> None:
        self._pump_scheduled = False
        if not self._closed:
            self._pump()

    def _pump(self) -> None:
        while (host := self._next_ready()) is not None:
            del self._ready[host.name]
            host.run = self._next_run(host)
            if host.run is None:
                self._drop_if_idle(host)
                continue
            host.tell_the_others()
            self._launch(host, host.run, self._slots_for(host.name))
        while self._few_slots.free and (lonely := self._next_lonely()) is not None:
            host, job = lonely
            del host.alone[job.place.job_key]
            host.lone = self._flight(host, "bootstrap", {job.place.job_key: job})
            self._launch(host, host.lone, self._few_slots)

    def _launch(self, host: HostQueue, run: Run, slots: Slots) -> None:
        loop = asyncio.get_running_loop()
        slots.take(run)
        task = loop.create_task(self._see_through(host, run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._ticker is None:
            self._ticker = loop.call_later(TICK_SECONDS, self._tick)

    def _slots_for(self, name: str) -> Slots:
        return self._slots if self._health.down(name) is None else self._few_slots

    def _next_ready(self) -> HostQueue | None:
        """Return the host that has waited longest, one where somebody waits before all others."""
        hosts = [
            host
            for name, host in self._ready.items()
            if not self._health.rests(name) and self._slots_for(name).free
        ]
        urgent = (host for host in hosts if host.spawns or self._cleanups.is_overdue(host.name))
        return next(urgent, hosts[0] if hosts else None)

    def _next_lonely(self) -> tuple[HostQueue, Job] | None:
        """Return who goes into the next lone run, the one who has waited longest."""
        waiting = (
            (host, job)
            for name, host in self._hosts.items()
            if not self._health.rests(name) and (job := host.next_alone()) is not None
        )
        return min(waiting, key=lambda one: one[1].since, default=None)

    def _tick(self) -> None:
        """Runs that give no sign make way: in the slots, and on their storage host."""
        self._ticker = None
        for host in list(self._hosts.values()):
            run = host.run
            if run is not None and host.lone is None and run.quiet:
                host.run, host.lone = None, run
            self._offer(host)
        if self._tasks and not self._closed:
            self._ticker = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def _give_way(self, host: HostQueue, run: Run) -> None:
        """The run is over: its slot is another's."""
        self._slots.give_back(run)
        self._few_slots.give_back(run)
        if host.lone is run:
            host.lone = None
        else:
            host.run = None
            host.resting = True
        self._offer(host)

    def _rested(self, host: HostQueue) -> None:
        host.resting = False
        self._offer(host)
        self._drop_if_idle(host)

    def _next_run(self, host: HostQueue) -> Run | None:
        """Take as many as a run may have: those who wait, else what is to be cleaned up.

        A clean-up that is overdue goes first, but not twice in a row while somebody waits.
        """
        somebody = bool(host.spawns or host.logins)
        overdue = self._cleanups.is_overdue(host.name) and not host.cleaned_last
        down = self._health.down(host.name) is not None
        cleanups: dict[JobKey, Cleanup] = {}
        if overdue or not somebody:
            most = 1 if down else self._track_record.batch(host.name, "cleanup")
            elsewhere = host.lone.names if host.lone is not None else ()
            cleanups = self._cleanups.take(host.name, most, but=elsewhere)
        host.cleaned_last = bool(cleanups)
        if cleanups:
            jobs = {key: Job(cleanup.place) for key, cleanup in cleanups.items()}
            host.doubt({job.place.name for job in jobs.values()})
            return self._flight(host, "cleanup", jobs, cleanups)
        jobs = host.take_batch(1 if down else self._track_record.batch(host.name, "bootstrap"))
        return self._flight(host, "bootstrap", jobs) if jobs else None

    def _flight(
        self,
        host: HostQueue,
        operation: Operation,
        jobs: dict[JobKey, Job],
        cleanups: dict[JobKey, Cleanup] | None = None,
    ) -> Run:
        return Run(
            operation,
            host.name,
            jobs,
            check=self._check,
            diff=self._diff,
            log=self._log,
            settled=self._settled,
            cleanups=cleanups,
        )

    async def _see_through(self, host: HostQueue, run: Run) -> None:
        try:
            try:
                if run.operation == "bootstrap" or await self._cleanups.may_begin(run.cleanups.values()):
                    await self._begin(host, run)
            finally:
                self._give_way(host, run)
            # Spawns that another run releases queue behind those that this one has released.
            if host.resting:
                await loop_has_time()
        except asyncio.CancelledError:
            self._closed = True  # Only a hub that ends cancels us: start nothing more.
            raise
        finally:
            self._rested(host)

    async def _begin(self, host: HostQueue, run: Run) -> None:
        if len(run.jobs) == 1 or self._health.down(host.name) is None:
            await self._carry_out(host, run)
            return
        # It was found down between the boarding and now: one user tries, not all of these.
        run.error = self._health.refusal(host.name)
        run.conclude()
        self._cleanups.put_back(run.cleanups.values())
        self._call(self._record, run.record)

    async def _carry_out(self, host: HostQueue, run: Run) -> None:
        try:
            await run.carry_out(self._client, self._run_limit)
        except asyncio.CancelledError:
            run.error = ApplyError("interrupted")
            raise
        except AnsibleBootstrapError as error:
            run.error = error
        except Exception as error:
            self._log.exception("ansible_bootstrap: a run failed unexpectedly")
            run.error = ApplyError(f"unexpected {type(error).__name__}: {error}")
        finally:
            run.conclude()
            self._track_record.learn(run)
            self._learn(host, run)
            self._call(self._record, run.record)

    def _learn(self, host: HostQueue, run: Run) -> None:
        was_down = self._health.down(host.name) is not None
        down = self._health.learn(run)
        if down is None:
            if was_down and self._health.down(host.name) is None:
                self._log.warning("ansible_bootstrap: storage host %s is back", host.name)
            return
        if not was_down:
            self._log.warning("ansible_bootstrap: storage host %s is down: %s", host.name, down.why)
        self._cleanups.put_back(run.cleanups.values())
        if down.failures >= self._tries:
            refusal = self._health.refusal(host.name)
            for job in host.drain():
                job.fail(type(refusal), refusal.details)
        else:
            host.spawns |= host.alone  # It was not they who hung.
            host.alone.clear()
        asyncio.get_running_loop().call_later(max(0.0, down.left) + 0.01, self._wake, host.name)

    def _wake(self, name: str) -> None:
        """What has waited for a storage host that is down may try."""
        if (host := self._hosts.get(name)) is not None:
            self._offer(host)

    def _settled(self, run: Run, job: Job, outcome: Outcome) -> bool:
        key, place = job.place.job_key, job.place
        if run.operation == "cleanup":
            # Silence is not an outcome, and who could not be reached has none either: the next hub tries again.
            if outcome.reason != "unreachable":
                run.cleanups.pop(key, None)
                self._cleanups.settled(place)
            return False
        if outcome.status == "ok" and not self._check:
            self._call(self._complete, place, outcome, run.fingerprints, run.since)
        if outcome.reason != "timeout":
            if outcome.reason != "unreachable":
                self._health.answers(place)
            return False
        self._health.suspect(place)
        if len(run.names) == 1:
            return False
        host = self._hosts[run.record.storage_host]
        if run.abandoned or not job.wanted or host.has(place):
            return False
        host.alone[key] = job
        return True

    def _call(self, callback: Callable[..., None], *values: Any) -> None:
        """Tell somebody, whose failure is not that of those who wait."""
        try:
            callback(*values)
        except Exception:
            self._log.exception("ansible_bootstrap: what a run has done could not be noted")

    async def close(self) -> None:
        """End the runs under way, and start nothing more."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)  # Bounded: a run that is cancelled has ``SHUTDOWN_SECONDS``.
