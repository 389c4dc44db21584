"""Whatever happens to a file of SQLite's: it is kept under another name, said once, and made anew by the next writer."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import sqlite3
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hub_fakes import SeeingLedger as Ledger

from ansible_bootstrap.cli import main as cli
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import RoleFingerprint
from ansible_bootstrap.run_record import RunRecord
from ansible_bootstrap.state import history, ledger
from ansible_bootstrap.state import pending_cleanups as pending
from ansible_bootstrap.state.history import History
from ansible_bootstrap.state.ledger import completed
from ansible_bootstrap.state.pending_cleanups import CleanupFile

ALICE = Place("alice", "/volumes/alice", 1000, 100, "storage1")
ROLES = (RoleFingerprint(role="user_dir", fingerprint="1", revised=True),)


@dataclass
class File:
    path: Path
    write: Callable[[], Any]
    read: Callable[[], Any]
    lost: str


def _file(kind: str, state: Path) -> File:
    if kind == "ledger":
        books = Ledger(state)
        return File(
            state / ledger.FILE,
            lambda: books.complete([completed(ALICE, "", ROLES)]),
            lambda: books.look(ALICE),
            "everybody is bootstrapped once more",
        )
    if kind == "history":
        past = History(state)
        record = RunRecord("r1", "bootstrap", "storage1", time.time(), 1)
        return File(state / history.FILE, lambda: past.record(record), past.runs, "past runs are lost")
    waiting = CleanupFile(state)
    return File(
        state / pending.FILE,
        lambda: waiting.write({ALICE.job_key: ALICE}),
        waiting.read,
        "clean-ups that waited are lost",
    )


def _overwrite(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)


def _other_tables(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            database.execute(f"DROP TABLE {table}")
        database.execute("CREATE TABLE other (x)")
        database.execute(f"PRAGMA user_version = {version}")
        database.commit()


def _other_database(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE other (x)")
        database.commit()


def _later(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")


def _no_text_in_the_schema(path: Path) -> None:
    """What SQLite says of it is no UTF-8 either: an index is on a table that there is none of."""
    data = path.read_bytes()
    path.write_bytes(re.sub(rb"(CREATE INDEX \w+ ON .)\w", b"\\1\xd9", data))
    if path.read_bytes() == data:
        _overwrite(path)


def _no_text_in_the_rows(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for _, column, kind, *_ in database.execute(f"PRAGMA table_info({table})").fetchall():
                if kind == "TEXT" and column in {"place", "directory", "run"}:
                    database.execute(f"UPDATE {table} SET {column} = CAST(x'ff' AS TEXT)")
        database.commit()


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "zero bytes": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("this is no database " * 400),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "random bytes": _overwrite,
    "other tables": _other_tables,
    "another application's": _other_database,
    "a later version": _later,
    "no text in the schema": _no_text_in_the_schema,
    "no text in the rows": _no_text_in_the_rows,
}
SAID = set(DAMAGE) - {"zero bytes"}
"""What is more than an empty file."""


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", ["ledger", "history", "cleanups"])
def test_a_damaged_file_heals(
    kind: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state"
    file = _file(kind, state)
    file.write()
    assert file.read()
    path = file.path
    del file
    gc.collect()  # the connection that it keeps
    DAMAGE[damage](path)

    file = _file(kind, state)
    assert not file.read()
    with contextlib.suppress(sqlite3.DatabaseError):
        file.write()
    file.write()
    assert file.read()
    said = [record for record in caplog.records if file.lost in record.message]
    assert len(said) == (damage in SAID), caplog.text
    assert all(record.levelno == logging.WARNING for record in said)
    if damage in SAID:
        assert file.path.with_suffix(".broken").exists()


@pytest.mark.parametrize("kind", ["ledger", "history", "cleanups"])
def test_only_the_write_finds_the_damage(kind: str, tmp_path: Path) -> None:
    file = _file(kind, tmp_path / "state")
    file.write()
    DAMAGE["random bytes"](file.path)
    with contextlib.suppress(sqlite3.DatabaseError):
        file.write()
    file.write()
    file.write()  # A ledger notes nothing from before it was made anew.
    assert file.read()


@pytest.mark.root
def test_a_file_of_the_same_inode_on_another_disk_is_another_file(tmp_path: Path) -> None:
    """A disk that was mounted while the hub is up, say; what it reads is not of the disk below."""
    state = tmp_path / "state"
    state.mkdir()
    inodes: set[int] = set()
    mounted = 0
    try:
        for user in ("alice", "bob"):
            subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", state], check=True)
            mounted += 1
            Ledger(state).note([completed(replace(ALICE, name=user), "", ROLES)])
            inodes.add((state / ledger.FILE).stat().st_ino)
            if user == "alice":
                books = Ledger(state)
                assert books.recorded(ALICE)
        assert len(inodes) == 1
        assert books.recorded(ALICE) is None
        assert books.recorded(replace(ALICE, name="bob"))
    finally:
        for _ in range(mounted):
            subprocess.run(["umount", "--lazy", state], check=True)


@pytest.mark.parametrize("damage", DAMAGE)
def test_forget_and_accept_with_a_damaged_ledger(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.py"
    config.write_text(f"c.AnsibleBootstrap.state_dir = {str(tmp_path / 'state')!r}\n")
    for command in ("forget", "accept"):
        file = _file("ledger", tmp_path / "state")
        for _ in range(2):
            with contextlib.suppress(sqlite3.DatabaseError):
                file.write()
        path = file.path
        del file
        gc.collect()
        DAMAGE[damage](path)
        assert cli.main([command, "--config", str(config), "alice"]) in (0, 2)
        capsys.readouterr()
        status = cli.main([command, "--config", str(config), "alice"])
        assert status == 0 or "no hub has a ledger" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [*DAMAGE, "a directory"])
def test_status_with_a_damaged_history(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _file("history", tmp_path / "state")
    file.write()
    if damage == "a directory":
        file.path.unlink()
        file.path.mkdir()
    else:
        DAMAGE[damage](file.path)
    config = tmp_path / "config.py"
    config.write_text(f"c.AnsibleBootstrap.state_dir = {str(tmp_path / 'state')!r}\n")
    assert cli.main(["status", "--config", str(config)]) == (2 if damage == "a directory" else 0)
    assert "Traceback" not in capsys.readouterr().err
