"""Settings: which side owns them, how they are handed over, and what is refused."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config

from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.errors import SettingsError
from ansible_bootstrap.settings import load_settings
from ansible_bootstrap.state.directory import hold_state_dir


def settings(path: Path, **given: Any) -> AnsibleBootstrap:
    return AnsibleBootstrap(config=Config({"AnsibleBootstrap": {"state_dir": str(path / "state"), **given}}))


def test_the_embedded_program_is_handed_what_was_set_and_no_more(tmp_path: Path) -> None:
    config = settings(
        tmp_path, storage_root="/v", uid=1000, roles=["user_dir", {"role": "x", "per": "batch"}]
    )
    argv = config.apply_argv()
    file = Path(argv[-1])
    assert file.parent == tmp_path / "state"
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
        file = Path(settings(tmp_path, storage_root="/v").apply_argv()[-1])
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.stat()
    settings(tmp_path, storage_root="/v").apply_argv()
    assert file.stat().st_ino == before.st_ino
    file.chmod(0o644)
    settings(tmp_path, storage_root="/v").apply_argv()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_other_settings_are_another_file_and_changed_ones_are_not_believed(tmp_path: Path) -> None:
    one, other = (Path(settings(tmp_path, storage_root=root).apply_argv()[-1]) for root in ("/v", "/w"))
    assert load_settings(one, private=True).storage_root == "/v"
    assert load_settings(other, private=True).storage_root == "/w"
    one.write_text(other.read_text())
    with pytest.raises(SettingsError, match="changed"):
        load_settings(one, private=True)
    settings(tmp_path, storage_root="/v").apply_argv()
    assert load_settings(one, private=True).storage_root == "/v"


def test_a_directory_is_one_hubs_and_settings_that_nobody_uses_go(tmp_path: Path) -> None:
    file = Path(settings(tmp_path, storage_root="/v").apply_argv()[-1])
    old = Path(settings(tmp_path, storage_root="/old").apply_argv()[-1])
    os.utime(old, (1, 1))
    hub = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys; from ansible_bootstrap.state.directory import hold_state_dir\n"
            "hold_state_dir(sys.argv[1]); print('has it', flush=True); sys.stdin.read()",
            str(tmp_path / "state"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert hub.stdout is not None and hub.stdout.readline() == b"has it\n"
    assert file.exists() and not old.exists()
    with pytest.raises(SettingsError, match=rf"another hub \(process {hub.pid}\)"):
        hold_state_dir(tmp_path / "state")
    hub.kill()
    hub.communicate()
    hold_state_dir(tmp_path / "state")
    hold_state_dir(tmp_path / "state")  # again in the same process: it has it already


def test_a_planted_link_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "state").mkdir(mode=0o700)
    name = settings(tmp_path / "elsewhere", storage_root="/v").apply_argv()[-1].rpartition("/")[2]
    (tmp_path / "state" / name).symlink_to(victim)
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


def test_what_is_added_to_a_default_is_not_lost(tmp_path: Path) -> None:
    c = Config()
    c.AnsibleBootstrap.storage_root = "/v"
    c.AnsibleBootstrap.roles.append("tutorials")
    c.AnsibleBootstrap.extra_vars.update({"user_dir_mode": "0700"})
    assert AnsibleBootstrap(config=c).apply_settings() == {
        "storage_root": "/v",
        "roles": ["user_dir", "tutorials"],
        "extra_vars": {"user_dir_mode": "0700"},
    }


@pytest.mark.parametrize(
    "names", [("PATH",), ("ANSIBLE_CONFIG",), ("https_proxy", "LD_PRELOAD"), ("HOME\n",)]
)
def test_only_proxies_and_authorities_go_into_the_environment(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match="environment"):
        settings(tmp_path, storage_root="/v", environment=dict.fromkeys(names, "x")).check()
    settings(tmp_path, storage_root="/v", environment={"https_proxy": "http://p:3128"}).check()


def test_the_digest_of_places_tells_what_a_function_does_and_what_was_added() -> None:
    def of(config: Config) -> str:
        return AnsibleBootstrap(config=config).place_digest()

    def place(directory: str) -> Config:
        return Config({"AnsibleBootstrap": {"place": lambda spawner: {"directory": directory}}})

    def added(directory: str) -> Config:
        config = Config()
        config.DockerSpawner.volumes.update({directory: "/home/jovyan/work"})
        return config

    assert of(place("/a")) == of(place("/a")) != of(place("/b"))
    assert of(added("/a")) == of(added("/a")) != of(added("/b"))
    one = Config({"AnsibleBootstrap": {"place": lambda spawner: {"uid": 1}}})
    other = Config({"AnsibleBootstrap": {"place": lambda spawner: {"uid": 2}}})
    assert of(one) != of(other)


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
    file = Path(config.apply_argv()[-1])
    good = config.spare_wanted()
    assert good == settings(tmp_path, storage_root="/v").spare_wanted()
    file.chmod(0o644)
    assert config.spare_wanted() != good
    file.unlink()
    assert config.spare_wanted() != good
    config.apply_argv()
    assert config.spare_wanted() == good
