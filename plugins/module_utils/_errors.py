# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""What went wrong on a storage host, in one plain sentence.

::

    StorageError        the sentence; it names the cause, and what to do where there is something to do
    ├── LateError       it was stopped because it took too long
    ├── LeftAloneError  nothing is wrong, and nothing can be done: a note
    └── ArchiveError    an archive or a download is refused (``_archives.py``, ``_download.py``, ``_library.py``)

The text goes into a module's result and the admin's log, so whatever it quotes is made printable.
"""

from __future__ import annotations

import errno
import os
import traceback

_SENTENCES = {
    errno.ENOSPC: "no space is left on the file system",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk reported an input/output error",
    errno.EMFILE: "too many files are open at once: raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this host",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.ELOOP: "a symbolic link is in the way",
    errno.ENOTDIR: "something that is not a directory is in the way",
    errno.EXDEV: "it is on another file system",
    errno.ESTALE: "the network file system lost it (stale handle)",
    errno.EAGAIN: "too many processes are running on this host",
    errno.ENOMEM: "not enough memory",
}


class StorageError(Exception):
    """A failure with a sentence for the admin."""


class LateError(StorageError):
    """Something was stopped because it took too long."""


class LeftAloneError(StorageError):
    """A user's directory that root may not enter: the user does without our work, and starts."""


class ArchiveError(StorageError):
    """Content from outside is refused; the sentence names the member and the rule."""


def printable(text: str) -> str:
    """Return ``text`` with everything escaped that a terminal or a log could act upon."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def sentence(error: BaseException) -> str:
    """Return one sentence for any failure."""
    if isinstance(error, OSError):
        return explain(error)
    return str(error) if isinstance(error, StorageError) else unexpected(error)


def unexpected(error: BaseException) -> str:
    """Return one sentence for a fault of this program, with the line that met it."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({os.path.basename(last[0].filename)}:{last[0].lineno})" if last else ""
    return printable(f"unexpected {type(error).__name__}: {error}"[:1000] + where)


def explain(error: OSError, what: str | None = None) -> str:
    """Return one sentence for ``error``; ``what`` says where, else the file name the error knows."""
    sentence = _SENTENCES.get(error.errno or 0) or (os.strerror(error.errno) if error.errno else str(error))
    if what is None:
        names = (error.filename, error.filename2)
        what = ", ".join(os.fsdecode(name) for name in names if isinstance(name, (str, bytes)))
    return printable(f"{what}: {sentence}" if what else sentence)
