"""Fixtures of the tests that kill something while a class arrives.

=============  ========================================================================
``classroom``  a real hub without proxy whose users share one server; :class:`Classroom`
=============  ========================================================================

Hub, spawner and students are those of the storm benchmark.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from classroom import Classroom


@pytest.fixture
def classroom(tmp_path: Path, needs: Callable[..., None]) -> Iterator[Classroom]:
    needs(root=True, programs=("flock",))
    tmp_path.chmod(0o755)
    classroom = Classroom(tmp_path)
    try:
        classroom.hub.start()
        yield classroom
    finally:
        classroom.hub.end()
