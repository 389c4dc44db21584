"""What was done is done again exactly when something it depends on has changed."""

from __future__ import annotations

import os
import site as python_site
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.fingerprints import describe, installed
from ansible_bootstrap.settings import ApplySettings


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site's roles path with one role."""
    tasks = tmp_path / "roles/my_role/tasks"
    tasks.mkdir(parents=True)
    (tasks / "main.yml").write_text("[]\n")
    return tmp_path / "roles"


def fingerprints(site: Path, **changes: Any) -> dict[str, str]:
    settings = {
        "storage_root": "/volumes",
        "roles": ["user_dir", "tutorials", "my_role"],
        "roles_path": [str(site)],
        "extra_vars": {"user_dir_mode": "0755", "my_role_size": 1},
        **changes,
    }
    return {item.role: item.fingerprint for item in describe(ApplySettings.model_validate(settings))}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {role for role in before if before[role] != after[role]}


def test_nothing_changed_means_equal(site: Path) -> None:
    assert fingerprints(site) == fingerprints(site)


def test_a_built_in_roles_variable_concerns_it_and_the_sites_roles(site: Path) -> None:
    new = {"user_dir_mode": "0700", "my_role_size": 1}
    assert changed(fingerprints(site), fingerprints(site, extra_vars=new)) == {"user_dir", "my_role"}


def test_a_site_roles_file_concerns_the_sites_roles(site: Path) -> None:
    before = fingerprints(site)
    (site / "my_role/tasks/main.yml").write_text("- debug:\n")
    assert changed(before, fingerprints(site)) == {"my_role"}


def test_so_do_a_new_file_a_gone_one_and_a_script_made_executable(site: Path) -> None:
    script = site / "my_role/files/quota.sh"
    script.parent.mkdir()
    seen = [fingerprints(site)["my_role"]]
    script.write_text("#!/bin/sh\n")
    seen.append(fingerprints(site)["my_role"])
    script.chmod(0o755)
    seen.append(fingerprints(site)["my_role"])
    os.rename(script, script.with_name("limit.sh"))
    seen.append(fingerprints(site)["my_role"])
    assert len(set(seen)) == 4


@pytest.mark.parametrize("setting", [{"storage_root": "/other"}, {"uid": 1000, "gid": 100}])
def test_where_and_whose_concerns_every_role(site: Path, setting: dict[str, Any]) -> None:
    before = fingerprints(site)
    assert changed(before, fingerprints(site, **setting)) == set(before)


@pytest.mark.parametrize(
    ("variables", "revised"),
    [
        ({}, True),
        ({"script_when": "once"}, True),
        ({"script_when": "always"}, False),
        ({"script_when": "{{ x }}"}, False),
    ],
)
def test_a_program_that_is_run_each_time_is_never_done(variables: dict[str, Any], revised: bool) -> None:
    settings = ApplySettings(
        storage_root="/volumes", roles=("user_dir", "tutorials", "script"), extra_vars=variables
    )
    assert [(item.role, item.revised) for item in describe(settings)] == [
        ("user_dir", True),
        ("tutorials", True),
        ("script", revised),
    ]


def test_what_is_no_file_is_not_waited_at(site: Path) -> None:
    """To read a FIFO would wait for a writer, and /dev/zero has no end."""
    before = fingerprints(site)
    os.mkfifo(site / "my_role/tasks/fifo")
    (site / "my_role/tasks/zero").symlink_to("/dev/zero")
    assert changed(before, fingerprints(site)) == {"my_role"}


def test_a_package_that_is_replaced_is_another_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "site-packages"
    (packages / "jinja2-3.0.dist-info").mkdir(parents=True)
    os.utime(packages, (1, 1))  # so that no clock is too coarse to tell
    monkeypatch.setattr(python_site, "getsitepackages", lambda: [str(packages)])
    before = installed()
    assert installed() == before
    (packages / "jinja2-3.0.dist-info").rename(packages / "jinja2-3.1.dist-info")
    assert installed() != before
