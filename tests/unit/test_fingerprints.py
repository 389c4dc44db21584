"""What was done is done again exactly when something it depends on has changed."""

from __future__ import annotations

import os
import site as python_site
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.fingerprints import describe, installed
from ansible_bootstrap.protocol import RoleFingerprint
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


def test_a_variable_that_names_another_depends_on_it(site: Path) -> None:
    def tutorials(**extra_vars: Any) -> RoleFingerprint:
        given = {"tutorials_sources": "{{ course_sources }}", **extra_vars}
        settings = ApplySettings(storage_root="/v", roles=["tutorials"], extra_vars=given)  # type: ignore[arg-type]
        return describe(settings)[0]

    week1, week2 = (tutorials(course_sources=[{"name": "c", "path": path}]) for path in ("/week1", "/week2"))
    assert week1.fingerprint != week2.fingerprint
    assert week1.revised
    assert week1 == tutorials(course_sources=[{"name": "c", "path": "/week1"}])


@pytest.mark.parametrize("text", ["{{ lookup('file', '/list') }}", "{{ query('env', 'X') }}", "{{ now() }}"])
@pytest.mark.parametrize("role", ["tutorials", "my_role"])
def test_a_lookup_is_never_done_with(site: Path, role: str, text: str) -> None:
    given = {"tutorials_sources": "{{ course_sources }}", "course_sources": text}
    settings = ApplySettings(storage_root="/v", roles=[role], roles_path=[str(site)], extra_vars=given)  # type: ignore[arg-type]
    assert not describe(settings)[0].revised


def test_with_an_inventory_a_template_may_mean_anything(site: Path) -> None:
    given = {"user_dir_mode": "{{ mode_here }}"}
    alone = ApplySettings(storage_root="/v", extra_vars=given)
    assert describe(alone)[0].revised
    assert not describe(alone.model_copy(update={"inventory": "hosts,"}))[0].revised


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
