"""Read a class list: one name a line, or CSV with a header."""

from __future__ import annotations

import csv
import io
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

_MAX_SHOWN: Final = 100


class Roster:
    """The records of a file. Each iteration reads them anew, so that a long list is never in memory as a whole.

    Args:
        path: UTF-8 text. If its first line has a column ``name`` or ``username`` it is CSV (comma,
            semicolon or tab), else a list of names, where blank lines and ``#`` comments are left
            out.

    Raises:
        RefusedError: the file cannot be read, or has a column that means nothing.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise RefusedError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
        self._path = path
        self._is_csv = _looks_like_csv(self._text)
        if self._is_csv:
            self._rows()
        else:
            self._refuse_headless()

    def __iter__(self) -> Iterator[Record]:
        if not self._is_csv:
            yield from ({"name": name} for name in _names(self._text))
            return
        try:
            yield from (record for record in map(_record, self._rows()) if not _is_empty(record))
        except csv.Error as error:  # A quote that is never closed, say, makes one cell of the rest.
            raise RefusedError(f"{self._path}: not CSV: {error}") from None

    def _rows(self) -> csv.DictReader[str]:
        header = self._text.partition("\n")[0]
        csv.field_size_limit(len(self._text) + 1)  # A cell of any size is its row's trouble.
        rows = csv.DictReader(
            io.StringIO(self._text),
            restkey="surplus cell",
            delimiter=max(",;\t", key=header.count),
            strict=True,
        )
        try:
            fields = [(field or "").strip().lower() for field in rows.fieldnames or ()]
        except csv.Error as error:
            raise RefusedError(f"{self._path}: not CSV: {error}") from None
        fields = ["name" if field == "username" else field for field in fields]
        unknown = [field for field in fields if field not in COLUMNS]
        if unknown:
            raise RefusedError(f"{self._path}: column {shown(unknown[0])!r} is none of {', '.join(COLUMNS)}")
        twice = [field for number, field in enumerate(fields) if field in fields[:number]]
        # An export with both "Name" and "Username" means people by the one and logins by the other.
        if twice:
            also = " (a column 'username' is one, too)" if twice[0] == "name" else ""
            raise RefusedError(f"{self._path}: two columns are {twice[0]!r}{also}: leave one out")
        rows.fieldnames = fields
        return rows

    def _refuse_headless(self) -> None:
        names = list(_names(self._text))
        if names and all(set(",;\t") & set(name) for name in names):
            raise RefusedError(
                f"{self._path}: looks like CSV, and then needs a first line that names the columns: name,uid,…"
            )


def distinct(records: Iterable[Record]) -> Iterator[Record]:
    """Yield the records without repetitions: of records of the same user and place, the first counts."""
    seen: set[str | tuple[str, ...]] = set()
    for record in records:
        other = tuple(str(record.get(field, "")) for field in _OTHERS)
        name = str(record.get("name"))
        # Of a plain list, nothing is kept but the names.
        identity: str | tuple[str, ...] = (name, *other) if any(other) else name
        if identity not in seen:
            seen.add(identity)
            yield record


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
