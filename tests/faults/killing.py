"""Kill the file library with SIGKILL at each call that changes the disk, one after the other.

The work is done in a forked process, the module; those calls are counted in the worker that it forks, and in the
children that the worker forks for its users. At the chosen one the module is killed, and with it the worker and the
children, which end with their parents. A write or a copy is killed when half of it is done. That one call comes after the other, never two at once, is
seen to by one processor, so a run has the same steps each time and *every* one of them can be tried.

Whether the kernel does half a rename when it is killed is not asked: it does not.

By default a random third of the steps is tried, and at least :data:`FEWEST`. The environment variable
``ANSIBLE_BOOTSTRAP_STEPS`` is the seed of the choice, or ``all``; the summary of the run tells it. With ``all``, races
are also run for more rounds (:func:`rounds`).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_bootstrap.storage import _files

FEWEST = 12
_PROC = os.stat("/proc").st_dev
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def chosen(steps: int, case: str) -> list[int]:
    """Steps of the case that are to be tried, in their order."""
    seed, every = os.environ["ANSIBLE_BOOTSTRAP_STEPS"], range(1, steps + 1)
    if seed == "all":
        return list(every)
    return sorted(random.Random(f"{seed} {case}").sample(every, min(steps, max(FEWEST, steps // 3))))


def rounds(few: int, many: int) -> int:
    """How often a race is run."""
    return many if os.environ["ANSIBLE_BOOTSTRAP_STEPS"] == "all" else few


class _Counter:
    """Shared by the process and its children: calls so far, and at which to kill."""

    def __init__(self, target: int) -> None:
        self._shared = mmap.mmap(-1, 16)
        self.target = target

    @property
    def count(self) -> int:
        return int.from_bytes(self._shared[:8], "little")

    @property
    def victim(self) -> int:
        """Process id of the process that came to the step, 0 before that."""
        return int.from_bytes(self._shared[8:16], "little")

    def step(self) -> bool:
        """Count a call; say whether it is the one."""
        count = self.count + 1
        self._shared[:8] = count.to_bytes(8, "little")
        return count == self.target

    def die(self) -> None:
        """Tell the own process id, and wait to be killed: a child has no right to kill its parent itself."""
        self._shared[8:16] = os.getpid().to_bytes(8, "little")
        while True:
            signal.pause()


@dataclass(frozen=True)
class Run:
    """What became of a run that was to be killed.

    Attributes:
        steps: calls counted.
        killed: whether it came to the one chosen; if not it ran to its end.
        in_child: whether that was in the worker or a child, as it is wherever the module forks a worker.
    """

    steps: int
    killed: bool
    in_child: bool


def run(work: Callable[[], Any], at: int, *, only_child: bool = False) -> Run:
    """Do the work in a process that is killed before step ``at``; 0 is never.

    With ``only_child`` the worker or a child is killed alone, as by the kernel when memory is short; its parent goes on.
    """
    counter = _Counter(at)
    main = os.fork()
    if main == 0:
        status = 1
        try:
            processors = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {processors[_WORKER % len(processors)]})
            _count_calls(counter)
            work()
            status = 0
        finally:
            os._exit(status)
    until = time.monotonic() + 30
    ended = 0
    try:
        while not ended and not counter.victim:
            time.sleep(0.0002)
            assert time.monotonic() < until, f"nothing happens after call {counter.count}"
            ended, status = os.waitpid(main, os.WNOHANG)
        in_child = counter.victim not in (0, main)
        if counter.victim:
            os.kill(counter.victim if only_child and in_child else main, signal.SIGKILL)
            ended, status = os.waitpid(main, 0)
        while in_child and _alive(counter.victim):  # it ends with its parent
            time.sleep(0.0002)
            assert time.monotonic() < until, "it outlives its parent"
    except BaseException:
        for pid in {counter.victim, main if not ended else 0} - {0}:
            os.kill(pid, signal.SIGKILL)
        if not ended:
            os.waitpid(main, 0)
        raise
    if only_child or not counter.victim:
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work raised something"
    return Run(counter.count, bool(counter.victim), in_child)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _count_calls(counter: _Counter) -> None:
    def wrap(holder: Any, name: str, counts: Callable[..., bool] = lambda *_, **__: True) -> None:
        original = getattr(holder, name)

        def counting(*arguments: Any, **named: Any) -> Any:
            if counts(*arguments, **named) and counter.step():
                _half(name, original, arguments)
                counter.die()
            return original(*arguments, **named)

        setattr(holder, name, counting)

    for name in (
        *("mkdir", "rename", "symlink", "unlink", "rmdir", "link", "truncate", "ftruncate"),
        *("chmod", "fchmod", "chown", "fchown", "utime", "copy_file_range"),
    ):
        wrap(os, name)
    wrap(os, "open", lambda path, flags, *_, **__: bool(flags & os.O_CREAT))
    wrap(os, "write", lambda fd, _: stat.S_ISREG((status := os.fstat(fd)).st_mode) and status.st_dev != _PROC)
    wrap(_files, "_renameat2")
    wrap(_files._libc, "syncfs")


def _half(name: str, original: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    with contextlib.suppress(OSError):  # a file system that cannot copy in the kernel
        if name == "write":
            original(arguments[0], arguments[1][: len(arguments[1]) // 2])
        elif name == "copy_file_range":
            original(arguments[0], arguments[1], arguments[2] // 2)


Seen = dict[str, tuple[Any, ...]]


def tree(top: Path, *, times: bool = False) -> Seen:
    """Everything at and below ``top``: kind and mode, owner, content; with ``times`` also inode and mtime."""
    found: Seen = {}
    for path in [top, *sorted(top.rglob("*"))] if os.path.lexists(top) else []:
        status = path.lstat()
        content = (
            path.read_bytes()
            if stat.S_ISREG(status.st_mode)
            else os.readlink(path)
            if path.is_symlink()
            else ""
        )
        more = (status.st_ino, status.st_mtime_ns) if times else ()
        found[str(path.relative_to(top))] = (status.st_mode, status.st_uid, status.st_gid, content, *more)
    return found
