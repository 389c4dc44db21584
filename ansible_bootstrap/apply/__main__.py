"""The apply program: the one place where anything is done with privileges.

``python -I -m ansible_bootstrap.apply`` reads one request (see ``protocol.py``) from stdin, runs
the playbook, and writes events to stdout and its log to stderr. It trusts nothing in the request,
takes nothing from its environment or working directory, and knows one argument, ``--settings FILE``,
for a hub that is the same user; a sudoers line or a forced command of ssh fixes its arguments.

**Spare.** With ``--settings FILE --spare`` it waits for its request without limit, and has started a run meanwhile that
waits too (``runner.py``). The end of stdin then means that it is not needed. The settings are read again when the
request has come. Where they have changed, or the request asks for something else than the run was started for, the
waiting run is thrown away and another one started; where the installation has changed, the program starts anew.

**Stop protocol.** stdin stays open while the caller wants the run. Its end (also by the caller's
death), SIGTERM, SIGINT or SIGHUP stops the run: every descendant gets TERM, a second later KILL,
and only then does this program exit.

**Exit status.** 0 all converged, 1 some user failed, 2 refused, 3 stopped, 4 a fault of its own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from ansible_bootstrap.apply import runner
from ansible_bootstrap.apply.boundary import enforce_boundary
from ansible_bootstrap.apply.caller import (
    Stopped,
    can_be_read,
    emit,
    harden,
    heed_stops,
    ignore_stops,
    log,
    read_line,
    stop_on_end_of_stdin,
)
from ansible_bootstrap.apply.descendants import descendants, end_descendants, reap_orphans
from ansible_bootstrap.apply.inherited import replace_limits, replace_share, unfit_descriptors
from ansible_bootstrap.apply.keeper import keep
from ansible_bootstrap.apply.outcomes import EXIT_OK, Batch, Tail, inventory_errors, last_words
from ansible_bootstrap.apply.probing import Probing
from ansible_bootstrap.apply.run_directory import run_directory
from ansible_bootstrap.apply.slots import take_slot
from ansible_bootstrap.errors import AnsibleBootstrapError, RefusedError
from ansible_bootstrap.fingerprints import describe, installed, short_name
from ansible_bootstrap.protocol import (
    SPARE,
    Accepted,
    Described,
    Refused,
    Request,
    RoleFingerprint,
    User,
    parse_request,
    parse_users,
)
from ansible_bootstrap.settings import SYSTEM_FILE, ApplySettings, RoleSetting, load_settings
from ansible_bootstrap.storage._errors import StorageError
from ansible_bootstrap.storage._priority import step_back

EXIT_REFUSED: Final = 2
EXIT_STOPPED: Final = 3
EXIT_FAULT: Final = 4

REQUEST_TIMEOUT: Final = 30.0
"""Seconds in which the whole request line must have come."""
STRANGERS_REQUEST_TIMEOUT: Final = 10.0
"""The same for a caller before the boundary."""

_POLL: Final = 0.005
_RUNNER_GRACE: Final = 1.0


def main(argv: list[str] | None = None) -> int:
    """Serve one request and return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    spare, argv = argv[2:] == [SPARE], argv[:2] if argv[2:] == [SPARE] else argv
    harden()
    if not argv and (unfit := unfit_descriptors()):
        if 2 not in unfit:
            log("refused: stdin, stdout and stderr must be pipes, sockets, terminals or /dev/null, not files")
        return EXIT_REFUSED
    try:
        return keep(functools.partial(_serve_one, argv, spare), fault=EXIT_FAULT)
    except (OSError, StorageError) as error:
        log(f"no request can be served: {error}")
        return EXIT_FAULT


def _serve_one(argv: list[str], spare: bool, end: Callable[[], None]) -> int:
    """Serve one request and return the exit status; ``end`` ends all that was started for it."""
    try:
        heed_stops()
        if not argv:
            _replace_the_callers_limits()
        with contextlib.ExitStack() as held:
            ahead = held.enter_context(_Ahead(argv)) if spare else None
            held.callback(ignore_stops)  # it ends by then
            if ahead is not None and not ahead.wait():
                return EXIT_OK
            take_slot()
            settings = _settings(argv)
            request = parse_request(read_line(0, REQUEST_TIMEOUT if argv else STRANGERS_REQUEST_TIMEOUT))
            return _serve(settings, request, ahead, end)
    except AnsibleBootstrapError as error:
        with contextlib.suppress(
            OSError, Stopped
        ):  # the log and the exit status still tell a caller that does not read
            emit(Refused(reason=error.reason, message=error.details or error.message))
        return _conclude(f"refused: {error.details or error.message}", EXIT_REFUSED)
    except (Stopped, BrokenPipeError) as stop:
        return _conclude(f"stopped: {stop}", EXIT_STOPPED)
    except Exception:
        return _conclude(traceback.format_exc(), EXIT_FAULT)


class _Ahead:
    """The run that a spare program has started before there is a request. If it could not, the log says why."""

    def __init__(self, argv: list[str]) -> None:
        self._argv = argv
        self._installed = installed()
        self._settings: ApplySettings | None = None
        self._run: runner.PlaybookRun | None = None
        self._held = contextlib.ExitStack()

    def __enter__(self) -> _Ahead:
        try:
            settings = _settings(self._argv)
            if settings.inventory:
                raise OSError("with an inventory, which may change, no run is started ahead")
            directory = self._held.enter_context(run_directory(f"spare-{uuid.uuid4().hex[:12]}"))
            run = runner.PlaybookRun(settings, "bootstrap", directory, waits=True)
            run.start()
        except (AnsibleBootstrapError, OSError, RuntimeError) as error:  # said again if a request meets it
            log(f"the next run starts cold: {getattr(error, 'details', None) or error}")
        else:
            self._settings, self._run = settings, run
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    def wait(self) -> bool:
        """Wait without limit; return whether there is a request to be read."""
        while not select.select([0], [], [], None)[0]:
            pass
        if not can_be_read(0):
            return False
        if installed() != self._installed:
            self._drop()
            os.execv(  # noqa: S606 - as harden() will find it, nothing is inherited
                sys.executable, [sys.executable, "-I", "-m", "ansible_bootstrap.apply", *self._argv]
            )
        return True

    def take(self, settings: ApplySettings, request: Request, storage_host: str) -> runner.PlaybookRun | None:
        """Return the run if it is what such a request would have started."""
        run = self._run
        if run is None:
            return None
        if settings != self._settings:
            why = "the settings have changed since it was started"
        elif (request.operation, storage_host, request.check or request.diff) != (
            "bootstrap",
            "localhost",
            False,
        ):
            why = "the request needs another"
        elif not run.is_alive() or (run.has_process and not descendants()):
            why = f"it ended while it waited: {run.fault or last_words(run.directory)}"
        else:
            return run
        log(f"this run starts cold, for the one that waited could not be used: {why}")
        self._drop()
        return None

    def _drop(self) -> None:
        run, self._run = self._run, None
        try:
            if run is not None:
                run.cancel()
                end_descendants(grace=0)  # nothing has been done yet
                run.join(_RUNNER_GRACE)
        finally:
            self._held.close()


def _conclude(text: str, status: int) -> int:
    with contextlib.suppress(Stopped):
        log(text)
    return status


def _serve(settings: ApplySettings, request: Request, ahead: _Ahead | None, end: Callable[[], None]) -> int:
    if request.operation == "describe":
        emit(Described(roles=describe(settings)))
        return EXIT_OK
    users, refused = parse_users(request.users)
    storage_host = _only_host(users)
    if request.operation == "probe":
        if refused:  # Or another host than the one that was meant would be probed.
            raise RefusedError(refused[0].message)
        return _probe(settings, storage_host, request.check, end)
    run = _run_id()
    roles = settings.cleanup_roles
    fingerprints: tuple[RoleFingerprint, ...] = ()
    if request.operation == "bootstrap":
        fingerprints = describe(settings)
        roles = _left(settings.roles, fingerprints, request.done)
    started = ahead.take(settings, request, storage_host) if ahead is not None and roles and users else None
    names = tuple(short_name(role) for role in roles)
    emit(Accepted(run=run, storage_host=storage_host, roles=names, fingerprints=fingerprints))
    batch = Batch(run, storage_host, users)
    for outcome in refused:
        batch.finish(outcome.model_copy(update={"run": run, "storage_host": storage_host}))
    if not roles or not users:
        batch.nothing_left()
        return batch.end()
    batch.ways.add("spare" if started else "cold")
    with contextlib.ExitStack() as held:
        try:
            if started is None:
                started = runner.PlaybookRun(
                    settings,
                    request.operation,
                    held.enter_context(run_directory(run)),
                    storage_host=storage_host,
                    check=request.check,
                    diff=request.diff,
                )
            started.give(roles, list(batch.users.values()))
        except OSError as error:
            batch.give_up(f"the directory of the run cannot be written: {error.strerror}")
            return batch.end()
        _run(started, batch, end)
        status = batch.end()
        started.join(_RUNNER_GRACE)  # it writes into the directory that is to be removed
    return status


def _probe(settings: ApplySettings, storage_host: str, check: bool, end: Callable[[], None]) -> int:
    """Probe a storage host; what prevents that is a finding, too."""
    probing = Probing(storage_host)
    with run_directory(_run_id()) as directory:
        run = runner.PlaybookRun(settings, "probe", directory, storage_host=storage_host, check=check)
        _run(run, probing, end)
        emit(probing.answer)
        run.join(_RUNNER_GRACE)  # it writes into the directory that is to be removed
    return EXIT_OK


def _run_id() -> str:
    return f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:8]}"


def _left(
    roles: Sequence[RoleSetting], fingerprints: Sequence[RoleFingerprint], done: Mapping[str, str]
) -> tuple[RoleSetting, ...]:
    """Return the roles that some user may lack, by the fingerprints that the caller remembers."""
    return tuple(
        role
        for role, now in zip(roles, fingerprints, strict=True)
        if not (now.revised and done.get(now.role) == now.fingerprint)
    )


def _run(run: runner.PlaybookRun, batch: Batch | Probing, end: Callable[[], None]) -> None:
    """Let the run do what it was given; meanwhile pass its outcomes on and watch for the stop."""
    lines = Tail(runner.outcomes_file(run.directory))
    try:
        try:
            stop_on_end_of_stdin()
            if not run.waits:
                run.start()
        except RuntimeError:  # This account or machine has no thread to spare.
            batch.give_up("too many processes are running: no thread can be started; try again later")
            return
        while run.is_alive() and not batch.over:
            run.join(_POLL)
            reap_orphans()
            batch.take(lines.read())
    finally:
        ignore_stops()  # from here on it ends by itself, and at once
        run.cancel()
        end()
        # It may have been about to start Ansible; and what Ansible has printed is asked for below.
        if run.is_alive() and (batch.waiting or not batch.over):
            run.join(_RUNNER_GRACE)
            end()
    batch.take(lines.read())
    if run.fault:
        batch.give_up(f"ansible-runner: {run.fault}")
    elif batch.waiting:
        batch.give_up(last_words(run.directory), inventory_errors(run.directory))


def _only_host(users: list[User]) -> str:
    """Return the one storage host of a request; different hosts never wait for one another."""
    hosts = {user.storage_host or "localhost" for user in users}
    if len(hosts) > 1:
        raise RefusedError("the users of one request have one storage host")
    return hosts.pop() if hosts else "localhost"


def _settings(argv: list[str]) -> ApplySettings:
    """Return the settings: the system's for a caller before the boundary, or those of a caller of the same user."""
    match argv:
        case []:
            settings = load_settings()
            enforce_boundary(SYSTEM_FILE, settings)
            return settings
        case ["--settings", name]:
            return load_settings(Path(name), private=True)
        case _:
            raise RefusedError("usage: python -I -m ansible_bootstrap.apply [--settings FILE [--spare]]")


def _replace_the_callers_limits() -> None:
    """Replace what a caller before the boundary could lower; an embedded hub's are those of its own service."""
    replace_share()
    step_back()
    replace_limits()


if __name__ == "__main__":
    os._exit(main())  # without waiting for threads that wait for others
