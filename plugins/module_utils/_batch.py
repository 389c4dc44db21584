# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""The frame around every built-in role: a batch of users in, one result for each out.

Each user is validated, locked and worked for alone; whatever goes wrong for one is that one's result.
A directory is claimed once, however many servers of its user are in the batch. Where one of a user's directories lies
inside another of the same user's, that one comes first.

Storage roots are worked in one after the other, each by a worker of its own: one that is not mounted or does not answer
costs only the users who have a directory there.

The work is done by a worker that is watched (``_worker.py``). Where it falls silent at one user's claim, that user
is left out and another worker begins anew with all others; what the first has completed, the second finds complete.
The first may be beyond SIGKILL, and hold all their locks as long as it is. So copies of the locks lie in a socket,
which nobody reads but that second worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from . import _worker
from ._as_user import MOST_DESCRIPTORS, NOBODY, Answer, Patience, Task
from ._errors import LateError, LeftAloneError, StorageError, printable, sentence
from ._names import UserRefusedError, below
from ._report import Report, result
from ._rights import give_up_rights
from ._state import Lock, Record, State
from ._storage import Home, Roots, Storage
from ._users import label, parse_user

LOCK_WAIT = 10.0
"""Seconds to wait, in all, for directories that another run is still working on."""

_NO_STORAGE = (
    f"does not answer (no sign of life for {_worker.SILENCE:g} s): look at its disk or server on this host"
)
_NO_HOME = (
    f"this directory does not answer (no sign of life for {_worker.SILENCE:g} s): look at what is mounted there, "
    "and at the disk or its server on this host"
)


@dataclass(eq=False)
class Claim:
    """A home while we work on it, and what comes of that.

    Attributes:
        keys: the users' keys that get this result.
        main: it is the home of one of them, not only a further directory.
        lock: held from before the first look; its descriptor goes to the children that work here.
        record: what is recorded, None if nothing is.
        drafted: what shall be recorded next.
        error: why it failed.
        hangs: it failed because it took too long.
        silent: it failed because the whole storage did not answer.
        place: its number in the batch.
    """

    home: Home
    keys: list[str] = field(default_factory=list)
    main: bool = False
    lock: Lock | None = None
    record: Record | None = None
    drafted: Record | None = None
    changed: bool = False
    error: str | None = None
    hangs: bool = False
    silent: bool = False
    place: int = _worker.NOWHERE
    notes: list[str] = field(default_factory=list)
    diff: list[dict[str, Any]] = field(default_factory=list)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Make what fails in the body this claim's failure, and nobody else's; what is left alone, its note."""
        _worker.at(self.place)
        try:
            yield
        except LeftAloneError as note:
            self.notes.append(str(note))
        except Exception as error:
            self.error, self.hangs = sentence(error), isinstance(error, LateError)
        finally:
            _worker.at(_worker.NOWHERE)

    def task(self, directory: int, work: Callable[[], Any], *keep: int, memory: int | None = None) -> Task:
        """Return a piece of work with this user's rights; ``keep`` are the descriptors that it needs."""
        return Task(self.home.uid, self.home.gid, directory, work, (*self.keep, *keep), memory)

    def take(self, answer: Answer) -> None:
        """Note why a child that worked here failed, if it did."""
        self.error, self.hangs = answer.error, answer.late

    def differs(self, where: str, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Note a change for Ansible's diff mode: states, owners and modes, never contents."""
        path = printable(where)
        self.diff.append(
            {
                "before_header": path,
                "after_header": path,
                "before": {"path": path, **before},
                "after": {"path": path, **after},
            }
        )

    def made(self, mode: int, *, over: bool) -> None:
        """Note that the home is made, or would be; ``over``: in place of a directory of root's."""
        self.changed = True
        before: dict[str, Any] = {"state": "directory", "owner": 0} if over else {"state": "absent"}
        after = {"state": "directory", "owner": self.home.uid, "group": self.home.gid, "mode": f"{mode:04o}"}
        self.differs(self.home.directory, before, after)

    def save(self, storage: Storage, done: Record) -> None:
        """Record whose directory it is and what is complete; nothing is written if nothing is new."""
        self.draft(storage, done)
        self.put(storage)

    def draft(self, storage: Storage, done: Record) -> None:
        """The first half of :meth:`save`: it is written, and does not count yet."""
        record = {**done, "name": self.home.name, "directory": "/".join(self.home.parts)}
        self.drafted = None
        if record != self.record:
            storage.state.draft(self.home.id, record)
            self.drafted = record

    def put(self, storage: Storage) -> None:
        """The second half: what was drafted counts."""
        if self.drafted is not None:
            storage.state.put(self.home.id)
            self.record, self.drafted = self.drafted, None

    @property
    def keep(self) -> tuple[int, ...]:
        """The descriptors that a child working here must hold on to."""
        return () if self.lock is None else (self.lock.fd,)


Work = Callable[[Storage, "list[Claim]"], None]
"""What a role does to the claims of a batch. It fails single claims; what it raises fails them all."""


class _Spares:
    """Copies of the locks that a worker holds, for the worker that takes its place."""

    def __init__(self) -> None:
        self._out, self._in = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._in.setblocking(False)
        self._out.setblocking(False)
        self._taken: dict[int, int] = {}

    def put(self, claims: list[Claim]) -> None:
        """Keep copies of the locks of these claims."""
        with contextlib.suppress(OSError):  # without them, they are busy for the other worker
            for start in range(0, len(claims), MOST_DESCRIPTORS):
                some = claims[start : start + MOST_DESCRIPTORS]
                places = struct.pack(f"{len(some)}i", *(claim.place for claim in some))
                socket.send_fds(self._in, [places], [fd for claim in some for fd in claim.keep])

    def take(self) -> None:
        """Take what a worker before this one has put."""
        with contextlib.suppress(BlockingIOError):
            while True:
                places, fds, _, _ = socket.recv_fds(self._out, 4 * MOST_DESCRIPTORS, MOST_DESCRIPTORS)
                self._taken.update(zip(struct.unpack(f"{len(fds)}i", places), fds))  # noqa: B905

    def lock(self, claim: Claim, state: State) -> Lock:
        """Return a claim's lock; if the worker before this one had taken it, it is taken."""
        lock = state.lock(claim.home.id)
        if claim.place in self._taken:
            os.dup2(self._taken[claim.place], lock.fd, inheritable=False)
        return lock

    def close(self) -> None:
        """Let go."""
        self._in.close()
        self._out.close()


def run(
    users: list[Any],
    root: str | Roots,
    uid_min: int,
    work: Work,
    *,
    check: bool,
    patience: float = 0,
    lock_wait: float = LOCK_WAIT,
    also: bool = False,
) -> Report:
    """Do ``work`` for the users' directories, or predict it (``check``), and report on each user.

    ``plugins/doc_fragments/batch.py`` documents the other arguments; a path alone is the only root. ``lock_wait`` is in
    seconds, for all busy directories of a root together. ``also``: work for a user's further directories, too, not only
    for the home.
    """
    roots = Roots(root) if isinstance(root, str) else root
    keys, whose, refused = _claim(users, roots, uid_min, also=also)
    claims = list(dict.fromkeys(claim for some in whose.values() for claim in some))
    many = len(claims) + len(refused)
    fetched = 0
    patient = Patience(patience if many > 1 else 0, many)
    together: dict[tuple[str, int | None], list[Claim]] = {}
    for claim in claims:
        gid = None if roots.work_as is None else claim.home.gid
        together.setdefault((claim.home.root, gid), []).append(claim)
    for there in together.values():
        open_storage = partial(_open_storage, roots, there[0].home, check=check, patience=patient)
        for some in _outer_first(there):
            fetched += _watch(some, partial(_at_work, open_storage, work, lock_wait))
    if len({claim.home.root for claim in claims if claim.silent}) <= len(roots.roots):
        for claim in claims:  # the host has a root that answers, or that nobody has asked
            claim.silent = False
    results = {key: _result(key, some) for key, some in whose.items()}
    results.update({key: result(key, msg) for key, msg in refused.items()})
    diff = [entry for claim in claims for entry in claim.diff]
    return Report([results[key] for key in keys], diff, fetched)


def _open_storage(roots: Roots, home: Home, *, check: bool, patience: Patience) -> Storage:
    """Open the storage root of a home, in the worker; as the account that all is done as, if there is one."""
    if roots.work_as is not None:
        give_up_rights(roots.work_as, home.gid)
    return Storage(home.root, check=check, patience=patience, records_dir=roots.records_dir)


def _outer_first(claims: list[Claim]) -> Iterator[list[Claim]]:
    """Yield the claims in rounds: one that lies inside another's comes later, and not at all if that has failed."""
    by_parts = {claim.home.parts: claim for claim in claims}
    rounds: dict[int, list[tuple[Claim, list[Claim]]]] = {}
    for parts, claim in by_parts.items():
        above = [by_parts[parts[:depth]] for depth in range(1, len(parts)) if parts[:depth] in by_parts]
        rounds.setdefault(len(above), []).append((claim, above))
    for number in sorted(rounds):
        left: list[Claim] = []
        for claim, above in rounds[number]:
            for outer in above:
                if outer.error is not None:
                    claim.error, claim.hangs, claim.silent = outer.error, outer.hangs, outer.silent
            if claim.error is None:
                claim.place = len(left)
                left.append(claim)
        yield left


def _result(key: str, claims: list[Claim]) -> dict[str, Any]:
    """Return what became of a user: the home, which is the first, and the others."""

    def told(claim: Claim, text: str) -> str:
        shown = printable(claim.home.directory)
        return text if claim is claims[0] or text.startswith(shown) else f"{shown}: {text}"

    failed = next((claim for claim in claims if claim.error is not None), claims[0])
    return result(
        key,
        None if failed.error is None else told(failed, failed.error),
        any(claim.changed for claim in claims),
        [told(claim, note) for claim in claims for note in claim.notes],
        hangs=failed.hangs,
        silent=failed.silent,
    )


def _watch(claims: list[Claim], work: Callable[[list[Claim], _Spares], Any]) -> int:
    """Have a worker do the work, and another one what the first could not do; return how much was fetched."""
    left, silent = claims, False
    try:
        with contextlib.closing(_Spares()) as spares:
            while left:
                ended = _worker.apart(partial(work, left, spares))
                if ended.silent_at is None:
                    for claim, said in zip(left, ended.said["claims"]):  # noqa: B905
                        claim.changed, claim.error, claim.hangs, claim.notes, claim.diff = said
                    return int(ended.said["fetched"])
                stuck = [claim for claim in left if claim.place == ended.silent_at and not silent]
                for claim in stuck or left:
                    claim.error = _NO_HOME if stuck else f"the storage {claim.home.root} {_NO_STORAGE}"
                    claim.hangs, claim.silent = True, not stuck
                left, silent = [claim for claim in left if claim.error is None], True
    except (StorageError, OSError) as error:
        fail_all(left, error)
    return 0


def _at_work(
    open_storage: Callable[[], Storage], work: Work, lock_wait: float, claims: list[Claim], spares: _Spares
) -> dict[str, Any]:
    """Do the work, in the worker; return what became of the claims."""
    os.umask(0o022)
    fetched = 0
    try:
        with contextlib.closing(open_storage()) as storage:
            try:
                _work_through(storage, claims, work, lock_wait, spares)
            finally:
                fetched = storage.fetched
    except (StorageError, OSError) as error:
        fail_all(claims, error)
    ended = [(claim.changed, claim.error, claim.hangs, claim.notes, claim.diff) for claim in claims]
    return {"claims": ended, "fetched": fetched}


def _work_through(
    storage: Storage, claims: list[Claim], work: Work, lock_wait: float, spares: _Spares
) -> None:
    """Work first for the claims whose lock is free, so that none waits for another's lock."""
    if storage.check:
        _work(storage, claims, work)
        return
    spares.take()
    storage.state.sweep()
    busy: list[Claim] = []
    size = _claims_at_once()
    for start in range(0, len(claims), size):
        some = claims[start : start + size]
        busy += _work_locked(storage, some, work, spares, until=0.0)
    hurry = bool(storage.patience.seconds) and len(busy) < storage.patience.users
    until = time.monotonic() + (min(lock_wait, storage.patience.seconds) if hurry else lock_wait)
    for start in range(0, len(busy), size):
        for claim in _work_locked(storage, busy[start : start + size], work, spares, until):
            claim.error = "another run is still at work on this directory: try again in a minute"
            claim.hangs = hurry


def _work_locked(
    storage: Storage, claims: list[Claim], work: Work, spares: _Spares, until: float
) -> list[Claim]:
    """Lock, work, release; return the claims whose locks are still busy at ``until``."""
    held: list[Claim] = []
    busy: list[Claim] = []
    try:
        for claim in claims:
            with claim.alone():
                lock = spares.lock(claim, storage.state)
                if lock.acquire(until):
                    claim.lock = lock
                    held.append(claim)
                else:
                    lock.close()
                    busy.append(claim)
        spares.put(held)
        _work(storage, held, work)
    finally:
        for claim in held:
            if claim.lock is not None:
                if not claim.hangs:  # else its child may be at it still, and holds the lock
                    fcntl.flock(claim.lock.fd, fcntl.LOCK_UN)  # the copy would hold it
                claim.lock.close()
                claim.lock = None
    return busy


def _work(storage: Storage, claims: list[Claim], work: Work) -> None:
    for claim in claims:
        with claim.alone():
            _check_records(storage, claim)
    claims = [claim for claim in claims if claim.error is None]
    try:
        work(storage, claims)
    except Exception as error:
        fail_all(claims, error)


def _check_records(storage: Storage, claim: Claim) -> None:
    """Load the claim's record; refuse another name's directory, and one inside another user's."""
    claim.record = storage.records.load(claim.home.id)
    if claim.record is not None:
        storage.records.check_owner(claim.record, claim.home.name, claim.home.id)
    storage.check_above(claim.home)


def _claim(
    users: list[Any], roots: Roots, uid_min: int, *, also: bool
) -> tuple[list[str], dict[str, list[Claim]], dict[str, str]]:
    """Validate each user alone; return all keys in order, the claims by key, and why keys are refused."""
    keys: list[str] = []
    seen: set[str] = set()
    homes: dict[str, list[Home]] = {}
    refused: dict[str, str] = {}
    for place, raw in enumerate(users, start=1):
        key = label(raw, f"#{place}", seen)["key"]
        try:
            found = _homes(raw, roots, uid_min)
            if key.startswith("#"):
                raise StorageError("its key repeats an earlier one")
            homes[key] = found if also else found[:1]
        except StorageError as error:
            refused[key] = str(error)
        seen.add(key)
        keys.append(key)
    claims: dict[tuple[str, ...], Claim] = {}
    whose: dict[str, list[Claim]] = {key: [] for key in homes}
    # Homes first: nobody loses theirs because somebody else names it as a further directory.
    for main, key, home in [
        *((True, key, some[0]) for key, some in homes.items()),
        *((False, key, home) for key, some in homes.items() for home in some[1:]),
    ]:
        claim = claims.setdefault((home.root, *home.parts), Claim(home))
        if claim.home.name != home.name:
            refused.setdefault(key, "another user of this batch has the same directory")
        elif claim.home != home:
            refused.setdefault(key, "the same directory is asked for with another uid or gid")
        else:
            claim.main = claim.main or main
            claim.keys.append(key)
            whose[key].append(claim)
    for parts, claim in claims.items():
        above = [claims[parts[:depth]].home for depth in range(2, len(parts)) if parts[:depth] in claims]
        if any((home.name, home.uid) != (claim.home.name, claim.home.uid) for home in above):
            refused.update(
                dict.fromkeys(claim.keys, "this directory lies inside another user's of this batch")
            )
    return keys, {key: some for key, some in whose.items() if key not in refused}, refused


def _homes(raw: object, roots: Roots, uid_min: int) -> list[Home]:
    """Return a user's directories, the home first."""
    try:
        user = parse_user(raw)
        if user["directory"] is None or user["uid"] is None or user["gid"] is None:
            raise StorageError("directory, uid and gid must be given (the playbook fills them in)")
        directories = list(dict.fromkeys((user["directory"], *user["also"])))
        places = [(directory, *below(roots.all, directory)) for directory in directories]
    except UserRefusedError as error:
        raise StorageError(str(error)) from None
    except (TypeError, ValueError):
        raise StorageError("malformed user record") from None
    uid = user["uid"]
    if roots.work_as not in (None, uid):
        raise StorageError(
            f"work_as is {roots.work_as}, so all is that uid's, and not uid {uid}'s: set uid to it, too"
        )
    if os.geteuid() == 0:
        if uid == NOBODY:
            raise StorageError(f"uid {NOBODY} reads archives and the network here: it is no user's")
        if uid < max(1, uid_min):
            raise StorageError(
                f"uid {uid} is below uid_min {uid_min}: root does not work for system accounts"
            )
    elif uid != os.geteuid():
        raise StorageError(f"to work for uid {uid} needs root; this process is uid {os.geteuid()}")
    return [Home(user["name"], directory, root, parts, uid, user["gid"]) for directory, root, parts in places]


def _claims_at_once() -> int:
    """Each claim holds a lock and a directory open for a while: as many as the limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return max(16, (soft - 128) // 4) if soft > 0 else 4096


def fail_all(claims: Iterable[Claim], error: Exception) -> None:
    """Make an error the failure of those that have not failed yet."""
    why = sentence(error)
    for claim in claims:
        claim.error = claim.error or why
