"""Renew the pictures beside this file: ``python docs/screenshots/make.py``, with Chromium installed.

The pictures are taken by the tests that look at the pages (``tests/integration/browser``), at the moments at which
they have just found the right sentence there. A picture that is not taken any more fails this script, so that
no page shows what no test has seen.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
MOST_BYTES = 60_000


def main() -> None:
    """Take them into a directory of their own first, so that a failed test leaves the old ones."""
    page = (HERE.parent / "what-students-see.md").read_text()
    wanted = set(re.findall(r"\(screenshots/([\w-]+\.png)\)", page))
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "tests/integration/browser"],
            cwd=CHECKOUT,
            env={**os.environ, "ANSIBLE_BOOTSTRAP_PICTURES": directory},
            check=True,
        )
        taken = {path.name: path.read_bytes() for path in Path(directory).glob("*.png")}
    if missing := wanted - taken.keys():
        sys.exit(f"what-students-see.md shows pictures that no test has taken: {', '.join(sorted(missing))}")
    for name in sorted(wanted):
        if len(taken[name]) > MOST_BYTES:
            sys.exit(f"{name} has {len(taken[name])} bytes, more than {MOST_BYTES}")
        (HERE / name).write_bytes(taken[name])
    for left_over in {path.name for path in HERE.glob("*.png")} - wanted:
        (HERE / left_over).unlink()


if __name__ == "__main__":
    main()
