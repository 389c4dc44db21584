"""Trees that are removed although somebody hostile may have made them."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_bootstrap.storage._state import State
from ansible_bootstrap.storage._trees import remove_tree

DEPTH = 1500


@pytest.fixture
def deep(root: Path) -> Iterator[Path]:
    """The storage root; in it directories within each other, more than Python's own stack goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    top = root / "deep"
    top.mkdir()
    inner = os.open(top, os.O_RDONLY)
    for _ in range(DEPTH):
        os.mkdir("d", dir_fd=inner)
        inner, outer = os.open("d", os.O_RDONLY, dir_fd=inner), inner
        os.close(outer)
    os.close(inner)
    yield root
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    subprocess.run(["rm", "-rf", root / "deep", root / ".ansible_bootstrap"], check=True)


def test_a_tree_too_deep_to_remove_is_an_error_like_any_other(deep: Path) -> None:
    directory = os.open(deep, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="deep") as caught:
            remove_tree(directory, "deep")
        assert caught.value.errno == errno.ENAMETOOLONG
    finally:
        os.close(directory)


def test_a_stage_that_cannot_be_swept_is_nobody_elses_trouble(deep: Path) -> None:
    directory = os.open(deep, os.O_RDONLY)
    state = State(directory)
    try:
        (deep / "deep").rename(deep / ".ansible_bootstrap/stage/aa")
        (deep / ".ansible_bootstrap/stage/bb").mkdir()
        state.sweep()
        assert os.listdir(state.stage) == ["aa"]
    finally:
        state.close()
        os.close(directory)
