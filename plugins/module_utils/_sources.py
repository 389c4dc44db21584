# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""What the admin wrote in ``tutorials_sources``, checked.

A mistake here is everybody's, so the message names the source and the rule.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

from ._descriptors import held
from ._errors import StorageError, explain, printable
from ._names import STATE_DIRECTORY
from ._ways import open_way

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z")
_CHECKSUM = re.compile(r"sha256:([0-9a-f]{64})\Z")
_FIELDS = {"name", "url", "path", "dest", "checksum", "strip_components"}


@dataclass(frozen=True)
class Source:
    """One tutorial: exactly one of ``url`` and ``path`` is set."""

    name: str
    dest: tuple[str, ...]
    url: str = ""
    path: str = ""
    sha256: str = ""
    strip: int = 0

    @property
    def where(self) -> str:
        """The url or path, fit for a message: a query may hold a token."""
        return printable(self.path or self.url.split("?")[0].split("#")[0])


def parse_sources(raw: object) -> list[Source]:
    """Return the sources as the admin wrote them; StorageError names one that is not understood, and the rule."""
    if not isinstance(raw, list):
        raise StorageError("sources is a list")
    sources = [_parse_source(item, place) for place, item in enumerate(raw, start=1)]
    for place, source in enumerate(sources):
        for other in sources[:place]:
            if source.name == other.name:
                raise StorageError(f"two sources have the name {source.name}")
            short = min(len(source.dest), len(other.dest))
            if source.dest[:short] == other.dest[:short]:
                raise StorageError(
                    f"the dest of sources {other.name} and {source.name} lie within each other"
                )
    return sources


def _parse_source(raw: object, place: int) -> Source:
    if not isinstance(raw, Mapping):
        raise StorageError(f"source {place} is a mapping with name and url or path")
    given = {key: value for key, value in raw.items() if value is not None}
    name = given.get("name")
    if not isinstance(name, str) or not _NAME.match(name):
        raise StorageError(f"source {place} needs a name of letters, digits, '_', '-' and '.'")
    if "git" in given:
        raise StorageError(
            f"source {name}: git is not supported yet; use the url of an archive of the repository"
        )
    unknown = sorted(str(key) for key in set(given) - _FIELDS)
    if unknown:
        raise StorageError(f"source {name} has unknown fields: {printable(', '.join(unknown))}")
    url, path = given.get("url", ""), given.get("path", "")
    if not isinstance(url, str) or not isinstance(path, str) or bool(url) == bool(path):
        raise StorageError(f"source {name} needs exactly one of url and path")
    if url:
        _check_url(url, name)
    elif not path.startswith("/"):
        raise StorageError(f"source {name}: path is absolute, on the storage host")
    checksum = given.get("checksum", "")
    match = _CHECKSUM.match(checksum) if isinstance(checksum, str) else None
    if checksum and match is None:
        raise StorageError(f"source {name}: checksum is 'sha256:' and 64 lower-case hexadecimal digits")
    strip = given.get("strip_components", 0)
    if isinstance(strip, bool) or not isinstance(strip, int) or not 0 <= strip <= 48:
        raise StorageError(f"source {name}: strip_components is an integer from 0 to 48")
    dest = _parse_dest(given.get("dest", name), name)
    return Source(name, dest, url, path, match.group(1) if match else "", strip)


def _check_url(url: str, name: str) -> None:
    try:
        parsed = urllib.parse.urlsplit(url)
        port_ok = parsed.port is None or parsed.port > 0
    except ValueError:
        raise StorageError(f"source {name}: the url is malformed") from None
    if parsed.scheme not in ("http", "https") or not parsed.hostname or not port_ok:
        raise StorageError(f"source {name}: the url begins with https:// or http:// and a host")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise StorageError(f"source {name}: the url has characters that must be percent-encoded")
    if "@" in parsed.netloc:
        raise StorageError(f"source {name}: the url must not hold a user name or password")


def _parse_dest(raw: object, name: str) -> tuple[str, ...]:
    if not isinstance(raw, str) or not raw.isprintable() or not 0 < len(raw.encode("utf-8")) <= 1000:
        raise StorageError(f"source {name}: dest is a relative path inside the home")
    parts = tuple(raw.rstrip("/").split("/"))
    if any(part in ("", ".", "..") or len(part.encode("utf-8")) > 255 for part in parts):
        raise StorageError(f"source {name}: dest is a relative path inside the home, without '..'")
    if parts[0].startswith(STATE_DIRECTORY):
        raise StorageError(f"source {name}: dest must not begin with {STATE_DIRECTORY}")
    return parts


def open_path(source: Source) -> int:
    """Open the file or directory of a source: root reads what only it can read, so nobody else may say where it is.

    Raises:
        StorageError: it is not there, cannot be read, or somebody else could change it or the way to it.
    """
    end, _ = open_way(source.path, f"source {source.name}:", missing="correct tutorials_sources")
    with held(end):
        try:
            return os.open(f"/proc/self/fd/{end}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError(f"source {source.name}: {explain(error, source.path)}") from None


def check_path(source: Source) -> None:
    """In check mode: refuse a path that :func:`open_path` refuses."""
    if source.path:
        os.close(open_path(source))
