"""Bootstrap many users at once without a hub: what ``ansible-bootstrap run`` does.

The dispatcher is the hub's. It is fed with full batches, and no faster than it works. A storage host that is down has
three tries; then the rest of its users are answered at once, and the command goes on with the others.

Whoever is known to be complete is left out, by the ledger that the hub keeps, too: so a command that was killed is
simply given again, and the hub of the next morning finds everybody complete.

Beside a running hub it shares nothing with it but the locks on the storage hosts and the SQLite files below
``state_dir``. Rosters may be long: nothing is kept here of users who are final, and a
:class:`RosterEntry` of users who wait.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final

from ansible_bootstrap.cli.roster_places import RosterEntry, RosterPlaces
from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.dispatch.client import ApplyClient
from ansible_bootstrap.dispatch.dispatcher import Dispatcher
from ansible_bootstrap.dispatch.job import JobKey
from ansible_bootstrap.dispatch.observer import Observer
from ansible_bootstrap.errors import AnsibleBootstrapError
from ansible_bootstrap.fingerprints import describe
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import Described, Event, Outcome, Request, RoleFingerprint
from ansible_bootstrap.run_record import RunRecord
from ansible_bootstrap.settings import make_settings
from ansible_bootstrap.state.bookkeeper import SEEN_SECONDS, Bookkeeper
from ansible_bootstrap.state.history import History
from ansible_bootstrap.state.ledger import Entry, Ledger
from ansible_bootstrap.state.probe import Looks
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
        self._check = check
        self._diff = diff
        self._remembers = settings.recheck == "changed" and not check
        self._skips = self._remembers and not again
        self.client = ApplyClient(lambda: in_thread(settings.apply_argv, timeout=10), _LOG)
        self._history = History(settings.state_dir, settings.history_days)
        self._ledger = Ledger(settings.state_dir, settings.trust_for)
        self.books = Bookkeeper(self._ledger, _LOG)
        self._under = settings.place_digest()
        self._fingerprints: asyncio.Task[Sequence[RoleFingerprint]] | None = None
        self._looks = Looks()
        self._answered = asyncio.Event()
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
        hosts: dict[str, _Queue] = {}
        async with asyncio.TaskGroup() as group:
            async for row in self._rows(records):
                host = row.place.storage_host
                if host not in hosts:
                    hosts[host] = _Queue()
                    group.create_task(self._feed(hosts[host]))
                hosts[host].put(row)
            for queue in hosts.values():
                queue.close()

    async def close(self) -> None:
        """End what is still under way."""
        self._interrupted = True
        await self._dispatcher.close()

    # -- who ----------------------------------------------------------------------------------

    async def _rows(self, records: Iterable[dict[str, Any]]) -> Any:
        whereabouts = RosterPlaces(self._settings, self._last_places)
        if whereabouts.names_only:
            _LOG.warning(
                "the configuration names no spawner (c.JupyterHub.spawner_class): users without a system account get "
                "<storage_root>/<username>"
            )
        for chunk in _chunks(enumerate(records, start=1)):
            for answer in await asyncio.gather(
                *(whereabouts.rows(number, record) for number, record in chunk)
            ):
                if isinstance(answer, Outcome):
                    self._tell(answer, False)
                    continue
                for row in answer:
                    yield row
            await asyncio.sleep(0)  # Runs go on meanwhile.

    def _last_places(self, name: str) -> list[Place]:
        try:
            return self._ledger.places(name, self._under)
        except (sqlite3.Error, OSError) as error:
            self._complain(f"the ledger cannot be read: {error}")
            return []

    async def _wanted(self) -> Sequence[RoleFingerprint]:
        """Return what a complete user must have; asked once, when the first comes of whom anything is known."""
        if self._fingerprints is None:
            self._fingerprints = asyncio.create_task(self._described())
        return await self._fingerprints

    async def _described(self) -> Sequence[RoleFingerprint]:
        """Ask the apply side; nothing if it cannot say, and then nobody is left out."""
        if self._settings.embedded:
            settings = make_settings(self._settings.apply_settings(), "c.AnsibleBootstrap")
            return await in_thread(partial(describe, settings), timeout=DESCRIBE_LIMIT)
        said: list[RoleFingerprint] = []

        def on_event(event: Event) -> None:
            if isinstance(event, Described):
                said.extend(event.roles)

        try:
            run = await self.client.start(Request(operation="describe"), on_event, limit=DESCRIBE_LIMIT)
            await run.finish()
        except AnsibleBootstrapError as error:
            if not said:
                _LOG.info("who is complete cannot be told: %s", error.details)
        return said

    # -- one storage host ---------------------------------------------------------------------

    async def _feed(self, queue: _Queue) -> None:
        """Give the dispatcher full batches, for a run costs the same for one user; one is ready when a run ends."""
        size = self._settings.batch_size
        while True:
            await asyncio.sleep(0)  # Users of a storage host that is down are answered without waiting.
            looked = time.monotonic()
            batch = await self._batch(queue, size)
            if not batch and queue.later:  # A directory that is several users' is in one run at a time.
                await self._until(lambda: not queue.asked)
                queue.put_again()
            elif not batch:
                break
            queue.asked |= batch.keys()
            for row, entry in batch.values():
                waiter = _Waiter(self, queue, row, dict(entry.roles) if entry is not None else {})
                try:
                    self._dispatcher.enter(row.place, waiter, looked)
                except AnsibleBootstrapError as error:
                    waiter.settle(error)
            await self._until(lambda: len(queue.asked) <= size + size // 2)
        await self._until(lambda: not queue.asked)

    async def _batch(self, queue: _Queue, size: int) -> dict[JobKey, tuple[RosterEntry, Entry | None]]:
        """Return the next who are not complete; none at the end."""
        batch: dict[JobKey, tuple[RosterEntry, Entry | None]] = {}
        while len(batch) < size and (taken := await queue.take(size - len(batch))):
            for row, entry in zip(taken, await self._look(taken), strict=True):
                key = row.place.job_key
                if entry is not None and (wanted := await self._wanted()) and entry.has(wanted):
                    self._tell(_complete(row, entry), True)
                elif key in batch or key in queue.asked:
                    queue.later.append(row)
                else:
                    batch[key] = row, entry
        return batch

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._answered.clear()
            await self._answered.wait()

    async def _look(self, rows: Sequence[RosterEntry]) -> list[Entry | None]:
        """Return what is known of these; a directory that hangs makes its user unknown."""
        if not self._skips:
            return [None] * len(rows)
        try:
            entries = [self._ledger.recorded(row.place) for row in rows]
        except (sqlite3.Error, OSError, ValueError) as error:
            self._complain(f"the ledger cannot be read: {error}")
            return [None] * len(rows)

        def look(number: int, entry: Entry) -> int | None:
            return number if self._ledger.holds(entry) else None

        calls = [
            (entry.place.name, entry.directory, partial(look, number, entry))
            for number, entry in enumerate(entries)
            if entry is not None
        ]
        intact = set(await self._looks.at_all(calls, SEEN_SECONDS, LOOK_SECONDS))
        return [entry if number in intact else None for number, entry in enumerate(entries)]

    def settle(self, queue: _Queue, row: RosterEntry, answer: Outcome | AnsibleBootstrapError) -> None:
        """Tell what became of a user."""
        if self._interrupted:
            return
        outcome = answer if isinstance(answer, Outcome) else _failed(row, answer)
        self._tell(outcome.model_copy(update={"key": row.key, "notes": (*row.notes, *outcome.notes)}), False)
        queue.asked.discard(row.place.job_key)
        self._answered.set()

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


class _Queue:
    """Works of one storage host, and whether more will come."""

    def __init__(self) -> None:
        self.asked: set[JobKey] = set()
        """Those that the dispatcher has."""
        self.later: list[RosterEntry] = []
        """Those whose directory is another's, too."""
        self._rows: deque[RosterEntry] = deque()
        self._closed = False
        self._changed = asyncio.Event()

    def put(self, row: RosterEntry) -> None:
        self._rows.append(row)
        self._changed.set()

    def close(self) -> None:
        self._closed = True
        self._changed.set()

    def put_again(self) -> None:
        self._rows.extend(self.later)
        self.later.clear()

    async def take(self, count: int) -> list[RosterEntry]:
        """Return up to so many rows; none at the end."""
        while not self._rows and not self._closed:
            self._changed.clear()
            await self._changed.wait()
        return [self._rows.popleft() for _ in range(min(count, len(self._rows)))]


@dataclass(eq=False, slots=True)
class _Waiter:
    """A record that waits for its outcome."""

    bulk: _Bulk
    queue: _Queue
    row: RosterEntry
    done: Mapping[str, str]

    def say(self, text: str, share: float) -> None:
        """Nobody looks."""

    def settle(self, answer: Outcome | AnsibleBootstrapError) -> None:
        self.bulk.settle(self.queue, self.row, answer)


def _complete(row: RosterEntry, entry: Entry) -> Outcome:
    return Outcome(
        key=row.key,
        name=row.place.name,
        status="ok",
        storage_host=row.place.storage_host,
        directory=entry.directory,
        notes=row.notes,
    )


def _failed(row: RosterEntry, error: AnsibleBootstrapError) -> Outcome:
    return Outcome(
        key=row.key,
        name=row.place.name,
        status="failed",
        reason=error.reason,
        message=error.details or error.message,
        storage_host=row.place.storage_host,
    )


def _chunks(records: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    iterator = iter(records)
    return iter(lambda: list(islice(iterator, CHUNK)), [])
