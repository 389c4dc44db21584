# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Unpack a zip or tar archive that may have been made to do harm.

Only regular files, directories and relative symbolic links that stay inside come out, as 0644, 0755
and links; any other member refuses the whole archive, by name. It is unpacked into an empty directory that
nobody else can reach, links last, so nothing is ever written through one.

Rejected: tarfile's ``filter="data"``, which Debian 12's own Python does not have, and which skips or
mends where we refuse.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import importlib
import lzma
import os
import stat
import struct
import tarfile
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO, Optional

from ._errors import ArchiveError, printable

_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)


# tarfile and zipfile ask for these only when an archive needs them. By then we are nobody, who may not be able to
# read Python's own files (a Python below somebody's 0700 home).
for _module in ("bz2", "gzip", "lzma"):
    with contextlib.suppress(ImportError):
        importlib.import_module(_module)
codecs.lookup("cp437")

_DIRECTORY_MODE = 0o755
_MOST_PADDING = 64 << 20
_LONGEST_PATH = 2000
"""Bytes; the kernel's limit is 4095, and there is a home before it."""


@dataclass(frozen=True)
class Limits:
    """What an archive may be at most.

    Attributes:
        unpacked: bytes of all files together.
        members: how many there may be.
        ratio: unpacked to packed size, looked at from ``ratio_from`` bytes on.
    """

    unpacked: int = 2 << 30
    members: int = 100_000
    ratio: int = 200
    ratio_from: int = 100 << 20


@dataclass(frozen=True)
class _Member:
    name: str
    kind: str
    """``file``, ``directory`` or ``link``."""
    mode: int = 0o644
    mtime: float = 0.0
    target: str = ""
    size: int = 0
    open: Optional[Callable[[], IO[bytes]]] = None


def unpack(archive: int, strip: int, limits: Limits) -> None:
    """Unpack ``archive`` into the working directory, which is empty and private.

    Args:
        archive: descriptor of a regular file.
        strip: leading path components to leave out; members with no more than that are left out.
        limits: what it may be at most.

    Raises:
        ArchiveError: a member is refused, a limit is passed, or the archive is damaged or cut short.
    """
    os.lseek(archive, 0, os.SEEK_SET)
    with open(archive, "rb", closefd=False) as file:
        tree = _Tree(strip, limits, os.fstat(archive).st_size)
        try:
            magic = file.read(4)
            file.seek(0)
            members = _zip_members(file) if magic in (b"PK\3\4", b"PK\5\6") else _tar_members(file)
            for member in members:
                tree.add(member)
            tree.finish()
        except (*_DAMAGED, OSError) as error:
            # EINVAL: a place before the file's beginning
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            why = printable(str(error))[:200]
            raise ArchiveError(f"the archive is damaged or cut short: {why}") from None


class _Tree:
    """The tree while it is unpacked, with everything already in it."""

    def __init__(self, strip: int, limits: Limits, packed: int) -> None:
        self._strip = strip
        self._limits = limits
        self._packed = max(packed, 1)
        self._unpacked = 0
        self._members = 0
        self._kinds: dict[str, str] = {"": "directory"}
        self._spelling: dict[str, str] = {}
        self._links: dict[str, str] = {}
        self._times: dict[str, float] = {}

    def add(self, member: _Member) -> None:
        """Check a member and, unless it is a link, write it."""
        self._members += 1
        if self._members > self._limits.members:
            raise ArchiveError(f"the archive has more than {self._limits.members} members")
        parts = _parts(member)[self._strip :]
        if not parts:
            return
        path = "/".join(parts)
        for depth in range(1, len(parts)):
            self._directory("/".join(parts[:depth]), member)
        if member.kind == "directory":
            self._directory(path, member)
            self._times[path] = member.mtime
            return
        if path in self._kinds:
            raise _refused(member, "is there twice")
        self._enter(path, member.kind, member)
        if member.kind == "link":
            self._links[path] = _check_target(member, parts)
        else:
            self._write(path, member)

    def finish(self) -> None:
        """Make the links, and set the directories' times."""
        if len(self._kinds) == 1:
            raise ArchiveError("the archive is empty (or strip_components leaves nothing of it)")
        for path, target in self._links.items():
            os.symlink(target, path)
        for path in sorted(self._times, reverse=True):
            _set_time(path, self._times[path])

    def _directory(self, path: str, member: _Member) -> None:
        known = self._kinds.get(path)
        if known is None:
            self._enter(path, "directory", member)
            os.mkdir(path)
            os.chmod(path, _DIRECTORY_MODE)  # whatever the umask
        elif known != "directory":
            raise _refused(member, f"lies in, or is, what is a {known} elsewhere in the archive")

    def _enter(self, path: str, kind: str, member: _Member) -> None:
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFKD", path).casefold())
        if self._spelling.setdefault(folded, path) != path:
            raise _refused(member, "differs from another only in case or Unicode normal form")
        self._kinds[path] = kind
        if len(self._kinds) - 1 > self._limits.members:  # with the directories that are only implied
            raise ArchiveError(f"the archive has more than {self._limits.members} members")

    def _write(self, path: str, member: _Member) -> None:
        if member.open is None:
            raise _refused(member, "has no content")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        written = 0
        with open(fd, "wb") as target, member.open() as source:
            while chunk := source.read(1 << 18):
                written += len(chunk)
                self._count(len(chunk))
                target.write(chunk)
            target.flush()
            os.fchmod(fd, 0o755 if member.mode & 0o100 else 0o644)
        if written != member.size:
            raise ArchiveError(f"the archive is damaged or cut short: {_shown(member.name)} is not whole")
        _set_time(path, member.mtime)

    def _count(self, size: int) -> None:
        self._unpacked += size
        if self._unpacked > self._limits.unpacked:
            raise ArchiveError(f"the archive unpacks to more than {self._limits.unpacked} bytes")
        if self._unpacked > self._limits.ratio_from and self._unpacked > self._limits.ratio * self._packed:
            raise ArchiveError(f"the archive unpacks to more than {self._limits.ratio} times its size")


def _set_time(path: str, mtime: float) -> None:
    with contextlib.suppress(OverflowError, ValueError, OSError):
        os.utime(path, (mtime, mtime))


def _parts(member: _Member) -> list[str]:
    """Return the path components of a member's name, if they are harmless."""
    name = member.name
    if not name.isprintable():  # control characters, escape sequences, what is not UTF-8
        raise _refused(member, "has a name that is not printable text")
    if name.startswith("/"):
        raise _refused(member, "has an absolute name")
    if "\\" in name:
        raise _refused(member, "has a backslash in its name")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _refused(member, "has '..' in its name")
    too_long = (
        any(len(part.encode("utf-8")) > 255 for part in parts) or len(name.encode("utf-8")) > _LONGEST_PATH
    )
    if len(parts) > 48 or too_long:
        raise _refused(member, "has too long a name")
    return parts


def _check_target(member: _Member, parts: list[str]) -> str:
    """Return a link's target if it stays inside wherever the tree is put.

    ``..`` may stand at the beginning only: there it means what it seems to, for the link's own directories
    are no links; after another link it could lead anywhere.
    """
    target = member.target
    if not target or not target.isprintable() or target.startswith("/"):
        raise _refused(member, "is a link to an absolute or unprintable path")
    if len(target.encode("utf-8")) > _LONGEST_PATH:
        raise _refused(member, "is a link to too long a path")
    steps = [part for part in target.split("/") if part not in ("", ".")]
    up = 0
    while up < len(steps) and steps[up] == "..":
        up += 1
    if ".." in steps[up:] or up > len(parts) - 1:
        raise _refused(member, "is a link that leads out of the archive")
    return target


def _refused(member: _Member, why: str) -> ArchiveError:
    return ArchiveError(f"the archive is refused: {_shown(member.name)} {why}")


def _shown(name: str) -> str:
    return printable(name if len(name) <= 200 else name[:200] + "…")


def _zip_members(file: IO[bytes]) -> Iterator[_Member]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            name, mode = info.orig_filename, info.external_attr >> 16
            mtime = _zip_time(info)
            plain = _Member(name, "file", mode, mtime, size=info.file_size, open=partial(archive.open, info))
            if info.flag_bits & 1:
                raise _refused(plain, "is encrypted")
            if stat.S_ISLNK(mode):
                with archive.open(info) as source:
                    target = os.fsdecode(source.read(4096))
                yield _Member(name, "link", mode, mtime, target)
            elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(plain, "is neither file, directory nor link")
            elif name.endswith("/") or stat.S_ISDIR(mode):
                yield _Member(name, "directory", mode, mtime)
            elif mode & 0o6000:
                raise _refused(plain, "is setuid or setgid")
            else:
                yield plain


def _zip_time(info: zipfile.ZipInfo) -> float:
    try:
        return time.mktime((*info.date_time, 0, 0, -1))
    except (OverflowError, ValueError):
        return 0.0


def _tar_members(file: IO[bytes]) -> Iterator[_Member]:
    with tarfile.open(fileobj=file, mode="r:*") as archive:
        while True:
            info = archive.next()
            archive.members = []  # type: ignore[attr-defined]  # they would add up
            if info is None:
                break
            name, mtime = info.name, float(info.mtime)
            reader = partial(_tar_open, archive, info)
            plain = _Member(name, "file", info.mode, mtime, size=info.size, open=reader)
            if info.isdir():
                yield _Member(name, "directory", info.mode, mtime)
            elif info.issym():
                yield _Member(name, "link", info.mode, mtime, info.linkname)
            elif info.islnk():
                raise _refused(plain, "is a hard link")
            elif not info.isreg():
                raise _refused(plain, "is neither file, directory nor link")
            elif info.mode & 0o6000:
                raise _refused(plain, "is setuid or setgid")
            else:
                yield plain
        content = archive.fileobj
        if content is None:
            raise ArchiveError("the archive is damaged")
        content.seek(archive.offset)  # TarFile.next also stops at a header that is damaged or cut short
        if content.read(512) != bytes(512):
            raise ArchiveError("the archive is damaged or cut short: it has no end mark")
        for _ in range(_MOST_PADDING >> 18):  # to the end, where the compressed file's checksum is
            if not content.read(1 << 18):
                return
        raise ArchiveError("the archive has too much after its end mark")


def _tar_open(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    source = archive.extractfile(info)
    if source is None:
        raise ArchiveError(f"the archive is damaged: {_shown(info.name)} has no content")
    return source
