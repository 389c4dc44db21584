"""The caller of the apply program: its request line, the events and the log it is sent, and its wish to stop."""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import termios
import threading
import time
from types import FrameType
from typing import Final, NoReturn

from ansible_bootstrap.apply import runner
from ansible_bootstrap.errors import RefusedError
from ansible_bootstrap.protocol import MAX_REQUEST_BYTES, Event
from ansible_bootstrap.storage._errors import printable
from ansible_bootstrap.storage._priority import step_back

WRITE_TIMEOUT: Final = 30.0
"""Seconds without progress after which a caller that does not read counts as gone."""

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_TERMINAL_SIGNALS: Final = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
"""With these, somebody at a terminal could halt a run in the middle, and its locks with it."""


def log(text: str) -> None:
    """Write to the admin's log, one line a line, control characters escaped."""
    for line in text.splitlines():
        with contextlib.suppress(OSError):
            _write(2, f"{printable(line)}\n".encode("utf-8", "backslashreplace"))


def harden() -> None:
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
    signal.pthread_sigmask(signal.SIG_SETMASK, STOP_SIGNALS)  # until somebody heeds them
    for number in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, _unread)
    for number in _TERMINAL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)
    step_back()


def read_line(descriptor: int, timeout: float) -> bytes:
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


def can_be_read(descriptor: int) -> bool:
    """Tell a descriptor that has something to say from one at its end."""
    count = array.array("i", [0])
    with contextlib.suppress(OSError):
        fcntl.ioctl(descriptor, termios.FIONREAD, count)
        return count[0] > 0
    return True  # no pipe, socket or file: to be found out by reading


class Stopped(BaseException):
    """The caller wants no more of this run; raised in the main thread, wherever it is."""


def heed_stops() -> None:
    """Let a stop signal raise :class:`Stopped` in the main thread; a signal that has come already does so at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    ignore_stops()
    raise Stopped(signal.Signals(number).name)


def ignore_stops() -> None:
    """Let stop signals do nothing from now on."""
    for number in STOP_SIGNALS:
        signal.signal(number, _ignore)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing; unlike SIG_IGN, this is not inherited by what is started, nor a race with what has arrived."""


def stop_on_end_of_stdin() -> None:
    """Treat the end of stdin as a stop signal from now on.

    Raises:
        RuntimeError: this account or machine has no thread to spare.
    """

    def watch() -> None:
        with contextlib.suppress(OSError):  # EIO: a terminal that has gone
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def emit(event: Event) -> None:
    """Send an event.

    Raises:
        Stopped: the caller does not read.
        BrokenPipeError: the caller has gone.
    """
    _write(1, json.dumps(event.model_dump(mode="json"), ensure_ascii=True).encode() + b"\n")


def _write(descriptor: int, data: bytes) -> None:
    """Write all, unless the caller reads nothing of it for :data:`WRITE_TIMEOUT`.

    The deadline is a signal, for only that ends a write to whatever stands there: pipe, socket or terminal. Signals
    come to the main thread, so another thread, which writes a line of the log at most, has no deadline.

    Raises:
        Stopped: nobody reads.
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
    raise Stopped(f"the caller has read nothing for {WRITE_TIMEOUT:.0f} s")
