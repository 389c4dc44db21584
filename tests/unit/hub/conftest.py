"""Fixtures of the hub side's unit tests: no hub, no Ansible.

===========  =============================================================================
``apply``    a fake apply program of the test's own and its control; :class:`FakeApply`
``log``      a logger whose lines the test reads; :class:`Lines`
``hub``      a dispatcher whose client runs nothing; :class:`fake_runs.Hub`
===========  =============================================================================
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_runs import Hub
from hub_fakes import FakeApply, Lines

from ansible_bootstrap.dispatch.client import ApplyClient


@pytest.fixture
def apply(tmp_path: Path) -> Iterator[FakeApply]:
    fake = FakeApply(tmp_path)
    yield fake
    fake.clean()


@pytest.fixture
def log() -> Lines:
    return Lines()


@pytest.fixture
def hub(log: Lines) -> Hub:
    return Hub(log)


@pytest.fixture(autouse=True)
async def no_program_outlives_its_test(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """A run is over with its last line; the program leaves a little later, and the loop is to hear of that."""
    clients: list[ApplyClient] = []
    make = ApplyClient.__init__

    def init(self: ApplyClient, *args: Any, **more: Any) -> None:
        make(self, *args, **more)
        clients.append(self)

    monkeypatch.setattr(ApplyClient, "__init__", init)
    yield
    for client in clients:
        client.close()
        await asyncio.wait_for(client.gone(), 20)
