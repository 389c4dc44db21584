# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Whether a program of the admin's is one: nobody else may change what is run for every user.

Each name on the way to it is looked at, through every link. The program is then run by the path without links.
"""

from __future__ import annotations

import os
import stat
from collections import deque

from ._errors import StorageError, printable
from ._files import kind

_MOST_LINKS = 40


def check_program(path: str) -> str:
    """Return the program's path without links, once nobody but root and the caller can change what is there.

    A sticky directory such as /tmp counts as safe for what root or the caller own in it.

    Raises:
        StorageError: it is missing, no executable file, or others could replace it.
    """
    shown = f"script {printable(path)}"
    if not path.startswith("/") or "\0" in path:
        raise StorageError(f"{shown}: script_path is an absolute path on the storage host")
    current, links = "/", 0
    parts = deque(path.split("/"))
    _check_place(shown, "/", os.stat("/"))
    while parts:
        part = parts.popleft()
        if part in ("", "."):
            continue
        if part == "..":
            current = os.path.dirname(current)
            continue
        inner = os.path.join(current, part)
        try:
            status = os.lstat(inner)
            if stat.S_ISLNK(status.st_mode):
                target = os.readlink(inner)
        except FileNotFoundError:
            raise StorageError(
                f"{shown} does not exist on this host (no {printable(inner)}): put it there, or correct script_path"
            ) from None
        _check_place(shown, inner, status)
        if not stat.S_ISLNK(status.st_mode):
            current = inner
            continue
        links += 1
        if links > _MOST_LINKS:
            raise StorageError(f"{shown}: too many symbolic links")
        current = "/" if target.startswith("/") else current
        parts.extendleft(reversed(target.split("/")))
    status = os.stat(current)
    if not stat.S_ISREG(status.st_mode):
        raise StorageError(f"{shown} is {kind(status.st_mode)}, not a file")
    if not status.st_mode & 0o111:
        raise StorageError(f"{shown} is not executable: `chmod a+rx {printable(current)}`")
    return current


def _check_place(shown: str, place: str, status: os.stat_result) -> None:
    where = printable(place)
    if status.st_uid not in (0, os.geteuid()):
        raise StorageError(
            f"{shown}: {where} belongs to uid {status.st_uid}, who could replace the script: `chown root {where}`"
        )
    if stat.S_ISLNK(status.st_mode):  # its mode means nothing; whoever owns it made it
        return
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if status.st_mode & 0o022 and not sticky:
        raise StorageError(
            f"{shown}: {where} is writable by its group or by others, who could change what is run: "
            f"`chmod go-w {where}`"
        )
