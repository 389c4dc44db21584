"""Read a class list: one name a line, or CSV with a header."""

from __future__ import annotations

import csv
import difflib
import io
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from ansible_bootstrap.errors import RefusedError

COLUMNS: Final = ("name", "key", "directory", "uid", "gid", "storage_host", "groups")
"""Columns of a CSV roster; only ``name`` (or ``username``) must be there. ``groups`` are split at ``;``."""

Record = dict[str, Any]
"""One user, unvalidated: a bad row must cost only itself."""

_NAME_COLUMNS: Final = ("name", "username")
_NUMBERS: Final = ("uid", "gid")
_MOST_DIGITS: Final = 10
"""Of a number that a uid may be; a longer one stays text, and is refused with its row."""
_OTHERS: Final = ("key", "directory", "storage_host")
"""What tells two records of one name apart."""
_SURPLUS: Final = "surplus cell"
_SAID: Final = ("uid", "gid", "groups")
"""What two records of one user and place may say differently."""

_MAX_SHOWN: Final = 100

_MAX_WARNINGS: Final = 20

_LOG = logging.getLogger(__name__)


class Roster:
    """The records of a file. Each iteration reads them anew, so that a long list is never in memory as a whole.

    A warning names the columns that mean nothing, and the lines that say otherwise of a user than an earlier line.

    Args:
        path: UTF-8 text. If its first line has a column ``name`` or ``username`` it is CSV (comma,
            semicolon or tab), else a list of names, where blank lines and ``#`` comments are left
            out.

    Raises:
        RefusedError: the file cannot be read, or has a column that is nearly one of ours.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise RefusedError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
        self._path = path
        self._warned: set[str] = set()
        self._is_csv = _looks_like_csv(self._text)
        if self._is_csv:
            self._rows()
        else:
            self._refuse_headless()

    def __iter__(self) -> Iterator[Record]:
        if not self._is_csv:
            yield from ({"name": name} for name in _names(self._text))
            return
        rows = self._rows()
        first: dict[tuple[str, ...], tuple[int, int]] = {}
        try:
            for row in rows:
                record = _record(row)
                if _is_empty(record):
                    continue
                rest = hash(tuple(str(record.get(field)) for field in _SAID))
                line, said = first.setdefault(_identity(record), (rows.line_num, rest))
                if said != rest:
                    self._warn(
                        f"line {rows.line_num}: {shown(str(record.get('name')))!a} stands in line {line} with other "
                        "columns, and that line counts"
                    )
                yield record
        except csv.Error as error:  # A quote that is never closed, say, makes one cell of the rest.
            raise RefusedError(f"{self._path}: not CSV: {error}") from None

    def _rows(self) -> csv.DictReader[str]:
        header = self._text.partition("\n")[0]
        csv.field_size_limit(len(self._text) + 1)  # A cell of any size is its row's trouble.
        rows = csv.DictReader(
            io.StringIO(self._text),
            restkey=_SURPLUS,
            delimiter=max(",;\t", key=header.count),
            strict=True,
        )
        try:
            fields = [(field or "").strip().lower() for field in rows.fieldnames or ()]
        except csv.Error as error:
            raise RefusedError(f"{self._path}: not CSV: {error}") from None
        fields = ["name" if field == "username" else field for field in fields]
        unknown = [field for field in fields if field not in COLUMNS]
        for field in unknown:
            if near := difflib.get_close_matches(field[:_MAX_SHOWN], COLUMNS, n=1, cutoff=0.8):
                raise RefusedError(
                    f"{self._path}: column {field!a}: did you mean {near[0]!r}? If not, rename it"
                )
        if unknown:
            names = shown(", ".join(map(ascii, unknown)))
            self._warn(
                f"columns that mean nothing here are left out: {names}; those that do are {', '.join(COLUMNS)}"
            )
        twice = [
            field for number, field in enumerate(fields) if field in COLUMNS and field in fields[:number]
        ]
        # An export with both "Name" and "Username" means people by the one and logins by the other.
        if twice:
            also = " (a column 'username' is one, too)" if twice[0] == "name" else ""
            raise RefusedError(f"{self._path}: two columns are {twice[0]!r}{also}: leave one out")
        rows.fieldnames = fields
        return rows

    def _warn(self, what: str) -> None:
        """Say it once, however often the records are read."""
        if what not in self._warned and len(self._warned) < _MAX_WARNINGS:
            self._warned.add(what)
            _LOG.warning("%s: %s", self._path, what)

    def _refuse_headless(self) -> None:
        names = list(_names(self._text))
        if names and all(set(",;\t") & set(name) for name in names):
            raise RefusedError(
                f"{self._path}: looks like CSV, and then needs a first line that names the columns: name,uid,…"
            )


def distinct(records: Iterable[Record]) -> Iterator[Record]:
    """Yield the records without repetitions: of records of the same user and place, the first counts."""
    seen: set[tuple[str, ...]] = set()
    for record in records:
        identity = _identity(record)
        if identity not in seen:
            seen.add(identity)
            yield record


def _identity(record: Record) -> tuple[str, ...]:
    """What tells a record from others; of a plain list it is the name alone."""
    others = tuple(str(record.get(field, "")) for field in _OTHERS)
    return (str(record.get("name")), *(others if any(others) else ()))


def shown(cell: str) -> str:
    """Return a cell or a name as a message shows it: a cell may have any length, a message may not."""
    return cell if len(cell) <= _MAX_SHOWN else f"{cell[:_MAX_SHOWN]}…"


def _looks_like_csv(text: str) -> bool:
    header = text.partition("\n")[0]
    return any(
        cell.strip().strip('"').lower() in _NAME_COLUMNS
        for cell in header.replace(";", ",").replace("\t", ",").split(",")
    )


def _names(text: str) -> Iterator[str]:
    return (line for line in map(str.strip, io.StringIO(text)) if line and not line.startswith("#"))


def _record(row: dict[str, Any]) -> Record:
    record: Record = {}
    for field, cell in row.items():
        if field not in COLUMNS and field != _SURPLUS:
            continue
        # No text: the row is too short, or too long, and then it is a list.
        text = cell.strip() if isinstance(cell, str) else [one for one in cell or () if one.strip()]
        if field == "groups" and isinstance(text, str):
            record[field] = [group.strip() for group in text.split(";") if group.strip()]
        elif field in _NUMBERS and isinstance(text, str) and _is_number(text):
            record[field] = int(text)
        elif text or field == "name":
            record[field] = text
    return record


def _is_empty(record: Record) -> bool:
    return all(value in ("", []) for value in record.values())


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
