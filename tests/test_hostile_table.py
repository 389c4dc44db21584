"""docs/hostile.md names a test for every row, each of these tests is there, and the counts on the page are right."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs/hostile.md"
SECTIONS = ("names", "requests", "directories", "content", "faults")


def rows() -> dict[str, list[tuple[str, str]]]:
    """By section: what is tried, and the cell that names the tests."""
    found: dict[str, list[tuple[str, str]]] = {}
    for part in PAGE.read_text().split("\n## ")[1:]:
        title, *lines = part.splitlines()
        table = [line.strip("|").split(" | ") for line in lines if line.startswith("| ")]
        found[title.lower()] = [(cells[0].strip(), cells[-1].strip()) for cells in table[1:]]
    return found


@cache
def functions(file: Path) -> set[str]:
    nodes = ast.walk(ast.parse(file.read_text()))
    return {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_row_is_held_by_tests_that_exist(section: str) -> None:
    assert rows()[section]
    for tried, cell in rows()[section]:
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", cell)
        assert named or re.match(r"not yet: \w", cell), f"{tried}: no test is named"
        for file, name in named:
            assert name in functions(TESTS / file), f"{tried}: {file} has no {name}"


def test_the_counts_on_the_page_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    counts = {
        section: (sum(not cell.startswith("not yet") for _, cell in found), len(found))
        for section, found in rows().items()
    }
    assert tuple(counts) == SECTIONS
    line = ", ".join(f"{section} {held} of {tried}" for section, (held, tried) in counts.items())
    with capsys.disabled():
        print(f"\nhostile.md, held of tried: {line}")
    assert f"Held: {line}." in PAGE.read_text()


def test_the_fuzzer_finds_nothing_in_a_moment() -> None:
    """`make fuzz` is for longer; this one shows that it works, without a guide and always in the same way."""
    done = subprocess.run(
        [sys.executable, str(TESTS / "fuzz/fuzz.py"), "--seconds", "4", "--blindly", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"request: \d{3,} tries, seed 1: held", done.stdout), done.stdout
    assert re.search(r"archive: \d{2,} tries, seed 1: held", done.stdout), done.stdout


def test_what_the_fuzzer_finds_is_kept_and_fails(tmp_path: Path) -> None:
    """With a parser that lets something through, the status is 1 and the bytes can be tried again."""
    program = (
        "import sys; sys.argv = ['fuzz', '--seconds', '20', '--blindly', '--seed', '2', 'request']\n"
        f"sys.path[:0] = [{str(TESTS / 'fuzz')!r}, {str(TESTS.parent)!r}]\n"
        "import fuzz, pathlib; from tests.fuzz import targets\n"
        f"fuzz.CRASHES = pathlib.Path({str(tmp_path)!r})\n"
        "def careless(data): raise KeyError(data[:0])\n"
        "targets.parse_request = careless\n"
        "sys.exit(fuzz.main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    (kept,) = tmp_path.iterdir()
    assert kept.name in done.stdout
    assert kept.read_bytes()
