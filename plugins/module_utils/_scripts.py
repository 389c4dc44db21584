# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""The role ``script``: a program of the admin's is run for every user, with the username as its only argument.

It is run as the user, in the user's directory, or if the admin says so as root. "Done" means that it exited
with 0 and that what it wrote is on the disk; only then is that recorded, out of the user's reach. A program
that is killed half-way is therefore run again, and must bear that.
"""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import _as_user, _batch
from ._batch import Claim, fail_all
from ._errors import StorageError, explain, printable
from ._files import sync
from ._homes import open_present
from ._report import Report
from ._storage import Home, Roots, Storage
from ._supervise import GRACE, Program, supervise
from ._ways import find_program
from ._worker import NOWHERE, at

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_MOST_OUTPUT = 2000

_NOT_STARTED = {
    errno.ENOENT: "the interpreter in its first line does not exist on this host",
    errno.ENOEXEC: "it has no first line such as #!/bin/sh, and is no program for this machine",
    errno.EACCES: (
        "permission denied; let everybody read and execute it (chmod a+rx), and enter every directory above it and "
        "the user's own directory"
    ),
    errno.ETXTBSY: "somebody is writing to it at this moment: run again",
}


@dataclass(frozen=True)
class Options:
    """The options of the module ``script``: ``as_root`` is ``as: root``, ``always`` is ``when: always``."""

    path: str
    as_root: bool = False
    always: bool = False
    timeout: float = 60


@dataclass
class _Job:
    """One user's run of the program."""

    claim: Claim
    directory: int | None = None
    """Descriptor of the user's directory, if it is run there."""


def run(
    users: list[Any], root: str | Roots, uid_min: int, options: Options, *, check: bool, patience: float = 0
) -> Report:
    """Run the program for every user who does not have it done; see the module ``script``."""
    return _batch.run(users, root, uid_min, partial(_work, options), check=check, patience=patience)


def _work(options: Options, storage: Storage, claims: list[Claim]) -> None:
    # a mistake of the admin's is everybody's
    program = find_program(options.path, "script", missing="put it there, or correct script_path")
    if options.as_root and os.geteuid() != 0:
        raise StorageError(
            f"script_as root needs root; this process is uid {os.geteuid()}: let Ansible become root"
        )
    if options.timeout <= 0:
        raise StorageError("script_timeout is a number of seconds above 0")
    jobs: list[_Job] = []
    try:
        for claim in claims:
            with claim.alone():
                job = _job(storage, claim, options)
                if job is not None:
                    jobs.append(job)
        if not storage.check:
            _run(storage, jobs, program, options)
    finally:
        for job in jobs:
            if job.directory is not None:
                os.close(job.directory)


def _job(storage: Storage, claim: Claim, options: Options) -> _Job | None:
    """Return what is to be run for one user, None if nothing is or can be; predict."""
    done = _done(claim, options)
    present = _owner(storage, claim.home) is not None
    if not options.always and done is not None and (present or not done.get("directory")):
        return None
    job = _Job(claim)
    if not options.as_root:
        job.directory = open_present(storage, claim.home)
        if job.directory is None and not storage.check:  # there, user_dir will have made it by then
            raise StorageError("has no directory of their own yet: the role user_dir comes before script")
    if storage.check:
        _changed(claim, options)
    return job


def _done(claim: Claim, options: Options) -> dict[str, Any] | None:
    entry = (claim.record or {}).get("script", {}).get(options.path)
    return entry if isinstance(entry, dict) and entry.get("done") is True else None


def _owner(storage: Storage, home: Home) -> int | None:
    """Return who owns the user's directory, the user or root; None if there is none.

    Raises:
        StorageError: something else is in its place, or it is another user's.
    """
    with storage.opened_home(home) as directory:
        if directory is None:
            return None
        owner = os.fstat(directory).st_uid
    if owner not in (0, home.uid):
        raise StorageError(
            f"{printable(home.directory)} belongs to uid {owner}, not to uid {home.uid}: left as it is; look at it, "
            "then chown or move it"
        )
    return owner


def _run(storage: Storage, jobs: list[_Job], program: str, options: Options) -> None:
    tasks = [_task(storage, job, program, options) for job in jobs]
    done = []
    for job, answer in zip(jobs, storage.run_all(tasks, options.timeout + GRACE)):  # noqa: B905
        job.claim.take(answer)
        if answer.error is None:
            job.claim.hangs = answer.value["timed_out"]
            job.claim.error = _judge(answer.value, job.claim, options)
        if job.claim.error is None:
            done.append(job)
    _record(storage, done, options)


def _task(storage: Storage, job: _Job, program: str, options: Options) -> _as_user.Task:
    home = job.claim.home
    as_root = options.as_root
    name = "root" if as_root else home.name
    environment = {
        "PATH": PATH,
        "HOME": "/root" if as_root else home.directory,
        "USER": name,
        "LOGNAME": name,
        "LANG": "C.UTF-8",
        "BOOTSTRAP_USER": home.name,
        "BOOTSTRAP_DIRECTORY": home.directory,
        "BOOTSTRAP_UID": str(home.uid),
        "BOOTSTRAP_GID": str(home.gid),
    }
    user = None if as_root else (home.uid, home.gid)
    what = Program((program, home.name), environment, options.timeout, job.directory, user)
    keep = (*job.claim.keep, *(() if job.directory is None else (job.directory,)))
    work = partial(_supervise, what)
    return _as_user.Task(home.uid, home.gid, storage.root, work, keep, keeps_rights=True)


def _supervise(program: Program) -> dict[str, Any]:
    try:
        return supervise(program)
    except OSError as error:
        shown = f"script {printable(program.argv[0])} cannot be started"
        why = _NOT_STARTED.get(error.errno or 0)
        raise StorageError(f"{shown}: {why}" if why else explain(error, shown)) from None


def _judge(said: dict[str, Any], claim: Claim, options: Options) -> str | None:
    """Return why it is not done, None if it is."""
    output = shorten(said["tail"])
    tail = f": {output}" if output else ", and said nothing"
    shown = f"script {printable(options.path)}"
    if said["timed_out"]:
        return (
            f"{shown} did not finish within {options.timeout:g} s and was ended with all its processes{tail}"
        )
    status = said["status"]
    if status < 0:
        return f"{shown} was killed by {_signal_name(-status)}{tail}"
    if status > 0:
        return f"{shown} exited with status {status}{tail}"
    if said["left"]:
        claim.notes.append(
            f"{shown} was done but had left processes behind, which were ended ({said['left']}): a script cannot "
            "start what shall stay"
        )
    return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def shorten(text: str) -> str:
    """Return the last lines of a program's output in one printable line of at most 2,000 characters."""
    lines = [printable(line.strip()) for line in text.splitlines()]
    joined = " | ".join(line for line in lines if line)
    return joined if len(joined) <= _MOST_OUTPUT else f"…{joined[1 - _MOST_OUTPUT :]}"


def _record(storage: Storage, jobs: list[_Job], options: Options) -> None:
    """Bring what was done onto the disk together with the records that say so; then these count."""
    systems = {os.fstat(each).st_dev: (each, NOWHERE) for each in (storage.root, storage.state.records)}
    for job in jobs:
        claim = job.claim
        with claim.alone():
            if job.directory is not None:
                systems.setdefault(os.fstat(job.directory).st_dev, (job.directory, claim.place))
            owner = _owner(storage, claim.home)
            if owner not in (None, claim.home.uid):
                claim.notes.append(
                    f"{printable(claim.home.directory)} belongs to root, so the user cannot write there: let the "
                    'script chown it to "$BOOTSTRAP_UID:$BOOTSTRAP_GID"'
                )
            record = dict(claim.record or {})
            scripts = {
                **record.get("script", {}),
                options.path: {"done": True, "directory": owner is not None},
            }
            claim.draft(storage, {**record, "script": scripts})
    left = [job.claim for job in jobs if job.claim.error is None]
    try:
        for directory, place in systems.values() if left else ():
            at(place)
            sync(directory)
    except OSError as error:
        fail_all(left, error)
    finally:
        at(NOWHERE)
    for claim in left:
        with claim.alone():
            if claim.error is None:
                claim.put(storage)
                _changed(claim, options)


def _changed(claim: Claim, options: Options) -> None:
    if options.always:  # what it changed is unknown, and not each start of a server is a change
        return
    claim.changed = True
    shown = printable(options.path)
    claim.differs(claim.home.directory, {"script": "to be run"}, {"script": f"{shown} is done"})
