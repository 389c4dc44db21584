"""Many rows of SQLite in one statement.

Each step of a statement gives the interpreter's lock away and takes it again. In a thread beside a busy event loop the
loop stands still meanwhile, until the thread has been given a processor: some milliseconds for each row of
``executemany`` where runs of Ansible want the processors, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

_MOST_VALUES: Final = 999
"""In one statement; what the oldest SQLite takes that Python does."""


def many_rows(rows: Sequence[tuple[Any, ...]], *, beside: int = 0) -> Iterator[tuple[str, list[Any]]]:
    """Yield ``VALUES (?, ...), ...`` and what is to be bound there, for as many of the rows at once as SQLite takes.

    Args:
        rows: of the same length.
        beside: values that the statement has besides.
    """
    if not rows:
        return
    width = len(rows[0])
    row = f"({', '.join('?' * width)})"
    size = (_MOST_VALUES - beside) // width
    for begin in range(0, len(rows), size):
        some = rows[begin : begin + size]
        yield f"VALUES {', '.join([row] * len(some))}", [value for values in some for value in values]
