"""A client that runs nothing, a dispatcher with it, and the spawns that wait there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hub_fakes import Lines, until

from ansible_bootstrap.dispatch import health
from ansible_bootstrap.dispatch import run as flights
from ansible_bootstrap.dispatch.dispatcher import Dispatcher
from ansible_bootstrap.dispatch.observer import Observer
from ansible_bootstrap.errors import AnsibleBootstrapError
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import Event, Outcome, OutcomeEvent, Request, RoleFingerprint
from ansible_bootstrap.run_record import RunRecord


class Clock:
    """What the dispatcher measures runs, pauses and holds by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in (flights, health):
            fake = SimpleNamespace(
                monotonic=lambda: self.now,
                time=lambda: self.now,
                localtime=time.gmtime,
                strftime=time.strftime,
            )
            monkeypatch.setattr(module, "time", fake)


class Run:
    """One run, moved forward by the test."""

    def __init__(self, request: Request, on_event: Callable[[Event], None]) -> None:
        self.request = request
        self.on_event = on_event
        self.stopped: AnsibleBootstrapError | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def names(self) -> list[str]:
        return [user["name"] for user in self.request.users]

    def settle(self, *keys: str, **fields: Any) -> None:
        for user in self.request.users:
            if user["key"] in keys or not keys:
                outcome = Outcome(key=user["key"], name=user["name"], status="ok").model_copy(update=fields)
                self.on_event(OutcomeEvent(outcome=outcome))

    def end(self, error: AnsibleBootstrapError | None = None) -> None:
        if not self._over.done():
            self._over.set_exception(error) if error else self._over.set_result(None)

    def succeed(self) -> None:
        self.settle()
        self.end()

    def stop(self, why: AnsibleBootstrapError) -> None:
        self.stopped = why

    async def finish(self) -> None:
        await asyncio.wait({self._over})
        self._over.result()


class Hub(Observer):
    """A dispatcher, its client and observer, the runs that it started, and the waiting spawns."""

    def __init__(
        self,
        log: Lines,
        *,
        forget: Callable[[Sequence[Place]], Coroutine[Any, Any, None]] | None = None,
        **options: Any,
    ) -> None:
        self._forget = forget
        self.runs: list[Run] = []
        self.records: list[RunRecord] = []
        self.completed: list[tuple[Place, Outcome, Sequence[RoleFingerprint], float]] = []
        self.kept: list[Place | None] = []
        """Clean-ups as they are asked for, and None for each that is settled."""
        self.dispatcher = Dispatcher(self, log.logger, self, **{"cleanup_delay": 0.02, **options})
        self.shown: dict[str, list[tuple[str, float]]] = {}
        self.may_start = asyncio.Event()
        """Without it, the client's next programs take their time to start."""
        self.may_start.set()

    async def start(self, request: Request, on_event: Callable[[Event], None], *, limit: float) -> Run:
        await self.may_start.wait()
        self.runs.append(Run(request, on_event))
        return self.runs[-1]

    def run_ended(self, record: RunRecord) -> None:
        self.records.append(record)

    def user_completed(self, *done: Any) -> None:
        self.completed.append(done)  # type: ignore[arg-type]

    async def before_cleanup(self, places: Sequence[Place]) -> None:
        if self._forget is not None:
            await self._forget(places)

    def cleanup_asked(self, place: Place) -> None:
        self.kept.append(place)

    def cleanup_settled(self, place: Place) -> None:
        self.kept.append(None)

    def spawn(
        self, name: str, timeout: float = 10, done: Mapping[str, str] | None = None, **place: Any
    ) -> asyncio.Task[Outcome]:
        shown = self.shown.setdefault(name, [])
        waiting: Coroutine[Any, Any, Outcome] = self.dispatcher.wait(
            Place(name, **place),
            timeout=timeout,
            on_progress=lambda text, share: shown.append((text, share)),
            done=done or {},
        )
        return asyncio.create_task(waiting)

    def wait(self, clock: Clock, seconds: float) -> None:
        """Let the time pass without a sign of any run."""
        clock.now += seconds
        self.dispatcher.tick()

    def said(self, name: str) -> list[str]:
        return [text for text, _ in self.shown.get(name, [])]

    async def run(self, number: int) -> Run:
        """The run of that number, from 1."""
        await until(lambda: len(self.runs) >= number, 3)
        return self.runs[number - 1]

    async def settled(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


def never() -> bool:
    """No user has a server any more."""
    return False


async def busy(hub: Hub, name: str = "first", **place: Any) -> tuple[asyncio.Task[Any], Run]:
    """A run under way, so that others wait."""
    spawn = hub.spawn(name, **place)
    return spawn, await hub.run(len(hub.runs) + 1)


async def cancel(*spawns: asyncio.Task[Any]) -> None:
    for spawn in spawns:
        spawn.cancel()
    await asyncio.wait(spawns, timeout=5)
    assert all(spawn.cancelled() for spawn in spawns)


def assert_empty(hub: Hub) -> None:
    """Nothing is left of any user."""
    assert hub.dispatcher.idle
    assert hub.dispatcher.waiting() == {}
    assert hub.dispatcher.waiting_cleanups() == 0
