"""Fixtures of the tests against a real hub: ``python -m jupyterhub`` in a process of its own.

===============  ===============================================================================
``start_hub``    starts a hub and waits until it is up; :class:`RunningHub`
``hub``          one such hub for a file, with the fake apply program; reset before each test
``apply``        that hub's fake apply program; ``hub_fakes.FakeApply``
``own``          a fake apply program of the test's own, for a hub that it starts
===============  ===============================================================================

There is no proxy and no notebook: see ``hub_config.py`` and ``fake_server.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "unit/hub"))

from hub_fakes import FakeApply
from hub_process import RunningHub


@pytest.fixture(scope="module")
def start_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RunningHub]]:
    hubs: list[RunningHub] = []

    def start(**options: Any) -> RunningHub:
        path = tmp_path_factory.mktemp("hub")
        path.chmod(0o755)
        hubs.append(RunningHub(path, **options))
        hubs[-1].wait_until_up()
        return hubs[-1]

    yield start
    for hub in hubs:  # Side by side.
        hub.terminate()
    for hub in hubs:
        hub.kill()


@pytest.fixture(scope="module")
def _shared(
    start_hub: Callable[..., RunningHub], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningHub, FakeApply]]:
    fake = FakeApply(tmp_path_factory.mktemp("apply"))
    yield start_hub(apply_command=fake.command, cleanup_delay=0.3, timeout=20), fake
    fake.clean()


@pytest.fixture
def apply(_shared: tuple[RunningHub, FakeApply]) -> FakeApply:
    fake = _shared[1]
    fake.do()
    fake.notes.unlink(missing_ok=True)
    return fake


@pytest.fixture
def hub(_shared: tuple[RunningHub, FakeApply], apply: FakeApply) -> RunningHub:
    return _shared[0]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[FakeApply]:
    fake = FakeApply(tmp_path)
    yield fake
    fake.clean()
