"""Read a class list: one name a line, or CSV with a header."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, Final

from .errors import RefusedError

COLUMNS: Final = ("name", "key", "directory", "uid", "gid", "storage_host", "groups")
"""Columns of a CSV roster; only ``name`` (or ``username``) must be there. ``groups`` are split at ``;``."""

_NAME_COLUMNS: Final = ("name", "username")
_NUMBERS: Final = ("uid", "gid")


def read_roster(path: Path) -> list[dict[str, Any]]:
    """Return one record per user, unvalidated: a bad row must cost only itself.

    Args:
        path: UTF-8 text. If its first line has a column ``name`` or ``username`` it is CSV (comma,
            semicolon or tab), else a list of names, where blank lines and ``#`` comments are left
            out. A name that repeats counts once.

    Raises:
        RefusedError: the file cannot be read, or has a column that means nothing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    records = _csv(path, text) if _looks_like_csv(text) else _lines(path, text)
    return distinct(records)


def distinct(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records without those that ask for the same again: the last one counts."""
    return list({_identity(record): record for record in records}.values())


def _looks_like_csv(text: str) -> bool:
    header = text.partition("\n")[0]
    return any(
        cell.strip().strip('"').lower() in _NAME_COLUMNS
        for cell in header.replace(";", ",").replace("\t", ",").split(",")
    )


def _lines(path: Path, text: str) -> list[dict[str, Any]]:
    names = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    if names and all(set(",;\t") & set(line) for line in names):
        raise RefusedError(
            f"{path}: looks like CSV, and then needs a first line that names the columns: name,uid,…"
        )
    return [{"name": name} for name in names]


def _csv(path: Path, text: str) -> list[dict[str, Any]]:
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    rows = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    fields = [(field or "").strip().lower() for field in rows.fieldnames or ()]
    fields = ["name" if field == "username" else field for field in fields]
    unknown = [field for field in fields if field not in COLUMNS]
    if unknown:
        raise RefusedError(f"{path}: column {unknown[0]!r} is none of {', '.join(COLUMNS)}")
    rows.fieldnames = fields
    return [_record(row) for row in rows if any(row.values())]


def _record(row: dict[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for field, cell in row.items():
        text = cell.strip() if isinstance(cell, str) else cell
        if text in (None, "") and field != "name":
            continue
        if field in _NUMBERS and isinstance(text, str) and text.isascii() and text.isdigit():
            record[field] = int(text)
        elif field == "groups" and isinstance(text, str):
            record[field] = [group.strip() for group in text.split(";") if group.strip()]
        else:
            record[field if isinstance(field, str) else "surplus cell"] = text
    return record


def _identity(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(str(record.get(field)) for field in ("name", "key", "directory", "storage_host"))
