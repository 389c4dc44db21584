# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""The cache of tutorials: an archive is fetched once for a batch and unpacked once for each revision.

::

    cache/lock              held while anything below is changed
    cache/index/<id>.json   what was last got from a url or path, and by which tag it may be asked for again
    cache/trees/<sha256>-<strip>   an unpacked archive: whole, for it is renamed here when it is
    cache/work/             downloads and trees in the making; emptied at the next chance

The network and the archive are strangers: both are read in a child process that is ``nobody``, with limits
on time and memory, whose working directory is all it could write to.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional

from . import _as_user
from ._archives import Limits, unpack
from ._descriptors import DIRECTORY, held, opened
from ._download import download
from ._errors import ArchiveError, StorageError
from ._files import exists, read_small, sync, write_small
from ._sources import Source, open_path
from ._state import Lock
from ._trees import discard

_UNPACK_MEMORY = 1 << 30


@dataclass(frozen=True)
class Tree:
    """A source's content, ready to be copied."""

    directory: int
    content: str = ""
    note: str = ""


class Library:
    """The cache, open and locked for one batch.

    Args:
        cache: descriptor of the cache directory.
        limits: for archives, packed or unpacked.
        fetch_timeout: seconds for one download.
        wait: seconds to wait for another run that is fetching.

    Attributes:
        fetched: how many archives the web has sent us; "unchanged" is not one.

    Raises:
        StorageError: another run is still at work in the cache.
    """

    def __init__(self, cache: int, limits: Limits, fetch_timeout: float, wait: float) -> None:
        self.fetched = 0
        self._limits = limits
        self._fetch_timeout = fetch_timeout
        self._open: list[int] = []
        self._lock: Optional[Lock] = Lock(cache, "lock")
        try:
            if not self._lock.acquire(time.monotonic() + wait):
                raise StorageError("another run is still fetching tutorials: try again in a minute")
            for name in ("index", "trees", "work"):
                if not exists(cache, name):
                    os.mkdir(name, 0o700, dir_fd=cache)
                self._open.append(os.open(name, DIRECTORY, dir_fd=cache))
            self._index, self._trees, self._work = self._open
            self._clear()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all descriptors, those of the trees too, and let others in."""
        while self._open:
            os.close(self._open.pop())
        self.let_others_in()

    def let_others_in(self) -> None:
        """Release the cache's lock, so that other runs may fetch. Trees stay as long as their descriptors are open."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _clear(self) -> None:
        """Remove what a killed run left, and revisions that no source has any more and no run copies from."""
        for name in os.listdir(self._work):
            self._discard(self._work, name)
        wanted = {self._read_index(name).get("sha256") for name in os.listdir(self._index)}
        for name in os.listdir(self._trees):
            if name.split("-")[0] not in wanted:
                # Under another name, for what is half removed must not be found as a tree.
                fresh = secrets.token_hex(8)
                with contextlib.suppress(OSError):
                    os.rename(name, fresh, src_dir_fd=self._trees, dst_dir_fd=self._work)
                    self._discard(self._work, fresh)

    def _discard(self, directory: int, name: str) -> None:
        """Remove a download or a tree; what cannot be removed is left to the next run."""
        with contextlib.suppress(OSError):
            if os.geteuid() == 0 and stat.S_ISDIR(
                os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
            ):
                # All in it is nobody's: then it takes one child.
                os.chown(name, _as_user.NOBODY, _as_user.NOBODY, dir_fd=directory, follow_symlinks=False)
        discard(directory, name, _as_user.NOBODY)

    def obtain(self, source: Source) -> Tree:
        """Return the content of a source, fetched or from the cache; StorageError if it cannot be had."""
        if source.path:
            found = open_path(source)
            if stat.S_ISDIR(os.fstat(found).st_mode):
                self._open.append(found)
                return Tree(found)
            with held(found):
                return self._from_file(source, found)
        return self._from_web(source)

    def _from_file(self, source: Source, archive: int) -> Tree:
        status = os.fstat(archive)
        if not stat.S_ISREG(status.st_mode):
            raise StorageError(f"source {source.name}: {source.where} is neither a directory nor a file")
        known = self._read_index(_index_name(source))
        seen = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        content = known["sha256"] if known.get("seen") == seen else _sha256(archive)
        self._check_sum(source, content)
        if not exists(self._trees, _tree_name(content, source)):
            self._unpack(source, archive, content)
        self._write_index(source, {"sha256": content, "seen": seen})
        return self._tree(source, content)

    def _from_web(self, source: Source) -> Tree:
        if source.sha256 and exists(self._trees, _tree_name(source.sha256, source)):
            return self._tree(source, source.sha256)  # the checksum says what the server could
        known = self._read_index(_index_name(source))
        have = known.get("sha256", "")
        if source.sha256 or not have or not exists(self._trees, _tree_name(have, source)):
            have, known = "", {}
        try:
            answer = self._fetch(source, known)
        except StorageError as error:
            if not have:
                raise
            return self._tree(
                source, have, f"{source.name}: {error}; the copy fetched {known['fetched']} was used"
            )
        return self._tree(source, answer or have)

    def _fetch(self, source: Source, known: dict[str, Any]) -> str:
        """Download and unpack; return the content's sha256, or "" if the server says it is unchanged."""
        name = f"{_index_name(source)}.download"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(name, flags, 0o600, dir_fd=self._work)
        try:
            work = partial(download, source.url, known, file, self._limits.unpacked)
            fetched = self._as_nobody(work, self._work, file, self._fetch_timeout)
            if fetched.error is not None:
                raise StorageError(f"{source.where}: {fetched.error}")
            answer = fetched.value
            if answer is None:
                return ""
            self.fetched += 1
            content: str = answer.pop("sha256")
            self._check_sum(source, content)
            if not exists(self._trees, _tree_name(content, source)):
                self._unpack(source, file, content)
            fetched_at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
            self._write_index(source, {**answer, "sha256": content, "fetched": fetched_at})
            return content
        finally:
            os.close(file)
            os.unlink(name, dir_fd=self._work)

    def _unpack(self, source: Source, archive: int, content: str) -> None:
        """Unpack into the workshop, bring it onto the disk, then put it among the trees."""
        name = _tree_name(content, source)
        os.mkdir(name, 0o700, dir_fd=self._work)
        try:
            with opened(name, DIRECTORY, self._work) as stage:
                if os.geteuid() == 0:
                    os.fchown(stage, _as_user.NOBODY, _as_user.NOBODY)
                work = partial(_unpack_into, stage, archive, source.strip, self._limits)
                seconds = max(self._fetch_timeout, 60)
                answer = self._as_nobody(work, stage, archive, seconds, memory=_UNPACK_MEMORY)
                if answer.error is not None:
                    raise ArchiveError(f"source {source.name}: {answer.error}")
                if os.geteuid() == 0:
                    os.fchown(stage, 0, 0)
                os.fchmod(stage, 0o755)  # noqa: S103 - reached only through a descriptor we pass on
                sync(stage)
        except BaseException:
            self._discard(self._work, name)
            raise
        os.rename(name, name, src_dir_fd=self._work, dst_dir_fd=self._trees)

    def _as_nobody(
        self, work: Callable[[], Any], directory: int, file: int, timeout: float, memory: Optional[int] = None
    ) -> _as_user.Answer:
        root = os.geteuid() == 0
        uid, gid = (_as_user.NOBODY, _as_user.NOBODY) if root else (os.geteuid(), os.getegid())
        return _as_user.run(_as_user.Task(uid, gid, directory, work, (file,), memory), timeout)

    def _check_sum(self, source: Source, content: str) -> None:
        if source.sha256 and content != source.sha256:
            raise ArchiveError(
                f"source {source.name}: {source.where} has the wrong checksum, sha256:{content}"
            )

    def _tree(self, source: Source, content: str, note: str = "") -> Tree:
        directory = os.open(_tree_name(content, source), DIRECTORY, dir_fd=self._trees)
        self._open.append(directory)
        fcntl.flock(directory, fcntl.LOCK_SH)  # so ``discard`` leaves it; a child that copies holds it, too
        return Tree(directory, content, note)

    def _read_index(self, name: str) -> dict[str, Any]:
        """Return what is known of a source; nothing if that is unreadable: it can be got again."""
        try:
            known = json.loads(read_small(self._index, name) or b"{}")
        except (ValueError, RecursionError, OSError):
            known = {}
        return known if isinstance(known, dict) and isinstance(known.get("sha256"), str) else {}

    def _write_index(self, source: Source, known: dict[str, Any]) -> None:
        if known != self._read_index(_index_name(source)):
            write_small(self._index, _index_name(source), json.dumps(known, sort_keys=True).encode("ascii"))


def _unpack_into(directory: int, archive: int, strip: int, limits: Limits) -> None:
    os.fchdir(directory)
    unpack(archive, strip, limits)


def _index_name(source: Source) -> str:
    return (
        hashlib.sha256((source.url or source.path).encode("utf-8", "surrogateescape")).hexdigest() + ".json"
    )


def _tree_name(content: str, source: Source) -> str:
    return f"{content}-{source.strip}"


def _sha256(file: int) -> str:
    digest = hashlib.sha256()
    place = 0
    while chunk := os.pread(file, 1 << 20, place):
        place += len(chunk)
        digest.update(chunk)
    return digest.hexdigest()
