"""A directory for each run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_bootstrap.apply import run_directory as module
from ansible_bootstrap.apply.run_directory import run_directory
from ansible_bootstrap.errors import ApplyError


@pytest.fixture(autouse=True)
def base(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "base"
    monkeypatch.setattr(module, "base_path", lambda: path)
    return path


def test_it_is_private_and_goes(base):
    old = os.umask(0)
    try:
        with run_directory("a") as path:
            assert path == base / "a"
            assert path.stat().st_mode & 0o777 == base.stat().st_mode & 0o777 == 0o700
            (path / "sub").mkdir()
            (path / "sub/file").touch()
    finally:
        os.umask(old)
    assert base.is_dir() and not list(base.iterdir())


def test_it_goes_also_when_the_run_fails(base):
    with pytest.raises(KeyError), run_directory("a"):
        raise KeyError
    assert not list(base.iterdir())


def test_a_dead_runs_directory_is_swept_a_living_ones_is_not(base):
    code = "import time; from pathlib import Path; import ansible_bootstrap.apply.run_directory as m\n"
    code += f"m.base_path = lambda: Path({str(base)!r})\n"
    code += "with m.run_directory('other'): print('made', flush=True); time.sleep(600)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with run_directory("mine"):
            assert {path.name for path in base.iterdir()} == {"mine", "other"}
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    assert (base / "other").is_dir()
    with run_directory("mine"):
        assert {path.name for path in base.iterdir()} == {"mine"}


def test_one_that_was_killed_while_it_was_made_is_swept(base):
    (base / "half").mkdir(parents=True)
    base.chmod(0o700)
    with run_directory("mine"):
        assert {path.name for path in base.iterdir()} == {"mine"}


def test_no_run_takes_anothers_name(base):
    with run_directory("a"), pytest.raises(ApplyError, match="File exists"), run_directory("a"):
        pass


@pytest.mark.parametrize("spoil", ["open", pytest.param("link", marks=pytest.mark.root), "file"])
def test_a_base_that_another_could_have_made_is_refused(base, tmp_path, spoil):
    if spoil == "open":
        base.mkdir(mode=0o755)
    elif spoil == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        base.symlink_to(tmp_path / "elsewhere")
        os.lchown(base, 12345, 0)
    else:
        base.write_text("")
    with pytest.raises(ApplyError, match="base"), run_directory("a"):
        pass
    assert not list((tmp_path / "elsewhere").iterdir() if spoil == "link" else [])
