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
from ansible_bootstrap.dispatch import run as role_clock
from ansible_bootstrap.dispatch.dispatcher import Dispatcher
from ansible_bootstrap.errors import AnsibleBootstrapError
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import Event, Outcome, OutcomeEvent, Request, RoleFingerprint
from ansible_bootstrap.run_record import RunRecord


class Clock:
    """What the dispatcher measures runs, pauses and holds by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in (flights, role_clock, health):
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


class Hub:
    """A dispatcher, the runs that it started, and the waiting spawns."""

    def __init__(self, log: Lines, **options: Any) -> None:
        self.runs: list[Run] = []
        self.records: list[RunRecord] = []
        self.completed: list[tuple[Place, Outcome, Sequence[RoleFingerprint]]] = []
        self.dispatcher = Dispatcher(
            self,
            log.logger,
            **{
                "cleanup_delay": 0.02,
                "record": self.records.append,
                "complete": lambda *done: self.completed.append(done[:3]),
                **options,
            },
        )
        self.shown: dict[str, list[tuple[str, float]]] = {}

    async def start(self, request: Request, on_event: Callable[[Event], None], *, limit: float) -> Run:
        self.runs.append(Run(request, on_event))
        return self.runs[-1]

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
        self.dispatcher._tick()

    def said(self, name: str) -> list[str]:
        return [text for text, _ in self.shown.get(name, [])]

    async def run(self, number: int) -> Run:
        """The run of that number, from 1."""
        await until(lambda: len(self.runs) >= number, 3)
        return self.runs[number - 1]

    async def settled(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)
