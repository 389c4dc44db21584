"""Whether the privilege boundary holds: nobody but root could have changed what the apply program runs.

An apply program behind sudo or ssh is as trustworthy as the files it is made of. One directory on the
way that another account can write to gives root to that account. So every path that root executes or
reads there is followed component by component, through links, and each must belong to root (or to the
account the program runs as) and be writable by nobody else.

======================  =========================================================================
settings file           itself and the way to it
storage                 the storage root and ``.ansible_bootstrap`` in it, if they exist on this machine
run directories         the directory in which they are made, if it exists
program                 interpreter, ``pyvenv.cfg``, ``ansible-playbook``, the directories of
                        ``PATH``, of ``sys.path``, of this package and of its collection
site                    everything below ``roles_path``; the inventory with its ``group_vars`` and
                        ``host_vars``; collections of ``collections_path``, by directory
extra vars              everything below what a variable called ``…_skeleton`` or ``…_script``
                        names, if that is on this machine
======================  =========================================================================

What a package manager has put into a directory of the import path is checked as a directory only: it made
the files as it made the directory, and thousands of stat calls would be paid by every login. What an admin
makes by hand is small and is where modes go wrong, so there every file is looked at. ``thorough`` looks at
all of it. POSIX ACLs need no reading: their mask shows as the mode's group bits.

Not checked, because it is the system's own or not here: shared libraries, root's home, capabilities, mounts,
and anything on other storage hosts.

``python -I -m ansible_bootstrap.apply.boundary``, with the interpreter and the account of the apply program, prints
what is wrong and exits with 1 if something is.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ansible_bootstrap import __path__ as _package_path
from ansible_bootstrap.apply.run_directory import base_path
from ansible_bootstrap.apply.runner import scrubbed_environment
from ansible_bootstrap.errors import SettingsError
from ansible_bootstrap.settings import SYSTEM_FILE, ApplySettings, load_settings
from ansible_bootstrap.storage._names import STATE_DIRECTORY
from ansible_bootstrap.storage._ways import judge, walk

Severity = Literal["error", "warning"]
"""An ``error`` hands root to another account, and the apply program refuses to begin."""

_NAMES_A_PATH: Final = ("_skeleton", "_script")
"""Ends of the names of extra vars that name a path which root copies from or executes."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with the boundary."""

    what: str
    """An absolute path."""
    why: str
    mend: str
    """The command that mends it."""
    severity: Severity = "error"

    def __str__(self) -> str:
        return f"{self.what} {self.why}: `{self.mend}`"


def check_boundary(
    settings_file: Path = SYSTEM_FILE, settings: ApplySettings | None = None, *, thorough: bool = False
) -> list[Finding]:
    """Return all that is wrong, in the order in which it is best mended. Costs some milliseconds.

    Args:
        settings_file: where the apply program reads its settings.
        settings: the same, if they have been read already.
        thorough: look at every file of the import path too (seconds), not at its directories only.
    """
    look = _Look()
    look.at(settings_file)
    if settings is None:
        try:
            settings = load_settings(settings_file)
        except SettingsError as error:
            if not look.findings:  # which said it already
                why = f"is refused ({error.details.removeprefix(f'{settings_file}: ')})"
                look.note(str(settings_file), why, f"sudoedit {shlex.quote(str(settings_file))}")
    for path in _program():
        look.at(path, tree=thorough)
    look.at_if_there(base_path())
    if settings is not None:
        _check_site(look, settings, thorough)
    return list(look.findings.values())


def enforce_boundary(settings_file: Path, settings: ApplySettings) -> None:
    """Refuse to work as long as another account could change what is done.

    Raises:
        SettingsError: naming the first path and the command that mends it.
    """
    errors = [item for item in check_boundary(settings_file, settings) if item.severity == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more: `{shlex.quote(sys.executable)} -I -m {__name__}` lists them)"
        raise SettingsError(f"{errors[0]}{more if errors[1:] else ''}")


def _program() -> Iterator[Path]:
    """What root executes and imports before it has read anything of the site's."""
    interpreter = Path(sys.executable)
    yield interpreter
    yield interpreter.parent / "ansible-playbook"
    yield Path(sys.prefix) / "pyvenv.cfg"
    for directory in (*scrubbed_environment()["PATH"].split(":"), *sys.path):
        if directory.startswith("/"):
            yield Path(directory)
    for package in map(Path, _package_path):
        yield package
        collection = package.parent / "ansible_collections/ansible_bootstrap/jupyterhub"
        yield collection
        yield from (collection / name for name in ("meta", "playbooks", "plugins", "roles"))


def _check_site(look: _Look, settings: ApplySettings, thorough: bool) -> None:
    for role_path in settings.roles_path:
        look.at(Path(role_path), tree=True)
    for collections in map(Path, settings.collections_path):
        look.at(collections, tree=thorough)
        for collection in collections.glob("ansible_collections/*/*"):
            look.at(collection, tree=thorough)
    if settings.inventory and "," not in settings.inventory:  # "a,b" is a list of hosts, not a file
        inventory = Path("/", settings.inventory)  # the apply program's working directory
        look.at(inventory, tree=True)
        for beside in ("group_vars", "host_vars"):
            look.at(inventory.parent / beside, tree=True)
    for name, value in settings.extra_vars.items():
        if name.endswith(_NAMES_A_PATH) and isinstance(value, str) and value.startswith("/"):
            look.at(Path(value), tree=True)
    # With an inventory, the storage may be on other hosts, where the modules look.
    severity: Severity = "warning" if settings.inventory else "error"
    if settings.records_dir:
        look.at_if_there(Path(settings.records_dir), severity)
    for root in map(Path, (settings.storage_root, *settings.storage_roots)):
        # What the root itself is, the account that works there judges, and it trusts itself.
        for path in (root, root / STATE_DIRECTORY) if settings.work_as is None else (root.parent,):
            look.at_if_there(path, severity)


class _Look:
    """Follows paths and notes what is wrong on the way, each thing once."""

    def __init__(self) -> None:
        self.findings: dict[tuple[str, str], Finding] = {}

    def at(self, path: Path, *, tree: bool = False, severity: Severity = "error") -> None:
        """Look at the way to a path, at what is there, and with ``tree`` at all below it.

        Of what does not exist, only that nobody else can make it.
        """
        above: list[tuple[str, os.stat_result]] = []

        def visit(place: str, status: os.stat_result, passed: bool) -> None:
            if not stat.S_ISLNK(status.st_mode):
                above[:] = [(place, status)]
            self._judge(place, status, passed=passed, severity=severity)

        try:
            descriptor, end = walk(str(path), visit)
        except FileNotFoundError:
            ((place, status),) = above
            self._judge(place, status, passed=False)  # whoever can write here can make it
            return
        except OSError as error:
            mend = f"ls -ld {shlex.quote(str(error.filename))}"
            self.note(str(path), f"cannot be looked at ({error.strerror})", mend, severity)
            return
        os.close(descriptor)
        if tree:
            for directory, names, files in os.walk(end):
                for name in (*names, *files):
                    self._inner(os.path.join(directory, name))

    def at_if_there(self, path: Path, severity: Severity = "error") -> None:
        """Look at the way to a path, unless it does not exist, or not yet."""
        if os.path.lexists(path):
            self.at(path, severity=severity)

    def _inner(self, path: str) -> None:
        try:
            status = os.lstat(path)
        except FileNotFoundError:  # an interpreter is just writing its bytecode
            return
        if stat.S_ISLNK(status.st_mode):
            self.at(Path(path))
        else:
            self._judge(path, status, passed=False)

    def note(self, what: str, why: str, mend: str, severity: Severity = "error") -> None:
        """Add a finding."""
        self.findings.setdefault((what, why), Finding(what, why, mend, severity))

    def _judge(
        self, path: str, status: os.stat_result, *, passed: bool, severity: Severity = "error"
    ) -> None:
        for fault in judge(path, status, passed=passed):
            self.note(path, fault.why, fault.mend, severity)


def main() -> int:
    """Print what is wrong; return 1 if it would make the apply program refuse, else 0."""
    findings = check_boundary(thorough=True)
    for finding in findings:
        print(f"{finding.severity}: {finding}")
    if not findings:
        print("ok: nobody but root could change what the apply program does")
    return int(any(finding.severity == "error" for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
