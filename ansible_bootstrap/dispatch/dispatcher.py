"""Who waits for what, and which run takes them. Pure asyncio: knows neither JupyterHub nor Ansible.

*Work* is one user's directory on one storage host; *waiters* are the spawns that wait for it. Each
storage host has one ordinary run in flight at most; whoever waits when it ends goes into the next. So there is
no delay to gather a batch when nothing runs, and the batches grow by themselves when much does, up to
what the storage host does in about ten seconds (``pace.py``).

Whoever hangs costs only their own. A user who is not ready in time in a run of several is tried once more in a *lone*
run, beside the storage host's ordinary one; a run that gives no sign takes that place, if it is free. A
storage host that is down answers at once, but for one user at a time who tries (``health.py``). A run that gives no
sign takes no slot from other storage hosts; lone runs and those that try have slots of their own (``Slots``).

Nobody shares a future: each waiter has its own, so that one who cancels takes nobody along. (In a hub a
CancelledError that reaches another spawn's hook leaves a server that is "ready" and does not exist;
ref: ``User.spawn`` in jupyterhub/user.py catches ``Exception`` only.)

Clean-up uses the same queue per host, so it never overlaps the bootstrap of the same directory. Spawns board
first, for somebody waits for them; then logins (``host_queue.py``), then clean-ups (``cleanups.py``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from ansible_bootstrap.dispatch.batch_size import TARGET_SECONDS, TrackRecord
from ansible_bootstrap.dispatch.cleanups import Cleanup, Cleanups, nothing_to_forget
from ansible_bootstrap.dispatch.health import Health
from ansible_bootstrap.dispatch.job import NOTHING_DONE, Say, Spawn, Waiter, Work, WorkKey
from ansible_bootstrap.dispatch.loop_share import Turnstile, loop_has_time
from ansible_bootstrap.dispatch.queue import HostQueue
from ansible_bootstrap.dispatch.run import Client, Flight, Slots
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
        keep: Callable[[WorkKey, Place | None], None] = lambda key, place: None,
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
        self._flights: set[asyncio.Task[None]] = set()
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
            RefusedError: the place is not acceptable; nothing was started.
            DeadlineError: no outcome within ``timeout``, or the user's storage hangs and nothing was started.
            AnsibleBootstrapError: the run itself failed, and with it everybody in it without an outcome; or the
                storage host is down and nothing was started.
        """
        waiter = Spawn(asyncio.get_running_loop().create_future(), on_progress, done, self._turnstile)
        host, work = self.enter(place, waiter)
        withdrawn = self._cleanups.withdraw(place)
        ready = False
        try:
            await asyncio.wait({waiter.future}, timeout=timeout)
            match waiter.answer:
                case None:
                    for flight in host.flights:
                        flight.late = flight.late or flight.works.get(place.work_key) is work
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
            host.leave(work, waiter)
            self._drop_if_idle(host)

    def enter(self, place: Place, waiter: Waiter, looked: float | None = None) -> tuple[HostQueue, Work]:
        """Let somebody wait for the bootstrap of this place; returns at once.

        Args:
            place: whose storage, and where.
            waiter: is told what becomes of it.
            looked: when what it knows of the user was looked up, as ``time.monotonic``; now, if it does not say.

        Raises:
            RefusedError: the place is not acceptable.
            AnsibleBootstrapError: the storage host is down, or the user's storage hangs.
        """
        place.user()
        host = self._host(place.storage_host)
        refusal = self._refusal(host, place)
        if refusal is not None:
            self._drop_if_idle(host)
            raise refusal
        work = host.join(place, waiter, alone=self._health.hangs(place))
        work.looked = min(work.looked, looked or work.looked)
        self._offer(host)
        return host, work

    def prepare(self, place: Place, done: Mapping[str, str] = NOTHING_DONE) -> None:
        """Begin the work of somebody who has logged in, for whom nobody waits yet; returns at once.

        A spawn that comes meanwhile joins the work. Whatever goes wrong is a line in the log.

        Args:
            place: whose storage, and where.
            done: as for :meth:`wait`.
        """
        try:
            place.user()
        except AnsibleBootstrapError as error:
            self._log.warning("ansible_bootstrap: nothing is prepared at login: %s", error.details)
            return
        logins = sum(len(host.logins) for host in self._hosts.values())
        if logins >= MAX_LOGINS:
            if not self._too_many_logins:
                self._log.warning("ansible_bootstrap: too many logins wait; the others are left to the spawn")
            self._too_many_logins = True
            return
        self._too_many_logins = self._too_many_logins and logins > MAX_LOGINS // 2
        host = self._host(place.storage_host)
        # One who hangs is left to the spawn, for whom somebody waits.
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
        """Return by storage host how many works wait for a run, and for how many seconds the oldest has."""
        return {name: host.waiting() for name, host in self._hosts.items() if host.waiting()[0]}

    # -- clean-ups ----------------------------------------------------------------------------

    def cleanup(self, place: Place, active: Callable[[], bool]) -> None:
        """Clean up after a server has stopped, a little later; returns at once.

        Args:
            place: whose storage, and where.
            active: whether the user has an active server when the time comes; if so, the clean-up waits
                until the next call for this user, which the stop of that server makes.

        Raises:
            RefusedError: the place is not acceptable.
        """
        place.user()
        self._cleanups.add(place, active)

    def restore(self, places: Iterable[Place], active: Callable[[str], bool]) -> None:
        """Take over what an earlier hub has left to be cleaned up.

        Args:
            places: as ``keep`` was told.
            active: whether the user of that name has an active server.
        """
        flights = (flight for host in self._hosts.values() for flight in host.flights)
        flying = {key for flight in flights for key in flight.works}
        self._cleanups.restore((place for place in places if place.work_key not in flying), active)

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
            taken = bool(host.flight or host.spawns or host.logins)
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
            host.flight = self._board(host)
            if host.flight is None:
                self._drop_if_idle(host)
                continue
            host.tell_the_others()
            self._launch(host, host.flight, self._slots_for(host.name))
        while self._few_slots.free and (lonely := self._next_lonely()) is not None:
            host, work = lonely
            del host.alone[work.place.work_key]
            host.lone = self._flight(host, "bootstrap", {work.place.work_key: work})
            self._launch(host, host.lone, self._few_slots)

    def _launch(self, host: HostQueue, flight: Flight, slots: Slots) -> None:
        loop = asyncio.get_running_loop()
        slots.take(flight)
        task = loop.create_task(self._fly(host, flight))
        self._flights.add(task)
        task.add_done_callback(self._flights.discard)
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

    def _next_lonely(self) -> tuple[HostQueue, Work] | None:
        """Return who goes into the next lone run, the one who has waited longest."""
        waiting = (
            (host, work)
            for name, host in self._hosts.items()
            if not self._health.rests(name) and (work := host.next_alone()) is not None
        )
        return min(waiting, key=lambda one: one[1].since, default=None)

    def _tick(self) -> None:
        """Runs that give no sign make way: in the slots, and on their storage host."""
        self._ticker = None
        for host in list(self._hosts.values()):
            flight = host.flight
            if flight is not None and host.lone is None and flight.quiet:
                host.flight, host.lone = None, flight
            self._offer(host)
        if self._flights and not self._closed:
            self._ticker = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def _landed(self, host: HostQueue, flight: Flight) -> None:
        """The run is over: its place in the air is another host's."""
        self._slots.give_back(flight)
        self._few_slots.give_back(flight)
        if host.lone is flight:
            host.lone = None
        else:
            host.flight = None
            host.resting = True
        self._offer(host)

    def _rested(self, host: HostQueue) -> None:
        host.resting = False
        self._offer(host)
        self._drop_if_idle(host)

    def _board(self, host: HostQueue) -> Flight | None:
        """Take as many as a run may have: those who wait, else what is to be cleaned up.

        A clean-up that is overdue goes first, but not twice in a row while somebody waits.
        """
        somebody = bool(host.spawns or host.logins)
        overdue = self._cleanups.is_overdue(host.name) and not host.cleaned_last
        down = self._health.down(host.name) is not None
        cleanups: dict[WorkKey, Cleanup] = {}
        if overdue or not somebody:
            most = 1 if down else self._track_record.batch(host.name, "cleanup")
            elsewhere = host.lone.names if host.lone is not None else ()
            cleanups = self._cleanups.take(host.name, most, but=elsewhere)
        host.cleaned_last = bool(cleanups)
        if cleanups:
            works = {key: Work(cleanup.place) for key, cleanup in cleanups.items()}
            host.doubt({work.place.name for work in works.values()})
            return self._flight(host, "cleanup", works, cleanups)
        works = host.board(1 if down else self._track_record.batch(host.name, "bootstrap"))
        return self._flight(host, "bootstrap", works) if works else None

    def _flight(
        self,
        host: HostQueue,
        operation: Operation,
        works: dict[WorkKey, Work],
        cleanups: dict[WorkKey, Cleanup] | None = None,
    ) -> Flight:
        return Flight(
            operation,
            host.name,
            works,
            check=self._check,
            diff=self._diff,
            log=self._log,
            settled=self._settled,
            cleanups=cleanups,
        )

    async def _fly(self, host: HostQueue, flight: Flight) -> None:
        try:
            try:
                if flight.operation == "bootstrap" or await self._cleanups.may_begin(
                    flight.cleanups.values()
                ):
                    await self._begin(host, flight)
            finally:
                self._landed(host, flight)
            # Whom another run releases only queues behind those whom this one has released.
            if host.resting:
                await loop_has_time()
        except asyncio.CancelledError:
            self._closed = True  # Only a hub that ends cancels us: start nothing more.
            raise
        finally:
            self._rested(host)

    async def _begin(self, host: HostQueue, flight: Flight) -> None:
        if len(flight.works) == 1 or self._health.down(host.name) is None:
            await self._run(host, flight)
            return
        # It was found down between the boarding and now: one user tries, not all of these.
        flight.error = self._health.refusal(host.name)
        flight.land()
        self._cleanups.put_back(flight.cleanups.values())
        self._call(self._record, flight.record)

    async def _run(self, host: HostQueue, flight: Flight) -> None:
        try:
            await flight.fly(self._client, self._run_limit)
        except asyncio.CancelledError:
            flight.error = ApplyError("interrupted")
            raise
        except AnsibleBootstrapError as error:
            flight.error = error
        except Exception as error:
            self._log.exception("ansible_bootstrap: a run failed unexpectedly")
            flight.error = ApplyError(f"unexpected {type(error).__name__}: {error}")
        finally:
            flight.land()
            self._track_record.learn(flight)
            self._learn(host, flight)
            self._call(self._record, flight.record)

    def _learn(self, host: HostQueue, flight: Flight) -> None:
        was_down = self._health.down(host.name) is not None
        down = self._health.learn(flight)
        if down is None:
            if was_down and self._health.down(host.name) is None:
                self._log.warning("ansible_bootstrap: storage host %s is back", host.name)
            return
        if not was_down:
            self._log.warning("ansible_bootstrap: storage host %s is down: %s", host.name, down.why)
        self._cleanups.put_back(flight.cleanups.values())
        if down.failures >= self._tries:
            refusal = self._health.refusal(host.name)
            for work in host.drain():
                work.fail(type(refusal), refusal.details)
        else:
            host.spawns |= host.alone  # It was not they who hung.
            host.alone.clear()
        asyncio.get_running_loop().call_later(max(0.0, down.left) + 0.01, self._wake, host.name)

    def _wake(self, name: str) -> None:
        """What has waited for a storage host that is down may try."""
        if (host := self._hosts.get(name)) is not None:
            self._offer(host)

    def _settled(self, flight: Flight, work: Work, outcome: Outcome) -> bool:
        key, place = work.place.work_key, work.place
        if flight.operation == "cleanup":
            # Silence is not an outcome, and who could not be reached has none either: the next hub tries again.
            if outcome.reason != "unreachable":
                flight.cleanups.pop(key, None)
                self._cleanups.settled(place)
            return False
        if outcome.status == "ok" and not self._check:
            self._call(self._complete, place, outcome, flight.fingerprints, flight.since)
        if outcome.reason != "timeout":
            if outcome.reason != "unreachable":
                self._health.answers(place)
            return False
        self._health.suspect(place)
        if len(flight.names) == 1:
            return False
        host = self._hosts[flight.record.storage_host]
        if flight.abandoned or not work.wanted or host.has(place):
            return False
        host.alone[key] = work
        return True

    def _call(self, callback: Callable[..., None], *values: Any) -> None:
        """Tell somebody, whose failure is not that of those who wait."""
        try:
            callback(*values)
        except Exception:
            self._log.exception("ansible_bootstrap: what a run has done could not be noted")

    async def close(self) -> None:
        """End the runs in flight, and start nothing more."""
        self._closed = True
        for task in self._flights:
            task.cancel()
        if self._flights:
            await asyncio.wait(self._flights)  # Bounded: a run that is cancelled has ``SHUTDOWN_SECONDS``.
