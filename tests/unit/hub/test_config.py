"""Settings: whose they are, how they are handed over, and what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config

from ansible_bootstrap.bulk import bootstrap_all
from ansible_bootstrap.config import SETTINGS_FILE, AnsibleBootstrap
from ansible_bootstrap.errors import SettingsError
from ansible_bootstrap.protocol import Outcome
from ansible_bootstrap.settings import load_settings


def settings(path: Path, **given: Any) -> AnsibleBootstrap:
    return AnsibleBootstrap(config=Config({"AnsibleBootstrap": {"state_dir": str(path / "state"), **given}}))


def test_the_embedded_program_is_handed_what_was_set_and_no_more(tmp_path: Path) -> None:
    config = settings(
        tmp_path, storage_root="/v", uid=1000, roles=["user_dir", {"role": "x", "per": "batch"}]
    )
    argv = config.apply_argv()
    file = tmp_path / "state" / SETTINGS_FILE
    assert argv == [sys.executable, "-I", "-m", "ansible_bootstrap.apply", "--settings", str(file)]
    assert json.loads(file.read_text()) == {
        "storage_root": "/v",
        "uid": 1000,
        "roles": ["user_dir", {"role": "x", "per": "batch"}],
    }
    assert load_settings(file).roles[1].per == "batch"


def test_the_file_is_private_and_rewritten_only_when_something_changed(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        settings(tmp_path, storage_root="/v").apply_argv()
    finally:
        os.umask(old)
    file = tmp_path / "state" / SETTINGS_FILE
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.stat()
    settings(tmp_path, storage_root="/v").apply_argv()
    assert file.stat().st_ino == before.st_ino
    file.chmod(0o644)
    settings(tmp_path, storage_root="/v").apply_argv()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    settings(tmp_path, storage_root="/w").apply_argv()
    assert json.loads(file.read_text()) == {"storage_root": "/w"}
    assert os.listdir(file.parent) == [SETTINGS_FILE]


def test_a_planted_link_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / SETTINGS_FILE).symlink_to(victim)
    settings(tmp_path, storage_root="/v").apply_argv()
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("mode", [0o770, 0o777])
def test_a_state_directory_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(mode)
    with pytest.raises(SettingsError, match="state_dir"):
        settings(tmp_path, storage_root="/v").apply_argv()


def test_behind_a_boundary_the_other_sides_settings_are_refused_here(tmp_path: Path) -> None:
    config = settings(tmp_path, apply_command=["sudo", "-n", "x"], uid=1000, cleanup_roles=["y"])
    with pytest.raises(SettingsError) as caught:
        config.check()
    for word in (
        "c.AnsibleBootstrap.uid",
        "c.AnsibleBootstrap.cleanup_roles",
        "/etc/ansible-bootstrap/settings.yml",
    ):
        assert word in caught.value.details
    assert settings(tmp_path, apply_command=["sudo", "-n", "x"]).apply_argv() == ["sudo", "-n", "x"]
    assert not (tmp_path / "state").exists()


def test_a_misspelt_setting_is_named_with_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"c\.AnsibleBootstrap\.storage_rot.*'storage_root'"):
        settings(tmp_path, storage_rot="/v").check()


def test_the_embedded_program_needs_a_storage_root(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="storage_root"):
        settings(tmp_path).check()


def test_extra_vars_that_are_not_json_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="extra_vars"):
        settings(tmp_path, storage_root="/v", extra_vars={"x": object()}).apply_argv()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"cleanup_delay": 3}, None),  # There is nothing to run.
        ({"cleanup_roles": ["x"]}, 5.0),
        ({"cleanup_roles": ["x"], "cleanup_delay": 3}, 3.0),
        ({"apply_command": ["x"]}, None),
        ({"apply_command": ["x"], "cleanup_delay": 3}, 3.0),
    ],
)
def test_when_there_is_something_to_clean_up(tmp_path: Path, given: Any, expected: float | None) -> None:
    assert settings(tmp_path, **given).effective_cleanup_delay() == expected


def test_a_spare_is_not_wanted_any_more_when_its_settings_file_is_gone_or_open_to_others(
    tmp_path: Path,
) -> None:
    """It would read it again, and refuse everybody."""
    config = settings(tmp_path, storage_root="/v")
    config.apply_argv()
    good = config.spare_wanted()
    assert good == settings(tmp_path, storage_root="/v").spare_wanted()
    file = tmp_path / "state" / SETTINGS_FILE
    file.chmod(0o644)
    assert config.spare_wanted() != good
    file.unlink()
    assert config.spare_wanted() != good
    config.apply_argv()
    assert config.spare_wanted() == good


def test_a_command_beside_the_hub_leaves_the_hubs_file_alone(tmp_path: Path) -> None:
    settings(tmp_path, storage_root="/hub").apply_argv()
    config = settings(tmp_path, storage_root="/newer", roles=["user_dir"])
    config.apply_argv = lambda file=SETTINGS_FILE, write=config.apply_argv: [
        *write(file)[:0],
        "/no/such/program",
    ]  # type: ignore[method-assign]
    outcomes: list[Outcome] = []
    record = {"name": "alice", "directory": "/newer/alice", "uid": 1000, "gid": 100}
    asyncio.run(bootstrap_all(config, [record], lambda outcome, _: outcomes.append(outcome)))
    assert [outcome.status for outcome in outcomes] == ["failed"]
    assert json.loads((tmp_path / "state" / SETTINGS_FILE).read_text()) == {"storage_root": "/hub"}
