"""A file system of its own for each measurement, or one measures what the measurement before has deleted.

On ext4 without a journal, for one, new files avoid the inodes of those that were deleted within some minutes, and
looking for others takes longer than making the file: the round after a round that was cleared away was six times as
slow in the kernel (``recently_deleted`` in fs/ext4/ialloc.c). So each round gets a new ext4, with a journal as
everybody has it, in a file; whoever is not root gets a directory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SIZE: Final = 8 << 30
"""Bytes; the file is sparse."""


@contextlib.contextmanager
def fresh_disk(below: Path) -> Iterator[Path]:
    """Make an empty file system, mounted somewhere below that directory; it is gone in the end."""
    with tempfile.TemporaryDirectory(prefix="disk-", dir=below) as name:
        os.chmod(name, 0o755)
        top = Path(name) / "top"
        top.mkdir(mode=0o755)
        if os.geteuid() != 0:
            yield top
            return
        image = Path(name) / "image"
        with image.open("wb") as file:
            file.truncate(SIZE)
        # Not lazily: the kernel would write the rest of the tables while we measure.
        how = ["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-i", "65536"]
        subprocess.run(["mkfs.ext4", *how, image], check=True)
        subprocess.run(["mount", "-o", "loop", image, top], check=True)
        try:
            yield top
        finally:
            subprocess.run(["umount", top], check=True)
