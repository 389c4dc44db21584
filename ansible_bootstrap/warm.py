"""An engine that runs warm: an ``ansible-playbook`` that has begun before there is anything to do for it.

Half of a small run is Ansible's start. The engine (``plugins/plugin_utils/engine.py``) has that behind it when the
request comes: the zygote has imported Ansible, and the engine is forked from it, by way of the apply program that
will need it. It gets what ansible-runner would give to ``ansible-playbook``: a terminal and session of its own, the
environment and the directory of the run to come. Ansible reads its configuration while it is imported; what of it
depends on the run (the paths in its directory) is read again, and if anything else is different, the run is a cold
one.

An engine serves one run. Nothing is shared between two but the files on disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import pty
import select
import shutil
import signal
import site
import struct
import sys
import termios
import traceback
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import ptyprocess  # type: ignore[import-untyped]

from . import runner
from .fingerprints import COLLECTION_DIRECTORY
from .run_directory import run_directory
from .settings import ApplySettings
from .storage._priority import keep_back

PROGRAM: Final = COLLECTION_DIRECTORY / "plugins" / "plugin_utils" / "engine.py"

START_TIMEOUT: Final = 10.0
"""Seconds for which a run waits for an engine that is not ready yet, which has a head start on a new one."""

_ROWS_AND_COLUMNS: Final = (24, 80)
"""Of the terminal; ptyprocess's."""


@dataclass(frozen=True)
class Imported:
    """Ansible, as it was imported into this process.

    Attributes:
        engine: the module that did it, ``plugins/plugin_utils/engine.py``.
        environment: in which that was.
        directory: of the run for which that would have been; long gone.
        playbook: path of the ``ansible-playbook`` that an engine stands for.
    """

    engine: Any
    environment: dict[str, str]
    directory: str
    playbook: str

    def fits(self, environment: dict[str, str], directory: str) -> bool:
        """Whether a run with this environment, in this directory, would have imported the same."""
        return self.environment == {
            name: value.replace(directory, self.directory) for name, value in environment.items()
        }


def import_ansible(settings: ApplySettings) -> Imported:
    """Import Ansible as a run with these settings would.

    Raises:
        OSError: there is no ``ansible-playbook`` that an engine could stand for, or no room for a directory.
        ImportError: Ansible is not as we know it.
    """
    if not sys.flags.utf8_mode:
        raise OSError("this interpreter is not in UTF-8 mode, as that of a run is")
    if sys.prefix == sys.base_prefix and Path(site.getusersitepackages()).is_dir():
        raise OSError(
            "the account has Python packages of its own, which this isolated interpreter does not see"
        )
    ours = dict(os.environ)
    with run_directory(f"zygote-{uuid.uuid4().hex[:12]}") as directory:
        environment, _ = runner.surroundings(settings, directory)
        playbook = _playbook(environment)
        argv, path = list(sys.argv), list(sys.path)
        try:
            _set_environment(environment)
            sys.argv[:] = [playbook]  # Ansible looks at its name as soon as it is imported
            engine = _engine()
            engine.import_what_runs_share(playbook)
        finally:
            sys.argv[:] = argv
            sys.path[:] = path
            _set_environment(ours)
    return Imported(engine, environment, str(directory), playbook)


def _engine() -> Any:
    """Import the one module of ours that imports Ansible, by its path: its package is Ansible's own to import."""
    spec = importlib.util.spec_from_file_location("ansible_bootstrap_engine", PROGRAM)
    if spec is None or spec.loader is None:
        raise ImportError(f"{PROGRAM} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Engine:
    """One waiting ``ansible-playbook``.

    Args:
        imported: what this process has of Ansible.
        environment: of the run to come, whole.
        directory: of the run to come; also its working directory.
        log: writes to the admin's log.

    Raises:
        OSError: the run needs another environment than that in which Ansible was imported, or there is no process.
    """

    def __init__(
        self, imported: Imported, environment: dict[str, str], directory: str, log: Callable[[str], None]
    ) -> None:
        if not imported.fits(environment, directory):
            raise OSError("the settings have changed since Ansible was imported")
        self._playbook = imported.playbook
        self._environment = environment
        self._directory = directory
        self._log = log
        go, self._go = os.pipe()
        self._ready, ready = os.pipe()
        try:
            pid, terminal = pty.fork()
            if pid == 0:
                _live(imported, environment, directory, go, ready)
        finally:
            os.close(go)
            os.close(ready)
        self._process: Any = ptyprocess.PtyProcess(pid, terminal)
        self._process.argv = [imported.playbook]
        self._process.env, self._process.launch_dir = environment, directory

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


def _live(imported: Imported, environment: dict[str, str], directory: str, go: int, ready: int) -> NoReturn:
    """Be what ansible-runner's library would have started, and never return to who forked it."""
    status = 1
    try:
        _as_after_exec({go, ready})
        keep_back()
        os.chdir(directory)
        _set_environment(environment)
        status = imported.engine.be_ansible_playbook(
            imported.playbook, imported.directory, directory, go, ready
        )
    except BaseException:
        with contextlib.suppress(Exception):
            traceback.print_exc()
            sys.stderr.flush()
    finally:
        os._exit(status)


def _as_after_exec(keep: set[int]) -> None:
    """Leave behind what execve(2) and a new interpreter would: open files, handlers of signals, what stdout was."""
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", *_ROWS_AND_COLUMNS, 0, 0))
    mode = termios.tcgetattr(0)
    mode[3] &= ~termios.ECHO
    termios.tcsetattr(0, termios.TCSANOW, mode)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor not in keep:
            with contextlib.suppress(OSError):  # the one with which the list was read
                os.close(descriptor)
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(
        signal.SIGHUP, signal.SIG_IGN
    )  # as pexpect does with ``ignore_sighup``, which ansible-runner asks for
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # type: ignore[misc]  # noqa: SIM115


def _set_environment(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _playbook(environment: dict[str, str]) -> str:
    """Return the path of ``ansible-playbook``.

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
    return path
