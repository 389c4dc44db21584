"""The apply side's settings, and the file that they are believed from."""

from __future__ import annotations

import os

import pytest

from ansible_bootstrap.errors import SettingsError
from ansible_bootstrap.settings import load_settings, make_settings

LEAST = {"storage_root": "/volumes"}


def test_defaults():
    settings = make_settings(LEAST, "test")
    assert [role.role for role in settings.roles] == ["user_dir"]
    assert (settings.uid, settings.gid, settings.uid_min, settings.cleanup_roles) == ("nss", None, 1000, ())


def test_a_role_is_a_name_or_more():
    settings = make_settings(
        {**LEAST, "roles": ["a", {"role": "b", "on_failure": "continue", "per": "batch"}]}, "test"
    )
    assert [(role.role, role.on_failure, role.per) for role in settings.roles] == [
        ("a", "block", "user"),
        ("b", "continue", "batch"),
    ]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"storage_root": "volumes"}, "storage_root"),
        ({"storage_root": "/"}, "storage_root"),
        ({"storage_root": "/v/../etc"}, "storage_root"),
        ({"storage_root": None}, "storage_root"),
        ({"records_dir": "records"}, "records_dir"),
        ({"records_dir": "/volumes/records"}, "/volumes/records lies in the storage root /volumes"),
        ({"storage_roots": ["/data"], "records_dir": "/data"}, "/data lies in the storage root /data"),
        ({"work_as": "homes"}, "work_as"),
        ({"work_as": 2000}, "work_as is 2000, so all is that uid's: set uid to it, too"),
        ({"work_as": 2000, "uid": 2001, "gid": 2000}, "set uid to it"),
        ({"work_as": 2000, "uid": "request"}, "set uid to it"),
        ({"storage_roots": "/data"}, "storage_roots"),
        ({"storage_roots": ["data"]}, "storage_roots.0"),
        ({"storage_roots": ["/data", "/data"]}, "storage_roots: /data is given twice"),
        ({"storage_roots": ["/volumes/data"]}, "/volumes/data lies in /volumes"),
        ({"storage_root": "/data/home", "storage_roots": ["/data-2", "/data"]}, "/data/home lies in /data"),
        ({"role": []}, "role: Extra"),
        ({"roles": "user_dir"}, "roles"),
        ({"roles": [{"name": "a"}]}, "roles"),
        ({"roles": ["../a"]}, "roles"),
        ({"roles": ["a\n"]}, "roles"),
        ({"roles": [{"role": "a", "per": "host"}]}, "per"),
        ({"roles": ["one", {"role": "two", "per": "batch"}, "three"]}, "three is applied user by user"),
        ({"cleanup_roles": ["one", "user_dir", "three"]}, "three is applied user by user"),
        ({"roles_path": ["roles"]}, "absolute"),
        ({"roles_path": ["/a:/b"]}, "without ':'"),
        ({"uid": 0}, "uid"),
        ({"uid": "root"}, "uid"),
        ({"uid": 2**32 - 1}, "uid"),
        ({"uid_min": 0}, "uid_min"),
        ({"uid_min": 2000, "uid_max": 1999}, "uid_max is below uid_min"),
        ({"extra_vars": {"username": "x"}}, "username"),
        ({"extra_vars": {"bootstrap_users": []}}, "bootstrap_users"),
        ({"extra_vars": {"tutorials_users": []}}, "tutorials_users"),
        ({"extra_vars": {"user_dir": "/x"}}, "user_dir"),
        ({"extra_vars": {"user_uid": 1}}, "user_uid"),
        ({"task_timeout": 0}, "task_timeout"),
        ({"forks": 0}, "forks"),
    ],
)
def test_a_wrong_setting_is_named(wrong, said):
    with pytest.raises(SettingsError) as refused:
        make_settings({**LEAST, **wrong}, "the source")
    assert said in refused.value.details and refused.value.details.startswith("the source: ")


def test_a_roles_own_variables_are_the_admins():
    assert make_settings({**LEAST, "extra_vars": {"user_dir_skeleton": "/etc/skel"}}, "t").extra_vars


@pytest.mark.parametrize("raw", [None, [], "x", 7])
def test_what_is_no_mapping(raw):
    with pytest.raises(SettingsError):
        make_settings(raw, "test")


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "settings.yml"
    path.write_text("storage_root: /volumes\nroles: [user_dir]\n")
    path.chmod(0o600)
    assert load_settings(path, private=True).storage_root == "/volumes"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o660])
def test_the_embedded_hubs_file_is_nobody_elses_to_read(tmp_path, mode):
    path = tmp_path / "settings.yml"
    path.write_text("storage_root: /volumes")
    path.chmod(mode)
    with pytest.raises(SettingsError, match=r"chmod (600|go-w)"):
        load_settings(path, private=True)


def test_no_link_no_fifo_no_relative_path(tmp_path, monkeypatch):
    path = tmp_path / "settings.yml"
    path.write_text("storage_root: /volumes")
    path.chmod(0o600)
    link = tmp_path / "link.yml"
    link.symlink_to(path)
    fifo = tmp_path / "fifo.yml"
    os.mkfifo(fifo, 0o600)
    monkeypatch.chdir(tmp_path)
    for wrong in (link, fifo, tmp_path, tmp_path / "absent.yml", path.relative_to(tmp_path)):
        with pytest.raises(SettingsError):
            load_settings(wrong, private=True)


def test_a_directory_above_that_others_can_write(tmp_path):
    inside = tmp_path / "open" / "etc"
    inside.mkdir(parents=True)
    path = inside / "settings.yml"
    path.write_text("storage_root: /volumes")
    path.chmod(0o644)
    assert load_settings(path).storage_root == "/volumes"
    inside.parent.chmod(0o777)
    with pytest.raises(SettingsError, match=f"`chmod go-w {inside.parent}`"):
        load_settings(path)
    link = tmp_path / "etc"
    link.symlink_to(inside)
    with pytest.raises(SettingsError, match="chmod go-w"):
        load_settings(link / "settings.yml")
