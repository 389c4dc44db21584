"""Bootstrap many users at once without a hub: what ``ansible-bootstrap run`` does.

Users of one storage host go through it in batches, one run after another; different storage hosts do not wait for one
another. Whoever is known to be complete is left out, by the ledger that the hub keeps, too: so a command that was
killed is simply given again, and the hub of the next morning finds everybody complete.

Beside a running hub it shares nothing with it but the locks on the storage hosts and the SQLite files below
``state_dir``. Rosters may be long: of those who are final nothing is kept here, of those who wait a :class:`Work`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final

from .apply_client import ApplyClient
from .bookkeeper import Bookkeeper
from .config import COMMAND_SETTINGS_FILE, AnsibleBootstrap
from .errors import AnsibleBootstrapError, ApplyError
from .fingerprints import describe
from .history import History, RunRecord
from .ledger import Entry, Ledger
from .places import Place
from .protocol import Accepted, Described, Event, Outcome, OutcomeEvent, Request, RoleFingerprint
from .role_clock import RoleClock
from .settings import make_settings
from .threads import in_thread
from .whereabouts import Whereabouts, Work

RUN_LIMIT: Final = 3600.0
"""Seconds that one run of ``batch_size`` users may take; nobody waits at a page for it."""

DESCRIBE_LIMIT: Final = 60.0

LOOK_SECONDS: Final = 60.0
"""To look at the directories of one batch; where an NFS server hangs, its users are bootstrapped as if unknown."""

CHUNK: Final = 64
"""Users whose place is asked for at the same time."""

Tell = Callable[[Outcome, bool], None]
"""Told each outcome as it comes, and whether the user was complete already."""

_LOG = logging.getLogger(__name__)


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
        records: at least a name each; one that is malformed costs only itself. Read as the work goes on.
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
        await bulk.books.written()  # Also when interrupted: what is done is not to be done again.


class _Bulk:
    def __init__(
        self, settings: AnsibleBootstrap, tell: Tell, *, check: bool, diff: bool, again: bool
    ) -> None:
        self._settings = settings
        self._tell = tell
        self._check = check
        self._diff = diff
        self._remembers = settings.recheck == "changed" and not check
        self._skips = self._remembers and not again
        argv = partial(settings.apply_argv, COMMAND_SETTINGS_FILE)
        self.client = ApplyClient(lambda: in_thread(argv, timeout=10), _LOG)
        self._history = History(settings.state_dir, settings.history_days)
        self._ledger = Ledger(settings.state_dir, settings.trust_for)
        self.books = Bookkeeper(self._ledger, _LOG)
        self._under = settings.place_digest()
        self._fingerprints: asyncio.Task[Sequence[RoleFingerprint]] | None = None
        self._slots = asyncio.Semaphore(max(2, os.cpu_count() or 2))
        self._complained: set[str] = set()

    async def run(self, records: Iterable[dict[str, Any]]) -> None:
        hosts: dict[str, _Queue] = {}
        async with asyncio.TaskGroup() as group:
            async for work in self._works(records):
                host = work.place.storage_host
                if host not in hosts:
                    hosts[host] = _Queue()
                    group.create_task(self._bootstrap_host(host, hosts[host]))
                hosts[host].put(work)
            for queue in hosts.values():
                queue.close()

    # -- who ----------------------------------------------------------------------------------

    async def _works(self, records: Iterable[dict[str, Any]]) -> Any:
        whereabouts = Whereabouts(self._settings, self._last_places)
        if whereabouts.names_only:
            _LOG.warning(
                "the configuration names no spawner (c.JupyterHub.spawner_class): whom the system does not know is "
                "taken by name, and the directory is the storage root's of that name"
            )
        for chunk in _chunks(enumerate(records, start=1)):
            for answer in await asyncio.gather(
                *(whereabouts.works(number, record) for number, record in chunk)
            ):
                if isinstance(answer, Outcome):
                    self._tell(answer, False)
                    continue
                for work in answer:
                    yield work
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

    async def _bootstrap_host(self, host: str, queue: _Queue) -> None:
        while True:
            batch: list[Work] = []
            known: list[Entry | None] = []
            looked = time.time()
            while len(batch) < self._settings.batch_size:  # Full ones: a run costs the same for one user.
                taken = await queue.take(self._settings.batch_size - len(batch))
                if not taken:
                    break
                for work, entry in zip(taken, await self._look(taken), strict=True):
                    if entry is not None and (wanted := await self._wanted()) and entry.has(wanted):
                        self._tell(_complete(work, entry), True)
                    else:
                        batch.append(work)
                        known.append(entry)
            if not batch:
                return
            async with self._slots:
                await self._bootstrap(host, batch, _common(known), looked)

    async def _look(self, works: Sequence[Work]) -> list[Entry | None]:
        if not self._skips:
            return [None] * len(works)
        try:
            return await in_thread(
                lambda: [self._ledger.look(work.place) for work in works], timeout=LOOK_SECONDS
            )
        except TimeoutError:
            self._complain(f"looking at users' directories took more than {LOOK_SECONDS:g} s")
        except (sqlite3.Error, OSError, ValueError) as error:
            self._complain(f"the ledger cannot be read: {error}")
        return [None] * len(works)

    async def _bootstrap(self, host: str, batch: list[Work], done: dict[str, str], looked: float) -> None:
        """Bootstrap these, but for roles that all had when they were looked up."""
        request = Request(
            operation="bootstrap",
            users=[work.place.user(work.key).model_dump() for work in batch],
            check=self._check,
            diff=self._diff,
            done=done,
        )
        left = {work.key: work for work in batch}
        fingerprints: Sequence[RoleFingerprint] = ()
        record = RunRecord("", "bootstrap", host, time.time(), len(batch), check=self._check)
        clock = RoleClock(record)

        def take(outcome: Outcome) -> None:
            work = left.pop(outcome.key, None)
            if work is None:
                return
            if work.notes:
                outcome = outcome.model_copy(update={"notes": (*work.notes, *outcome.notes)})
            record.outcomes.append(outcome)
            if outcome.status == "ok" and self._remembers and fingerprints:
                # Whoever has been forgotten since is not complete by a run that left out roles.
                since = looked if done else record.started
                self.books.complete(work.place, outcome, fingerprints, since)
            self._tell(outcome, False)

        def on_event(event: Event) -> None:
            nonlocal fingerprints
            clock.take(event)
            if isinstance(event, Accepted):
                record.run, fingerprints = event.run, event.fingerprints
            elif isinstance(event, OutcomeEvent):
                take(event.outcome)

        try:
            why = await _one_run(self.client, request, on_event)
            if left:
                record.error = why.details
            for work in list(left.values()):  # Silence is never success.
                take(_failed(work, why))
        except asyncio.CancelledError:
            record.error = "interrupted"
            raise
        finally:
            clock.stop()
            record.seconds = time.time() - record.started
            self._keep(record)

    def _keep(self, record: RunRecord) -> None:
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
    """Works that wait for their storage host, and whether more will come."""

    def __init__(self) -> None:
        self._works: deque[Work] = deque()
        self._closed = False
        self._changed = asyncio.Event()

    def put(self, work: Work) -> None:
        self._works.append(work)
        self._changed.set()

    def close(self) -> None:
        self._closed = True
        self._changed.set()

    async def take(self, count: int) -> list[Work]:
        """Return up to so many works; none at the end."""
        while not self._works and not self._closed:
            self._changed.clear()
            await self._changed.wait()
        return [self._works.popleft() for _ in range(min(count, len(self._works)))]


async def _one_run(
    client: ApplyClient, request: Request, on_event: Callable[[Event], None]
) -> AnsibleBootstrapError:
    """Run one batch; return why somebody who got no outcome got none."""
    try:
        run = await client.start(request, on_event, limit=RUN_LIMIT)
        await run.finish()
    except AnsibleBootstrapError as error:
        return error
    return ApplyError("the run ended without an outcome for this user")


def _common(known: Sequence[Entry | None]) -> dict[str, str]:
    """Return what all of a batch have: those roles need not be applied."""
    roles = [set(entry.roles.items() if entry is not None else ()) for entry in known]
    return dict(roles[0].intersection(*roles[1:]))


def _complete(work: Work, entry: Entry) -> Outcome:
    return Outcome(
        key=work.key,
        name=work.place.name,
        status="ok",
        storage_host=work.place.storage_host,
        directory=entry.directory,
        notes=work.notes,
    )


def _failed(work: Work, error: AnsibleBootstrapError) -> Outcome:
    return Outcome(
        key=work.key,
        name=work.place.name,
        status="failed",
        reason=error.reason,
        message=error.details or error.message,
        storage_host=work.place.storage_host,
    )


def _chunks(records: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    iterator = iter(records)
    return iter(lambda: list(islice(iterator, CHUNK)), [])
