"""Bootstrap many users at once without a hub: what ``ansible-bootstrap run`` does.

The runs are the hub's: its dispatcher makes them, and ``dispatch.run.Run`` carries them out. This module finds each
user's directory, leaves out users who are complete, and gives the dispatcher full batches, one ahead.

A storage host that is down has three tries. Then the rest of its users fail at once, and the other hosts go on.

The ledger is the hub's, too. So a command that was killed is given again to continue, and the hub of the next morning
finds its users complete. Beside a running hub, only the locks on the storage hosts and the SQLite files below
``state_dir`` are shared.

Rosters may be long. Nothing is kept here of users who are final, and a :class:`RosterEntry` of users who wait.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final

from ansible_bootstrap.cli.roster_places import RosterEntry, RosterPlaces
from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.describing import ask_fingerprints
from ansible_bootstrap.dispatch.client import ApplyClient
from ansible_bootstrap.dispatch.dispatcher import Dispatcher
from ansible_bootstrap.dispatch.job import JobKey
from ansible_bootstrap.dispatch.observer import Observer
from ansible_bootstrap.errors import AnsibleBootstrapError, RefusedError
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import Outcome, RoleFingerprint
from ansible_bootstrap.run_record import RunRecord
from ansible_bootstrap.state.bookkeeper import SEEN_SECONDS, Bookkeeper
from ansible_bootstrap.state.history import History
from ansible_bootstrap.state.ledger import Entry, Ledger
from ansible_bootstrap.state.probe import Probes
from ansible_bootstrap.threads import in_thread

RUN_LIMIT: Final = 3600.0
"""Seconds that one run of ``batch_size`` users may take; nobody waits at a page for it."""

DESCRIBE_LIMIT: Final = 60.0

LOOK_SECONDS: Final = 60.0
"""To look at the directories of one batch, as long as it gets on."""

TRIES: Final = 3
"""Runs in succession that find a storage host down, after which the rest of its users are not waited for."""

CHUNK: Final = 64
"""Users whose place is asked for at the same time."""

Tell = Callable[[Outcome, bool], None]
"""Told each outcome as it comes, and whether the user was complete already."""

_LOG = logging.getLogger(__name__)
_RUNS = _LOG.getChild("runs")
"""The command itself tells what became of each user."""


async def bootstrap_all(
    settings: AnsibleBootstrap,
    records: Iterable[dict[str, Any]],
    tell: Tell,
    *,
    check: bool = False,
    diff: bool = False,
    again: bool = False,
) -> None:
    """Bootstrap everybody.

    Args:
        settings: the hub's configuration.
        records: at least a name each; one that is malformed costs only itself. Read as the run goes on.
        tell: gets one outcome for each record, more for a user with several directories; must not raise.
        check: predict only.
        diff: log what differs.
        again: also those who are known to be complete.

    Raises:
        SettingsError: nobody can be bootstrapped with these settings.
    """
    settings.check()
    bulk = _Bulk(settings, tell, check=check, diff=diff, again=again)
    try:
        await bulk.run(records)
        await bulk.client.gone()
    finally:
        await bulk.close()
        await bulk.books.written()  # Also when interrupted: what is done is not to be done again.


class _Bulk(Observer):
    def __init__(
        self, settings: AnsibleBootstrap, tell: Tell, *, check: bool, diff: bool, again: bool
    ) -> None:
        self._settings = settings
        self._tell = tell
        self._remembers = settings.recheck == "changed" and not check
        self._skips = self._remembers and not again
        self.client = ApplyClient(lambda: in_thread(settings.apply_argv, timeout=10), _LOG)
        self._history = History(settings.state_dir, settings.history_days)
        self._ledger = Ledger(settings.state_dir, settings.trust_for, here=settings.here)
        self.books = Bookkeeper(self._ledger, _LOG, settings.place_digest())
        self._under = settings.place_digest()
        self._fingerprints: asyncio.Task[Sequence[RoleFingerprint]] | None = None
        self._probes = Probes()
        self._interrupted = False
        self._complained: set[str] = set()
        _RUNS.setLevel(logging.WARNING)
        self._dispatcher = Dispatcher(
            self.client,
            _RUNS,
            self,
            batch_size=settings.batch_size,
            run_limit=RUN_LIMIT,
            run_target=RUN_LIMIT,
            check=check,
            diff=diff,
            max_runs=settings.max_runs,
            tries=TRIES,
        )

    async def run(self, records: Iterable[dict[str, Any]]) -> None:
        hosts: dict[str, _Host] = {}
        async with asyncio.TaskGroup() as group:
            async for entry in self._entries(records):
                name = entry.place.storage_host
                if name not in hosts:
                    hosts[name] = _Host()
                    group.create_task(self._feed(hosts[name]))
                hosts[name].put(entry)
            for host in hosts.values():
                host.close()

    async def close(self) -> None:
        """End what is still under way."""
        self._interrupted = True
        await self._dispatcher.close()

    # -- which users --------------------------------------------------------------------------

    async def _entries(self, records: Iterable[dict[str, Any]]) -> AsyncIterator[RosterEntry]:
        places = RosterPlaces(self._settings, self._last_places)
        if places.names_only:
            _LOG.warning(
                "the configuration names no spawner (c.JupyterHub.spawner_class): users without a system account get "
                "<storage_root>/<username>"
            )
        numbered = enumerate(records, start=1)
        while chunk := list(islice(numbered, CHUNK)):
            for answer in await asyncio.gather(*(places.entries(number, record) for number, record in chunk)):
                if isinstance(answer, Outcome):
                    self._tell(answer, False)
                    continue
                for entry in answer:
                    yield entry
            await asyncio.sleep(0)  # Runs go on meanwhile.

    def _last_places(self, name: str) -> list[Place]:
        try:
            return self._ledger.places(name, self._under)
        except (sqlite3.Error, OSError) as error:
            self._complain(f"the ledger cannot be read: {error}")
            return []

    async def _wanted(self) -> Sequence[RoleFingerprint]:
        """Return what a complete user must have; asked once, when the ledger first knows a user."""
        if self._fingerprints is None:
            self._fingerprints = asyncio.create_task(self._ask_fingerprints())
        return await self._fingerprints

    async def _ask_fingerprints(self) -> Sequence[RoleFingerprint]:
        """Return nothing if the apply side cannot say; then no user is left out."""
        try:
            return await ask_fingerprints(self._settings, self.client, DESCRIBE_LIMIT)
        except (AnsibleBootstrapError, TimeoutError, RuntimeError) as error:
            _LOG.info("nobody can tell which users are complete: %s", getattr(error, "details", "") or error)
            return ()

    # -- one storage host ---------------------------------------------------------------------

    async def _feed(self, host: _Host) -> None:
        """Give the dispatcher full batches, for a run costs the same for one user; one is ready when a run ends."""
        size = self._settings.batch_size
        while True:
            await asyncio.sleep(0)  # Users of a storage host that is down are answered without waiting.
            looked = time.monotonic()
            for entry, known in await self._batch(host, size):
                waiter = _Waiter(partial(self._settle, host, entry), dict(known.roles) if known else {})
                try:
                    self._dispatcher.enter(entry.place, waiter, looked)
                except AnsibleBootstrapError as error:
                    waiter.settle(error)
            await host.until(lambda: not host.asked or (host.waiting and len(host.asked) <= size + size // 2))
            if host.ended:
                return

    async def _batch(self, host: _Host, size: int) -> list[tuple[RosterEntry, Entry | None]]:
        """Return the next users who are not complete, with what the ledger knows of them; none at the end."""
        batch: list[tuple[RosterEntry, Entry | None]] = []
        while len(batch) < size and (taken := await host.take(size - len(batch))):
            for entry, known in zip(taken, await self._look(taken), strict=True):
                if known is not None and (wanted := await self._wanted()) and known.has(wanted):
                    self._tell(_outcome(entry, status="ok", directory=known.directory), True)
                elif known is None and (why := await self._moved(entry.place)):
                    self._tell(_outcome(entry, status="failed", reason="refused", message=why), False)
                elif host.begin(entry):
                    batch.append((entry, known))
        return batch

    async def _look(self, entries: Sequence[RosterEntry]) -> list[Entry | None]:
        """Return what the ledger knows of these; a user whose directory has changed, or hangs, is unknown."""
        nothing: list[Entry | None] = [None] * len(entries)
        if not self._skips:
            return nothing
        try:
            known = [self._ledger.recorded(entry.place) for entry in entries]
        except (sqlite3.Error, OSError, ValueError) as error:
            self._complain(f"the ledger cannot be read: {error}")
            return nothing

        def look(number: int, entry: Entry) -> int | None:
            return number if self._ledger.holds(entry) else None

        calls = [
            (entry.place.name, entry.directory, partial(look, number, entry))
            for number, entry in enumerate(known)
            if entry is not None
        ]
        intact = set(await self._probes.run_all(calls, SEEN_SECONDS, LOOK_SECONDS))
        return [entry if number in intact else None for number, entry in enumerate(known)]

    async def _moved(self, place: Place) -> str:
        """Say why the user does not get this new place; nothing if there is no reason."""
        try:
            await self.books.check_move(place, refuse=self._settings.on_move == "refuse")
        except RefusedError as error:
            return error.details
        return ""

    def _settle(self, host: _Host, entry: RosterEntry, answer: Outcome | AnsibleBootstrapError) -> None:
        """Tell what became of a user."""
        if self._interrupted:
            return
        if isinstance(answer, Outcome):
            notes = (*entry.notes, *answer.notes)
            outcome = answer.model_copy(update={"key": entry.key, "notes": notes})
        else:
            why = answer.details or answer.message
            outcome = _outcome(entry, status="failed", reason=answer.reason, message=why)
        self._tell(outcome, False)
        host.end(entry)

    def user_completed(
        self, place: Place, outcome: Outcome, fingerprints: Sequence[RoleFingerprint], since: float
    ) -> None:
        if self._remembers and fingerprints:
            self.books.complete(place, outcome, fingerprints, since)

    def run_ended(self, record: RunRecord) -> None:
        """Note the run for ``ansible-bootstrap status``; that it cannot be noted fails nobody."""
        try:
            self._history.record(record)
        except (AnsibleBootstrapError, OSError, sqlite3.Error) as error:
            self._complain(f"the history cannot be written: {error}")

    def _complain(self, what: str) -> None:
        if what not in self._complained:
            self._complained.add(what)
            _LOG.warning("%s", what)


class _Host:
    """The users of one storage host: users who wait, and users that the dispatcher has."""

    def __init__(self) -> None:
        self.waiting: deque[RosterEntry] = deque()
        self.asked: dict[JobKey, list[RosterEntry]] = {}
        """Directories that the dispatcher has, each with further entries of the same directory: one run at a time."""
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether all users are final, and no more will come."""
        return self._closed and not (self.waiting or self.asked)

    def put(self, *entries: RosterEntry) -> None:
        self.waiting.extend(entries)
        self._changed.set()

    def close(self) -> None:
        self._closed = True
        self._changed.set()

    async def take(self, count: int) -> list[RosterEntry]:
        """Return up to so many entries; none if none waits and no more will come but those of busy directories."""
        await self.until(lambda: self.waiting or self._closed)
        return [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]

    def begin(self, entry: RosterEntry) -> bool:
        """Return whether the dispatcher may have this entry now; else it comes again when its directory is free."""
        key = entry.place.work
        busy = key in self.asked
        if busy:
            self.asked[key].append(entry)
        else:
            self.asked[key] = []
        return not busy

    def end(self, entry: RosterEntry) -> None:
        self.put(*self.asked.pop(entry.place.work))

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


@dataclass(eq=False, slots=True)
class _Waiter:
    """A record that waits for its outcome."""

    settle: Callable[[Outcome | AnsibleBootstrapError], None]
    done: Mapping[str, str]

    def say(self, text: str, share: float) -> None:
        """No page shows it."""


def _outcome(entry: RosterEntry, **what: Any) -> Outcome:
    place = entry.place
    return Outcome(key=entry.key, name=place.name, storage_host=place.storage_host, notes=entry.notes, **what)
