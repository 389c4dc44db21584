"""The tutorial that every benchmark gives to every student: 20 files, 100 kB, as an archive."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

FILES = 20


def make_course(directory: Path) -> Path:
    """Write ``course.tar.gz`` and return its path; the same content each time."""
    archive = directory / "course.tar.gz"
    content = random.Random(7)
    with tarfile.open(archive, "w:gz") as tar:
        for number in range(FILES):
            data = content.randbytes(4096 + 100 * number)
            member = tarfile.TarInfo(f"chapter{number // 5}/lesson{number:02}.ipynb")
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))
    archive.chmod(0o644)
    return archive


def lessons(home: Path) -> int:
    """Count the files of the course that are in a home."""
    return sum(path.is_file() for path in (home / "tutorials").rglob("*.ipynb"))
