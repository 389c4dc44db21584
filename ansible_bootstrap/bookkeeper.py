"""The ledger for a hub: everything off the event loop, bounded, and never an error for a spawn.

Looking a user up is what every login pays for, so it has 200 ms: no answer means that nothing is known of the user,
who is then bootstrapped as if new. What is noted is gathered and written by one task at a time. A ledger that cannot
be read or written is one warning in the log; spawns go on without it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from .errors import AnsibleBootstrapError
from .ledger import Entry, Ledger, completed
from .places import Place
from .protocol import Outcome, RoleFingerprint
from .threads import PROBES, in_thread

LOOK_SECONDS: Final = 0.2
"""For one look at the ledger and at the directory; on a file system that works it takes one millisecond."""

DISK_SECONDS: Final = 10.0
"""For writing, and for the looks at the directories that are noted with it."""

MAX_WAITING: Final = 50_000
"""Most notes that wait to be written; beyond, they are dropped."""


class Bookkeeper:
    """Looks users up and notes what became of them. All methods are called on one event loop.

    Args:
        ledger: the file.
        log: told once that it does not work.
        under: digest of the settings that places hold for, as :meth:`Ledger.note_places`.
    """

    def __init__(self, ledger: Ledger, log: logging.Logger, under: str = "") -> None:
        self._ledger = ledger
        self._log = log
        self._under = under
        self._completed: list[Entry] = []
        self._places: list[Place] = []
        self._noted: dict[tuple[str, str], Place] = {}
        self._task: asyncio.Task[None] | None = None
        self._complained = False

    async def look(self, place: Place) -> Entry | None:
        """Return what the user has at this place, None if that is not known."""
        try:
            return await in_thread(partial(self._ledger.look, place), timeout=LOOK_SECONDS, pool=PROBES)
        except TimeoutError:
            self._log.warning(
                "ansible_bootstrap: looking at the directory of %s took more than %g s",
                ascii(place.name),
                LOOK_SECONDS,
            )
        except Exception as error:
            self._complain(error)
        return None

    async def place_of(self, name: str) -> Place | None:
        """Return where the user's default server last had its storage under the present settings."""
        try:
            places = await in_thread(partial(self._ledger.places, name, self._under), timeout=DISK_SECONDS)
        except Exception as error:
            self._complain(error)
            return None
        return next((place for place in places if not place.server_name), None)

    def complete(self, place: Place, outcome: Outcome, fingerprints: Sequence[RoleFingerprint]) -> None:
        """Note that a bootstrap has succeeded; returns at once."""
        if len(self._completed) < MAX_WAITING:
            self._completed.append(completed(place, outcome.directory, fingerprints, outcome.continued))
            self._write_soon()

    def note_place(self, place: Place) -> None:
        """Note where a server has its storage, unless it was there the last time; returns at once."""
        key = (place.name, place.server_name)
        if self._noted.get(key) != place and len(self._places) < MAX_WAITING:
            self._places.append(place)
            self._write_soon()

    async def forget(self, places: Sequence[Place]) -> list[Entry]:
        """Make places unknown, on disk, before returning; return what was known.

        Raises:
            TimeoutError, sqlite3.Error, OSError, SettingsError: they may still be known.
        """
        await self.written()  # Or what is noted now would come after.
        return await in_thread(partial(self._ledger.forget_places, list(places)), timeout=DISK_SECONDS)

    async def restore(self, entries: Sequence[Entry]) -> None:
        """Put back what :meth:`forget` returned."""
        await self._try(partial(self._ledger.restore, list(entries)))

    async def written(self) -> None:
        """Return when all that has been noted is on disk, or could not be."""
        while self._task is not None and not self._task.done():
            await asyncio.wait({self._task})  # Bounded: each write is.

    # -- inner --------------------------------------------------------------------------------

    def _write_soon(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        while self._completed or self._places:
            entries, self._completed = self._completed, []
            places, self._places = self._places, []
            until = time.monotonic() + DISK_SECONDS
            if entries:
                await self._try(partial(self._ledger.complete, entries, until=until))
            if places and await self._try(partial(self._ledger.note_places, places, self._under)):
                self._noted.update({(place.name, place.server_name): place for place in places})

    async def _try(self, call: Callable[[], None]) -> bool:
        try:
            await in_thread(call, timeout=DISK_SECONDS, pool=PROBES)
        except Exception as error:
            self._complain(error)
            return False
        return True

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            why = error.details if isinstance(error, AnsibleBootstrapError) else ""
            self._log.warning(
                "ansible_bootstrap: the ledger in c.AnsibleBootstrap.state_dir does not work, so every login is a "
                "run: %s",
                why or f"{type(error).__name__}: {error}",
            )
