"""The benchmarks do what they say, with few users: what is only run before a release would otherwise rot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
FEW = {
    "storm": "--users 4 --seconds 0.5 --rounds 1 --again 2 --naive-users 2 --no-proxy",
    "dispatch": "--users 5 --naive-users 2 --rounds 1",
    "roster": "--sizes 3,6 --rounds 1",
    "known": "--users 3 --calls 30",
    "site_role": "--users 2 --rounds 1",
    "memory": "--users 3 --spawns 12 --every 4",
}


pytestmark = pytest.mark.alone(reason="a benchmark takes the whole machine")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FEW)
def test_the_benchmark_runs_with_a_few_users(name: str, tmp_path: Path) -> None:
    results = tmp_path / name
    done = subprocess.run(
        [
            *(sys.executable, "-m", f"benchmarks.{name}", *FEW[name].split()),
            *("--results", str(results if name == "storm" else results.with_suffix(".md"))),
        ],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    table = results.with_suffix(".md").read_text()
    assert table.startswith("# ") and "nan" not in table
    if name == "storm":
        assert table.count("4 of 4") == 3 and table.count("8 of 8") == 2 and "2 of 2" in table
