"""The apply program before its request: everything made ready, and nothing done.

What can be ready is what does not depend on the request: imports (``zygote.py``), the run's private directory, and in
it an engine (``warm.py``). What was read to make it so is not relied on: the settings are read again when the request
has come, the engine refuses a run that needs another environment, and of an installation that was changed meanwhile
nothing is used at all.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import importlib.util
import os
import select
import site
import sys
import sysconfig
import termios
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from . import runner
from .descendants import end_descendants
from .fingerprints import COLLECTION_DIRECTORY
from .run_directory import run_directory
from .settings import ApplySettings
from .warm import Engine, Imported


class Standby:
    """What is ready when the request comes; until :meth:`wait`, and in most programs for ever, nothing.

    Args:
        log: writes to the admin's log.
        imported: what this process has of Ansible; None if nothing.
        before: the installation of which that is.
    """

    def __init__(
        self,
        log: Callable[[str], None],
        imported: Imported | None = None,
        before: Sequence[tuple[str, int]] = (),
    ) -> None:
        self._imported = imported
        self._before = list(before)
        self.directory: Path | None = None
        self.engine: Engine | None = None
        self._log = log
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Standby:
        return self

    def __exit__(self, *_: object) -> None:
        """End the engine if it is still there, and remove the directory."""
        try:
            if self.engine is not None:
                end_descendants()
        finally:
            self._held.close()

    def wait(self, load: Callable[[], ApplySettings], program: list[str]) -> bool:
        """Make ready, wait without limit, and return whether there is a request to be read.

        Args:
            load: returns the settings.
            program: becomes this process, with the request unread, where the installation has changed meanwhile.
        """
        try:
            if self._imported is None:
                raise OSError("Ansible is not imported")
            settings = load()
            self.directory = self._held.enter_context(run_directory(f"spare-{uuid.uuid4().hex[:12]}"))
            environment, directory = runner.surroundings(settings, self.directory)
            self.engine = Engine(self._imported, environment, directory, self._log)
        except Exception as error:  # the request will be served, or refused, all the same
            self._log(f"the next run starts cold: {error}")
            self._held.close()  # ansible-runner would take what it finds there for what this run is to have
            self.directory = None
        select.select([0], [], [])
        if not _can_be_read(0):
            return False
        if installed() != self._before:
            self.__exit__()
            os.execv(program[0], program)  # noqa: S606 - as _harden() will find it, nothing is inherited
        return True


def _can_be_read(descriptor: int) -> bool:
    """Tell a descriptor that has something to say from one at its end."""
    count = array.array("i", [0])
    with contextlib.suppress(OSError):
        fcntl.ioctl(descriptor, termios.FIONREAD, count)
        return count[0] > 0
    return True  # no pipe, socket or file: to be found out by reading


def installed() -> list[tuple[str, int]]:
    """Return when what this program and its engine are made of was last changed.

    Of other packages the directory tells: one that comes, goes or is replaced by another version changes it.
    """
    ansible = importlib.util.find_spec("ansible")
    files = [Path(sys.executable), Path(sysconfig.get_path("stdlib")), *map(Path, site.getsitepackages())]
    files += [Path(ansible.origin).with_name("release.py")] if ansible and ansible.origin else []
    for root in (Path(__file__).parent, COLLECTION_DIRECTORY / "plugins"):
        files += root.rglob("*.py")
    return sorted((str(file), _changed(file)) for file in files)


def _changed(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0
