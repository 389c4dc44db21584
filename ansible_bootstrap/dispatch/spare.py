"""Keeps one apply program waiting, so that the next run need not start one.

A spare serves one run, and has started Ansible before there is a request for it (``apply/``). Whatever is wrong with
a spare is no reason for a run to fail: the spare is thrown away, and the run starts a program of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from ansible_bootstrap.errors import AnsibleBootstrapError, ApplyError

if TYPE_CHECKING:
    from ansible_bootstrap.dispatch.client import ApplyRun

START_SECONDS: Final = 5.0
"""For which a run waits for the process of a spare that is just being started."""


class SpareLostError(ApplyError):
    """A spare ended before it accepted its request, so nothing was done."""


class Spare:
    """The one apply program that waits, if there is one.

    Args:
        start: starts one.
        wanted: returns what a program is to be started for, as it is now.
        log: is told why there is none.
    """

    def __init__(
        self, start: Callable[[], Awaitable[ApplyRun]], wanted: Callable[[], object], log: logging.Logger
    ) -> None:
        self._start = start
        self._wanted = wanted
        self._log = log
        self._run: ApplyRun | None = None
        self._for: object = None
        """What it was started for."""
        self._making: asyncio.Task[None] | None = None
        self._closed = False

    def prepare(self) -> None:
        """Start it now, unless it is there; returns at once."""
        if not self._closed and self._run is None and self._making is None:
            self._making = asyncio.get_running_loop().create_task(self._make())

    async def take(self) -> ApplyRun | None:
        """Return the spare if it is as good as a program that would be started now; it is the caller's then."""
        if self._run is None and self._making is not None:  # It will be there sooner than a new program.
            await asyncio.wait({self._making}, timeout=START_SECONDS)
        run, self._run = self._run, None
        if run is None:
            return None
        try:
            if run.lives() and self._for == self._wanted():
                return run
        except Exception as error:
            self._log.warning("apply: the spare program could not be used: %s", error)
        run.dismiss()
        return None

    def close(self) -> None:
        """End it, and start none any more; returns at once."""
        self._closed = True
        if self._making is not None:
            self._making.cancel()
        if self._run is not None:
            self._run.dismiss()
            self._run = None

    async def _make(self) -> None:
        try:
            run = await self._start()
            self._for = self._wanted()  # Not before: the start writes the settings.
        except (AnsibleBootstrapError, OSError) as error:
            # The next run will meet the same, and its users are told.
            why = error.details or error.message if isinstance(error, AnsibleBootstrapError) else error
            self._log.warning("apply: no spare program was started: %s", why)
            return
        finally:
            self._making = None
        self._run = run
        run.on_gone(lambda: self._lost(run))

    def _lost(self, run: ApplyRun) -> None:
        """It has ended while it waited. No other is started before the next run: it would end as well."""
        if self._run is run:
            self._run = None
            self._log.warning("apply: the spare program ended while it waited: %s", run.last_words())
            run.dismiss()
