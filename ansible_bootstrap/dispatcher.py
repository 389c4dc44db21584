"""Who waits for what, and which run takes them. Pure asyncio: knows neither JupyterHub nor Ansible.

*Work* is one user's directory on one storage host; *waiters* are the spawns that wait for it. Each
storage host has one run in flight at most; whoever waits when it ends goes into the next. So there is
no delay to gather a batch when nothing runs, and the batches grow by themselves when much does, up to
what the storage host does in about ten seconds (``pace.py``).

Nobody shares a future: each waiter has its own, so that one who cancels takes nobody along. (In a hub a
CancelledError that reaches another spawn's hook leaves a server that is "ready" and does not exist;
ref: ``User.spawn`` in jupyterhub/user.py catches ``Exception`` only.)

Clean-up uses the same queue per host, so it never overlaps the bootstrap of the same directory. Spawns board
first, for somebody waits for them; then logins (``host_queue.py``), then clean-ups (``cleanups.py``).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from .cleanups import Cleanup, Cleanups, nothing_to_forget
from .errors import AnsibleBootstrapError, ApplyError, DeadlineError
from .flights import Client, Flight
from .history import RunRecord
from .host_queue import HostQueue
from .places import Place
from .protocol import Operation, Outcome, RoleFingerprint
from .spare_time import loop_has_time
from .track_record import TrackRecord
from .turnstile import Turnstile
from .works import NOTHING_DONE, Say, Waiter, Work, WorkKey

MAX_LOGINS: Final = 20_000
"""Most logins that wait; beyond, they are left to the spawn."""


class Dispatcher:
    """Brings waiting users and runs together. All methods are called on one event loop.

    Args:
        client: starts runs.
        log: for the admin.
        batch_size: most users in one run.
        run_limit: seconds that one run may take.
        check: only predict (``mode = "observe"``).
        cleanup_delay: seconds in which further clean-ups join the same run.
        max_runs: most runs at once, over all hosts; by default twice the number of cores, at least four.
        record: called with each run that has ended; must not block.
        complete: called with each user who has been bootstrapped (not: checked), the fingerprints of all roles
            as of that run, and the time (as ``time.time``) as of which that is known; must not block.
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
        check: bool = False,
        cleanup_delay: float = 5.0,
        max_runs: int | None = None,
        record: Callable[[RunRecord], None] = lambda record: None,
        complete: Callable[[Place, Outcome, Sequence[RoleFingerprint], float], None] = lambda *done: None,
        forget: Callable[[Sequence[Place]], Awaitable[None]] = nothing_to_forget,
        keep: Callable[[WorkKey, Place | None], None] = lambda key, place: None,
    ) -> None:
        self._client = client
        self._log = log
        self._run_limit = run_limit
        self._check = check
        self._max_runs = max_runs or max(4, 2 * (os.cpu_count() or 2))
        self._record = record
        self._complete = complete
        self._cleanups = Cleanups(log, cleanup_delay, keep, forget, self._cleanup_due)
        self._track_record = TrackRecord(batch_size)
        self._hosts: dict[str, HostQueue] = {}
        """Those that have something to do."""
        self._ready: dict[str, HostQueue] = {}
        """Hosts that could start a run, the longest waiting first."""
        self._flights: set[asyncio.Task[None]] = set()
        self._in_the_air = 0
        """Runs; the task of one that has landed lives a little longer."""
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
            DeadlineError: no outcome within ``timeout``.
            AnsibleBootstrapError: the run itself failed, and with it everybody in it without an outcome.
        """
        place.user()
        waiter = Waiter(asyncio.get_running_loop().create_future(), on_progress, done, self._turnstile)
        withdrawn = self._cleanups.withdraw(place)
        host = self._host(place.storage_host)
        work = host.join(place, waiter)
        self._offer(host)
        ready = False
        try:
            await asyncio.wait({waiter.future}, timeout=timeout)
            match waiter.answer:
                case None:
                    if host.flight is not None and host.flight.works.get(place.work_key) is work:
                        host.flight.late = True
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
        if host.prepare(place, done):
            self._offer(host)

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
        return {name: host.waiting() for name, host in self._hosts.items() if host.spawns or host.logins}

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
        flying = {key for host in self._hosts.values() if host.flight for key in host.flight.works}
        self._cleanups.restore((place for place in places if place.work_key not in flying), active)

    def waiting_cleanups(self) -> int:
        """Return how many clean-ups wait, for their time or for a run."""
        return self._cleanups.count()

    def _cleanup_due(self, name: str) -> None:
        self._offer(self._host(name))

    # -- runs ---------------------------------------------------------------------------------

    def _host(self, name: str) -> HostQueue:
        return self._hosts.setdefault(name, HostQueue(name))

    def _has_work(self, host: HostQueue) -> bool:
        return bool(host.spawns or host.logins) or self._cleanups.is_due(host.name)

    def _drop_if_idle(self, host: HostQueue) -> None:
        if not (host.busy or self._has_work(host)) and self._hosts.get(host.name) is host:
            del self._hosts[host.name]
            self._ready.pop(host.name, None)

    def _offer(self, host: HostQueue) -> None:
        """The host may have something to run; who joins before the loop's next turn joins that run."""
        if not host.busy and self._has_work(host):
            self._ready.setdefault(host.name, host)
        if self._ready and not self._pump_scheduled and not self._closed:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._scheduled_pump)

    def _scheduled_pump(self) -> None:
        self._pump_scheduled = False
        if not self._closed:
            self._pump()

    def _pump(self) -> None:
        while self._in_the_air < self._max_runs and (name := self._next_ready()) is not None:
            host = self._ready.pop(name)
            host.flight = self._board(host)
            if host.flight is None:
                self._drop_if_idle(host)
                continue
            self._in_the_air += 1
            host.tell_the_others()
            task = asyncio.get_running_loop().create_task(self._fly(host, host.flight))
            self._flights.add(task)
            task.add_done_callback(self._flights.discard)

    def _next_ready(self) -> str | None:
        """Return the host that has waited longest, one where somebody waits before all others.

        One in trouble only while others keep their share.
        """
        in_trouble = self._track_record.in_trouble
        flying = sum(host.flight is not None and in_trouble(name) for name, host in self._hosts.items())
        full = flying >= max(1, self._max_runs // 2)
        names = [name for name in self._ready if not (full and in_trouble(name))]
        urgent = (name for name in names if self._ready[name].spawns or self._cleanups.is_overdue(name))
        return next(urgent, names[0] if names else None)

    def _landed(self, host: HostQueue) -> None:
        """The run is over: its place in the air is another host's."""
        host.flight = None
        host.resting = True
        self._in_the_air -= 1
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
        cleanups: dict[WorkKey, Cleanup] = {}
        if overdue or not somebody:
            cleanups = self._cleanups.take(host.name, self._track_record.batch(host.name, "cleanup"))
        host.cleaned_last = bool(cleanups)
        if not cleanups and not somebody:
            return None
        operation: Operation = "cleanup" if cleanups else "bootstrap"
        works = {key: Work(cleanup.place) for key, cleanup in cleanups.items()}
        host.doubt({work.place.name for work in works.values()})
        return Flight(
            operation,
            host.name,
            works or host.board(self._track_record.batch(host.name, "bootstrap")),
            check=self._check,
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
                    await self._run(flight)
            finally:
                self._landed(host)
            # Whom another run releases only queues behind those whom this one has released.
            await loop_has_time()
        except asyncio.CancelledError:
            self._closed = True  # Only a hub that ends cancels us: start nothing more.
            raise
        finally:
            self._rested(host)

    async def _run(self, flight: Flight) -> None:
        try:
            await flight.fly(self._client, self._run_limit)
        except asyncio.CancelledError:
            flight.error = ApplyError("the hub was stopped")
            raise
        except AnsibleBootstrapError as error:
            flight.error = error
        except Exception as error:
            self._log.exception("ansible_bootstrap: a run failed unexpectedly")
            flight.error = ApplyError(f"unexpected {type(error).__name__}: {error}")
        finally:
            silent = bool(flight.works)
            flight.land()
            self._track_record.learn(flight, silent=silent)
            self._call(self._record, flight.record)

    def _settled(self, flight: Flight, work: Work, outcome: Outcome) -> None:
        if flight.operation == "cleanup":
            # Silence is not an outcome, and who could not be reached has none either: the next hub tries again.
            if outcome.reason != "unreachable":
                self._cleanups.settled(work.place)
        elif outcome.status == "ok" and not self._check:
            self._call(self._complete, work.place, outcome, flight.fingerprints, flight.since)

    def _call(self, callback: Callable[..., None], *values: Any) -> None:
        """Tell somebody, whose failure is not that of those who wait."""
        try:
            callback(*values)
        except Exception:
            self._log.exception("ansible_bootstrap: what a run has done could not be noted")
