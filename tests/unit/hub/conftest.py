"""Fixtures of the hub side's unit tests: no hub, no Ansible.

===========  =============================================================================
``apply``    a fake apply program of the test's own and its control; :class:`FakeApply`
``log``      a logger whose lines the test reads; :class:`Lines`
===========  =============================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_fakes import FakeApply, Lines


@pytest.fixture
def apply(tmp_path: Path) -> Iterator[FakeApply]:
    fake = FakeApply(tmp_path)
    yield fake
    fake.clean()


@pytest.fixture
def log() -> Lines:
    return Lines()
