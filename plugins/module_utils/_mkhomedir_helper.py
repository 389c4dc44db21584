# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""The program ``mkhomedir_helper`` and the skeleton it copies: what root lets it do, and how it is run.

As root it reads every file of the skeleton and hands the copy to the user, so neither it nor the skeleton may be
anybody else's, and the skeleton holds nothing that is not public: with ``/etc/ssh`` for a skeleton every user
would get the host's keys.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import subprocess
from dataclasses import dataclass

from ._descriptors import DIRECTORY, opened
from ._errors import LateError, StorageError, printable
from ._rights import PR_SET_PDEATHSIG, prctl
from ._trees import MAX_DEPTH
from ._ways import find_program, open_directory
from ._worker import expecting

_PLACES = ("/sbin/mkhomedir_helper", "/usr/sbin/mkhomedir_helper")
_UMASK = re.compile(r"0[0-7]{3}\Z")
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


@dataclass(frozen=True)
class Options:
    """The options of the module ``mkhomedir``, which documents them."""

    umask: str = "0077"
    skeleton: str = "/etc/skel"
    helper: str = ""
    timeout: float = 60

    @property
    def mode(self) -> int:
        """The permissions of a new home; see :func:`parse_umask`."""
        return 0o777 & ~parse_umask(self.umask)


def parse_umask(text: str) -> int:
    """Return the number of a umask such as ``"0077"``; StorageError if it is none, or unsafe."""
    if not _UMASK.match(text):
        raise StorageError('umask is four octal digits in quotes, beginning with 0, such as "0077"')
    umask = int(text, 8)
    if umask & 0o700:
        raise StorageError("umask must not take rights from the owner: its second digit is 0")
    if not umask & 0o002:
        raise StorageError('umask must take the right to write from others, as "0077" and "0022" do')
    return umask


def find_helper(path: str) -> str:
    """Return the path of a helper that only root could have put there; StorageError if there is none."""
    found = path or next((place for place in _PLACES if os.path.exists(place)), "")
    if not found:
        raise StorageError(
            f"{_PLACES[0]} does not exist on this host: install it (Debian's package libpam-modules)"
        )
    return find_program(found, "mkhomedir_helper", missing="correct mkhomedir_helper")


def open_skeleton(path: str) -> int:
    """Open the skeleton; StorageError unless all on the way to it and in it is root's own and public."""
    skeleton, _real = open_directory(path, "skeleton")
    try:
        _check_public(skeleton, path)
    except BaseException:
        os.close(skeleton)
        raise
    return skeleton


def _check_public(directory: int, where: str, depth: int = 0) -> None:
    """Refuse a skeleton with anything in it that not everybody may read: root copies it into users' hands."""
    if depth > MAX_DEPTH:
        raise StorageError(f"{printable(where)} has more than {MAX_DEPTH} directories within each other")
    for name in os.listdir(directory):
        path = f"{where}/{name}"
        shown = f"{printable(path)}, of the skeleton,"
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if status.st_uid != 0:
            raise StorageError(f"{shown} belongs to uid {status.st_uid}, not to root")
        if stat.S_ISLNK(status.st_mode):
            continue
        readable = 0o005 if stat.S_ISDIR(status.st_mode) else 0o004
        if status.st_mode & readable != readable:
            raise StorageError(f"{shown} is not readable for everybody: it is no user's")
        if status.st_mode & 0o022:
            raise StorageError(f"{shown} is writable for others than root: chmod go-w")
        if stat.S_ISDIR(status.st_mode):
            with opened(name, DIRECTORY, directory) as inner:
                _check_public(inner, path, depth + 1)


def run_helper(helper: str, name: str, options: Options, keep: tuple[int, ...]) -> None:
    """Run the helper for one user, in a session of its own that does not outlive us; StorageError if it fails.

    ``keep`` are descriptors that it holds as long as it runs: the home's lock.
    """
    parent = os.getpid()

    def die_with_us() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    process = subprocess.Popen(
        [helper, name, options.umask, options.skeleton],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd="/",
        env=_ENVIRONMENT,
        start_new_session=True,
        pass_fds=keep,
        preexec_fn=die_with_us,  # noqa: PLW1509  # a module has one thread
    )
    try:
        with expecting(options.timeout):
            _, said = process.communicate(timeout=options.timeout)
    except subprocess.TimeoutExpired:
        raise LateError(
            f"mkhomedir_helper did not finish within {options.timeout:g} s and was stopped"
        ) from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a dead disk holds it, and it holds its lock
            process.wait(2)
        if process.stderr is not None:
            process.stderr.close()
    if process.returncode < 0:
        raise StorageError(f"mkhomedir_helper was killed (signal {-process.returncode}): run again")
    if process.returncode:
        text = printable(said.decode("utf-8", "replace").strip())[:1000]
        raise StorageError(
            f"mkhomedir_helper failed with status {process.returncode}{': ' + text if text else ''}; "
            "the system's log (journalctl) may say more"
        )
