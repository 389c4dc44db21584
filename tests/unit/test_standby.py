"""The apply program before its request: what it made ready is used only where it is whole and of today."""

from __future__ import annotations

import os
import select
import site
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap import run_directory, runner, standby
from ansible_bootstrap.settings import ApplySettings


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs have their directories."""
    monkeypatch.setattr(run_directory, "base_path", lambda: tmp_path / "runs")
    monkeypatch.setattr(select, "select", lambda *_: None)
    monkeypatch.setattr(standby, "_can_be_read", lambda _: True)
    return tmp_path / "runs"


def test_a_directory_in_which_the_engine_could_not_be_made_ready_is_not_the_runs(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ansible-runner finds in ``env`` counts more for it than what it is given."""

    def surroundings(_: ApplySettings, directory: Path) -> Any:
        (directory / "env").mkdir()
        (directory / "env" / "envvars").write_text('{"ANSIBLE_ROLES_PATH": "/of/settings/that/were"}')
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner, "surroundings", surroundings)
    said: list[str] = []
    imported: Any = object()
    with standby.Standby(said.append, imported, standby.installed()) as ready:
        assert ready.wait(lambda: ApplySettings(storage_root="/volumes"), []) is True
        assert (ready.directory, ready.engine) == (None, None)
        assert list(base.iterdir()) == []
    assert said == ["the next run starts cold: [Errno 28] No space left on device"]


def test_a_package_that_is_replaced_is_another_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "site-packages"
    (packages / "jinja2-3.0.dist-info").mkdir(parents=True)
    os.utime(packages, (1, 1))  # so that no clock is too coarse to tell
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(packages)])
    before = standby.installed()
    assert standby.installed() == before
    (packages / "jinja2-3.0.dist-info").rename(packages / "jinja2-3.1.dist-info")
    assert standby.installed() != before
