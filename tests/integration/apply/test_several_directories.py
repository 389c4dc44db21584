"""A user with several directories, all the way through the apply program and the playbook."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.integration.conftest import UID, Site

OWNER = UID if os.geteuid() == 0 else os.geteuid()


def _course(site: Site) -> dict[str, Any]:
    course = site.path / "course"
    course.mkdir()
    (course / "01.ipynb").touch()
    return {"tutorials_sources": [{"name": "course", "path": str(course), "dest": "course"}]}


def _user(root: Path, server: str = "") -> dict[str, Any]:
    """As a spawner mounts it: ``{username}``, ``work/{username}`` and ``{username}/{servername}``."""
    key = f"alice-{server}" if server else "alice"
    return {
        "name": "alice",
        "key": key,
        "directory": f"{root}/alice/{server}".rstrip("/"),
        "also": [f"{root}/work/alice"],
    }


def _everything(root: Path) -> dict[str, int]:
    found = (path for path in root.rglob("*") if ".ansible_bootstrap" not in path.parts)
    return {str(path.relative_to(root)): path.lstat().st_uid for path in found}


def test_all_directories_of_a_user_the_named_servers_first(site: Site, apply_program: Any) -> None:
    settings = site.settings(roles=["user_dir", "tutorials"], extra_vars=_course(site))
    users = [_user(site.root, "gpu")], [_user(site.root)], [_user(site.root, "cpu"), _user(site.root, "gpu")]
    for some in users:
        before = _everything(site.root)
        predicted = apply_program(some, settings=settings, check=True)
        assert predicted.status == 0, predicted
        assert _everything(site.root) == before
        for again in (False, True):
            answer = apply_program(some, settings=settings)
            assert answer.status == 0, answer
            first = answer.outcomes[some[0]["key"]]
            assert first["directory"] == some[0]["directory"]
            assert first["changed"] == ([] if again else ["user_dir", "tutorials"])
    everything = _everything(site.root)
    assert everything.pop("work") == os.geteuid()
    homes = ("alice", "alice/gpu", "alice/cpu")
    assert everything == dict.fromkeys(
        [
            *homes,
            "work/alice",
            *(f"{home}/course{file}" for home in homes for file in ("", "/01.ipynb")),
        ],
        OWNER,
    )


def test_with_ansible_alone(site: Site, playbook: Any) -> None:
    variables = {
        "bootstrap_batch": [_user(site.root), _user(site.root, "gpu")],
        "bootstrap_roles": ["user_dir"],
    }
    assert playbook("--check", **variables).changed == 1
    assert _everything(site.root) == {}
    for changed in (1, 0):
        play = playbook(**variables)
        assert (play.status, play.changed) == (0, changed), play.output
    assert {"alice", "alice/gpu", "work/alice"} < set(_everything(site.root))


def test_home_and_further_directory_below_different_storage_roots(
    site: Site, apply_program: Any, playbook: Any
) -> None:
    """As ``/home`` and ``/opt/data``; one of the two may be missing."""
    data = site.path / "data"
    data.mkdir()
    users = [
        {"name": "alice", "also": [f"{data}/alice"]},
        {"name": "bob", "directory": f"{data}/bob"},
        "carol",
    ]
    settings = site.settings(
        storage_roots=[str(data)], roles=["user_dir", "tutorials"], extra_vars=_course(site)
    )
    for check, changed in (
        (True, ["user_dir", "tutorials"]),
        (False, ["user_dir", "tutorials"]),
        (False, []),
    ):
        answer = apply_program(users, settings=settings, check=check)
        assert answer.status == 0, answer
        assert all(outcome["changed"] == changed for outcome in answer.outcomes.values())
    homes = {"alice", "carol"}, {"bob"}
    for place, names, more in zip((site.root, data), homes, (set(), {"alice"}), strict=True):
        courses = {f"{name}/course{file}" for name in names for file in ("", "/01.ipynb")}
        assert _everything(place) == dict.fromkeys(names | courses | more, OWNER)
    play = playbook(
        bootstrap_roots=str(data), bootstrap_batch=[{"name": "dave", "directory": f"{data}/dave"}]
    )
    assert (play.status, play.changed) == (0, 1), play.output

    data.rename(site.path / "gone")
    answer = apply_program([*users, "erin"], settings=settings)
    assert answer.ok == {"carol", "erin"}
    assert f"storage root {data} does not exist" in answer.outcomes["bob"]["message"]
    play = playbook(bootstrap_roots=[f"{site.root}/in"], bootstrap_batch=[{"name": "frank"}])
    assert play.status != 0
    assert f"{site.root}/in lies in {site.root}" in " ".join(play.output.split())
    assert not (site.root / "frank").exists()


def test_what_is_not_below_the_storage_root_is_named_with_both_paths_and_the_setting(
    site: Site, apply_program: Any
) -> None:
    answer = apply_program([{"name": "alice", "also": ["/elsewhere/alice"]}, "bob"], "user_dir")
    assert answer.ok == {"bob"}
    message = answer.outcomes["alice"]["message"]
    assert f"/elsewhere/alice is not below the storage root {site.root}: set storage_root" in message
    assert not (site.root / "alice").exists()


def test_the_second_of_two_users_with_one_new_directory_is_refused(site: Site, apply_program: Any) -> None:
    users = [{"name": name, "key": name, "directory": f"{site.root}/x"} for name in ("mallory", "victim")]
    answer = apply_program(users, settings=site.settings(roles=["user_dir"]))
    assert answer.outcomes["mallory"]["status"] == "ok", answer
    assert answer.outcomes["victim"]["status"] == "failed"
    assert "another user of this batch has the same directory" in answer.outcomes["victim"]["message"]
