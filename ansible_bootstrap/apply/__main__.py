"""The apply program: the one place where anything is done with privileges.

``python -I -m ansible_bootstrap.apply`` reads one request (see ``protocol.py``) from stdin, runs
the playbook, and writes events to stdout and its log to stderr. It trusts nothing in the request,
takes nothing from its environment or working directory, and knows one argument, ``--settings FILE``,
for a hub that is the same user; whoever puts it behind sudo or ssh fixes its arguments there.

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

import array
import contextlib
import fcntl
import functools
import json
import os
import resource
import select
import signal
import sys
import termios
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from ansible_bootstrap.apply import runner
from ansible_bootstrap.apply.boundary import enforce_boundary
from ansible_bootstrap.apply.descendants import end_descendants, reap_orphans
from ansible_bootstrap.apply.inherited import replace_limits, replace_share, unfit_descriptors
from ansible_bootstrap.apply.keeper import keep
from ansible_bootstrap.apply.run_directory import run_directory
from ansible_bootstrap.apply.slots import take_slot
from ansible_bootstrap.errors import AnsibleBootstrapError, Reason, RefusedError
from ansible_bootstrap.fingerprints import describe, installed, short_name
from ansible_bootstrap.protocol import (
    MAX_REQUEST_BYTES,
    SPARE,
    Accepted,
    Described,
    End,
    Event,
    Fetched,
    Outcome,
    OutcomeEvent,
    Refused,
    Request,
    RoleFingerprint,
    RoleStarted,
    User,
    parse_request,
    parse_users,
)
from ansible_bootstrap.settings import SYSTEM_FILE, ApplySettings, RoleSetting, load_settings
from ansible_bootstrap.storage._errors import StorageError
from ansible_bootstrap.storage._priority import step_back

EXIT_OK: Final = 0
EXIT_SOME_FAILED: Final = 1
EXIT_REFUSED: Final = 2
EXIT_STOPPED: Final = 3
EXIT_FAULT: Final = 4

REQUEST_TIMEOUT: Final = 30.0
"""Seconds in which the whole request line must have come."""
STRANGERS_REQUEST_TIMEOUT: Final = 10.0
"""The same for a caller before the boundary."""
WRITE_TIMEOUT: Final = 30.0
"""Seconds without progress after which a caller that does not read counts as gone."""

_POLL: Final = 0.005
_RUNNER_GRACE: Final = 1.0
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_TERMINAL_SIGNALS: Final = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
"""With these, somebody at a terminal could halt a run in the middle, and its locks with it."""


def main(argv: list[str] | None = None) -> int:
    """Serve one request and return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    spare, argv = argv[2:] == [SPARE], argv[:2] if argv[2:] == [SPARE] else argv
    _harden()
    if not argv and (unfit := unfit_descriptors()):
        if 2 not in unfit:
            log("refused: stdin, stdout and stderr must be pipes, sockets, terminals or /dev/null, not files")
        return EXIT_REFUSED
    try:
        return keep(functools.partial(_serve_one, argv, spare), _STOP_SIGNALS, log, fault=EXIT_FAULT)
    except (OSError, StorageError) as error:
        log(f"no request can be served: {error}")
        return EXIT_FAULT


def _serve_one(argv: list[str], spare: bool, end: Callable[[], None]) -> int:
    """Serve one request and return the exit status; ``end`` ends all that was started for it."""
    try:
        _heed_stops()
        if not argv:
            _replace_the_callers_limits()
        with contextlib.ExitStack() as held:
            ahead = held.enter_context(_Ahead(argv)) if spare else None
            held.callback(_ignore_stops)  # it ends by then
            if ahead is not None and not ahead.wait():
                return EXIT_OK
            take_slot()
            settings = _settings(argv)
            request = parse_request(_read_line(0, REQUEST_TIMEOUT if argv else STRANGERS_REQUEST_TIMEOUT))
            return _serve(settings, request, ahead, end)
    except AnsibleBootstrapError as error:
        with contextlib.suppress(
            OSError, _Stopped
        ):  # where nobody hears it, the log and the status still tell
            _emit(Refused(reason=error.reason, message=error.details or error.message))
        return _conclude(f"refused: {error.details or error.message}", EXIT_REFUSED)
    except (_Stopped, BrokenPipeError) as stop:
        return _conclude(f"stopped: {stop}", EXIT_STOPPED)
    except Exception:
        return _conclude(traceback.format_exc(), EXIT_FAULT)


class _Ahead:
    """The run of a spare program, started before there is a request; or why there is none."""

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
        if not _can_be_read(0):
            return False
        if installed() != self._installed:
            self._drop()
            os.execv(  # noqa: S606 - as _harden() will find it, nothing is inherited
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
        elif not run.is_alive():
            why = f"it ended while it waited: {run.fault or _last_words(run.directory)}"
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


def _can_be_read(descriptor: int) -> bool:
    """Tell a descriptor that has something to say from one at its end."""
    count = array.array("i", [0])
    with contextlib.suppress(OSError):
        fcntl.ioctl(descriptor, termios.FIONREAD, count)
        return count[0] > 0
    return True  # no pipe, socket or file: to be found out by reading


def _conclude(text: str, status: int) -> int:
    with contextlib.suppress(_Stopped):
        log(text)
    return status


def log(text: str) -> None:
    """Write to the admin's log, one line a line, control characters escaped."""
    for line in text.splitlines():
        safe = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
        with contextlib.suppress(OSError):
            _write(2, f"{safe}\n".encode("utf-8", "backslashreplace"))


def _serve(settings: ApplySettings, request: Request, ahead: _Ahead | None, end: Callable[[], None]) -> int:
    if request.operation == "describe":
        _emit(Described(roles=describe(settings)))
        return EXIT_OK
    users, refused = parse_users(request.users)
    storage_host = _only_host(users)
    run = f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:8]}"
    roles = settings.cleanup_roles
    fingerprints: tuple[RoleFingerprint, ...] = ()
    if request.operation == "bootstrap":
        fingerprints = describe(settings)
        roles = _left(settings.roles, fingerprints, request.done)
    started = ahead.take(settings, request, storage_host) if ahead is not None and roles and users else None
    names = tuple(short_name(role) for role in roles)
    _emit(Accepted(run=run, storage_host=storage_host, roles=names, fingerprints=fingerprints))
    batch = _Batch(run, storage_host, users)
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


def _left(
    roles: Sequence[RoleSetting], fingerprints: Sequence[RoleFingerprint], done: Mapping[str, str]
) -> tuple[RoleSetting, ...]:
    """Return the roles that somebody may not have yet, by what the caller remembers of their fingerprints."""
    return tuple(
        role
        for role, now in zip(roles, fingerprints, strict=True)
        if not (now.revised and done.get(now.role) == now.fingerprint)
    )


def _run(run: runner.PlaybookRun, batch: _Batch, end: Callable[[], None]) -> None:
    """Let the run do what it was given; meanwhile pass its outcomes on and watch for the stop."""
    lines = _Tail(runner.outcomes_file(run.directory))
    try:
        try:
            _stop_on_end_of_stdin()
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
        _ignore_stops()  # from here on it ends by itself, and at once
        run.cancel()
        end()
        if run.is_alive() and not batch.over:  # it may have been about to start Ansible
            run.join(_RUNNER_GRACE)
            end()
    batch.take(lines.read())
    if run.fault:
        batch.give_up(f"ansible-runner: {run.fault}")
    elif batch.waiting:
        batch.give_up(_last_words(run.directory))


class _Batch:
    """The users of this run and what has become of them; each gets exactly one outcome."""

    def __init__(self, run: str, storage_host: str, users: list[User]) -> None:
        self.run = run
        self.storage_host = storage_host
        self.users = {user.key: user for user in users}
        self.waiting = dict(self.users)
        self.lost: tuple[Reason, str] | None = None
        """Why Ansible could not even begin the batch."""
        self.ways: set[str] = set()
        """How it was done, see :class:`End`."""
        self.over = False
        """Whether Ansible has nothing left to do but to clear up after itself."""
        self._start = time.monotonic()
        self._ok = 0
        self._failed = 0

    def take(self, lines: list[bytes]) -> None:
        """Take lines of the outcomes file."""
        for line in lines:
            data = json.loads(line)
            kind = data.pop("type")
            if kind == "role":
                _emit(RoleStarted(role=data["role"], users=data["users"]))
            elif kind == "fetched":
                _emit(Fetched(role=data["role"], count=data["count"]))
            elif kind == "diff":
                log(data["text"])
            elif kind == "lost":
                self.lost = data["reason"], data["message"]
            elif kind == "module":
                self.ways.add(data["way"])
            elif kind == "over":
                self.over = True
            elif kind == "outcome" and data["key"] in self.waiting:
                seconds = self._seconds()
                self.finish(Outcome(run=self.run, storage_host=self.storage_host, seconds=seconds, **data))

    def finish(self, outcome: Outcome) -> None:
        """Pass one user's outcome on."""
        self.waiting.pop(outcome.key, None)
        if outcome.status == "ok":
            self._ok += 1
        else:
            self._failed += 1
        for note in outcome.notes:
            log(f"{self.run}: {outcome.name}: {note}")
        _emit(OutcomeEvent(outcome=outcome))

    def nothing_left(self) -> None:
        """Everybody has every role already."""
        for user in list(self.waiting.values()):
            self.finish(
                Outcome(
                    key=user.key,
                    name=user.name,
                    status="ok",
                    run=self.run,
                    storage_host=self.storage_host,
                    directory=user.directory or "",
                )
            )

    def give_up(self, message: str) -> None:
        """Fail whoever has no outcome: silence is never success."""
        reason, message = self.lost or ("apply_failed", message)
        for user in list(self.waiting.values()):
            self.finish(
                Outcome(
                    key=user.key,
                    name=user.name,
                    status="failed",
                    reason=reason,
                    message=message,
                    run=self.run,
                    storage_host=self.storage_host,
                    directory=user.directory or "",
                    seconds=self._seconds(),
                )
            )

    def _seconds(self) -> float:
        return round(time.monotonic() - self._start, 3)

    def end(self) -> int:
        """Say that this was all; return the exit status."""
        way = "+".join(way for way in ("cold", "spare", "ansible", "worker") if way in self.ways)
        _emit(End(run=self.run, ok=self._ok, failed=self._failed, way=way))
        return EXIT_SOME_FAILED if self._failed else EXIT_OK


class _Tail:
    """The whole lines that have been added to a growing file since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._rest = b""

    def read(self) -> list[bytes]:
        if self._file is None:
            try:
                self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return []
        while chunk := os.read(self._file, 1 << 20):
            self._rest += chunk
        *lines, self._rest = self._rest.split(b"\n")
        return lines


def _only_host(users: list[User]) -> str:
    """Return the one storage host of a request; different hosts never wait for one another."""
    hosts = {user.storage_host or "localhost" for user in users}
    if len(hosts) > 1:
        raise RefusedError("the users of one request have one storage host")
    return hosts.pop() if hosts else "localhost"


def _last_words(directory: Path) -> str:
    """Return the end of Ansible's own output, for the admin, where no outcome says more."""
    try:
        text = (directory / "artifacts" / "run" / "stdout").read_text("utf-8", "replace")
    except OSError:
        text = ""
    lines = [line for line in text.splitlines() if "ERROR" in line or "fatal" in line] or text.splitlines()
    return (
        f"Ansible ended early: {' | '.join(lines[-3:])[-1500:]}" if lines else "Ansible ended without a word"
    )


def _settings(argv: list[str]) -> ApplySettings:
    """Return the settings: the admin's, for whoever stands before the boundary, or those of the same user."""
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


def _harden() -> None:
    """Take nothing from the caller: environment, directory, descriptors, signals."""
    while os.open(os.devnull, os.O_RDWR) < 3:
        pass  # were stdin, stdout or stderr closed, the next file to be opened would be it
    environment = runner.scrubbed_environment()
    os.environ.clear()
    os.environ.update(environment)
    os.umask(0o077)
    os.chdir("/")
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.pthread_sigmask(signal.SIG_SETMASK, _STOP_SIGNALS)  # until somebody heeds them
    for number in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, _unread)
    for number in _TERMINAL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for number in _STOP_SIGNALS:
        signal.signal(number, _stop)
    step_back()


def _read_line(descriptor: int, timeout: float) -> bytes:
    """Read the request line, unbuffered, so that what follows it stays in the pipe."""
    deadline = time.monotonic() + timeout
    data = bytearray()
    while not data.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            raise RefusedError(f"no whole request line within {timeout:.0f} s")
        try:
            chunk = os.read(descriptor, 1 << 16)
        except OSError as error:
            raise RefusedError(f"the request cannot be read: {error.strerror}") from None
        if not chunk:
            break
        data += chunk
        if len(data) > MAX_REQUEST_BYTES:
            raise RefusedError(f"the request is longer than {MAX_REQUEST_BYTES} bytes")
        _line, newline, rest = chunk.partition(b"\n")
        if newline and rest:
            raise RefusedError("something follows the request line")
    return bytes(data)


class _Stopped(BaseException):
    """The caller wants no more of this run; raised in the main thread, wherever it is."""


def _heed_stops() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    _ignore_stops()
    raise _Stopped(signal.Signals(number).name)


def _ignore_stops() -> None:
    for number in _STOP_SIGNALS:
        signal.signal(number, _ignore)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing; unlike SIG_IGN, this is not inherited by what is started, nor a race with what has arrived."""


def _stop_on_end_of_stdin() -> None:
    def watch() -> None:
        with contextlib.suppress(OSError):  # EIO: a terminal that has gone
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _emit(event: Event) -> None:
    _write(1, json.dumps(event.model_dump(mode="json"), ensure_ascii=True).encode() + b"\n")


def _write(descriptor: int, data: bytes) -> None:
    """Write all, unless the caller reads nothing of it for :data:`WRITE_TIMEOUT`.

    The deadline is a signal, for only that ends a write to whatever stands there: pipe, socket or terminal. Signals
    come to the main thread, so another thread, which writes a line of the log at most, has no deadline.

    Raises:
        _Stopped: nobody reads.
    """
    bounded = threading.current_thread() is threading.main_thread()
    rest = memoryview(data)
    while rest:
        try:
            if bounded:
                signal.setitimer(signal.ITIMER_REAL, WRITE_TIMEOUT)
            rest = rest[os.write(descriptor, rest) :]
        finally:
            if bounded:
                signal.setitimer(signal.ITIMER_REAL, 0)


def _unread(_number: int, _frame: FrameType | None) -> NoReturn:
    """Say no more to a caller that reads nothing, and stop."""
    silence = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    raise _Stopped(f"the caller has read nothing for {WRITE_TIMEOUT:.0f} s")


if __name__ == "__main__":
    os._exit(main())  # without waiting for threads that wait for others
