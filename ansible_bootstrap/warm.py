"""An engine that runs warm: an ``ansible-playbook`` started before there is anything to do for it.

Half of a small run is Ansible's start. The engine (``plugins/plugin_utils/engine.py``) has that behind it when the
request comes. It is started exactly as ansible-runner would start ``ansible-playbook``: by the same library, in a
terminal and session of its own, with the environment and the directory of the run to come. So nothing of Ansible's
configuration, which is read while it is imported, has to be undone or read again. Where the run turns out to
need another environment, or the engine did not start, the run is a cold one.

An engine serves one run. Nothing is shared between two but the files on disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import ptyprocess  # type: ignore[import-untyped]

from .fingerprints import COLLECTION_DIRECTORY
from .storage._priority import keep_back

WARM: Final = "--warm"
"""Last argument of an apply program that shall make itself ready and wait for its request without limit."""

PROGRAM: Final = COLLECTION_DIRECTORY / "plugins" / "plugin_utils" / "engine.py"

START_TIMEOUT: Final = 10.0
"""Seconds for which a run waits for an engine that is not ready yet, which has a head start on a new one."""


class Engine:
    """One waiting ``ansible-playbook``.

    Args:
        environment: of the run to come, whole.
        directory: its working directory.
        log: writes to the admin's log.

    Raises:
        OSError: there is no ``ansible-playbook`` that it could stand for, or no process for it.
    """

    def __init__(self, environment: dict[str, str], directory: str, log: Callable[[str], None]) -> None:
        self._environment = environment
        self._directory = directory
        self._log = log
        self._playbook, interpreter = _playbook(environment)
        go, self._go = os.pipe()
        self._ready, ready = os.pipe()
        try:
            os.set_inheritable(go, True)
            os.set_inheritable(ready, True)
            self._process: Any = ptyprocess.PtyProcess.spawn(
                [interpreter, "-P", str(PROGRAM), self._playbook, str(go), str(ready)],
                cwd=directory,
                env=environment,
                echo=False,
                preexec_fn=_begin,
                pass_fds=(go, ready),
            )
        finally:
            os.close(go)
            os.close(ready)

    @property
    def pid(self) -> int:
        """The process that will be ``ansible-playbook``."""
        return int(self._process.pid)

    def take(self, argv: Sequence[bytes], **how: Any) -> Any:
        """Let it run this command line; return its process as ``ptyprocess`` has it, or None for a cold start.

        Args:
            argv: the command line of ``ansible-playbook``, whose first word is its path.
            how: what pexpect gives to ``PtyProcess.spawn``.
        """
        words = [os.fsdecode(word) for word in argv]
        if (words[0], how.get("env"), how.get("cwd")) != (self._playbook, self._environment, self._directory):
            why = "the settings have changed since it was started"
        elif not (select.select([self._ready], [], [], START_TIMEOUT)[0] and os.read(self._ready, 1)):
            why = self._last_words()
        elif not self._tell(words):
            why = "it ended while it waited"
        else:
            os.close(self._go)
            return self._process
        self._log(f"this run starts cold, for the warm engine could not be used: {why}")
        os.close(self._go)  # that is all it waits for
        return None

    def _tell(self, words: Sequence[str]) -> bool:
        """Give it its command line, which only the end of the pipe makes whole; say whether it is there to read it."""
        line = memoryview(json.dumps(words).encode())
        try:
            while line:
                line = line[os.write(self._go, line) :]
        except BrokenPipeError:
            return False
        return True

    def _last_words(self) -> str:
        text = ""
        with contextlib.suppress(OSError):  # EIO: it has ended, and nothing is left to be read
            while select.select([self._process.fd], [], [], 0)[0]:
                text += os.read(self._process.fd, 1 << 16).decode("utf-8", "replace")
        return " | ".join(text.split("\n")[-4:]).strip() or "it did not start"


def _begin() -> None:
    """Ignore SIGHUP, as pexpect does with ``ignore_sighup``, which ansible-runner asks for."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    keep_back()


def _playbook(environment: dict[str, str]) -> tuple[str, str]:
    """Return the path of ``ansible-playbook``, and the interpreter that its first line names.

    Raises:
        FileNotFoundError: it is not there, or is of another installation than this program.
    """
    path = shutil.which("ansible-playbook", path=environment["PATH"])
    if path is None:
        raise FileNotFoundError("there is no ansible-playbook")
    with open(path, "rb") as file:
        first = os.fsdecode(file.readline(1024)).strip()
    interpreter = first.removeprefix("#!").strip()
    if not first.startswith("#!") or Path(interpreter).parent != Path(sys.executable).parent:
        raise FileNotFoundError(f"{path} is not run by an interpreter beside {sys.executable}")
    return path, interpreter
