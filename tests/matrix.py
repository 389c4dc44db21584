"""The tests with other releases of what the package builds on: ``python tests/matrix.py [ROW…]``.

Each row has a virtual environment below ``.matrix``. Rows for which this machine has no interpreter are left out, with a
line that says so. Exits 1 if the tests of any row failed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SUITES = (
    *("tests/unit/hub", "tests/unit/test_outcomes_callback.py", "tests/integration/hub/test_hub_hooks.py"),
    *(
        "tests/integration/playbook",
        "tests/integration/apply/test_outcomes.py",
        "tests/integration/apply/test_spare_runs.py",
    ),
)
"""What depends on the releases: the hub's side, and all that speaks to Ansible."""

FEW = (
    *(
        "tests/unit/hub/test_hooks.py",
        "tests/unit/hub/test_wiring.py",
        "tests/unit/test_outcomes_callback.py",
    ),
    *("tests/integration/hub/test_hub_order.py", "tests/integration/playbook/test_playbook.py"),
)


@dataclass(frozen=True)
class Row:
    """One combination."""

    python: str
    hub: str
    core: str

    @property
    def name(self) -> str:
        return f"python{self.python}-jupyterhub{self.hub}-core{self.core}"


ROWS = (
    Row("3.11", "5.2", "2.19"),
    Row("3.12", "5.4", "2.20"),
    Row("3.13", "6", "2.21"),
    Row("3.13", "6", "2.22"),
    Row("3.14", "6", "2.22"),
)


def interpreter(row: Row) -> str | None:
    """Return the path of the row's interpreter; pyenv's are found, too."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{row.python}.*/bin/python"))
    return str(pyenv[-1]) if pyenv else shutil.which(f"python{row.python}")


def run(row: Row, python: str, suites: list[str]) -> bool:
    """Install the row's releases and run the tests; return whether they passed."""
    venv = ROOT / ".matrix" / row.name
    if not (venv / "bin/python").exists():
        subprocess.run([python, "-m", "venv", venv], check=True)
    wanted = [f"jupyterhub=={row.hub}.*", f"ansible-core=={row.core}.*"]
    pip = [venv / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--pre"]
    subprocess.run([*pip, "--editable", f"{ROOT}[test]", *wanted], check=True)
    tests = [venv / "bin/python", "-m", "pytest", "-q", "-m", "not slow", *suites]
    return subprocess.run(tests, cwd=ROOT, check=False).returncode == 0


def main() -> int:
    """Run the rows that are asked for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(row.name for row in ROWS)}")
    parser.add_argument("--suite", action="append", help="in place of the usual ones")
    parser.add_argument(
        "--oldest",
        action="store_true",
        help="only the oldest releases, with this interpreter and a few suites: for CI",
    )
    given = parser.parse_args()
    results: dict[str, str] = {}
    for row in ROWS[:1] if given.oldest else ROWS:
        if given.rows and row.name not in given.rows:
            continue
        python = sys.executable if given.oldest else interpreter(row)
        if python is None:
            results[row.name] = f"left out: there is no python{row.python}"
            continue
        print(f"== {row.name}", flush=True)
        begin = time.monotonic()
        passed = run(row, python, given.suite or list(FEW if given.oldest else SUITES))
        results[row.name] = f"{'passed' if passed else 'FAILED'} in {time.monotonic() - begin:.0f} s"
    for name, what in results.items():
        print(f"{name:<40} {what}")
    return int(not results or any("FAILED" in what for what in results.values()))


if __name__ == "__main__":
    sys.exit(main())
