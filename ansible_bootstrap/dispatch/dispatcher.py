"""Bring waiting users and runs together. Pure asyncio: knows neither JupyterHub nor Ansible.

A *job* is one user's directory on one storage host that is to be made ready; *waiters* are the spawns that wait for it.
Each storage host has one ordinary run under way at most; users waiting when it ends go into the next. So there is
no delay to gather a batch when nothing runs, and the batches grow by themselves when much does, up to
what the storage host does in about ten seconds (``batch_size.py``).

A user who hangs delays no other user. A user who is not ready in time in a run of several is tried once more in a
*lone* run, beside the storage host's ordinary one; an ordinary run that gives no sign becomes the lone one, if there is
none. Users of a storage host that is down are answered at once, but for one at a time who tries (``health.py``). A run
that gives no sign takes no slot from other storage hosts; lone runs and runs that try a host have slots of their own
(``Slots``).

Waiters do not share a future: each has its own, so that a spawn that is cancelled takes no other along. (In a hub a
CancelledError that reaches another spawn's hook leaves a server that is "ready" and does not exist;
ref: ``User.spawn`` in jupyterhub/user.py catches ``Exception`` only.)

Clean-up uses the same queue per host, so it never overlaps the bootstrap of the same directory. Spawns go first, for
students wait for them; then logins (``queue.py``), then clean-ups (``cleanups.py``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final

from ansible_bootstrap.dispatch.batch_size import TARGET_SECONDS, TrackRecord
from ansible_bootstrap.dispatch.cleanups import Active, Cleanups
from ansible_bootstrap.dispatch.health import Health
from ansible_bootstrap.dispatch.job import NOTHING_DONE, Job, Say, Spawn, Waiter, user_key
from ansible_bootstrap.dispatch.observer import Observer, tell
from ansible_bootstrap.dispatch.queue import HostQueue
from ansible_bootstrap.dispatch.run import Client, Run, Slots
from ansible_bootstrap.dispatch.turnstile import Turnstile
from ansible_bootstrap.errors import AnsibleBootstrapError, ApplyError, DeadlineError
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import Outcome

MAX_LOGINS: Final = 20_000
"""Most logins that wait; any more are left to the spawn."""

CROWD: Final = 4
"""Times ``max_runs``: most runs at once, runs that give no sign among them."""

TICK_SECONDS: Final = 1.0
"""Between two looks at which runs give no sign, and which storage hosts may be tried again."""


class Dispatcher:
    """Brings waiting users and runs together. All methods are called on one event loop.

    Args:
        client: starts runs.
        log: for the admin.
        observer: is told what runs have done.
        batch_size: most users in one run.
        run_limit: seconds that one run may take.
        run_target: seconds that one run should take.
        check: only predict (``mode = "observe"``).
        diff: log what differs.
        cleanup_delay: seconds in which further clean-ups join the same run.
        max_runs: most runs at once that give signs of life, over all hosts.
        tries: runs in succession that find a storage host down, after which the users who wait for it are answered.
    """

    def __init__(
        self,
        client: Client,
        log: logging.Logger,
        observer: Observer | None = None,
        *,
        batch_size: int = 500,
        run_limit: float = 120.0,
        run_target: float = TARGET_SECONDS,
        check: bool = False,
        diff: bool = False,
        cleanup_delay: float = 5.0,
        max_runs: int = 4,
        tries: int = 1,
    ) -> None:
        self.health = Health()
        self._client = client
        self._log = log
        self._observer = observer or Observer()
        self._run_limit = run_limit
        self._check = check
        self._tries = tries
        self._make_run = partial(Run, check=check, diff=diff, log=log, settled=self._settled)
        self._slots = Slots(max_runs, (CROWD - 1) * max_runs)
        self._few_slots = Slots((max_runs + 1) // 2, max_runs)
        """For lone runs, and those on storage hosts that are down."""
        self._cleanups = Cleanups(
            log, cleanup_delay, self._observer, lambda name: self._offer(self._host(name))
        )
        self._track_record = TrackRecord(batch_size, run_target)
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
            place: the user's storage.
            timeout: seconds after which the caller stops waiting.
            on_progress: shows a sentence to the student.
            done: roles that the user is known to have, with the fingerprint at which they got them: left out if all
                users of the run have them.

        Raises:
            DeadlineError: no outcome within ``timeout``, or the user's storage hangs and nothing was started.
            AnsibleBootstrapError: the run itself failed, and with it all its users without an outcome; or the
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
        """Add a waiter for the bootstrap of this place; returns at once.

        Args:
            place: the user's storage.
            waiter: is told what becomes of it.
            looked: when ``waiter.done`` was looked up, as ``time.monotonic``; None is now.

        Raises:
            AnsibleBootstrapError: the storage host is down, or the user's storage hangs.
        """
        host = self._host(place.storage_host)
        refusal = self._refusal(host, place)
        if refusal is not None:
            self._drop_if_idle(host)
            raise refusal
        job = host.join(place, waiter, alone=self.health.hangs(place))
        job.looked = min(job.looked, looked or job.looked)
        self._offer(host)
        return host, job

    def prepare(self, place: Place, done: Mapping[str, str] = NOTHING_DONE) -> None:
        """Begin the job of a user who has logged in, before there is a spawn; returns at once.

        A spawn that comes meanwhile joins the job. Whatever goes wrong is a line in the log.

        Args:
            place: the user's storage.
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
        if not self.health.hangs(place) and self._refusal(host, place) is None and host.prepare(place, done):
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

    # -- clean-ups ----------------------------------------------------------------------------

    def cleanup(self, place: Place, active: Active) -> None:
        """Clean up after a server has stopped, a little later; returns at once.

        Args:
            place: the user's storage.
            active: whether the user has an active server when the time comes; if so, the clean-up waits
                until the next call for this user, which the stop of that server makes.
        """
        self._cleanups.add(place, active)

    def restore(self, places: Iterable[Place], active: Callable[[str], bool]) -> None:
        """Take over what an earlier hub has left to be cleaned up.

        Args:
            places: that the observer was told of.
            active: whether the user of that name has an active server.
        """
        runs = (run for host in self._hosts.values() for run in host.runs)
        under_way = {key for run in runs for key in run.jobs}
        self._cleanups.restore((place for place in places if place.job_key not in under_way), active)

    # -- what there is to do ------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing is under way, and nothing could begin: clean-ups may be parked."""
        return not (self._hosts or self._ready or self._tasks)

    @property
    def running(self) -> int:
        """How many runs are under way, or about to begin."""
        return len(self._tasks)

    @property
    def hosts(self) -> list[str]:
        """The storage hosts that have a run under way, or jobs or due clean-ups that wait."""
        return list(self._hosts)

    def waiting(self) -> dict[str, tuple[int, float]]:
        """Return by storage host how many jobs wait for a run, and for how many seconds the oldest has."""
        waiting = {name: host.waiting() for name, host in self._hosts.items()}
        return {name: said for name, said in waiting.items() if said[0]}

    def waiting_cleanups(self) -> int:
        """Return how many clean-ups wait, for their time or for a run."""
        return self._cleanups.parked + self._cleanups.due

    @property
    def due_cleanups(self) -> int:
        """How many clean-ups wait for a run only."""
        return self._cleanups.due

    def tick(self) -> None:
        """Let runs that give no sign make way, in the slots and on their storage host; offer all hosts a run."""
        for host in list(self._hosts.values()):
            host.make_way()
            self._offer(host)

    # -- which run is next --------------------------------------------------------------------

    def _host(self, name: str) -> HostQueue:
        if self._ticker is None:
            self._tick_later()
        return self._hosts.setdefault(name, HostQueue(name))

    def _tick_later(self) -> None:
        self._ticker = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._ticker = None
        self.tick()
        if self._hosts and not self._closed:
            self._tick_later()

    def _refusal(self, host: HostQueue, place: Place) -> AnsibleBootstrapError | None:
        """Return why a user may not wait here now, None if the user may."""
        if host.has(place):
            return None
        if (held := self.health.held(place)) is not None:
            return held
        down = self.health.down(host.name)
        if down is None or down.failures < self._tries:
            return None
        if self.health.hangs(place):
            taken = bool(host.lone or host.alone)
        else:
            taken = bool(host.run or host.spawns or host.logins)
        return self.health.refusal(host.name) if taken or down.left > 0 else None

    def _has_work(self, host: HostQueue) -> bool:
        return bool(host.spawns or host.logins or host.alone) or self._cleanups.is_due(host.name)

    def _drop_if_idle(self, host: HostQueue) -> None:
        if not (host.runs or self._has_work(host)) and self._hosts.get(host.name) is host:
            del self._hosts[host.name]
            self._ready.pop(host.name, None)

    def _offer(self, host: HostQueue) -> None:
        """The host may have something to run; a user who comes before the loop's next turn joins that run."""
        if host.run is None and self._has_work(host):
            self._ready.setdefault(host.name, host)
        if (self._ready or host.alone) and not self._pump_scheduled:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Begin all runs that may begin now."""
        self._pump_scheduled = False
        if self._closed:
            return
        while (host := self._next_ready()) is not None:
            del self._ready[host.name]
            host.run = self._next_run(host)
            if host.run is None:
                self._drop_if_idle(host)
                continue
            host.tell_the_others()
            self._begin(host, host.run, self._slots_for(host.name))
        while self._few_slots.free and (lonely := self._next_lonely()) is not None:
            host, job = lonely
            del host.alone[job.place.job_key]
            host.lone = self._make_run("bootstrap", host.name, {job.place.job_key: job})
            self._begin(host, host.lone, self._few_slots)

    def _slots_for(self, name: str) -> Slots:
        return self._slots if self.health.down(name) is None else self._few_slots

    def _next_ready(self) -> HostQueue | None:
        """Return the host that has waited longest, one with waiting spawns before all others."""
        hosts = [
            host
            for name, host in self._ready.items()
            if not self.health.rests(name) and self._slots_for(name).free
        ]
        urgent = (host for host in hosts if host.spawns or self._cleanups.is_overdue(host.name))
        return next(urgent, hosts[0] if hosts else None)

    def _next_lonely(self) -> tuple[HostQueue, Job] | None:
        """Return the job of the next lone run, the one that has waited longest, and its host."""
        waiting = (
            (host, job)
            for name, host in self._hosts.items()
            if not self.health.rests(name) and (job := host.next_alone()) is not None
        )
        return min(waiting, key=lambda one: one[1].since, default=None)

    def _next_run(self, host: HostQueue) -> Run | None:
        """Make a run of the jobs that wait, else of the clean-ups that are due; None if there are none after all.

        A clean-up that is overdue goes first, but not twice in a row while jobs wait.
        """
        down = self.health.down(host.name) is not None
        overdue = self._cleanups.is_overdue(host.name) and not host.cleaned_last
        host.cleaned_last = False
        if overdue or not (host.spawns or host.logins):
            most = 1 if down else self._track_record.batch(host.name, "cleanup")
            if cleanups := self._cleanups.take(host.name, most, but=host.lone_names):
                host.cleaned_last = True
                host.doubt({cleanup.place.name for cleanup in cleanups.values()})
                jobs = {key: Job(cleanup.place) for key, cleanup in cleanups.items()}
                return self._make_run("cleanup", host.name, jobs, cleanups=cleanups)
        batch = host.take_batch(1 if down else self._track_record.batch(host.name, "bootstrap"))
        return self._make_run("bootstrap", host.name, batch) if batch else None

    # -- one run ------------------------------------------------------------------------------

    def _begin(self, host: HostQueue, run: Run, slots: Slots) -> None:
        slots.take(run)
        task = asyncio.get_running_loop().create_task(self._see_through(host, run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _see_through(self, host: HostQueue, run: Run) -> None:
        try:
            if run.operation == "bootstrap" or await self._cleanups.may_begin(run.cleanups.values()):
                await self._carry_out(host, run)
        except asyncio.CancelledError:
            self._closed = True  # Only a hub that ends cancels us: start nothing more.
            raise
        finally:
            self._slots.give_back(run)
            self._few_slots.give_back(run)
            host.ended(run)
            self._offer(host)
            self._drop_if_idle(host)

    async def _carry_out(self, host: HostQueue, run: Run) -> None:
        if len(run.jobs) > 1 and self.health.down(host.name) is not None:
            # The host was found down since the run was made: one user tries, not all of these.
            run.error = self.health.refusal(host.name)
            self._cleanups.put_back(run.cleanups.values())
            self._conclude(run)
            return
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
            self._conclude(run)
            self._track_record.learn(run)
            self._learn(host, run)

    def _conclude(self, run: Run) -> None:
        run.conclude()
        tell(self._log, self._observer.run_ended, run.record)

    def _learn(self, host: HostQueue, run: Run) -> None:
        """Take note of whether the run found its storage host down; if so, answer or keep the jobs that wait for it."""
        was_down = self.health.down(host.name) is not None
        down = self.health.learn(run)
        if down is None:
            if was_down and self.health.down(host.name) is None:
                self._log.warning("ansible_bootstrap: storage host %s is back", host.name)
            return
        if not was_down:
            self._log.warning("ansible_bootstrap: storage host %s is down: %s", host.name, down.why)
        self._cleanups.put_back(run.cleanups.values())
        if down.failures >= self._tries:
            refusal = self.health.refusal(host.name)
            for job in host.drain():
                job.fail(type(refusal), refusal.details)
        else:
            host.spawns |= host.alone  # It was the host that hung, not these users.
            host.alone.clear()

    def _settled(self, run: Run, job: Job, outcome: Outcome) -> bool:
        """Take an outcome of a run; return whether the job's waiters wait on, for a lone run."""
        key, place = job.place.job_key, job.place
        if run.operation == "cleanup":
            # Neither silence nor a host that was not reached settles a clean-up: the next hub tries again.
            if outcome.reason != "unreachable":
                run.cleanups.pop(key, None)
                self._cleanups.settled(place)
            return False
        if outcome.status == "ok" and not self._check:
            tell(self._log, self._observer.user_completed, place, outcome, run.fingerprints, run.since)
        if outcome.reason != "timeout":
            if outcome.reason != "unreachable":
                self.health.answers(place)
            return False
        self.health.suspect(user_key(place))
        host = self._hosts[run.record.storage_host]
        if len(run.names) == 1 or run.abandoned or not job.wanted or host.has(place):
            return False
        host.alone[key] = job
        return True

    async def close(self) -> None:
        """End the runs under way, and start nothing more."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)  # Bounded: a run that is cancelled has ``SHUTDOWN_SECONDS``.
