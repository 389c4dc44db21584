"""On which mount a path is, as the kernel's table says: to look at the path itself may hang."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Final

MOUNTS: Final = Path("/proc/self/mountinfo")

FRESH_SECONDS: Final = 5.0
"""For which what was read is believed."""


class Mounts:
    """The mounts of this process."""

    def __init__(self) -> None:
        self._points: frozenset[str] = frozenset()
        self._read = -FRESH_SECONDS

    def mount_of(self, path: str) -> str:
        """Return the mount point that is the longest prefix of an absolute path; ``/`` if there is none."""
        if time.monotonic() - self._read >= FRESH_SECONDS:
            self._read = time.monotonic()
            self._points = _points()
        while path not in self._points and path.strip("/"):
            path = path.rstrip("/").rpartition("/")[0]
        return path or "/"


def _points() -> frozenset[str]:
    """Return all mount points; none where the kernel has no such table."""
    try:
        lines = MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return frozenset()
    fields = (line.split(" ") for line in lines)
    return frozenset(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), part[4]) for part in fields)
