"""What is noted on the hub's event loop, on its way to a file below ``state_dir``.

Notes are gathered, and one task at a time writes all that came meanwhile, in a thread. A disk that fails holds up no
spawn: it is one warning in the log, and the hub goes on without the file.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, TypeVar

from ansible_bootstrap.errors import reason_for_log
from ansible_bootstrap.threads import Pool, in_thread

T = TypeVar("T")

DISK_SECONDS: Final = 10.0
"""For one call that reads or changes the file."""

THREADS: Final = 2
"""For one file. A disk that hangs takes these, and none of those that everything else needs."""


class Writer(ABC):
    """Base of what keeps notes in one file. All methods are called on one event loop.

    Args:
        name: of the threads.
        log: told of the first error.
        trouble: what does not work then, and what follows from that.
    """

    def __init__(self, name: str, log: logging.Logger, trouble: str) -> None:
        self._pool = Pool(name, THREADS)
        self._log = log
        self._trouble = trouble
        self._warned = False
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def _write(self) -> None:
        """Write until nothing is left that was noted; must not raise."""

    def _write_soon(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._write())

    async def written(self, seconds: float | None = None) -> None:
        """Return when all that has been noted is on disk, or could not be, or after that time."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=seconds)

    def _complain(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            self._log.warning("ansible_bootstrap: %s: %s", self._trouble, reason_for_log(error))

    async def _on_disk(self, call: Callable[[], T]) -> T:
        return await in_thread(call, timeout=DISK_SECONDS, pool=self._pool)

    async def _try(self, call: Callable[[], object]) -> bool:
        """Return whether it worked."""
        try:
            await self._on_disk(call)
        except Exception as error:
            self._complain(error)
            return False
        return True
