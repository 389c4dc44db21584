"""Who waits for what, and which run takes them. Pure asyncio: knows neither JupyterHub nor Ansible.

*Work* is one user's directory on one storage host; *waiters* are the spawns that wait for it. Each
storage host has one run in flight at most; whoever waits when it ends goes into the next. So there is
no delay to gather a batch when nothing runs, and the batches grow by themselves when much does.

Nobody shares a future: each waiter has its own, so that one who cancels takes nobody along. (In a hub a
CancelledError that reaches another spawn's hook leaves a server that is "ready" and does not exist;
ref: ``User.spawn`` in jupyterhub/user.py catches ``Exception`` only.)

Clean-up uses the same queue per host, so it never overlaps the bootstrap of the same directory; spawns go
first, for somebody waits for them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

from .errors import BY_REASON, AnsibleBootstrapError, ApplyError, DeadlineError
from .history import RunRecord
from .places import Place
from .protocol import Accepted, Event, Operation, Outcome, OutcomeEvent, Refused, Request, RoleStarted

Say = Callable[[str], None]
"""Shows one sentence to a waiting student; must neither block nor raise."""

WorkKey = tuple[str, str]

MAX_CLEANUPS: Final = 20_000
"""Most clean-ups that wait; beyond, they are dropped: a clean-up is tried again at the next stop."""

SENTENCES: Final = {
    "user_dir": "Preparing your directory",
    "mkhomedir": "Preparing your home directory",
    "tutorials": "Copying tutorials",
    "script": "Running the preparation script",
}
"""What a student reads while a role is at work. A site role's name may mean nothing to them."""

SITE_SENTENCE: Final = "Making the last preparations"


class Run(Protocol):
    """A run of the apply program, as ``apply_client.ApplyRun``."""

    def stop(self, why: AnsibleBootstrapError) -> None:
        """End it; returns at once."""

    async def finish(self) -> None:
        """Return when it has ended well, or raise why not."""


class Client(Protocol):
    """Starts runs, as ``apply_client.ApplyClient``."""

    def start(
        self, request: Request, on_event: Callable[[Event], None], *, limit: float
    ) -> Coroutine[Any, Any, Run]:
        """Start one run."""


@dataclass(eq=False, slots=True)
class _Waiter:
    future: asyncio.Future[Outcome]
    say: Say


@dataclass(eq=False, slots=True)
class _Work:
    place: Place
    waiters: list[_Waiter] = field(default_factory=list)

    def say(self, text: str) -> None:
        for waiter in self.waiters:
            waiter.say(text)

    def settle(self, outcome: Outcome) -> None:
        for waiter in self.waiters:
            if not waiter.future.done():
                waiter.future.set_result(outcome)

    def fail(self, cls: type[AnsibleBootstrapError], details: str) -> None:
        for waiter in self.waiters:
            if not waiter.future.done():
                waiter.future.set_exception(cls(details))  # One exception each: a raised one grows.


@dataclass(eq=False, slots=True)
class _Flight:
    """The run in flight on one host."""

    operation: Operation
    works: dict[WorkKey, _Work]
    """Those without an outcome yet."""
    keys: dict[str, WorkKey]
    """By the key in the request."""
    record: RunRecord
    error: AnsibleBootstrapError | None = None
    process: Run | None = None
    abandoned: bool = False


@dataclass(eq=False, slots=True)
class _Host:
    name: str
    waiting: dict[WorkKey, _Work] = field(default_factory=dict)
    cleanups: dict[WorkKey, Place] = field(default_factory=dict)
    """Those that are due."""
    flight: _Flight | None = None


@dataclass(eq=False, slots=True)
class _Parked:
    """Clean-ups of one user that wait for their delay, or for the user's last server to stop."""

    places: dict[WorkKey, Place] = field(default_factory=dict)
    active: Callable[[], bool] = bool
    timer: asyncio.TimerHandle | None = None


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
        keep: Callable[[WorkKey, Place | None], None] = lambda key, place: None,
    ) -> None:
        self._client = client
        self._log = log
        self._batch_size = batch_size
        self._run_limit = run_limit
        self._check = check
        self._cleanup_delay = cleanup_delay
        self._max_runs = max_runs or max(4, 2 * (os.cpu_count() or 2))
        self._troubled: set[str] = set()
        """Hosts whose last run ended badly as a whole: together they get half of the runs at most."""
        self._record = record
        self._keep = keep
        self._hosts: dict[str, _Host] = {}
        self._ready: dict[str, _Host] = {}
        """Hosts that could start a run, the longest waiting first."""
        self._parked: dict[tuple[str, str], _Parked] = {}
        self._flights: set[asyncio.Task[None]] = set()
        self._pump_scheduled = False
        self._closed = False

    # -- spawns -------------------------------------------------------------------------------

    async def wait(self, place: Place, *, timeout: float, on_progress: Say) -> Outcome:  # noqa: ASYNC109
        """Return what became of bootstrapping this place.

        Args:
            place: whose storage, and where.
            timeout: seconds after which the caller stops waiting.
            on_progress: shows a sentence to the student.

        Raises:
            RefusedError: the place is not acceptable; nothing was started.
            DeadlineError: no outcome within ``timeout``.
            AnsibleBootstrapError: the run itself failed, and with it everybody in it without an outcome.
        """
        place.user()
        waiter = _Waiter(asyncio.get_running_loop().create_future(), on_progress)
        withdrawn = self._withdraw_cleanup(place)
        work = self._join(place, waiter)
        ready = False
        try:
            await asyncio.wait({waiter.future}, timeout=timeout)
            if not waiter.future.done():
                raise DeadlineError(f"{place.name} was not ready within {timeout:g} s")
            outcome = waiter.future.result()
            ready = outcome.status == "ok"
            return outcome
        finally:
            if ready:
                self._keep(place.work_key, None)  # Not earlier: a hub may be killed while we wait.
            elif withdrawn := withdrawn or self._withdraw_cleanup(place):
                self.cleanup(place, withdrawn)  # No server starts, so none will stop and ask for it again.
            waiter.future.cancel()
            self._leave(place, work, waiter)

    def _join(self, place: Place, waiter: _Waiter) -> _Work:
        host = self._host(place.storage_host)
        key = place.work_key
        flight = host.flight
        if flight is not None and flight.operation == "bootstrap" and not flight.abandoned:
            flying = flight.works.get(key)
            if flying is not None and flying.place == place:
                flying.waiters.append(waiter)
                return flying
        work = host.waiting.get(key)
        if work is None:
            work = host.waiting[key] = _Work(place)
        work.place = place  # What the spawner said last is right.
        work.waiters.append(waiter)
        if flight is not None:
            if flight.operation == "cleanup" and key in flight.works:
                waiter.say("Waiting for the clean-up after your last server")
            elif others := len(flight.works) + len(host.waiting) - 1:
                waiter.say(f"Waiting for {_others(others)}")
        self._offer(host)
        return work

    def _leave(self, place: Place, work: _Work, waiter: _Waiter) -> None:
        work.waiters.remove(waiter)
        host = self._hosts.get(place.storage_host)
        if host is None:
            return
        if not work.waiters and host.waiting.get(place.work_key) is work:
            del host.waiting[place.work_key]
            self._forget(host)
        flight = host.flight
        if (
            flight is not None
            and flight.operation == "bootstrap"
            and flight.works
            and not flight.abandoned
            and not any(other.waiters for other in flight.works.values())
        ):
            flight.abandoned = True
            if flight.process is not None:
                flight.process.stop(ApplyError("nobody waits for the run any more"))

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
        who = (place.storage_host, place.name)
        if who not in self._parked and len(self._parked) >= MAX_CLEANUPS:
            self._log.warning("ansible_bootstrap: too many clean-ups wait; one is dropped")
            return
        parked = self._parked.setdefault(who, _Parked())
        parked.places[place.work_key] = place
        parked.active = active
        if parked.timer is not None:
            parked.timer.cancel()
        parked.timer = asyncio.get_running_loop().call_at(self._next_cleanup(), self._cleanup_due, who)
        self._keep(place.work_key, place)

    def restore(self, places: Iterable[Place], active: Callable[[str], bool]) -> None:
        """Take over what an earlier hub has left to be cleaned up.

        Args:
            places: as ``keep`` was told.
            active: whether the user of that name has an active server.
        """
        for place in places:
            host = self._hosts.get(place.storage_host)
            flying = host is not None and host.flight is not None and place.work_key in host.flight.works
            if flying or self._waits(place):
                continue
            parked = self._parked.get((place.storage_host, place.name))
            if parked is not None:
                parked.places[place.work_key] = place
            else:
                self.cleanup(place, partial(active, place.name))

    def _waits(self, place: Place) -> bool:
        """Whether this very clean-up is still to come."""
        host = self._hosts.get(place.storage_host)
        parked = self._parked.get((place.storage_host, place.name))
        return (host is not None and place.work_key in host.cleanups) or (
            parked is not None and place.work_key in parked.places
        )

    def _next_cleanup(self) -> float:
        """After one to two delays: all who stop within the same delay are due at the same moment."""
        now = asyncio.get_running_loop().time()
        delay = self._cleanup_delay
        return (now // delay + 2) * delay if delay > 0 else now

    def _cleanup_due(self, who: tuple[str, str]) -> None:
        parked = self._parked[who]
        if parked.active():
            return
        del self._parked[who]
        host = self._host(who[0])
        host.cleanups.update(parked.places)
        self._offer(host)

    def _withdraw_cleanup(self, place: Place) -> Callable[[], bool] | None:
        """The user is back: what has not begun does not begin; what has, is waited for in the queue.

        Returns:
            For :meth:`cleanup`, should the server not start after all; None if nothing was withdrawn.
        """
        key = place.work_key
        withdrawn: Callable[[], bool] | None = None
        host = self._hosts.get(place.storage_host)
        if host is not None and host.cleanups.pop(key, None) is not None:
            withdrawn = bool  # It was due, so no server was active.
        who = (place.storage_host, place.name)
        if (parked := self._parked.get(who)) is not None:
            if parked.places.pop(key, None) is not None:
                withdrawn = parked.active
            if not parked.places:
                if parked.timer is not None:
                    parked.timer.cancel()
                del self._parked[who]
        return withdrawn

    # -- runs ---------------------------------------------------------------------------------

    def _host(self, name: str) -> _Host:
        return self._hosts.setdefault(name, _Host(name))

    def _forget(self, host: _Host) -> None:
        if host.flight is None and not host.waiting and not host.cleanups:
            self._hosts.pop(host.name, None)
            self._ready.pop(host.name, None)

    def _offer(self, host: _Host) -> None:
        """The host may have something to run; who joins before the loop's next turn joins that run."""
        if host.flight is None and (host.waiting or host.cleanups):
            self._ready.setdefault(host.name, host)
        if self._ready and not self._pump_scheduled and not self._closed:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_scheduled = False
        while len(self._flights) < self._max_runs and (name := self._next_ready()) is not None:
            host = self._ready.pop(name)
            if host.flight is None and (host.waiting or host.cleanups):
                host.flight = self._board(host)
                task = asyncio.get_running_loop().create_task(self._fly(host, host.flight))
                self._flights.add(task)
                task.add_done_callback(partial(self._landed, host))

    def _next_ready(self) -> str | None:
        """Return the host that has waited longest; one in trouble only while others keep their share."""
        in_trouble = sum(
            host.flight is not None and name in self._troubled for name, host in self._hosts.items()
        )
        full = in_trouble >= max(1, self._max_runs // 2)
        return next((name for name in self._ready if not (full and name in self._troubled)), None)

    def _landed(self, host: _Host, task: asyncio.Task[None]) -> None:
        self._flights.discard(task)
        self._offer(host)

    def _board(self, host: _Host) -> _Flight:
        """Take as many as a run may have: those who wait, else what is to be cleaned up."""
        operation: Operation = "bootstrap" if host.waiting else "cleanup"
        works: dict[WorkKey, _Work] = {}
        if host.waiting:
            for key in list(host.waiting)[: self._batch_size]:
                works[key] = host.waiting.pop(key)
        else:
            for key in list(host.cleanups)[: self._batch_size]:
                works[key] = _Work(host.cleanups.pop(key))
        keys: dict[str, WorkKey] = {}
        for key, work in works.items():
            name, number = work.place.name, 2
            while name in keys:  # One user's named servers with a directory each.
                name, number = f"{work.place.name}#{number}", number + 1
            keys[name] = key
        record = RunRecord(
            run=uuid.uuid4().hex[:12],
            operation=operation,
            storage_host=host.name,
            started=time.time(),
            users=len(works),
            check=self._check,
        )
        return _Flight(operation, works, keys, record)

    async def _fly(self, host: _Host, flight: _Flight) -> None:
        began = time.monotonic()
        try:
            users = [flight.works[key].place.user(name).model_dump() for name, key in flight.keys.items()]
            request = Request(operation=flight.operation, users=users, check=self._check)
            on_event = partial(self._on_event, flight)
            flight.process = await self._client.start(request, on_event, limit=self._run_limit)
            if flight.abandoned:
                flight.process.stop(ApplyError("nobody waits for the run any more"))
            await flight.process.finish()
            flight.error = ApplyError("the run ended without an outcome for this user")
        except asyncio.CancelledError:
            self._closed = True  # Only a hub that ends cancels us: start nothing more.
            flight.error = ApplyError("the hub was stopped")
            raise
        except AnsibleBootstrapError as error:
            flight.error = error
        except Exception as error:
            self._log.exception("ansible_bootstrap: a run failed unexpectedly")
            flight.error = ApplyError(f"unexpected {type(error).__name__}: {error}")
        finally:
            host.flight = None
            flight.record.seconds = time.monotonic() - began
            self._land(flight)
            self._forget(host)

    def _on_event(self, flight: _Flight, event: Event) -> None:
        match event:
            case Accepted():
                flight.record.run = event.run
            case RoleStarted():
                sentence = SENTENCES.get(event.role.rpartition(".")[2], SITE_SENTENCE)
                if event.users > 1:
                    sentence += f", with {_others(event.users - 1)}"
                for work in flight.works.values():
                    work.say(sentence)
            case OutcomeEvent(outcome=outcome):
                key = flight.keys.get(outcome.key)
                work_or_none = flight.works.get(key) if key else None
                if key is None or work_or_none is None or work_or_none.place.name != outcome.name:
                    self._log.warning(
                        "ansible_bootstrap: run %s has an outcome nobody asked for", flight.record.run
                    )
                    return
                del flight.works[key]
                flight.record.outcomes.append(outcome)
                work_or_none.settle(outcome)
                # Silence is not an outcome, and who could not be reached has none either: the next hub tries again.
                done = flight.operation == "cleanup" and outcome.reason != "unreachable"
                if done and not self._waits(work_or_none.place):
                    self._keep(key, None)
            case Refused():
                flight.record.error = event.message
            case _:
                pass

    def _land(self, flight: _Flight) -> None:
        """Whoever has no outcome has failed: silence is never success."""
        error = flight.error or ApplyError()
        if flight.works or all(outcome.reason == "unreachable" for outcome in flight.record.outcomes):
            self._troubled.add(flight.record.storage_host)
        else:
            self._troubled.discard(flight.record.storage_host)
        details = f"run {flight.record.run}: {error.details or error.message}"
        if flight.works:
            flight.record.error = error.details
            if flight.operation == "cleanup":
                self._log.warning("ansible_bootstrap: clean-up of %d users: %s", len(flight.works), details)
        for name, key in flight.keys.items():
            work = flight.works.get(key)
            if work is not None:
                flight.record.outcomes.append(
                    Outcome(
                        key=name,
                        name=work.place.name,
                        status="failed",
                        reason=error.reason,
                        message=error.details or error.message,
                        storage_host=work.place.storage_host,
                        directory=work.place.directory or "",
                        seconds=round(flight.record.seconds, 3),
                        run=flight.record.run,
                    )
                )
                work.fail(BY_REASON[error.reason], details)
        flight.works.clear()
        self._record(flight.record)


def _others(count: int) -> str:
    return "1 other" if count == 1 else f"{count} others"
