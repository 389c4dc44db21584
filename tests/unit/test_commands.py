"""What the command line does with hostile arguments, closed pipes and another account's directories."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from ansible_bootstrap.cli import main as cli
from ansible_bootstrap.place import Place
from ansible_bootstrap.state.directory import hold_state_dir
from ansible_bootstrap.state.ledger import Ledger, completed

NO_TEXT = "al\udcff"
"""As Python has an argument of other bytes than UTF-8."""
ESCAPE = "\x1b[31mX"


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.py"
    path.write_text(f"c.AnsibleBootstrap.state_dir = {str(tmp_path / 'state')!r}\n")
    Ledger(tmp_path / "state").note([completed(Place("alice"), "", ())])
    return str(path)


@pytest.mark.parametrize("args", [["forget", "alice"], ["accept", "alice"], ["status"]])
def test_a_name_that_is_not_utf_8_is_refused_before_anything_is_done(
    args: list[str], config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*args, NO_TEXT, "--config", config]) == 2
    assert "not UTF-8, so nothing was done" in capsys.readouterr().err
    assert cli.main(["forget", "alice", "--config", config]) == 0
    assert "1 directory had a record" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["x" * 100_000, "x" * 100_000 + NO_TEXT])
@pytest.mark.parametrize("command", ["forget", "accept", "status"])
def test_a_name_of_any_length_is_cut_where_a_message_shows_it(
    command: str, name: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main([command, name, "--config", config])
    said = capsys.readouterr()
    assert 0 < len(said.out + said.err) < 500


@pytest.mark.parametrize(
    "args",
    [
        ["run", "--roster", ESCAPE],
        ["status", "--config", ESCAPE],
        ["status", "--config", "raises.py"],
        ["status", "--config", "elsewhere.py"],
        ["forget", "alice", "--config", "elsewhere.py"],
    ],
)
def test_nothing_is_printed_that_a_terminal_could_act_upon(
    args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("raises.py").write_text(f"raise ValueError({ESCAPE!r})")
    Path("elsewhere.py").write_text(f"c.AnsibleBootstrap.state_dir = {str(tmp_path / ESCAPE)!r}")
    cli.main(args)
    said = capsys.readouterr()
    assert "\\x1b[31mX" in said.err
    assert "\x1b" not in said.err + said.out


def test_a_reader_that_has_gone_says_nothing_against_the_history(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in ``status --json | head -1``."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def fileno(self) -> int:
            return spare

    spare = os.open(os.devnull, os.O_WRONLY)
    monkeypatch.setattr(sys, "stdout", Gone())
    assert cli.main(["status", "--json", "--config", config]) == 1
    assert "cannot be read" not in capsys.readouterr().err
    os.close(spare)


def test_the_default_directory_of_another_account_than_the_hubs_is_not_taken_for_the_hubs(
    tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a run of ``ansible-bootstrap run`` by root."""
    state = str(tmp_path / "state")
    for module in ("config", "state.directory"):
        monkeypatch.setattr(f"ansible_bootstrap.{module}.default_state_dir", lambda: state)
    Path(config).write_text("")
    for command in ("forget", "accept"):
        assert cli.main([command, "alice", "--config", config]) == 2
        said = capsys.readouterr().err
        assert f"no hub has a ledger in {state}" in said
        assert "run this as the hub's account" in said
    hold_state_dir(state)
    assert cli.main(["forget", "alice", "--config", config]) == 0
    assert "1 directory had a record" in capsys.readouterr().out
