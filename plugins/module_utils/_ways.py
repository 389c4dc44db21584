# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""The way to a path that root trusts: every directory and every link on it is judged.

The walk begins at ``/`` and goes from descriptor to descriptor, so what was judged is what is used. Links are followed
here, not by the kernel, and each of them is judged too: whoever owns a link decides where it leads, and whoever can
write to a directory decides what its names are.

A step is trusted if root or this process's account owns it and nobody else can write to it. A sticky directory such
as ``/tmp`` may be passed, for nobody can replace there what another account owns; it may not be the end of a way. A
process that is not root may pass what only a group of its own can write: a volume of Kubernetes (``fsGroup``) is so,
and such a process has nobody's rights but its own to lose.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import shlex
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ._descriptors import held
from ._errors import StorageError, explain, printable

_MOST_LINKS = 40
"""As many as the kernel follows; path_resolution(7)."""

_NAMES = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Fault:
    """Why a step is not to be trusted, and the command that mends it."""

    why: str
    mend: str


Visit = Callable[[str, os.stat_result, bool], None]
"""Is called with each step's path, its status, and whether it is only passed."""


def judge(path: str, status: os.stat_result, *, passed: bool) -> Iterator[Fault]:
    """Yield what is wrong with one file, directory or link; see the module's docstring."""
    link = stat.S_ISLNK(status.st_mode)
    quoted = printable(shlex.quote(path))
    if status.st_uid not in (0, os.geteuid()):
        option = "-h " if link else ""
        yield Fault(f"belongs to uid {status.st_uid}, who could change it", f"chown {option}root {quoted}")
    sticky = passed and stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    ours = (
        passed
        and os.geteuid() != 0
        and not status.st_mode & 0o002
        and status.st_gid in {os.getegid(), *os.getgroups()}
    )
    if status.st_mode & 0o022 and not link and not sticky and not ours:
        who = "everybody" if status.st_mode & 0o002 else f"group {status.st_gid}"
        yield Fault(f"is writable by {who}", f"chmod go-w {quoted}")


def walk(path: str, visit: Visit, *, make: bool = False) -> tuple[int, str]:
    """Go to an absolute path; return a descriptor of its end (O_PATH) and the path without links.

    ``visit`` is called with each step before it is used. Missing directories are made (mode 0700) if ``make`` is true.
    An OSError has the path of its step as ``filename``.
    """
    names = _names(path)
    here, place, links = os.open("/", _NAMES), "/", 0
    try:
        visit(place, os.fstat(here), bool(names))
        while names:
            name = names.pop()
            inner = posixpath.dirname(place) if name == ".." else posixpath.join(place, name)
            step = _open(name, here, inner, make=make)
            try:
                status = os.fstat(step)
                visit(inner, status, bool(names))
                target = os.readlink("", dir_fd=step) if stat.S_ISLNK(status.st_mode) else None
            except BaseException:
                os.close(step)
                raise
            if target is None:
                os.close(here)
                here, place = step, inner
                continue
            os.close(step)
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, "too many symbolic links", inner)
            names += _names(target)
            if target.startswith("/"):
                os.close(here)
                here, place = os.open("/", _NAMES), "/"
                visit(place, os.fstat(here), bool(names))
    except BaseException:
        os.close(here)
        raise
    return here, place


def _names(path: str) -> list[str]:
    """Return the components of a path, the first one last."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _open(name: str, directory: int, path: str, *, make: bool) -> int:
    try:
        try:
            # O_DIRECTORY, for without it a file system is not mounted that is mounted when it is used.
            return os.open(name, _NAMES | os.O_DIRECTORY, dir_fd=directory)
        except NotADirectoryError:
            return os.open(name, _NAMES, dir_fd=directory)
        except FileNotFoundError:
            if not make:
                raise
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=directory)
            return os.open(name, _NAMES | os.O_DIRECTORY, dir_fd=directory)
    except OSError as error:
        error.filename = path
        raise


Mend = Callable[[str, os.stat_result, str], str]
"""Is called with the path and the status of a step that is not trusted, and the command that mends it as a rule."""


def _mend(_path: str, _status: os.stat_result, command: str) -> str:
    return f"`{command}`"


def open_way(
    path: str, what: str, *, missing: str = "", make: bool = False, mend: Mend = _mend
) -> tuple[int, str]:
    """Go to a path that root trusts, as :func:`walk` does.

    StorageError says that ``what`` does not exist (and, ``missing``, what to do then), or that somebody else could
    change what the path leads to (and, ``mend``, what to do then).
    """
    shown = f"{what} {printable(path)}"
    if not path.startswith("/") or "\0" in path:
        raise StorageError(f"{shown} is not an absolute path")

    def refuse(place: str, status: os.stat_result, passed: bool) -> None:
        for fault in judge(place, status, passed=passed):
            at = shown if place == path else f"{shown}: {printable(place)}"
            raise StorageError(f"{at} {fault.why}: {mend(place, status, fault.mend)}")

    try:
        return walk(path, refuse, make=make)
    except FileNotFoundError as error:
        where = "" if error.filename == path else f" (no {printable(str(error.filename))})"
        raise StorageError(
            f"{shown} does not exist on this host{where}{': ' if missing else ''}{missing}"
        ) from None
    except OSError as error:
        where = f"{shown}: {error.filename}"
        if error.errno == errno.ELOOP:
            raise StorageError(f"{printable(where)}: too many symbolic links") from None
        advice = f"; let uid {os.geteuid()} enter it" if error.errno == errno.EACCES else ""
        raise StorageError(f"{explain(error, where)}{advice}") from None


def open_directory(
    path: str, what: str, *, missing: str = "", make: bool = False, mend: Mend = _mend
) -> tuple[int, str]:
    """Open a directory for reading as :func:`open_way` does; StorageError, too, if it is something else."""
    end, real = open_way(path, what, missing=missing, make=make, mend=mend)
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=end), real
    except OSError as error:
        shown = f"{what} {printable(path)}"
        if error.errno == errno.ENOTDIR:
            raise StorageError(f"{shown} is not a directory") from None
        raise StorageError(explain(error, shown)) from None
    finally:
        os.close(end)


def find_program(path: str, what: str, *, missing: str) -> str:
    """Return the path without links of a program that nobody else can change or replace.

    It is executed by that path: an interpreter could not open the script by a descriptor that exec closes.

    Raises:
        StorageError: as :func:`open_way`, or it cannot be executed.
    """
    end, real = open_way(path, what, missing=missing)
    with held(end):
        mode = os.fstat(end).st_mode
    shown = f"{what} {printable(path)}"
    if not stat.S_ISREG(mode):
        raise StorageError(f"{shown} is {'a directory, ' if stat.S_ISDIR(mode) else ''}not a file")
    if not mode & 0o111:
        raise StorageError(f"{shown} is not executable: `chmod a+rx {printable(shlex.quote(real))}`")
    return real
