"""The hub's own disk was read-only for a while: the ledger is written again, without a restart of the hub."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import RoleFingerprint
from ansible_bootstrap.state.ledger import Ledger, completed
from tests.faults.conftest import small

KILLED = """
import os, sys
from ansible_bootstrap.state.ledger import Ledger
ledger = Ledger(sys.argv[1])
ledger.note([])
ledger.places("nobody", "")
ledger.note([])
os._exit(0)
"""


def test_a_ledger_that_was_read_only_is_written_again(tmp_path: Path) -> None:
    def note(name: str) -> None:
        place = Place(name, directory=f"/homes/{name}", storage_host="localhost")
        ledger.note([completed(place, "", [RoleFingerprint(role="user_dir", fingerprint="1", revised=True)])])
        assert ledger.recorded(place)

    with small(tmp_path, "size=16m"), contextlib.ExitStack() as at_end:
        # A hub that was killed leaves the files of its WAL.
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "state")], check=True)
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        ledger = Ledger(tmp_path / "state")
        at_end.callback(ledger._file._let_go)
        nobody = Place("nobody", directory="/homes/nobody", storage_host="localhost")
        for _ in range(2):
            with pytest.raises(Exception, match=r"(?i)read-?only|unable to open"):
                note("alice")
            try:
                ledger.recorded(nobody)  # A login, meanwhile.
            except Exception as error:
                assert "unable to open" in str(error)
        subprocess.run(["mount", "-o", "remount,rw", str(tmp_path)], check=True)
        try:
            note("alice")
        except Exception as error:
            assert "readonly" in str(error)  # Found out by the first that writes, at most.
        note("bob")
