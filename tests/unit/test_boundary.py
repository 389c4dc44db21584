"""What another account could change is found, wherever on the way it is; as anybody, on trees of the test's own."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_bootstrap.apply import boundary
from ansible_bootstrap.apply.boundary import Finding, check_boundary, enforce_boundary
from ansible_bootstrap.errors import SettingsError
from ansible_bootstrap.settings import ApplySettings, make_settings


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An admin's directory with all that settings can name; the program itself is not what is tested."""
    monkeypatch.setattr(boundary, "_program", lambda: iter(()))
    site = tmp_path / "site"
    for name in (
        "roles/quota/tasks/main.yml",
        "hosts/inventory.yml",
        "hosts/group_vars/all.yml",
        "skel/.bashrc",
        "real/x",
    ):
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (site / "settings.yml").write_text(f"storage_root: {site}\n")
    (site / "collections/ansible_collections/acme/tools").mkdir(parents=True)
    for path in [site, *site.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return site


def settings(site: Path, **more: object) -> ApplySettings:
    raw = {
        "storage_root": str(site),
        "roles_path": [f"{site}/roles"],
        "collections_path": [f"{site}/collections"],
        "inventory": f"{site}/hosts/inventory.yml",
        "extra_vars": {"user_dir_skeleton": f"{site}/skel", "course": f"{site}/open", "a_script": "{{ x }}"},
        **more,
    }
    return make_settings(raw, "test")


def found(site: Path, **more: object) -> list[Finding]:
    """What is found below the site; above it is the machine's own affair."""
    return [
        finding
        for finding in check_boundary(site / "settings.yml", settings(site, **more))
        if finding.what.startswith(str(site))
    ]


def test_a_sound_site_has_nothing_to_mend(site: Path) -> None:
    assert found(site) == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        "settings.yml",
        "roles",
        "roles/quota",
        "roles/quota/tasks/main.yml",
        "collections/ansible_collections",
        "collections/ansible_collections/acme/tools",
        "hosts",
        "hosts/inventory.yml",
        "hosts/group_vars/all.yml",
        "skel/.bashrc",
    ],
)
@pytest.mark.parametrize("bit", [0o020, 0o002])
def test_what_others_may_write_is_named_and_the_command_mends_it(site: Path, name: str, bit: int) -> None:
    path = site / name
    path.chmod(path.stat().st_mode | bit)
    (finding,) = found(site)
    assert (finding.what, finding.severity) == (str(path), "error")
    assert ("everybody" in finding.why) == (bit == 0o002)
    subprocess.run(shlex.split(finding.mend), check=True)
    assert found(site) == []


@pytest.mark.root
@pytest.mark.parametrize("name", ["settings.yml", "roles/quota", "hosts", "skel/.bashrc"])
def test_what_another_owns_is_named_and_the_command_mends_it(site: Path, name: str) -> None:
    os.chown(site / name, 12345, 0)
    (finding,) = found(site)
    assert finding.what == str(site / name) and "uid 12345" in finding.why
    subprocess.run(shlex.split(finding.mend), check=True)
    assert found(site) == []


def test_each_storage_root_and_the_place_of_the_records_is_looked_at(site: Path) -> None:
    places = {
        "storage_root": f"{site}/home",
        "storage_roots": [f"{site}/data"],
        "records_dir": f"{site}/records",
    }
    for name in ("home", "data/.ansible_bootstrap", "records"):
        (site / name).mkdir(parents=True)
    assert found(site, **places) == []
    for name in ("home", "data", "data/.ansible_bootstrap", "records"):
        (site / name).chmod(0o777)
        assert [finding.what for finding in found(site, **places)] == [f"{site}/{name}"]
        (site / name).chmod(0o755)


@pytest.mark.root
def test_a_storage_root_may_be_the_uids_that_all_is_done_as_and_the_way_to_it_may_not(site: Path) -> None:
    (site / "above/nfs").mkdir(parents=True)
    os.chown(site / "above/nfs", 2000, 2000)
    squashed = {"storage_root": f"{site}/above/nfs", "uid": 2000, "gid": 2000}
    assert [finding.what for finding in found(site, **squashed)] == [f"{site}/above/nfs"]
    assert found(site, **squashed, work_as=2000) == []
    os.chown(site / "above", 2000, 2000)
    assert [finding.what for finding in found(site, **squashed, work_as=2000)] == [f"{site}/above"]


def test_links_are_followed_to_what_they_lead_through(site: Path) -> None:
    away = site / "away"
    away.mkdir(mode=0o755)
    (site / "real").rename(away / "real")
    (site / "step").symlink_to("away/../away")
    (site / "link").symlink_to(site / "step/real")
    assert found(site, roles_path=[f"{site}/link"]) == []
    (away / "real").chmod(0o777)
    away.chmod(0o775)
    assert {finding.what for finding in found(site, roles_path=[f"{site}/link"])} == {
        str(away),
        str(away / "real"),
    }


def test_a_link_inside_a_tree_is_followed_too(site: Path) -> None:
    (site / "roles/quota/files").symlink_to(site / "real")
    (site / "real").chmod(0o777)
    assert [finding.what for finding in found(site)] == [str(site / "real")]


@pytest.mark.root
def test_a_link_that_another_owns_can_lead_anywhere_tomorrow(site: Path) -> None:
    (site / "link").symlink_to(site / "real")
    os.lchown(site / "link", 12345, 0)
    (finding,) = found(site, roles_path=[f"{site}/link"])
    assert finding.mend == f"chown -h root {site}/link"


def test_in_a_sticky_directory_what_is_there_is_safe_and_what_is_missing_is_not(site: Path) -> None:
    sticky = site / "sticky"
    (sticky / "roles").mkdir(parents=True, mode=0o755)
    sticky.chmod(0o1777)
    assert found(site, roles_path=[f"{sticky}/roles"]) == []
    assert [finding.what for finding in found(site, roles_path=[f"{sticky}/other"])] == [str(sticky)]
    assert [finding.what for finding in found(site, roles_path=[str(sticky)])] == [str(sticky)]


def test_links_in_a_circle_are_reported(site: Path) -> None:
    (site / "a").symlink_to("b")
    (site / "b").symlink_to("a")
    (finding,) = found(site, roles_path=[f"{site}/a"])
    assert "too many symbolic links" in finding.why


def test_what_is_not_there_or_no_path_is_nobodys(site: Path) -> None:
    assert found(site, roles_path=[f"{site}/absent"], inventory="storage1,storage2") == []


def test_settings_that_cannot_be_read_are_a_finding(site: Path) -> None:
    absent = site / "absent.yml"
    (finding,) = (finding for finding in check_boundary(absent) if finding.what == str(absent))
    assert "does not exist" in finding.why


def test_the_program_itself_is_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A writable directory of the import path is a finding; without one, this test's own interpreter passes or names itself."""
    opened = tmp_path / "modules"
    opened.mkdir()
    opened.chmod(0o777)
    monkeypatch.syspath_prepend(str(opened))
    assert str(opened) in {finding.what for finding in check_boundary(tmp_path / "none.yml")}
    paths = {str(path) for path in boundary._program()}
    for name in ("ansible-playbook", "pyvenv.cfg", "jupyterhub/roles", "/ansible_bootstrap", "/usr/bin"):
        assert any(path.endswith(name) for path in paths), name


def test_the_apply_program_refuses_with_the_first_and_how_to_see_the_rest(site: Path) -> None:
    def refusal() -> str:
        with pytest.raises(SettingsError) as caught:
            enforce_boundary(site / "settings.yml", settings(site))
        return caught.value.details

    (site / "roles/quota").chmod(0o777)
    first = refusal()
    assert f"`chmod go-w {site}/roles/quota`" in first
    (site / "skel").chmod(0o777)
    assert "ansible_bootstrap.apply.boundary` lists them)" in refusal()


def test_the_check_is_cheap_enough_for_every_start(site: Path, benchmark_calls: Callable[[], int]) -> None:
    """It grows with what the admin made, not with what is installed."""
    check_boundary(site / "settings.yml", settings(site))
    assert benchmark_calls() < 300


@pytest.fixture
def benchmark_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    calls = []
    real = os.lstat

    def counting(path: str) -> os.stat_result:
        calls.append(path)
        return real(path)

    monkeypatch.setattr(boundary.os, "lstat", counting)
    return lambda: len(calls)
