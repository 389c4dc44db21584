"""The apply program: the one place where anything is done with privileges.

``python -I -m ansible_bootstrap.apply`` reads one request (see ``protocol.py``) from stdin, runs
the playbook, and writes events to stdout and its log to stderr. It trusts nothing in the request,
takes nothing from its environment or working directory, and knows one argument, ``--settings FILE``,
for a hub that is the same user; whoever puts it behind sudo or ssh fixes its arguments there.

**Spare.** With ``--settings FILE --warm`` it serves no request, but imports what that takes and forks, whenever it is
told to, a program that does (``zygote.py``). Such a program makes an engine ready (``warm.py``) and waits for its
request without limit; the end of stdin then means that it is not needed. The settings are read again when the request
has come, and nothing else is different.

**Stop protocol.** stdin stays open while the caller wants the run. Its end (also by the caller's
death), SIGTERM, SIGINT or SIGHUP stops the run: every descendant gets TERM, a second later KILL,
and only then does this program exit.

**Exit status.** 0 all converged, 1 some user failed, 2 refused, 3 stopped, 4 a fault of its own.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from . import runner, zygote
from .boundary import enforce_boundary
from .descendants import reap_orphans
from .errors import AnsibleBootstrapError, Reason, RefusedError
from .fingerprints import describe, short_name
from .inherited import replace_limits, replace_share
from .keeper import keep
from .protocol import (
    MAX_REQUEST_BYTES,
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
from .run_directory import run_directory
from .settings import SYSTEM_FILE, ApplySettings, RoleSetting, load_settings
from .slots import take_slot
from .standby import Standby, installed
from .storage._errors import StorageError
from .storage._priority import step_back
from .warm import Engine, Imported, import_ansible
from .zygote import WARM

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

_PROGRAM: Final = ("-m", "ansible_bootstrap.apply")
_POLL: Final = 0.005
_RUNNER_GRACE: Final = 1.0
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_TERMINAL_SIGNALS: Final = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
"""With these, somebody at a terminal could halt a run in the middle, and its locks with it."""


def main(argv: list[str] | None = None) -> int:
    """Serve one request, or have others do so, and return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    _harden()
    return _be_zygote(argv[:2]) if argv[2:] == [WARM] else _keep(functools.partial(_serve_one, argv))


def _keep(serve: Callable[[Callable[[], None]], int]) -> int:
    try:
        return keep(serve, _STOP_SIGNALS, log, fault=EXIT_FAULT)
    except (OSError, StorageError) as error:
        log(f"no request can be served: {error}")
        return EXIT_FAULT


def _be_zygote(argv: list[str]) -> int:
    """Import everything, and fork programs that serve a request each."""
    if not sys.flags.utf8_mode:  # as the interpreter of ansible-playbook is, by its environment
        os.execv(sys.executable, [sys.executable, "-I", "-X", "utf8", *_PROGRAM, *argv, WARM])  # noqa: S606
    try:
        _heed_stops()
        before, imported = installed(), None
        try:
            imported = import_ansible(_settings(argv))
        except (Exception, SystemExit) as error:  # where something is missing, Ansible exits
            log(f"runs start cold: {error}")
        gc.collect()
        gc.freeze()  # what is here now is not looked at again in what is forked, so its pages stay shared
        zygote.serve(lambda: _be_spare(argv, imported, before), lambda: installed() != before, log)
    except _Stopped as stop:
        log(f"stopped: {stop}")
        return EXIT_STOPPED
    except OSError as error:
        log(f"no programs are forked ahead: {error}")
        return EXIT_FAULT
    return EXIT_OK


def _be_spare(argv: list[str], imported: Imported | None, before: Sequence[tuple[str, int]]) -> int:
    _harden()
    standby = Standby(log, imported, before)
    return _keep(functools.partial(_serve_one, argv, standby=standby, warm=True))


def _serve_one(
    argv: list[str], end: Callable[[], None], *, standby: Standby | None = None, warm: bool = False
) -> int:
    """Serve one request and return the exit status; ``end`` ends all that was started for it."""
    try:
        _heed_stops()
        if not argv:
            _replace_the_callers_limits()
        take_slot()
        with contextlib.ExitStack() as held:
            standby = held.enter_context(standby or Standby(log))
            held.callback(_ignore_stops)  # it ends by then
            if warm and not standby.wait(
                functools.partial(_settings, argv), [sys.executable, "-I", *_PROGRAM, *argv]
            ):
                return EXIT_OK
            settings = _settings(argv)
            request = parse_request(_read_line(0, REQUEST_TIMEOUT if argv else STRANGERS_REQUEST_TIMEOUT))
            return _serve(settings, request, standby, end)
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


def _serve(settings: ApplySettings, request: Request, standby: Standby, end: Callable[[], None]) -> int:
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
    names = tuple(short_name(role) for role in roles)
    _emit(Accepted(run=run, storage_host=storage_host, roles=names, fingerprints=fingerprints))
    batch = _Batch(run, storage_host, users)
    for outcome in refused:
        batch.finish(outcome.model_copy(update={"run": run, "storage_host": storage_host}))
    if roles and users:
        ready = standby.directory
        with contextlib.nullcontext(ready) if ready else run_directory(run) as directory:
            _run(settings, request, roles, batch, directory, end=end, engine=standby.engine)
    else:
        batch.nothing_left()
    return batch.end()


def _left(
    roles: Sequence[RoleSetting], fingerprints: Sequence[RoleFingerprint], done: Mapping[str, str]
) -> tuple[RoleSetting, ...]:
    """Return the roles that somebody may not have yet, by what the caller remembers of their fingerprints."""
    return tuple(
        role
        for role, now in zip(roles, fingerprints, strict=True)
        if not (now.revised and done.get(now.role) == now.fingerprint)
    )


def _run(
    settings: ApplySettings,
    request: Request,
    roles: Sequence[RoleSetting],
    batch: _Batch,
    directory: Path,
    *,
    end: Callable[[], None],
    engine: Engine | None,
) -> None:
    """Run the playbook in a thread; meanwhile pass its outcomes on and watch for the stop."""
    over = threading.Event()
    fault: list[BaseException] = []

    def work() -> None:
        try:
            runner.run_playbook(
                settings,
                request.operation,
                roles,
                list(batch.users.values()),
                directory,
                storage_host=batch.storage_host,
                check=request.check,
                diff=request.diff,
                cancelled=over.is_set,
                engine=engine,
            )
        except BaseException as error:
            fault.append(error)

    thread = threading.Thread(target=work, daemon=True)
    lines = _Tail(runner.outcomes_file(directory))
    try:
        try:
            _stop_on_end_of_stdin()
            thread.start()
        except RuntimeError:  # This account or machine has no thread to spare.
            batch.give_up("too many processes are running: no thread can be started; try again later")
            return
        while thread.is_alive():
            thread.join(_POLL)
            reap_orphans(engine.pid if engine else None)
            batch.take(lines.read())
    finally:
        _ignore_stops()  # from here on it ends by itself, and at once
        over.set()
        end()
        if thread.is_alive():
            # It may have been about to start Ansible, and it writes into the directory to be removed.
            thread.join(_RUNNER_GRACE)
            end()
    batch.take(lines.read())
    if fault:
        batch.give_up(f"ansible-runner: {fault[0]}")
    elif batch.waiting:
        batch.give_up(_last_words(directory))


class _Batch:
    """The users of this run and what has become of them; each gets exactly one outcome."""

    def __init__(self, run: str, storage_host: str, users: list[User]) -> None:
        self.run = run
        self.storage_host = storage_host
        self.users = {user.key: user for user in users}
        self.waiting = dict(self.users)
        self.lost: tuple[Reason, str] | None = None
        """Why Ansible could not even begin the batch."""
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
        _emit(End(run=self.run, ok=self._ok, failed=self._failed))
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
            raise RefusedError("usage: python -I -m ansible_bootstrap.apply [--settings FILE]")


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
