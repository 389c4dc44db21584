"""Trees that are removed although somebody hostile may have made them."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_bootstrap.storage._state import State
from ansible_bootstrap.storage._trees import discard, remove_tree

DEPTH = 1500
OWNER = 20001 if os.geteuid() == 0 else os.geteuid()


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
        os.chown(deep / "deep", OWNER, OWNER)
        assert "File name too long" in str(discard(directory, "deep", OWNER))
    finally:
        os.close(directory)


def test_a_stage_that_cannot_be_swept_is_nobody_elses_trouble(deep: Path) -> None:
    directory = os.open(deep, os.O_RDONLY)
    state = State(directory)
    try:
        stage = deep / ".ansible_bootstrap/stage"
        (deep / "deep").rename(stage / ("a" * 64 + f"-{OWNER}"))
        (stage / ("b" * 64 + f"-{OWNER}")).mkdir()
        state.sweep()
        assert os.listdir(state.stage) == ["a" * 64 + f"-{OWNER}"]
    finally:
        state.close()
        os.close(directory)


@pytest.mark.root
def test_root_never_removes_a_tree_by_itself(root: Path) -> None:
    (root / "tree").mkdir()
    directory = os.open(root, os.O_RDONLY)
    with pytest.raises(RuntimeError, match="discard"):
        remove_tree(directory, "tree")
    assert discard(directory, "tree", OWNER) is None
    assert discard(directory, "tree", OWNER) is None, "absent is fine"
    os.close(directory)
