"""Trees that are copied, compared and removed although somebody hostile may have made or may change them."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_bootstrap.storage._descriptors import DIRECTORY, opened
from ansible_bootstrap.storage._errors import StorageError
from ansible_bootstrap.storage._partial_homes import other_than_skeleton
from ansible_bootstrap.storage._state import State
from ansible_bootstrap.storage._trees import copy_tree, discard, remove_tree

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
    state = State(directory, str(deep))
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


def _copy(source: int, target: int) -> None:
    copy_tree(source, target, "source")


def _compare(source: int, target: int) -> None:
    other_than_skeleton(source, target, os.geteuid(), [])


@pytest.mark.parametrize("name", ["directory", "directory/secret"])
@pytest.mark.parametrize("work", [_copy, _compare])
def test_what_becomes_a_link_between_look_and_open_is_not_followed(
    tmp_path: Path,
    victim: Path,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[int, int], None],
    name: str,
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(victim, source / "directory")
    if work is _compare:
        shutil.copytree(source, target)
    else:
        target.mkdir()
    real, exchanged = os.open, []

    def open_later(path: str, *arguments: int, **more: int) -> int:
        if path == Path(name).name and not exchanged:
            exchanged.append(path)
            (source / name).rename(tmp_path / "before")
            (source / name).symlink_to(victim if name == "directory" else victim / "secret")
        return real(path, *arguments, **more)

    with opened(str(source), DIRECTORY) as one, opened(str(target), DIRECTORY) as other:
        monkeypatch.setattr(os, "open", open_later)
        with pytest.raises((StorageError, OSError), match=r"link|[Nn]ot a directory|symbolic"):
            work(one, other)
    assert exchanged


@pytest.mark.parametrize("done_by_the_kernel", [0, 1])
@pytest.mark.parametrize("content", [b"", b"x", b"xy", b"y" * 3_000_000])
def test_what_the_kernel_does_not_copy_is_read_and_written(
    content: bytes, done_by_the_kernel: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it has copied the first byte before it refused."""

    def refuse(reader: int, writer: int, size: int) -> int:
        if os.lseek(reader, 0, os.SEEK_CUR) < done_by_the_kernel:
            return os.write(writer, os.read(reader, 1))
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    (tmp_path / "source/file").write_bytes(content)
    monkeypatch.setattr(os, "copy_file_range", refuse)
    with (
        opened(str(tmp_path / "source"), DIRECTORY) as one,
        opened(str(tmp_path / "target"), DIRECTORY) as other,
    ):
        copy_tree(one, other, "source")
    assert (tmp_path / "target/file").read_bytes() == content
