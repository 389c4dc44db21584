"""A clock that is set back: what was done stays done, and what is to be done is done."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

UID = 20_041

# What the two modules do, in a process of its own to which the day is another.
WORK = """
import json, sys, time
real_time, real_gmtime, off = time.time, time.gmtime, 86400 * int(sys.argv.pop())
time.time = lambda: real_time() + off
time.gmtime = lambda seconds=None: real_gmtime(time.time() if seconds is None else seconds)
from ansible_bootstrap.storage import _homes, _tutorials
root, course, name, uid = sys.argv[1:]
users = [{"key": name, "name": name, "directory": f"{root}/{name}", "uid": int(uid), "gid": int(uid), "groups": []}]
sources = [{"name": "course", "path": course}]
homes = _homes.ensure(users, root, 1000, _homes.Options(), check=False)
tutorials = _tutorials.place(users, root, 1000, _tutorials.Options(sources), check=False)
print(json.dumps([time.gmtime().tm_year, *homes.users, *tutorials.users]))
"""


def work(root: Path, course: Path, name: str, days: int) -> tuple[int, list[bool]]:
    """Return the year it was to them, and which of the two roles changed something."""
    done = subprocess.run(
        [sys.executable, "-c", WORK, str(root), str(course), name, str(UID), str(days)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    year, *results = json.loads(done.stdout)
    assert not any(result["failed"] for result in results), results
    return year, [result["changed"] for result in results]


def test_what_was_done_in_the_future_stays_done(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs(root=True)
    tmp_path.chmod(0o755)
    root, course = tmp_path / "volumes", tmp_path / "course"
    root.mkdir(mode=0o755)
    course.mkdir()
    (course / "lesson.ipynb").write_text("{}")
    future, changed = work(root, course, "alice", 800)
    assert changed == [True, True]
    past, changed = work(root, course, "alice", -800)
    assert past < future - 3
    assert changed == [False, False]
    assert work(root, course, "bob", -800)[1] == [True, True]
    assert (root / "bob/course/lesson.ipynb").stat().st_uid == UID
