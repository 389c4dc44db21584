"""Starts the apply program, speaks ``protocol.py`` with it, and ends it. Knows no JupyterHub.

Written against asyncio's protocol interface and not its streams, for three reasons: a line is
believed or refused as it arrives, so nothing piles up unread; ``process_exited`` comes when the
process exits, while ``Process.wait`` may wait for pipes that an orphan holds open
(ref: https://github.com/python/cpython/issues/119710); and pipes can be closed by public means.

Everything here is bounded: a run by ``limit``, a stop by :data:`TERM_SECONDS` and
:data:`KILL_SECONDS`, a line by :data:`MAX_LINE_BYTES`, the log by :data:`MAX_LOG_LINES`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from ansible_bootstrap.dispatch.spare import Spare, SpareLostError
from ansible_bootstrap.errors import BY_REASON, AnsibleBootstrapError, ApplyError, DeadlineError
from ansible_bootstrap.protocol import SPARE, Described, End, Event, Probed, Refused, Request, parse_event

TERM_SECONDS: Final = 4.0
"""From SIGTERM and the end of stdin to SIGKILL; the apply program needs about one second, and up to three where
processes resist. Killed earlier, it would leave behind what it was ending."""

KILL_SECONDS: Final = 3.0
"""From SIGKILL to giving up on a process that we may not kill (root's, through sudo)."""

SHUTDOWN_SECONDS: Final = 1.5
"""From SIGTERM to SIGKILL when the hub itself ends."""

EXIT_SECONDS: Final = 5.0
"""From the last line to the exit."""

DRAIN_SECONDS: Final = 0.3
"""From the exit to the end of stdout, which an orphan may hold open."""

ASK_DOCTOR: Final = "; `ansible-bootstrap doctor` says what mends it"

MAX_LINE_BYTES: Final = 1024 * 1024
MAX_LOG_BYTES: Final = 4096
"""Longest line of the apply program's log; the rest of it is dropped."""
MAX_LOG_LINES: Final = 1000
"""Most lines logged of one run; the last ones are kept for the error in any case."""


class ApplyClient:
    """Starts runs of one apply command.

    Args:
        argv: called before each run, returns the command line; may block, so it is awaited.
        log: gets the apply program's stderr, line by line, escaped.
        spare: keep one program waiting for the next run. Only for the embedded command, which knows
            :data:`~ansible_bootstrap.protocol.SPARE`.
        wanted: returns what a spare program is made for, to be compared; one that was made for something else is
            not used. Must not block.
    """

    def __init__(
        self,
        argv: Callable[[], Awaitable[Sequence[str]]],
        log: logging.Logger,
        *,
        spare: bool = False,
        wanted: Callable[[], object] = lambda: None,
    ) -> None:
        self._argv = argv
        self._log = log
        self._spare = Spare(self._start_spare, wanted, log) if spare else None
        self._alive: set[ApplyRun] = set()

    def prepare(self) -> None:
        """Have a spare program ready soon, if spares are kept; returns at once. To be called on the event loop."""
        if self._spare is not None:
            self._spare.prepare()

    def close(self) -> None:
        """End the spare program; returns at once. Runs that go on are not touched."""
        if self._spare is not None:
            self._spare.close()

    async def gone(self) -> None:
        """Return when no program of ours is left, for a command that ends with its last run; call it after that."""
        while self._alive:
            await asyncio.wait({run.gone for run in self._alive})  # Bounded: each has :data:`EXIT_SECONDS`.

    async def start(
        self, request: Request, on_event: Callable[[Event], None], *, limit: float, cold: bool = False
    ) -> ApplyRun:
        """Start one run.

        Args:
            request: one operation on one batch of one storage host.
            on_event: called on the event loop for each event as it comes; must neither block nor raise.
            limit: seconds after which the run is stopped.
            cold: not with the spare.

        Raises:
            ApplyError: the program could not be started; the details say what to do.
            SettingsError: the command line could not be made.
        """
        # The run that was started ahead is for users who wait.
        spare = self._spare if request.operation in ("bootstrap", "cleanup") else None
        # A hub in a storm takes a tenth of a second for each turn of its loop: with a spare, nothing is awaited here.
        run = await spare.take() if spare and not cold else None
        if run is not None:
            run.lost = SpareLostError
        else:
            run = await self._launch(list(await self._argv()))
        run.begin(on_event, request.model_dump_json().encode() + b"\n", limit)
        if spare is not None:
            spare.prepare()
        return run

    async def _start_spare(self) -> ApplyRun:
        return await self._launch([*(await self._argv()), SPARE])

    async def _launch(self, argv: Sequence[str]) -> ApplyRun:
        loop = asyncio.get_running_loop()
        try:
            _, run = await loop.subprocess_exec(
                lambda: ApplyRun(self._log, self._alive),
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                cwd="/",
                env=_environment(),
            )
        except OSError as error:
            raise ApplyError(
                f"cannot start {argv[0]!r}: {error.strerror or error}; "
                "check c.AnsibleBootstrap.apply_command: an absolute path that the hub's account may execute"
            ) from None
        return run


class ApplyRun(asyncio.SubprocessProtocol):
    """One running apply program. Made by :meth:`ApplyClient.start`.

    Args:
        log: gets its stderr.
        alive: it is in there as long as it has a process.
    """

    def __init__(self, log: logging.Logger, alive: set[ApplyRun]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_event: Callable[[Event], None] | None = None
        self._log = log
        self._alive = alive
        self._transport: Any = None
        """Set before anything else happens: asyncio calls ``connection_made`` first."""
        self._out = _Lines(MAX_LINE_BYTES)
        self._err = _Lines(MAX_LOG_BYTES)
        self._last_words: deque[str] = deque(maxlen=5)
        self._logged = 0
        self._timers: list[asyncio.TimerHandle] = []
        self._over: asyncio.Future[None] = self._loop.create_future()
        """Its last line has come, or it is gone."""
        self.gone: asyncio.Future[None] = self._loop.create_future()
        """Done when the program has ended, or was given up."""
        self._exited = False
        self._ended = False
        self._stopping = False
        self._deaf = False
        self._failure: AnsibleBootstrapError | None = None
        self.lost: type[ApplyError] = ApplyError
        """What is raised if it ends before its first event."""

    # -- for the dispatcher -------------------------------------------------------------------

    def begin(self, on_event: Callable[[Event], None], line: bytes, limit: float) -> None:
        """Send the request and start the clock."""
        self._on_event = on_event
        self._transport.get_pipe_transport(0).write(line)  # It stays open: its end means stop.
        self._later(limit, lambda: self.stop(DeadlineError(f"the run was stopped after {limit:g} s")))

    def stop(self, why: AnsibleBootstrapError) -> None:
        """End the run, and return at once; :meth:`finish` returns when it is over.

        The end of stdin reaches a program that we may not signal (root's, through sudo or ssh).
        """
        if self._stopping or self._exited:
            return
        self._stopping = True
        self._failure = self._failure or why
        self._hang_up()
        self._later(TERM_SECONDS, self._kill)
        self._later(TERM_SECONDS + KILL_SECONDS, self._give_up)

    async def finish(self) -> None:
        """Return when the run is over: with its last line, which comes after all that it has started has ended.

        Then the program itself is given :data:`EXIT_SECONDS` to leave, for which this does not wait.

        Raises:
            AnsibleBootstrapError: it refused, was stopped, died, spoke nonsense or did not end. Users
                without an outcome have failed, with or without this error. :class:`SpareLostError`: start again.
        """
        try:
            await self._over  # Bounded: the limit's timer stops, and stopping gives up.
        except asyncio.CancelledError:
            # The hub ends, and its loop with it: no timer of ours will fire any more.
            self.stop(ApplyError("the hub was stopped"))
            await asyncio.wait({self.gone}, timeout=SHUTDOWN_SECONDS)
            self._kill()
            self._release()
            raise
        self.on_gone(self._release)
        if not self._ended:
            raise self._failure or self._died()

    # -- for the spare ------------------------------------------------------------------------

    def lives(self) -> bool:
        """Whether it can be given its request; also sees an end that the event loop has not heard of yet."""
        if self._exited or self._stopping:
            return False
        with contextlib.suppress(ChildProcessError):
            return (
                os.waitid(os.P_PID, self._transport.get_pid(), os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
            )
        return False

    def dismiss(self) -> None:
        """End a program that has no request yet, and return at once: the end of stdin tells it."""
        self._stopping = True
        self._close_stdin()
        self._later(TERM_SECONDS, self._kill)
        self.on_gone(self._release)

    def on_gone(self, function: Callable[[], None]) -> None:
        """Call this when it is over."""
        self.gone.add_done_callback(lambda _: function())

    def last_words(self) -> str:
        """Why it was stopped, or the end of its log, on one line."""
        if self._failure is not None:
            return self._failure.details or self._failure.message
        return " | ".join(self._last_words) or "nothing on stderr"

    # -- asyncio.SubprocessProtocol -----------------------------------------------------------

    def connection_made(self, transport: Any) -> None:  # noqa: D102
        self._transport = transport
        self._alive.add(self)
        self.on_gone(lambda: self._alive.discard(self))

    def pipe_data_received(self, fd: int, data: bytes) -> None:  # noqa: D102
        if fd == 2:
            for line in self._err.feed(data):
                self._log_line(line)
            return
        for line in self._out.feed(data):
            self._event(line)
        if self._out.overlong:
            self._nonsense(f"a line is longer than {MAX_LINE_BYTES} bytes")

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: D102
        if fd == 2:
            for line in self._err.rest():
                self._log_line(line)

    def process_exited(self) -> None:  # noqa: D102
        self._exited = True
        self._signal_group(signal.SIGKILL)  # What it left behind in its own session.
        self._later(DRAIN_SECONDS, self._set_gone)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self._set_gone()

    # -- inner --------------------------------------------------------------------------------

    def _event(self, line: bytes) -> None:
        if self._deaf:
            return
        try:
            event = parse_event(line)
        except ValueError:
            self._nonsense(f"{_escape(line[:200])!r} is no event")
            return
        if self._on_event is None:
            self._nonsense("it speaks before it is asked")
            return
        self.lost = ApplyError
        if isinstance(event, Refused):
            self._failure = BY_REASON[event.reason](f"the apply program refused: {_escape(event.message)}")
        self._ended = isinstance(event, End | Described | Probed)
        if self._ended or isinstance(event, Refused):  # It is the last line.
            self._deaf = True
            self._later(EXIT_SECONDS, lambda: self.stop(ApplyError("the apply program did not exit")))
        self._on_event(event)
        if self._deaf:
            _resolve(self._over)

    def _nonsense(self, what: str) -> None:
        if not self._deaf:
            self._deaf = True
            self._failure = ApplyError(
                f"the apply program does not speak the protocol: {what}; nothing may print to its stdout "
                "(a banner of ssh or sudo, a shell's profile), and both sides need the same version"
            )
            self.stop(self._failure)

    def _died(self) -> ApplyError:
        if (code := self._transport.get_returncode()) is None:
            ended = "ended" if self._exited else "did not end"
        else:
            ended = f"died of signal {-code}" if code < 0 else f"exited with {code}"
        return self.lost(f"the apply program {ended} before its last line: {self.last_words()}{ASK_DOCTOR}")

    def _log_line(self, line: bytes) -> None:
        text = _escape(line.rstrip(b"\r\n"))
        if not text:
            return
        self._last_words.append(text[:500])
        self._logged += 1
        if self._logged <= MAX_LOG_LINES:
            self._log.info("apply: %s", text)
        elif self._logged == MAX_LOG_LINES + 1:
            self._log.warning(
                "apply: … more than %d lines; the rest of this run is not logged", MAX_LOG_LINES
            )

    def _close_stdin(self) -> None:
        stdin = self._transport.get_pipe_transport(0)
        if stdin is not None and not stdin.is_closing():
            stdin.abort()  # close() would first wait for a full pipe to drain.

    def _hang_up(self) -> None:
        self._close_stdin()
        # PermissionError: a root child through sudo, which the end of stdin ends.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            self._transport.terminate()

    def _kill(self) -> None:
        if not self._exited:
            self._signal_group(signal.SIGKILL)

    def _give_up(self) -> None:
        if not self.gone.done():
            self._log.error(
                "apply: the program does not end and may still be at work; its lock on the storage host "
                "keeps the next run away from the same directories"
            )
            self._set_gone()

    def _signal_group(self, number: int) -> None:
        """Signal the session that we made: its id is the leader's pid, and not reused while it has members."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._transport.get_pid(), number)

    def _later(self, seconds: float, function: Callable[[], None]) -> None:
        self._timers.append(self._loop.call_later(seconds, function))

    def _set_gone(self) -> None:
        _resolve(self.gone)
        _resolve(self._over)

    def _release(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._hang_up()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            self._transport.close()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Lines:
    """Cuts bytes into lines, and each line at ``limit``."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = b""
        self.overlong = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are now whole."""
        *whole, last = data.split(b"\n")
        lines = []
        for part in whole:
            self._extend(part)
            lines.append(self._buffer)
            self._buffer = b""
        self._extend(last)
        return lines

    def rest(self) -> list[bytes]:
        """Return what came after the last newline."""
        rest, self._buffer = self._buffer, b""
        return [rest] if rest else []

    def _extend(self, part: bytes) -> None:
        room = self._limit - len(self._buffer)
        self.overlong = self.overlong or len(part) > room
        self._buffer += part[:room]


def _environment() -> dict[str, str]:
    """Nothing of the hub's environment, where its secrets are, but what finding programs takes."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "HOME": os.environ.get("HOME", "/"),
    }


def _escape(text: bytes | str) -> str:
    """Text for a log or terminal: control characters and the like are written out."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
