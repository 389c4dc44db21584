"""Something is killed while a class arrives: everybody is served all the same, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from classroom import SCRIPT_SECONDS, Classroom, born, carrying, living

from ansible_bootstrap.apply.descendants import descendants
from ansible_bootstrap.storage._supervise import GRACE
from benchmarks.course import FILES
from benchmarks.storm.storm import arrivals, crowd

USERS, SECONDS = 20, 1.5
BEGUN = 5
"""Users for whom the script has begun when the kill comes: the first run has taken only the first users."""

PATIENCE = 90.0
BOUND = SCRIPT_SECONDS + GRACE
"""Seconds that a process of a killed run may live: the bounded life of what it does on the storage host. Most end
at once."""

VICTIMS = {"the hub": -1, "the apply program": 0, "what serves the request": 1, "ansible-playbook": 2}
"""Each by its place below the hub."""


async def until(condition: Callable[[], Any], seconds: float, classroom: Classroom) -> Any:
    """Wait until the condition holds; return its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds} s in vain:\n{classroom.hub.log.read_text()[-3000:]}"
        await asyncio.sleep(0.02)
    return value


@pytest.mark.alone(reason="twenty users who arrive within two seconds take the whole machine")
@pytest.mark.timeout(240)  # Half a minute for all three; the rest is for a busy machine.
@pytest.mark.parametrize("victim", VICTIMS)
async def test_a_kill_in_the_storm_costs_nobody_their_place(classroom: Classroom, victim: str) -> None:
    hub = classroom.hub
    storm = asyncio.create_task(crowd(hub, arrivals(USERS, SECONDS, 7), time.monotonic(), PATIENCE))

    assert hub.process
    at_work = await until(
        lambda: len(classroom.noted("begin")) >= BEGUN and classroom.at_work(), 60, classroom
    )
    pid = [*at_work, hub.process.pid][VICTIMS[victim]]
    family = descendants(pid)
    assert at_work[-1] in family
    family = born(family)
    os.kill(pid, signal.SIGKILL)
    if victim == "the hub":
        await asyncio.to_thread(hub.process.wait)
        await asyncio.to_thread(hub.start)  # As systemd does at once.

    await until(lambda: not living(family), BOUND, classroom)
    assert set(classroom.lessons().values()) <= {FILES}

    records = await storm
    assert [record.name for record in records if not record.served] == []
    assert any(record.troubles for record in records), "nobody noticed: not in the middle of the storm"
    assert classroom.overlaps == []
    assert classroom.lessons() == dict.fromkeys((record.name for record in records), FILES)
    assert {name for name, _ in classroom.noted("end")} == {record.name for record in records}

    await asyncio.to_thread(hub.end)
    await until(lambda: not carrying({str(classroom.path)}), BOUND, classroom)
