"""Keeps one apply program waiting, so that the next run need not start one.

A spare serves one run and costs the memory of two Python processes, so there is one at a time. Whatever is wrong
with a spare is no reason for a run to fail: it is thrown away, and the run starts a program of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from .errors import AnsibleBootstrapError
from .warm import WARM

if TYPE_CHECKING:
    from .apply_client import ApplyRun


class Spare:
    """The one apply program that waits, if there is one.

    Args:
        argv: returns the command line of a run, as it is now.
        launch: starts a command line.
        log: where it is said that there is none, and why.
    """

    def __init__(
        self,
        argv: Callable[[], Awaitable[Sequence[str]]],
        launch: Callable[[Sequence[str]], Awaitable[ApplyRun]],
        log: logging.Logger,
    ) -> None:
        self._argv = argv
        self._launch = launch
        self._log = log
        self._run: ApplyRun | None = None
        self._for: list[str] = []
        self._starting: asyncio.Task[None] | None = None
        self._closed = False

    def prepare(self) -> None:
        """Start it now, unless it is there; returns at once."""
        if not self._closed and self._run is None and self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._start())

    def take(self, argv: list[str]) -> ApplyRun | None:
        """Return the spare if it is as good as what this command line would start; it is the caller's then."""
        run, self._run = self._run, None
        if run is None:
            return None
        if run.lives() and self._for == argv:
            return run
        run.dismiss()
        return None

    def close(self) -> None:
        """End it, and start none any more; returns at once."""
        self._closed = True
        if self._starting is not None:
            self._starting.cancel()
        if self._run is not None:
            self._run.dismiss()
            self._run = None

    async def _start(self) -> None:
        try:
            argv = list(await self._argv())
            run = await self._launch([*argv, WARM])
        except AnsibleBootstrapError as error:
            # The next run will meet the same, and say it to those who wait for it.
            self._log.warning("apply: no spare program was started: %s", error.details or error.message)
            return
        finally:
            self._starting = None
        self._run, self._for = run, argv
        run.on_gone(lambda: self._lost(run))

    def _lost(self, run: ApplyRun) -> None:
        """It has ended while it waited. No other is started before the next run: that one would end as well."""
        if self._run is run:
            self._run = None
            self._log.warning("apply: the spare program ended while it waited: %s", run.last_words())
            run.dismiss()
