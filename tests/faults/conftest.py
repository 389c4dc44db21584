"""Fixtures of the suite that kills, starves and races the file library. Most of it needs root.

root, make_user, as_user, victim, hold    as in ``tests/unit/storage``
disk        the storage root on a file system of its own (a tmpfs with the given options)
flipper     a process of a user's that exchanges two names in their home as fast as it can
counted     how many things were tried and held, for the summary at the end of the run
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_bootstrap.storage import _files
from tests.unit.storage.conftest import _make_root, as_user, hold, make_user, root, victim

__all__ = ["_make_root", "as_user", "hold", "make_user", "root", "victim"]

RENAME_EXCHANGE = 2


@pytest.fixture
def counted(record_property: Callable[[str, object], None]) -> Iterator[Counter[str]]:
    counts: Counter[str] = Counter()
    yield counts
    record_property("counted", dict(counts))


@contextlib.contextmanager
def mounted(place: Path, *arguments: str) -> Iterator[None]:
    """Mount something at ``place``, for a while."""
    subprocess.run(["mount", *arguments, str(place)], check=True)
    try:
        yield
    finally:
        if subprocess.run(["umount", str(place)], check=False).returncode != 0:
            subprocess.run(["umount", "-l", str(place)], check=True)
            pytest.fail("a process is left that has something of the file system open")


def small(place: Path, options: str) -> contextlib.AbstractContextManager[None]:
    """A tmpfs, with such options as ``size=64k`` or ``nr_inodes=30``."""
    return mounted(place, "-t", "tmpfs", "-o", f"mode=0755,{options}", "tmpfs")


@pytest.fixture
def disk(root: Path) -> Iterator[Callable[[str], Path]]:
    with contextlib.ExitStack() as stack:

        def make(options: str = "size=64m") -> Path:
            stack.enter_context(small(root, options))
            return root

        yield make


class Flipper:
    """What a hostile user runs: the exchange of two names, in one step, over and over (renameat2(2))."""

    def __init__(self, uid: int, home: Path, one: str, two: str) -> None:
        self._count = mmap.mmap(-1, 8)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.chdir(home)
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                self._flip(os.fsencode(one), os.fsencode(two))
            finally:
                os._exit(1)

    def _flip(self, one: bytes, two: bytes) -> None:
        count = 0
        while True:
            if _files._libc.renameat2(-100, one, -100, two, RENAME_EXCHANGE) == 0:
                count += 1
                self._count[:8] = count.to_bytes(8, "little")

    @property
    def flips(self) -> int:
        return int.from_bytes(self._count[:8], "little")

    def wait_for_flips(self, count: int = 1) -> None:
        """Wait until it is at work, so that a round that was too quick for it does not count."""
        until, target = time.monotonic() + 10, self.flips + count
        while self.flips < target:
            assert time.monotonic() < until, "the flipper does not flip"
            time.sleep(0.0001)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Hold it while the test itself puts things in order."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)
        yield
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def flipper(counted: Counter[str]) -> Iterator[Callable[..., Flipper]]:
    running: list[Flipper] = []

    def start(uid: int, home: Path, one: str, two: str) -> Flipper:
        running.append(Flipper(uid, home, one, two))
        return running[-1]

    yield start
    for each in running:
        each.end()
        counted["flips"] += each.flips
