# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""The role ``tutorials``: every user gets each tutorial once, whole, and may do with it as they like.

Whether a user has a tutorial is what our record says, never what lies in their home: what they changed or
deleted stays so. On its way a tutorial is, in the record,

=============  ====================================================================================
``copying``    its stage in the home is named, so that exactly that is removed should we be killed
``revealing``  the stage is whole and on the disk; a stage that is gone was put in its place
``placed``     complete; nothing is ever done about it again
``kept``       the user has something of their own in that place
=============  ====================================================================================
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Optional

from . import _as_user, _batch
from ._archives import Limits
from ._batch import LOCK_WAIT, Claim, fail_all
from ._errors import StorageError, explain, sentence
from ._files import sync
from ._homes import open_present
from ._library import Library, Tree
from ._names import STATE_DIRECTORY
from ._placing import Found, Placing, drop, look_at, reveal, stage
from ._report import Report
from ._sources import Source, check_path, parse_sources
from ._storage import Roots, Storage
from ._worker import NOWHERE, at


@dataclass(frozen=True)
class Options:
    """The options of the module ``tutorials``, which documents them."""

    sources: list[Any]
    child_timeout: float = 60
    fetch_timeout: float = 60
    max_bytes: int = 2 << 30


Entries = dict[str, dict[str, Any]]
"""What is recorded, by source."""


@dataclass
class _Job:
    """One user, and what that user does not have yet."""

    claim: Claim
    home: int
    """Descriptor of the home, checked."""
    device: int
    """The file system that it is on."""
    wanted: list[Source]
    errors: list[str] = field(default_factory=list)

    def entry(self, source: Source) -> dict[str, Any]:
        """Return what is recorded of a source."""
        entry = (self.claim.record or {}).get("tutorials", {}).get(source.name)
        return entry if isinstance(entry, dict) else {}

    def draft(self, storage: Storage, entries: Entries) -> None:
        """Write what became of sources; :func:`_record` lets it count."""
        record = dict(self.claim.record or {})
        self.claim.draft(storage, {**record, "tutorials": {**record.get("tutorials", {}), **entries}})

    def keep(self, source: Source) -> None:
        """Leave the user what they have in the tutorial's place."""
        dest = "/".join(source.dest)
        self.claim.notes.append(f"{source.name}: {dest} exists already and is the user's own: left as it is")
        self.wanted.remove(source)

    def fail(self, source: Source, why: str) -> None:
        """Do no more for this source."""
        self.errors.append(f"{source.name}: {why}")
        self.wanted.remove(source)


def place(
    users: list[Any], root: str | Roots, uid_min: int, options: Options, *, check: bool, patience: float = 0
) -> Report:
    """Give every user of the batch the tutorials they did not get yet; see the module ``tutorials``."""
    return _batch.run(users, root, uid_min, partial(_work, options), check=check, patience=patience)


def _work(options: Options, storage: Storage, claims: list[Claim]) -> None:
    sources = parse_sources(options.sources)
    jobs: list[_Job] = []
    try:
        for claim in claims:
            with claim.alone():
                job = _job(storage, claim, sources)
                if job is not None:
                    jobs.append(job)
        if storage.check:
            _predict(storage, jobs, options)
        else:
            _resume(storage, jobs, options)
            _bring(storage, jobs, options)
    finally:
        for job in jobs:
            os.close(job.home)
            if job.errors:
                job.claim.error = "; ".join(job.errors)


def _job(storage: Storage, claim: Claim, sources: list[Source]) -> _Job | None:
    """Return what is to be done for one user, None if nothing is or can be."""
    job = _Job(claim, -1, -1, list(sources))
    job.wanted = [source for source in sources if job.entry(source).get("state") != "placed"]
    if not job.wanted:
        return None
    directory = open_present(storage, claim.home)
    if directory is not None:
        job.home, job.device = directory, os.fstat(directory).st_dev
        return job
    if not storage.check:
        raise StorageError("has no directory of their own yet: the role user_dir comes before tutorials")
    for source in sources:  # by then user_dir will have made the home, and a new home has nothing yet
        check_path(source)
        _changed(claim, source)
    return None


def _predict(storage: Storage, jobs: list[_Job], options: Options) -> None:
    for job, found in _for_each(storage, jobs, look_at, options):
        for source in list(job.wanted):
            says = found[source.name]
            if "error" in says:
                job.fail(source, says["error"])
            elif says["is"] == "exists" and job.entry(source).get("state") != "revealing":
                job.keep(source)
            elif says["is"] != "exists":
                try:
                    check_path(source)
                except StorageError as error:
                    job.errors.append(str(error))
                else:
                    _changed(job.claim, source)


def _resume(storage: Storage, jobs: list[_Job], options: Options) -> None:
    """Settle the sources that may be in their places already, by the record, before anything is fetched."""
    undecided = [
        job
        for job in jobs
        if any(job.entry(source).get("state") in ("kept", "revealing") for source in job.wanted)
    ]
    news = []
    for job, found in _for_each(storage, undecided, look_at, options):
        entries: Entries = {}
        for source in list(job.wanted):
            says, entry = found[source.name], job.entry(source)
            if "error" in says:
                job.fail(source, says["error"])
            elif says["is"] != "staged" and entry.get("state") == "revealing":  # it was put in its place
                entries[source.name] = {**entry, "state": "placed"}
                job.wanted.remove(source)
            elif says["is"] == "exists" and entry.get("state") == "kept":
                job.keep(source)
        news.append((job, entries))
    _record(storage, news)


def _record(storage: Storage, news: list[tuple[_Job, Entries]]) -> None:
    """Record for all what became of their sources, so that it is on the disk before it counts.

    Otherwise a power failure could leave an empty record: a tutorial that the user threw away long ago
    would come back, and a stage would be nobody's.
    """
    for job, entries in news:
        with job.claim.alone():
            job.draft(storage, entries)
    claims = [job.claim for job, _ in news if job.claim.error is None and job.claim.drafted is not None]
    if not claims:
        return
    try:
        sync(storage.state.records)
    except OSError as error:
        fail_all(claims, error)
    _put(storage, claims)


def _put(storage: Storage, claims: Iterable[Claim]) -> None:
    for claim in claims:
        if claim.error is None:
            with claim.alone():
                claim.put(storage)


def _bring(storage: Storage, jobs: list[_Job], options: Options) -> None:
    """Fetch what anybody still wants, stage it for all, bring it onto the disk at once, reveal it for all."""
    wanted = {source.name: source for job in jobs for source in job.wanted}
    if not wanted:
        return
    try:
        library = Library(
            storage.state.cache, Limits(unpacked=options.max_bytes), options.fetch_timeout, wait=LOCK_WAIT
        )
    except (StorageError, OSError) as error:
        _fail(jobs, sentence(error))
        return
    try:
        trees = _obtain(library, wanted.values(), jobs)
        library.let_others_in()  # a copy that hangs must not keep other runs waiting
        _stage(storage, jobs, trees, options)
        _sync(storage, jobs)
        _reveal(storage, jobs, trees, options)
    finally:
        storage.fetched += library.fetched
        library.close()


def _obtain(library: Library, sources: Iterable[Source], jobs: list[_Job]) -> dict[str, Tree]:
    trees = {}
    for source in sources:
        those = [job for job in jobs if source in job.wanted]
        try:
            tree = trees[source.name] = library.obtain(source)
        except (StorageError, OSError) as error:
            for job in those:
                job.fail(source, sentence(error))
        else:
            for job in those:
                job.claim.notes.extend([tree.note] if tree.note else [])
    return trees


def _stage(storage: Storage, jobs: list[_Job], trees: dict[str, Tree], options: Options) -> None:
    news = []
    for job in jobs:
        entries: Entries = {}
        for source in job.wanted:
            # A stage that an earlier run left is used again: there is never more than the one to remove.
            name = job.entry(source).get("stage") or f"{STATE_DIRECTORY}-{secrets.token_hex(8)}"
            entries[source.name] = {"state": "copying", "stage": name, "dest": "/".join(source.dest)}
        if entries:
            news.append((job, entries))
    _record(storage, news)
    for job, found in _for_each(storage, jobs, stage, options, trees):
        entries = {}
        for source in list(job.wanted):
            says = found[source.name]
            if "error" in says:
                job.fail(source, says["error"])
            elif says["is"] == "exists":
                entries[source.name] = {"state": "kept", "dest": "/".join(source.dest)}
                job.keep(source)
            else:
                entries[source.name] = {**job.entry(source), "state": "revealing"}
        with job.claim.alone():
            job.draft(storage, entries)  # counts once the stages are on the disk, and this with them


def _sync(storage: Storage, jobs: list[_Job], *, elsewhere: bool = False) -> None:
    """Bring all stages and records onto the disk: one syncfs for each file system, most often just one.

    Args:
        storage: where the records are.
        jobs: in whose homes the stages are.
        elsewhere: only homes on another file system than the records, whose order the journal does not keep.
    """
    ours = os.fstat(storage.state.records).st_dev
    systems: dict[int, tuple[int, int]] = {ours: (storage.state.records, NOWHERE)}
    for job in jobs:
        if job.wanted and job.claim.error is None:
            systems.setdefault(job.device, (job.home, job.claim.place))
    if elsewhere:
        del systems[ours]
    for device, (directory, place) in systems.items():
        try:
            at(place)
            sync(directory)
        except OSError as error:
            # Without the records nothing is safe.
            unsafe = [job for job in jobs if device in (ours, job.device)]
            _fail(unsafe, explain(error))
            for job in unsafe:
                job.claim.drafted = None
        finally:
            at(NOWHERE)


def _reveal(storage: Storage, jobs: list[_Job], trees: dict[str, Tree], options: Options) -> None:
    _put(storage, [job.claim for job in jobs])
    revealed = _for_each(storage, jobs, reveal, options)
    _sync(storage, [job for job, _ in revealed], elsewhere=True)
    news = []
    stages: dict[int, tuple[_Job, list[str]]] = {}
    for job, found in revealed:
        entries: Entries = {}
        for source in list(job.wanted):
            says = found[source.name]
            dest = "/".join(source.dest)
            if "error" in says:
                entries[source.name] = {**job.entry(source), "state": "copying"}
                stages.setdefault(job.home, (job, []))[1].append(job.entry(source)["stage"])
                job.fail(source, says["error"])
            elif says["is"] == "exists":
                entries[source.name] = {"state": "kept", "dest": dest}
                job.keep(source)
            else:
                content = trees[source.name].content
                entries[source.name] = {"state": "placed", "dest": dest, "content": content}
                _changed(job.claim, source)
        news.append((job, entries))
    _record(storage, news)
    tasks = [job.claim.task(home, partial(drop, home, names)) for home, (job, names) in stages.items()]
    _as_user.run_all(tasks, options.child_timeout, storage.patience)


def _for_each(
    storage: Storage,
    jobs: list[_Job],
    work: Callable[[int, list[Placing]], Found],
    options: Options,
    trees: Optional[dict[str, Tree]] = None,
) -> list[tuple[_Job, Found]]:
    """Let a child work in each home that still wants something; return what those that succeeded say."""
    jobs = [job for job in jobs if job.wanted and job.claim.error is None]
    if not jobs:
        return []
    tasks = []
    for job in jobs:
        placings = [_placing(job, source, (trees or {}).get(source.name)) for source in job.wanted]
        keep = (item.tree for item in placings if item.tree >= 0)
        tasks.append(job.claim.task(job.home, partial(work, job.home, placings), *keep))
    result = []
    for job, answer in zip(jobs, storage.run_all(tasks, options.child_timeout)):  # noqa: B905
        if answer.error is None:
            result.append((job, answer.value))
        else:
            job.claim.hangs = answer.late
            _fail([job], answer.error)
    return result


def _placing(job: _Job, source: Source, tree: Optional[Tree]) -> Placing:
    directory = -1 if tree is None else tree.directory
    return Placing(source.name, source.dest, job.entry(source).get("stage", ""), directory, source.where)


def _fail(jobs: Iterable[_Job], why: str) -> None:
    """Fail those of the users that still want something."""
    for job in jobs:
        if job.wanted:
            job.errors.append(why)
            job.wanted.clear()


def _changed(claim: Claim, source: Source) -> None:
    claim.changed = True
    where = f"{claim.home.directory}/{'/'.join(source.dest)}"
    claim.differs(where, {"state": "absent"}, {"state": "directory", "owner": claim.home.uid, "mode": "0755"})
