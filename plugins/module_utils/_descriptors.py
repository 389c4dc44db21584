# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Descriptors that are open for as long as a body needs them, and the flags with which most are opened."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""How a directory below the storage root is opened: only if it is one, and no link to one."""

NAMES = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""The same for names only: the directory need not be readable."""


@contextlib.contextmanager
def held(descriptor: int) -> Iterator[int]:
    """Close a descriptor after the body."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def opened(name: str, flags: int, directory: int | None = None) -> Iterator[int]:
    """Open a file or directory for the body; a file that is made has mode 0600."""
    with held(os.open(name, flags, 0o600, dir_fd=directory)) as descriptor:
        yield descriptor


def write(path: str, text: str) -> bool:
    """Write to a file that is there; say whether the kernel took it."""
    try:
        with opened(path, os.O_WRONLY | os.O_CLOEXEC) as file:
            return os.write(file, text.encode()) > 0
    except OSError:
        return False


def silence() -> None:
    """Connect stdin, stdout and stderr of this process to ``/dev/null``."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
