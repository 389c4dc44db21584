"""Every directory and link on the way to what root trusts is judged, and what was judged is what is opened."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.apply import run_directory
from ansible_bootstrap.apply.boundary import check_boundary
from ansible_bootstrap.errors import ApplyError, SettingsError
from ansible_bootstrap.settings import load_settings, make_settings
from ansible_bootstrap.state.directory import ensure_state_dir
from ansible_bootstrap.storage import _files, _homes, _mkhomedir_helper
from ansible_bootstrap.storage._errors import StorageError
from ansible_bootstrap.storage._sources import Source, check_path, open_path
from ansible_bootstrap.storage._ways import find_program, open_directory
from tests.unit.storage.conftest import MakeUser

STRANGER = 12_345


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """What root trusts, two directories below the one that is spoiled."""
    site = tmp_path / "srv/site"
    for name in ("volumes", "skel", "state", "run"):
        (site / name).mkdir(parents=True)
    (site / "run").chmod(0o700)
    (site / "program").write_text("#!/bin/sh\n")
    (site / "program").chmod(0o755)
    (site / "settings.yml").write_text("storage_root: /volumes")
    (site / "settings.yml").chmod(0o600)
    return site


def fill_home(site: Path, make_user: MakeUser) -> None:
    alice = make_user("alice")
    (site.parent.parent / "root").mkdir(exist_ok=True)
    alice["directory"] = str(site.parent.parent / "root/alice")
    options = _homes.Options(skeleton=str(site / "skel"))
    (result,) = _homes.ensure([alice], str(site.parent.parent / "root"), 1000, options, check=True).users
    if result["failed"]:
        raise StorageError(result["msg"])


def look(site: Path, key: str) -> None:
    """Check the boundary of settings that name one path of the site."""
    settings = make_settings({"storage_root": "/volumes", key: str(site / "volumes")}, "test")
    for finding in check_boundary(Path("/etc/passwd"), settings):
        if finding.what.startswith(str(site.parent)):
            raise StorageError(str(finding))


def run(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "base_path", lambda: site / "run")
    with run_directory.run_directory("one"):
        pass


WAYS: dict[str, Callable[..., Any]] = {
    "storage root": lambda site, *_: os.close(_files.open_root(str(site / "volumes"))),
    "storage root, boundary": lambda site, *_: look(site, "storage_root"),
    "skeleton of user_dir": lambda site, make_user, _: fill_home(site, make_user),
    "skeleton of mkhomedir": lambda site, *_: os.close(_mkhomedir_helper.open_skeleton(str(site / "skel"))),
    "script": lambda site, *_: find_program(str(site / "program"), "script", missing=""),
    "tutorial, a directory": lambda site, *_: check_path(Source("a", ("a",), path=str(site / "volumes"))),
    "tutorial, an archive": lambda site, *_: os.close(
        open_path(Source("a", ("a",), path=str(site / "program")))
    ),
    "mkhomedir_helper": lambda site, *_: _mkhomedir_helper.find_helper(str(site / "program")),
    "settings": lambda site, *_: load_settings(site / "settings.yml"),
    "settings of an embedded hub": lambda site, *_: load_settings(site / "settings.yml", private=True),
    "state_dir": lambda site, *_: ensure_state_dir(site / "state"),
    "state_dir that is made": lambda site, *_: ensure_state_dir(site / "new/state"),
    "run directories": lambda site, _, monkeypatch: run(site, monkeypatch),
}


def refusal(call: Callable[..., Any], *arguments: object) -> str:
    with pytest.raises((StorageError, SettingsError, ApplyError)) as caught:
        call(*arguments)
    error = caught.value
    return str(error) if isinstance(error, StorageError) else error.details


@pytest.mark.root
@pytest.mark.parametrize("what", WAYS)
def test_an_ancestor_of_a_strangers_is_named_and_the_command_mends_it(
    site: Path, what: str, make_user: MakeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stranger could rename what is below it away, and put a link to a directory of the system there."""
    for spoil in (
        lambda: os.chown(site.parent, STRANGER, 0),
        lambda: site.parent.chmod(0o777),
    ):
        WAYS[what](site, make_user, monkeypatch)
        spoil()
        said = refusal(WAYS[what], site, make_user, monkeypatch)
        assert str(site.parent) in said, said
        assert not (site / "new/deeper").exists()
        subprocess.run(shlex.split(re.findall("`([^`]+)`", said)[0]), check=True)


@pytest.mark.root
@pytest.mark.parametrize("what", WAYS)
def test_an_admins_link_is_followed_and_a_strangers_is_not(
    site: Path, what: str, make_user: MakeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = site.parent.parent / "stand-in"
    site.parent.rename(stand_in)
    site.parent.symlink_to("./stand-in/site/../../stand-in")
    WAYS[what](site, make_user, monkeypatch)
    os.lchown(site.parent, STRANGER, 0)
    assert f"chown -h root {site.parent}" in refusal(WAYS[what], site, make_user, monkeypatch)


def test_the_stand_in_is_not_touched(site: Path) -> None:
    """What a directory is renamed to while it is opened does not matter: the descriptor is what was judged."""
    opened, real = open_directory(str(site / "volumes/../volumes"), "storage root")
    (site / "volumes").rename(site / "away")
    (site / "volumes").mkdir()
    os.mkdir("made", dir_fd=opened)
    os.close(opened)
    assert real == str(site / "volumes")
    assert os.listdir(site / "away") == ["made"] and os.listdir(site / "volumes") == []


def test_a_sticky_directory_is_passed_but_is_no_end(site: Path) -> None:
    site.chmod(0o1777)
    os.close(open_directory(str(site / "skel"), "skeleton")[0])
    with pytest.raises(StorageError, match="is writable by everybody"):
        open_directory(str(site), "skeleton")


@pytest.mark.root
def test_a_group_of_its_own_may_write_above_what_is_no_roots(root: Path, as_user: Callable[..., Any]) -> None:
    """A volume of Kubernetes is root's, and its group's (``fsGroup``) to write; the hub is not root there."""
    os.chown(root, 0, STRANGER)
    root.chmod(0o2775)
    (root / "hub").mkdir(mode=0o700)
    os.chown(root / "hub", STRANGER, STRANGER)
    as_user(STRANGER, lambda: str(ensure_state_dir(root / "hub")))
    with pytest.raises(SettingsError, match="writable by group"):
        ensure_state_dir(root / "hub")


def test_nothing_is_made_below_what_is_refused(site: Path) -> None:
    site.chmod(0o775)
    with pytest.raises(SettingsError, match="chmod go-w"):
        ensure_state_dir(site / "a/b")
    assert not (site / "a").exists()


@pytest.mark.root
def test_a_directory_that_may_not_be_entered_is_a_sentence(site: Path, as_user: Callable[..., Any]) -> None:
    """Root has no rights on NFS where the server squashes it; here it is another account without rights."""
    site.parent.chmod(0o700)
    said = as_user(STRANGER, lambda: refusal(open_directory, str(site), "storage root"))
    assert "permission denied; let uid 12345 enter it" in said, said


def test_links_in_a_circle_end(site: Path) -> None:
    (site / "a").symlink_to("b")
    (site / "b").symlink_to("a")
    with pytest.raises(StorageError, match="too many symbolic links"):
        open_directory(str(site / "a/x"), "skeleton")


def test_no_descriptor_is_left_open(site: Path) -> None:
    (site / "link").symlink_to(site / "absent")
    before = os.listdir("/proc/self/fd")
    for path in (site / "link", site / "program", site / "skel", Path("relative")):
        with contextlib.suppress(StorageError):
            os.close(open_directory(str(path), "skeleton")[0])
    assert os.listdir("/proc/self/fd") == before
