# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Do the work of a batch in a process of its own, and watch whether it gets on.

A storage that does not answer holds whoever asks it, often beyond SIGKILL: a dead disk, a file server that is gone,
a FUSE file system whose server sleeps. So the process that Ansible waits for opens no name on the storage::

    module (watches) ── worker (opens names) ── children, each with one user's rights (``_as_user.py``)

The kernel counts how often a process goes to sleep. Once a second the watcher reads that count. A worker that sleeps,
and has the same count as ten seconds ago, waits in one system call. No loop has to say that it gets on, however long
it takes; only a call that may rightly take long says so before (:func:`expecting`).

Rejected: a byte through a pipe for each step. Each wakes the watcher, and every loop that may take long, such as the
removal of a tree or the checksum of an archive, would have to send some.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Optional

from ._as_user import ends_within
from ._descriptors import silence
from ._errors import StorageError
from ._rights import PR_SET_PDEATHSIG, prctl

SILENCE = 10.0
"""Seconds in one system call after which the storage counts as silent. A disk of a machine that is overloaded answers
within a few; a run that waits as long has not used up the time that a student has."""

_LOOK = 1.0
"""Seconds between two looks at the worker."""

NOWHERE = -1
"""The place of what is done for no user alone."""

_life: Optional[tuple[int, memoryview[float]]] = None
"""Of a worker: its pid (its children are none), and what its watcher reads: the place it is at, and until when it may
be silent. These are two floats of eight bytes, each of which the processor writes in one piece."""


@dataclass(frozen=True)
class Ended:
    """How the work ended: with a result, or silent at a place (a claim's, or :data:`NOWHERE`)."""

    said: Any = None
    silent_at: Optional[int] = None


def apart(work: Callable[[], Any]) -> Ended:
    """Do the work in a worker, and return what it returns (JSON), or where it fell silent.

    A worker that is silent is killed. If it cannot die it stays, with the locks of the users it works for.

    Raises:
        OSError: the worker cannot be started.
        StorageError: it was killed.
        RuntimeError: the work raised something; the message is the traceback.
    """
    life = mmap.mmap(-1, 16)
    shared = memoryview(life).cast("d")
    shared[0], shared[1] = NOWHERE, 0
    reader, writer = os.pipe()
    watcher = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if pid == 0:
        try:
            os.close(reader)
            _work(work, shared, watcher, writer)
        finally:
            os._exit(0)
    os.close(writer)
    data: Optional[bytes] = None
    status: Optional[int] = None
    try:
        data = _follow(pid, reader, shared)
    finally:
        os.close(reader)
        if not data:
            os.kill(pid, signal.SIGKILL)
        if ends_within(pid, 1.0):
            status = os.waitpid(pid, 0)[1]
    if data is None:
        return Ended(silent_at=int(shared[0]))
    try:
        answer = json.loads(data)
    except ValueError:
        how = f" (signal {os.WTERMSIG(status)})" if status is not None and os.WIFSIGNALED(status) else ""
        raise StorageError(f"the process that does the work was killed{how}: run again") from None
    if "raised" in answer:
        raise RuntimeError(answer["raised"])
    return Ended(answer["said"])


def at(place: int) -> None:
    """Say for which user's claim the next steps are done."""
    if _life is not None and _life[0] == os.getpid():
        _life[1][0] = place


@contextlib.contextmanager
def expecting(seconds: float) -> Iterator[None]:
    """Say that a system call in the body may take so long."""
    if _life is None or _life[0] != os.getpid():
        yield
        return
    shared = _life[1]
    shared[1] = time.monotonic() + seconds
    try:
        yield
    finally:
        shared[1] = 0


def _work(work: Callable[[], Any], shared: memoryview[float], watcher: int, writer: int) -> None:
    """The worker's whole life."""
    global _life  # noqa: PLW0603
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != watcher:
            return
        silence()
        _life = os.getpid(), shared
        answer = json.dumps({"said": work()})
    except BaseException:
        answer = json.dumps({"raised": traceback.format_exc()})
    with open(writer, "wb") as pipe:
        pipe.write(answer.encode("ascii"))


def _follow(pid: int, reader: int, shared: memoryview[float]) -> Optional[bytes]:
    """Return all that the worker writes until it ends; None if it falls silent."""
    data = bytearray()
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    seen, since = None, time.monotonic()
    while True:
        if poll.poll(_LOOK * 1000):
            chunk = os.read(reader, 1 << 20)
            if not chunk:
                return bytes(data)
            data += chunk
            continue
        now, count = time.monotonic(), _sleeps(pid)
        if count is None or count != seen:
            seen, since = count, now
        elif now - since >= SILENCE and now >= shared[1]:
            return None


def _sleeps(pid: int) -> Optional[int]:
    """Return how often a process that sleeps went to sleep; None if it runs, or the kernel does not say."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            status = dict(line.split(b":", 1) for line in file if b":" in line)
        return None if status[b"State"].split()[0] == b"R" else int(status[b"voluntary_ctxt_switches"])
    except (OSError, KeyError, ValueError):
        return None
