"""docs/coming-from-bootstrap-script.md names a test for every claim of JupyterHub's page, and each of these tests is there."""

from __future__ import annotations

import re
from pathlib import Path

from test_hostile_table import functions

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs/coming-from-bootstrap-script.md"


def test_every_claim_is_held_by_tests_that_exist() -> None:
    lines = PAGE.read_text().split("\n## What the page says")[1].splitlines()
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert len(rows) > 12
    for row in rows:
        cell = row.strip("|").split(" | ")[-1]
        named = re.findall(r"`([\w/]+\.py)(?:::(test_\w+))?`", cell)
        assert named, f"no test is named: {row}"
        for file, name in named:
            assert (TESTS / file).is_file(), f"there is no {file}"
            assert not name or name in functions(TESTS / file), f"{file} has no {name}"


def test_every_example_that_the_page_became_is_there() -> None:
    for path in re.findall(r"\]\((\.\./[\w/.-]+)\)", PAGE.read_text()):
        assert (PAGE.parent / path).resolve().exists(), path
