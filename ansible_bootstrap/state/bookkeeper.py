"""The ledger for a hub: every call is bounded, and none is an error for a spawn.

Every login looks its user up, so that has 200 ms: without an answer the user counts as unknown, and is bootstrapped as
if new. A ledger that cannot be read or written is one warning in the log, and spawns go on without it; only
:meth:`Bookkeeper.person` must have an answer.

The file is read in the event loop, which takes tens of microseconds: in a storm a thread would wait longer for the
interpreter's lock, and the loop for the thread. Directories are probed, and the file is written, in threads. A user
whose directory hangs counts as unknown, and the notes of this user alone are dropped.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from ansible_bootstrap.errors import ApplyError, RefusedError
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import Outcome, RoleFingerprint
from ansible_bootstrap.state.ledger import Entry, Ledger, completed, probed
from ansible_bootstrap.state.moves import check_move, where
from ansible_bootstrap.state.probe import Probes
from ansible_bootstrap.state.writer import DISK_SECONDS, Writer
from ansible_bootstrap.threads import in_thread

T = TypeVar("T")

PROBE_SECONDS: Final = 0.2
"""For one probe of a directory; on a file system that works it takes one millisecond."""

SEEN_SECONDS: Final = 2.0
"""For a probe of a directory that is to be noted; for many, as long as one of them returns."""

MAX_WAITING: Final = 50_000
"""Most notes that wait to be written; beyond, they are dropped."""


@dataclass(eq=False, slots=True)
class _Question:
    name: str
    overtaken: bool = False
    """Whether the user has been made unknown since the probe began."""


class Bookkeeper(Writer):
    """Looks users up and notes what became of them. All methods are called on one event loop.

    Args:
        ledger: the file.
        log: told once that it does not work.
        under: digest of the settings that places hold for, as :meth:`Ledger.note_places`.
    """

    def __init__(self, ledger: Ledger, log: logging.Logger, under: str = "") -> None:
        super().__init__(
            "ledger",
            log,
            "the ledger in c.AnsibleBootstrap.state_dir does not work, so every login is a run",
        )
        self._ledger = ledger
        self._under = under
        self._completed: list[Entry] = []
        self.probes = Probes()
        self._asked: set[_Question] = set()
        """Users who are being looked up."""
        self._lost: dict[str, float] = {}
        """Users who could not be forgotten on disk, and when (as ``time.monotonic``) that was to be done."""
        self._places: list[Place] = []
        self._persons: dict[str, tuple[str, str]] = {}

    async def look(self, place: Place) -> Entry | None:
        """Return what the user has at this place, None if that is not known."""
        entry = self._recorded(place)
        if entry is None:
            return None
        question = _Question(place.name)
        self._asked.add(question)
        try:
            intact = await self.probes.run(
                place.name, entry.directory, partial(self._ledger.holds, entry), PROBE_SECONDS
            )
        except TimeoutError:
            self._log.warning(
                "ansible_bootstrap: the probe of the directory of %s took more than %g s",
                ascii(place.name),
                PROBE_SECONDS,
            )
        except Exception as error:
            self._complain(error)
        else:
            # A clean-up may have begun and ended since the entry was read.
            return entry if intact and not question.overtaken else None
        finally:
            self._asked.discard(question)
        return None

    def noted(self, place: Place) -> Entry | None:
        """Return what is noted of the user at this place, if it is to be trusted, without a probe of the directory."""
        entry = self._recorded(place)
        return entry if entry is not None and self._ledger.trusts(entry) else None

    def place_of(self, name: str) -> Place | None:
        """Return where the user's default server last had its storage under the present settings."""
        places = self._read(partial(self._ledger.places, name, self._under)) or []
        return next((place for place in places if not place.server_name), None)

    async def check_move(self, place: Place, *, refuse: bool) -> None:
        """Refuse a new place for a known user who has files at the old one, or say so in the log.

        Raises:
            RefusedError: naming both.
        """
        try:
            last = self._ledger.elsewhere(place, self._under)
            if last is None and self._ledger.sees(place):
                last = self._ledger.elsewhere(place, self._under, gone=True)
                if last is None or await in_thread(partial(_is_there, place), timeout=DISK_SECONDS):
                    return
        except Exception as error:
            self._complain(error)
            return
        if last is None:
            return
        try:
            await in_thread(
                partial(check_move, last, place, seen=self._ledger.sees(last) and self._ledger.sees(place)),
                timeout=DISK_SECONDS,
            )
        except RefusedError as error:
            if refuse:
                raise
            self._log.warning("ansible_bootstrap: on_move: %s", error.details)
        else:
            self._log.info(
                "ansible_bootstrap: the storage of %a is %s, and was %s",
                place.name,
                where(place),
                where(last),
            )

    def complete(
        self,
        place: Place,
        outcome: Outcome,
        fingerprints: Sequence[RoleFingerprint],
        since: float | None = None,
    ) -> None:
        """Note that a bootstrap has succeeded, as :func:`ledger.completed`; returns at once."""
        since = time.monotonic() - outcome.seconds if since is None else since
        if since < self._lost.get(place.name, since):
            return
        self._lost.pop(place.name, None)
        if len(self._completed) < MAX_WAITING:
            self._completed.append(
                completed(place, outcome.directory, fingerprints, outcome.continued, since)
            )
            self._write_soon()

    def note_place(self, place: Place) -> None:
        """Note where a server has its storage, unless it was there the last time; returns at once."""
        noted = self._read(partial(self._ledger.places, place.name, self._under)) or ()
        same = any((each, each.server_name) == (place, place.server_name) for each in noted)
        if not same and len(self._places) < MAX_WAITING:
            self._places.append(place)
            self._write_soon()

    def person(self, name: str) -> str | None:
        """Return the person of a username, as :meth:`Ledger.person`.

        Raises:
            ApplyError: that cannot be told now.
        """
        try:
            return self._ledger.person(name)
        except Exception as error:
            self._complain(error)
            raise ApplyError(
                f"the ledger in c.AnsibleBootstrap.state_dir cannot be read ({error}), so it cannot be checked whether "
                f"{name!a} is the person who was given the directory: try again; if that does not help, mend the ledger"
            ) from None

    def note_person(self, name: str, person: str, instead: str = "") -> None:
        """Note the person of a username, as :meth:`Ledger.note_persons`; returns at once."""
        if len(self._persons) < MAX_WAITING:
            self._persons.setdefault(name, (person, instead))
            self._write_soon()

    async def forget(self, name: str) -> None:
        """Make a user unknown, on disk, before returning; to this hub at once, whatever the disk says."""
        self._overtake({name})
        now = time.monotonic()
        if len(self._lost) < MAX_WAITING:
            self._lost[name] = now
        await self._on_disk(partial(self._ledger.forget, [name]))
        if self._lost.get(name) == now:
            del self._lost[name]

    async def doubt(self, places: Sequence[Place], seconds: float) -> str:
        """A clean-up begins, as :meth:`Ledger.doubt`: make its users unknown, on disk, before returning.

        Raises:
            TimeoutError, sqlite3.Error, OSError, SettingsError: the users may still be known.
        """
        names = {place.name for place in places}
        self._overtake(names)
        token = await self._on_disk(partial(self._ledger.doubt, list(places), seconds))
        self._overtake(names)  # Also those that have begun meanwhile.
        return token

    async def after_cleanup(
        self,
        token: str,
        unchanged: Sequence[tuple[str, str]],
        changed: Sequence[tuple[str, str]],
        at: float,
    ) -> None:
        """A clean-up has ended, as :meth:`Ledger.cleaned`; an error is a warning."""
        await self._try(partial(self._ledger.cleaned, token, unchanged, changed, at))

    def _overtake(self, names: Collection[str]) -> None:
        for question in self._asked:
            question.overtaken = question.overtaken or question.name in names

    # -- inner --------------------------------------------------------------------------------

    def _recorded(self, place: Place) -> Entry | None:
        return None if place.name in self._lost else self._read(partial(self._ledger.recorded, place))

    def _read(self, call: Callable[[], T]) -> T | None:
        """Return what the ledger says; None, and a warning, if it cannot be read."""
        try:
            return call()
        except Exception as error:
            self._complain(error)
            return None

    async def _write(self) -> None:
        while self._completed or self._places or self._persons:
            entries, self._completed = self._completed, []
            places, self._places = self._places, []
            persons, self._persons = self._persons, {}
            if persons:
                await self._try(partial(self._ledger.note_persons, persons))
            if entries:
                try:
                    seen = await self.probes.run_all(
                        [(entry.place.name, entry.directory, partial(probed, entry)) for entry in entries],
                        SEEN_SECONDS,
                        DISK_SECONDS,
                    )
                except Exception as error:  # No thread could be made, say.
                    self._complain(error)
                    seen = []
                until = time.monotonic() + DISK_SECONDS
                await self._try(partial(self._ledger.note, seen, until=until))
            if places:
                await self._try(partial(self._ledger.note_places, places, self._under))


def _is_there(place: Place) -> bool:
    return place.directory is None or os.path.lexists(place.directory)
