"""Everybody arrives at one hub, by the clock; and goes home again."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from .health import latencies
from .hub import CHECKOUT, Hub
from .student import Record, Student


@dataclass
class Storm:
    """What one storm was like. Times are seconds since its begin."""

    variant: str
    arrivals: list[float]
    records: list[Record]
    hooks: list[float]
    """Seconds in each hook."""
    health: list[float]
    """Milliseconds, sorted."""

    @property
    def served(self) -> list[float]:
        """When each was served who was, sorted."""
        return sorted(record.served for record in self.records if record.served)

    @property
    def waited(self) -> list[float]:
        """From each arrival to the server's answer, sorted."""
        return sorted(record.served - record.arrived for record in self.records if record.served)

    @property
    def troubles(self) -> dict[str, int]:
        """How often what went wrong, over all students."""
        kinds = sorted({kind for record in self.records for kind in record.troubles})
        return {kind: sum(record.troubles[kind] for record in self.records) for kind in kinds}


def arrivals(users: int, seconds: float, seed: int) -> list[float]:
    """Return when each arrives: at random, evenly over the seconds; the same for the same seed."""
    pattern = random.Random(seed)
    return sorted(pattern.uniform(0, seconds) for _ in range(users))


def let_loose(hub: Hub, variant: str, times: Sequence[float], *, patience: float) -> Storm:
    """Let students arrive at these times; return when all are served, or patience ends."""
    health = hub.path / f"health-{variant.replace(' ', '-')}.txt"
    before = len(hub.hooks())
    prober = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.storm.health", hub.hub_url.removeprefix("http://"), str(health)],
        cwd=CHECKOUT,
    )
    try:
        begin = time.monotonic() + 1.0
        records = asyncio.run(crowd(hub, times, begin, patience))
    finally:
        prober.terminate()
        prober.wait()
    for record in records:
        for moment in ("arrived", "logged_in", "ready", "served"):
            if value := getattr(record, moment):
                setattr(record, moment, value - begin)
    hooks = sorted(end - start for _, start, end in hub.hooks()[before:])
    return Storm(variant, list(times), records, hooks, latencies(health))


async def crowd(hub: Hub, times: Sequence[float], begin: float, patience: float) -> list[Record]:
    """Let students arrive at these times after ``begin``; each tries for ``patience`` seconds."""
    async with aiohttp.TCPConnector(limit=0) as connector:
        students = [
            Student(f"student{number:03}", hub.password, hub.url, hub.servers_url, connector)
            for number in range(len(times))
        ]
        return await asyncio.gather(
            *(
                student.attend(begin + at, begin + at + patience)
                for student, at in zip(students, times, strict=True)
            )
        )


async def stop_all(hub: Hub) -> None:
    """Stop everybody's server, as an admin's script does."""
    headers = {"Authorization": f"token {hub.token}"}
    api = f"{hub.hub_url}/hub/api/users"
    turn = asyncio.Semaphore(10)

    async def stop(name: str) -> None:
        async with turn, browser.delete(f"{api}/{name}/server") as answer:
            if answer.status not in {202, 204}:
                raise RuntimeError(f"{name}'s server does not stop: {await answer.text()}")

    async with aiohttp.ClientSession(headers=headers) as browser:
        while active := await _active(browser, api):
            await asyncio.gather(*(stop(name) for name in active))


async def _active(browser: aiohttp.ClientSession, api: str) -> list[str]:
    async with browser.get(api, params={"state": "active", "limit": "1000"}) as answer:
        users = await answer.json()
    return [user["name"] for user in users]
