"""Whatever spawns, logins, stops, cancels and failures come in whatever order, some things never happen."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from hub_fakes import Lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_bootstrap.dispatch import cleanups, health
from ansible_bootstrap.dispatch import run as flights
from ansible_bootstrap.dispatch.dispatcher import CROWD, Dispatcher
from ansible_bootstrap.dispatch.observer import Observer
from ansible_bootstrap.errors import AnsibleBootstrapError, ApplyError, DeadlineError, UnreachableError
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import Event, Outcome, OutcomeEvent, Request

MAX_RUNS = 2
HOSTS = ("s1", "s2", "s3")

PLACES = st.builds(
    Place,
    name=st.sampled_from("abcd"),
    storage_host=st.sampled_from(HOSTS),
    uid=st.sampled_from([1, 1, 1, 2]),
)
DONE = st.sampled_from([{}, {"user_dir": "1"}, {"user_dir": "1", "script": "2"}])
STEPS = st.one_of(
    st.tuples(st.just("spawn"), PLACES, DONE),
    st.tuples(st.just("spawn"), PLACES, DONE),
    st.tuples(st.just("login"), PLACES, DONE),
    st.tuples(st.just("stop"), PLACES, st.booleans()),
    st.tuples(st.just("known"), PLACES),
    st.tuples(st.just("cancel"), st.integers(0, 50)),
    st.tuples(
        st.just("outcome"),
        st.integers(0, 2),
        st.integers(0, 9),
        st.sampled_from([None, None, None, "role_failed", "timeout", "timeout", "unreachable"]),
    ),
    st.tuples(st.just("outcomes"), st.integers(0, 2), st.sampled_from([None, "timeout", "unreachable"])),
    st.tuples(
        st.just("end"),
        st.integers(0, 2),
        st.sampled_from([None, ApplyError("died"), UnreachableError("down"), DeadlineError("stopped")]),
    ),
    st.tuples(st.just("later"), st.sampled_from([1.0, 5.0, 10.0, 60.0, 300.0])),
    st.tuples(st.just("end"), st.integers(0, 2), st.none()),
    st.tuples(st.just("forgetting"), st.booleans()),
    st.tuples(st.just("wait")),
)


class Air(Observer):
    """The runs that are in the air; checks each as it starts."""

    def __init__(self) -> None:
        self.runs: list[SimulatedRun] = []
        self.cleaned: list[SimulatedRun] = []
        self.can_forget = True
        self.forgotten: set[tuple[str, str]] = set()
        self.owed: set[tuple[str, str]] = set()
        """Clean-ups that a hub that is killed must do."""
        self.now = 1000.0
        self.lone = 0
        self.down: Callable[[str], Any] = lambda host: None

    async def start(
        self, request: Request, on_event: Callable[[Event], None], *, limit: float
    ) -> SimulatedRun:
        run = SimulatedRun(self, request, on_event)
        assert request.users
        beside = [other for other in self.runs if other.host == run.host]
        assert len(beside) < 2, "more than an ordinary and a lone run on one host"
        for other in beside:
            self.lone += 1
            assert len(run.names) == 1 or other.quiet or other.revived or len(other._left) <= 1, "no lone one"
            assert not run.names & other.names, "a user in two runs"
        assert len(run.names) == 1 or self.down(run.host) is None, (
            "more than one user tries a host that is down"
        )
        assert len(self.runs) < CROWD * MAX_RUNS
        at_work = sum(not (other.quiet or other.revived) for other in self.runs)
        assert at_work < MAX_RUNS + (MAX_RUNS + 1) // 2
        assert {user["storage_host"] for user in request.users} == {run.host}
        assert len({user["name"] for user in request.users}) == len(request.users), (
            "a directory twice in one run"
        )
        if request.operation == "cleanup":
            assert {(run.host, user["name"]) for user in request.users} <= self.forgotten
        self.runs.append(run)
        return run

    async def before_cleanup(self, places: Sequence[Place]) -> None:
        await asyncio.sleep(0)
        if not self.can_forget:
            raise OSError("disk full")
        self.forgotten.update((place.storage_host, place.name) for place in places)

    def cleanup_asked(self, place: Place) -> None:
        self.owed.add(place.job_key)

    def cleanup_settled(self, place: Place) -> None:
        self.owed.discard(place.job_key)

    def user_completed(self, place: Place, outcome: Outcome, fingerprints: Any, since: float) -> None:
        flying = [run for run in self.runs if run.host == place.storage_host and place.name in run.names]
        assert [run.request.operation for run in flying] == ["bootstrap"]
        self.forgotten.discard((place.storage_host, place.name))


class SimulatedRun:
    def __init__(self, air: Air, request: Request, on_event: Callable[[Event], None]) -> None:
        self.air = air
        self.request = request
        self.host = request.users[0]["storage_host"]
        self.names = {user["name"] for user in request.users}
        self._on_event = on_event
        self._sign = air.now
        self.revived = False
        """Whether it has given a sign again, after others have begun in its place."""
        self._left = list(request.users)
        self._stopped: AnsibleBootstrapError | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def quiet(self) -> bool:
        return self.air.now - self._sign >= flights.QUIET_SECONDS

    def settle(self, number: int, reason: Any = None) -> None:
        if self._left:
            self.revived = self.revived or self.quiet
            self._sign = self.air.now
            user = self._left.pop(number % len(self._left))
            outcome = Outcome(
                key=user["key"], name=user["name"], status="failed" if reason else "ok", reason=reason
            )
            self._on_event(OutcomeEvent(outcome=outcome))

    def end(self, error: AnsibleBootstrapError | None) -> None:
        error = error or self._stopped
        if not self._over.done():
            self._over.set_exception(error) if error else self._over.set_result(None)

    def stop(self, why: AnsibleBootstrapError) -> None:
        assert self._stopped is None
        self._stopped = why

    async def finish(self) -> None:
        await asyncio.wait({self._over})
        self.air.runs.remove(self)
        self._over.result()


async def simulate(steps: list[tuple[Any, ...]], batch_size: int, air: Air) -> None:
    log = Lines()
    dispatcher = Dispatcher(
        air,
        log.logger,
        air,
        batch_size=batch_size,
        max_runs=MAX_RUNS,
        cleanup_delay=0,
    )
    air.down = dispatcher.health.down

    def later(seconds: float) -> None:
        air.now += seconds
        dispatcher.tick()

    spawns: list[asyncio.Task[Outcome]] = []
    cancelled: set[asyncio.Task[Outcome]] = set()
    away = True

    def show(text: str, share: float) -> None:
        assert text
        assert 0 <= share < 1

    for step in steps:
        match step:
            case ("spawn", place, done):
                waiting = dispatcher.wait(place, timeout=60, on_progress=show, done=done)
                spawns.append(asyncio.create_task(waiting))  # type: ignore[arg-type]
            case ("login", place, done):
                dispatcher.prepare(place, done)
            case ("stop", place, away):
                dispatcher.cleanup(place, lambda away=away: not away)
            case ("known", place) if dispatcher.claim_untouched(place):
                touching = [run for run in air.runs if run.host == place.storage_host]
                assert not any(
                    run.request.operation == "cleanup"
                    and place.name in {user["name"] for user in run.request.users}
                    for run in touching
                )
            case ("cancel", number) if spawns:
                spawn = spawns[number % len(spawns)]
                if not spawn.done():
                    cancelled.add(spawn)
                    spawn.cancel()
            case ("outcome", number, user, reason) if air.runs:
                air.runs[number % len(air.runs)].settle(user, reason)
            case ("outcomes", number, reason) if air.runs:
                run = air.runs[number % len(air.runs)]
                while run._left:
                    run.settle(0, reason)
                run.end(None)
            case ("later", seconds):
                later(seconds)
            case ("end", number, error) if air.runs:
                air.runs[number % len(air.runs)].end(error)
            case ("forgetting", can_forget):
                air.can_forget = can_forget
            case ("wait",):
                for _ in range(5):
                    await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    air.can_forget = True
    idle = 0
    for _ in range(20_000):
        for run in list(air.runs):
            run.settle(0)
            if not run._left:
                run.end(None)
        later(10.0)
        await asyncio.sleep(0)
        idle = idle + 1 if dispatcher.idle and all(spawn.done() for spawn in spawns) else 0
        if idle == 10:  # Parked clean-ups of users without a server would have fallen due by now.
            break
    else:
        raise AssertionError("it does not come to an end")
    for spawn in spawns:
        if not spawn.cancelled():
            assert spawn.exception() is None or isinstance(
                spawn.exception(), ApplyError | UnreachableError | DeadlineError
            )
        else:
            assert spawn in cancelled
    mishaps = [record for record in log.records if record.levelno >= logging.ERROR]
    assert not mishaps, mishaps[0].exc_text  # An assertion above that failed within the dispatcher is one.
    assert not air.runs
    assert not dispatcher.due_cleanups
    assert dispatcher.waiting_cleanups() <= len(air.owed), "a clean-up that waits and is not kept on disk"


def fly(steps: list[tuple[Any, ...]], batch_size: int) -> Air:
    air = Air()
    clock = SimpleNamespace(
        monotonic=lambda: air.now, time=lambda: air.now, localtime=time.gmtime, strftime=time.strftime
    )
    with patch.object(flights, "time", clock), patch.object(health, "time", clock):
        asyncio.run(asyncio.wait_for(simulate(steps, batch_size, air), 60))
    return air


def test_in_the_simulation_there_are_runs_beside_others() -> None:
    """Or it would prove nothing."""
    spawns = [("spawn", Place(name, storage_host="s1", uid=1), {}) for name in "abc"]
    first = [*spawns, ("wait",), ("outcomes", 0, None), ("wait",), ("wait",)]
    hangs = [("outcome", 0, 0, "timeout"), ("outcomes", 0, None), ("wait",), ("wait",), spawns[0], ("wait",)]
    assert fly([*first, *hangs], 4).lone
    assert fly([spawns[0], ("wait",), spawns[1], ("later", 10.0), ("wait",)], 4).lone


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(STEPS, min_size=80, max_size=300), batch_size=st.integers(1, 4), impatient=st.booleans()
)
def test_whatever_happens_in_whatever_order(
    steps: list[tuple[Any, ...]], batch_size: int, impatient: bool
) -> None:
    patience, retry = cleanups.PATIENCE_SECONDS, cleanups.RETRY_SECONDS
    cleanups.PATIENCE_SECONDS, cleanups.RETRY_SECONDS = 0.0 if impatient else patience, 0.0  # type: ignore[misc]
    try:
        fly(steps, batch_size)
    finally:
        cleanups.PATIENCE_SECONDS, cleanups.RETRY_SECONDS = patience, retry  # type: ignore[misc]
