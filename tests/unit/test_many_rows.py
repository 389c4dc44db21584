"""Many rows in few statements, and none lost between two statements."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

from ansible_bootstrap.state.sqlite_file import execute_rows


class Counting(sqlite3.Connection):
    """How many values each insert had."""

    sizes: list[int]

    def execute(self, query: str, values: Any = ()) -> sqlite3.Cursor:
        if query.startswith("INSERT"):
            self.sizes.append(len(values))
        return super().execute(query, values)


@pytest.fixture
def database() -> Counting:
    database = sqlite3.connect(":memory:", factory=Counting)
    database.sizes = []
    database.execute("CREATE TABLE t (number INTEGER PRIMARY KEY, name TEXT, at REAL)")
    return database


@pytest.mark.parametrize("count", [0, 1, 332, 333, 334, 1000])
def test_every_row_arrives_once_and_as_it_was(database: Counting, count: int) -> None:
    rows = [(number, f"u'{number}", number + 0.1) for number in range(count)]
    execute_rows(database, "INSERT INTO t {values}", rows)
    assert database.execute("SELECT * FROM t ORDER BY number").fetchall() == rows
    assert len(database.sizes) == -(-count // 333) and all(size <= 999 for size in database.sizes)


@pytest.mark.parametrize("more", [1, 2, 998])
def test_what_a_statement_has_besides_is_counted(database: Counting, more: int) -> None:
    query = (
        f"INSERT INTO t WITH one (number) AS ({{values}}) SELECT number, {' + '.join('?' * more)}, 0 FROM one"
    )
    execute_rows(database, query, [(number,) for number in range(2000)], *[1] * more)
    assert max(database.sizes) <= 999 and sum(database.sizes) - more * len(database.sizes) == 2000
