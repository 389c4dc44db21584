"""Many rows in few statements, and none lost between two of them."""

from __future__ import annotations

import sqlite3

import pytest

from ansible_bootstrap.state.sqlite_file import many_rows


@pytest.mark.parametrize("count", [0, 1, 332, 333, 334, 1000])
def test_every_row_arrives_once_and_as_it_was(count: int) -> None:
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE t (number INTEGER PRIMARY KEY, name TEXT, at REAL)")
    rows = [(number, f"u'{number}", number + 0.1) for number in range(count)]
    statements = 0
    for values, bound in many_rows(rows):
        assert len(bound) <= 999
        database.execute(f"INSERT INTO t {values}", bound)
        statements += 1
    assert database.execute("SELECT * FROM t ORDER BY number").fetchall() == rows
    assert statements == -(-count // 333)


@pytest.mark.parametrize("beside", [0, 2, 998])
def test_what_a_statement_has_besides_is_counted(beside: int) -> None:
    sizes = [
        len(bound) + beside for _, bound in many_rows([(number,) for number in range(2000)], beside=beside)
    ]
    assert max(sizes) <= 999 and sum(sizes) - beside * len(sizes) == 2000
