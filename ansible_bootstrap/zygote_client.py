"""The hub's side of ``zygote.py``: starts the process that forks apply programs, and speaks to those as to children.

A forked program is not the hub's child, so asyncio has no transport for it; :class:`ForkedTransport` has what
``apply_client.ApplyRun`` takes of one. Its end is told by its pidfd, which also keeps a signal from reaching another
process of the same number; its exit status only the zygote learns, which says in the log what is worth a line.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

from .errors import ApplyError
from .zygote import WARM

if TYPE_CHECKING:
    from .apply_client import ApplyRun

ANSWER_SECONDS: Final = 60.0
"""For one fork; the first comes after the imports, on a machine that may have much else to do."""

_CHUNK: Final = 1 << 18


class Zygote:
    """One process that forks apply programs. All methods are called on one event loop.

    Args:
        control: our end of its socket.
        run: the process itself, which is never asked to run anything.
        make: returns what shall listen to a forked program.
    """

    def __init__(self, control: socket.socket, run: ApplyRun, make: Callable[[], ApplyRun]) -> None:
        self._control = control
        self._run = run
        self._make = make

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        launch: Callable[[Sequence[str], int], Awaitable[ApplyRun]],
        make: Callable[[], ApplyRun],
    ) -> Zygote:
        """Start one; it may be asked at once.

        Args:
            argv: command line of an apply program.
            launch: starts a command line, with this descriptor as stdin.
            make: as for the class.

        Raises:
            ApplyError: it could not be started.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                run = await launch([*argv, WARM], theirs.fileno())
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        return cls(ours, run, make)

    async def fork(self) -> ApplyRun:
        """Have it fork a program. To be called once at a time; not after :meth:`close`.

        Raises:
            ApplyError: it has ended, or does not answer.
        """
        with contextlib.ExitStack() as held:
            ours, theirs = [], []
            try:
                with contextlib.ExitStack() as sent:
                    for writes in (True, False, False):  # We write to stdin, and read the others.
                        ends = os.pipe()
                        ours.append(ends[writes])
                        theirs.append(ends[not writes])
                        held.callback(os.close, ends[writes])
                        sent.callback(os.close, ends[not writes])
                    socket.send_fds(self._control, [b"fork"], theirs)
            except OSError as error:
                raise ApplyError(
                    f"no program can be forked: {error.strerror}; {self._run.last_words()}"
                ) from None
            pid, pidfd = await self._answer()
            held.pop_all()  # They are the transport's now.
        run = self._make()
        ForkedTransport(run, pid, pidfd, ours)
        return run

    async def _answer(self) -> tuple[int, int]:
        """Return pid and pidfd of the program that was forked."""
        loop = asyncio.get_running_loop()
        there = loop.create_future()

        def come() -> None:
            if not there.done():
                there.set_result(None)

        loop.add_reader(self._control, come)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await there
            line, received, _, _ = socket.recv_fds(self._control, 32, 1, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            raise ApplyError(f"no program was forked within {ANSWER_SECONDS:g} s") from None
        except OSError as error:
            raise ApplyError(f"no program was forked: {error.strerror}; {self._run.last_words()}") from None
        finally:
            if self._control.fileno() >= 0:  # Else close() has come in between.
                loop.remove_reader(self._control)
        if not received:
            raise ApplyError(f"the process that forks programs has ended: {self._run.last_words()}")
        return int(line), received[0]

    def close(self) -> None:
        """End it, and return at once; what it has forked goes on."""
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        self._run.dismiss()


class ForkedTransport:
    """What :class:`ApplyRun` takes of a subprocess transport, for a process that is not our child.

    It works on the descriptors themselves: asyncio's own pipes take two turns of the loop each to be there, and in a
    storm a turn takes long.

    Args:
        run: told of everything from now on, as an ``asyncio.SubprocessProtocol``.
        pid: the leader of its session.
        pidfd: of the same; closed with the transport.
        pipes: our ends of its stdin, stdout and stderr; closed with the transport.
    """

    def __init__(self, run: ApplyRun, pid: int, pidfd: int, pipes: Sequence[int]) -> None:
        self._run = run
        self._pid = pid
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self._stdin = _Stdin(pipes[0])
        self._open = dict(enumerate(pipes[1:], start=1))
        self._closed = False
        run.connection_made(self)
        for number, descriptor in self._open.items():
            os.set_blocking(descriptor, False)
            self._loop.add_reader(descriptor, self._read, number)
        self._loop.add_reader(pidfd, self._exited)

    def get_pid(self) -> int:
        """Return its pid, which is that of its session, too."""
        return self._pid

    def get_returncode(self) -> None:
        """Return None: only the process that has forked it knows."""

    def get_pipe_transport(self, fd: int) -> _Stdin | None:
        """Return what writes to its stdin, for 0."""
        return self._stdin if fd == 0 else None

    def lives(self) -> bool:
        """Whether it is there; also sees an end that the event loop has not heard of yet."""
        if self._closed:
            return False
        poll = select.poll()  # Not select(), which knows no descriptor above 1023.
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    def terminate(self) -> None:
        """Send SIGTERM.

        Raises:
            ProcessLookupError: it is gone.
        """
        if not self._closed:
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def close(self) -> None:
        """Let go of it, and kill it if it is still there."""
        if self._closed:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._closed = True
        self._stdin.abort()
        for number in list(self._open):
            self._shut(number)
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)

    def _read(self, number: int) -> None:
        try:
            data = os.read(self._open[number], _CHUNK)
        except BlockingIOError:
            return
        if data:
            self._run.pipe_data_received(number, data)
            return
        self._shut(number)
        self._run.pipe_connection_lost(number, None)

    def _shut(self, number: int) -> None:
        descriptor = self._open.pop(number)
        self._loop.remove_reader(descriptor)
        os.close(descriptor)

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._run.process_exited()


class _Stdin:
    """Writes to a pipe as it is read."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self._closed = False

    def write(self, data: bytes) -> None:
        """Write all of it, some time."""
        self._rest += data
        self._write()

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self._closed

    def abort(self) -> None:
        """Close it, whatever is left to be written."""
        if not self._closed:
            self._closed = True
            self._loop.remove_writer(self._descriptor)
            os.close(self._descriptor)

    def _write(self) -> None:
        try:
            while self._rest:
                self._rest = self._rest[os.write(self._descriptor, self._rest) :]
        except BlockingIOError:
            self._loop.add_writer(self._descriptor, self._write)
            return
        except BrokenPipeError:  # It has ended, which its pidfd tells.
            self._rest = b""
        self._loop.remove_writer(self._descriptor)
