"""The playbook by itself: ``ansible-playbook ansible_bootstrap.jupyterhub.bootstrap -e username=alice``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import SOMEBODY

CHECKOUT = Path(__file__).resolve().parents[3]
HOME = {
    "name": "Make a file of the user's",
    "ansible.builtin.copy": {
        "content": "for {{ username }}\n",
        "dest": "{{ kept }}/{{ username }}",
        "mode": "0600",
    },
}


@pytest.fixture
def kept(site) -> Path:
    return site.told


def test_twice_for_one_user(site, playbook, kept):
    """A role of ours and one of the site's: predict, converge, converge again."""
    site.role("home", HOME)
    variables = {"username": "alice", "bootstrap_roles": ["user_dir", "home"], "kept": str(kept)}

    predicted = playbook("--check", **variables)
    assert (predicted.status, predicted.changed) == (0, 2), predicted.output
    assert not list(kept.iterdir()) and not list(site.root.iterdir())

    first = playbook(**variables)
    assert (first.status, first.changed) == (0, 2), first.output
    assert (kept / "alice").read_text() == "for alice\n"
    owner = (site.root / "alice").stat()
    assert os.geteuid() != 0 or (owner.st_uid, owner.st_gid) == (20_000, 20_000)

    again = playbook(**variables)
    assert (again.status, again.changed) == (0, 0), again.output


def test_a_batch_of_ours_and_the_sites(site, playbook, kept):
    """user_dir refuses one; the site's role is not applied to them, and the others have both."""
    site.role("home", HOME)
    (site.root / "mallory").symlink_to("/etc")
    names = ["all", "localhost", "mallory", "waiting"]
    play = playbook(
        bootstrap_batch=[{"name": name} for name in names],
        bootstrap_roles=["user_dir", "home"],
        kept=str(kept),
    )
    assert play.status != 0 and "1 of 4 users failed: mallory" in play.output
    assert sorted(path.name for path in kept.iterdir()) == ["all", "localhost", "waiting"]
    assert all((site.root / name).is_dir() for name in names)


def test_the_words_of_the_shell(site, kept):
    """``-e key=value`` gives text where JSON gives numbers."""
    site.role("home", HOME)
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible-playbook"),
            "playbooks/bootstrap.yml",
            *("-e", "username=1001", "-e", f"bootstrap_root={site.root}", "-e", "bootstrap_uid=20001"),
            *("-e", "bootstrap_gid=20001", "-e", f"kept={kept}", "-e", '{"bootstrap_roles": ["home"]}'),
        ],
        cwd=CHECKOUT,
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(site.roles)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    assert (kept / "1001").exists()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"username": None}, "Give the storage root"),
        ({"username": "alice", "bootstrap_batch": [{"name": "bob"}]}, "either one user"),
        ({"username": "alice", "bootstrap_root": None}, "Give the storage root"),
        ({"username": None, "bootstrap_users": [{"name": "alice"}]}, "bootstrap_batch"),
        ({"username": "alice", "user_dir_users": []}, "user_dir_users: here a role"),
        ({"username": "../etc"}, "a username"),
        (
            {"username": "{{ lookup('pipe', 'touch /tmp/executed-by-a-name') }}"},
            "a username has only letters",
        ),
        ({"username": "alice", "bootstrap_uid": "0; id"}, "bootstrap_uid is a number"),
        ({"username": "alice", "bootstrap_roles": "home"}, "roles is a list"),
        ({"bootstrap_batch": '[{"name": "alice"}]'}, "Give the storage root"),
        ({"username": "alice", "bootstrap_storage_host": "nosuch"}, "no host called nosuch"),
        ({"username": "alice", "bootstrap_storage_host": "staff"}, "no host called staff"),
        ({"username": "alice", "bootstrap_storage_host": "all"}, "no group and no pattern"),
        ({"username": "alice", "bootstrap_storage_host": "store1,store2"}, "no group and no pattern"),
        ({"username": "alice", "bootstrap_storage_host": ["store1"]}, "no group and no pattern"),
        ({"username": "alice", "bootstrap_storage_host": "{{ groups['all'] }}"}, "no group and no pattern"),
    ],
)
def test_what_cannot_be_done_is_refused_and_fails(site, playbook, kept, variables, said):
    site.role("home", HOME)
    inventory = site.path / "inventory.ini"
    inventory.write_text("[staff]\nstore1 ansible_connection=local\nstore2 ansible_connection=local\n")
    play = playbook("-i", str(inventory), **{"bootstrap_roles": ["home"], "kept": str(kept), **variables})
    assert play.status != 0
    assert said in play.output, play.output
    assert not list(kept.iterdir())


def test_one_named_host_of_a_group_even_if_a_group_has_its_name(site, playbook, kept):
    inventory = site.path / "inventory.ini"
    local = "ansible_connection=local ansible_python_interpreter=" + sys.executable
    inventory.write_text(f"[store2]\nstore1 {local}\nstore2 {local}\n")
    where = "{{ storage_host }} {{ username }}"
    site.role("where", {"name": "W", "ansible.builtin.copy": {"content": where, "dest": "{{ kept }}/where"}})
    variables = {"username": "alice", "bootstrap_roles": ["where"], "kept": str(kept)}
    play = playbook("-i", str(inventory), bootstrap_storage_host="store2", **variables)
    assert play.status == 0, play.output
    assert (kept / "where").read_text() == "store2 alice"
    assert "store1" not in play.output


def test_before_each_after(site, playbook, kept):
    (kept / "order").touch()
    (kept / "order").chmod(0o666)
    line = "echo {{ role_name }} {{ username | default(bootstrap_users | map(attribute='name') | join(',')) }} >> {{ kept }}/order"
    for name in ("first", "own", "also_own", "last"):
        site.role(name, {"name": "Tell", "ansible.builtin.shell": {"cmd": line}})
    site.role("picky", {"name": "P", "ansible.builtin.fail": {"msg": "not bob"}, "when": "username == 'bob'"})
    play = playbook(
        kept=str(kept),
        bootstrap_batch=[{"name": "alice"}, {"name": "bob"}],
        bootstrap_roles=[
            {"role": "first", "per": "batch"},
            "own",
            "picky",
            "also_own",
            {"role": "last", "per": "batch"},
        ],
    )
    assert play.status != 0
    lines = (kept / "order").read_text().splitlines()
    assert lines[0] == "first alice,bob"
    assert sorted(lines[1:3]) == ["own alice", "own bob"]
    assert lines[3:] == ["also_own alice", "last alice"], "bob had failed and was touched all the same"
    assert "1 of 2 users failed: bob: picky" in play.output


def test_a_role_for_the_batch_that_fails_fails_all(site, playbook, kept):
    site.role("quota", {"name": "Q", "ansible.builtin.fail": {"msg": "no quota"}})
    site.role("home", HOME)
    batch = [{"name": "alice"}, {"name": "bob"}]
    roles = [{"role": "quota", "per": "batch"}, "home"]
    play = playbook(kept=str(kept), bootstrap_batch=batch, bootstrap_roles=roles)
    assert play.status != 0 and not list(kept.iterdir())
    roles[0]["on_failure"] = "continue"
    play = playbook(kept=str(kept), bootstrap_batch=batch, bootstrap_roles=roles)
    assert play.status == 0, play.output
    assert sorted(path.name for path in kept.iterdir()) == ["alice", "bob"]


def test_users_of_other_storage_hosts_are_not_of_this_run(site, playbook, kept):
    site.role("home", HOME)
    batch = [{"name": "alice"}, {"name": "bob", "storage_host": "elsewhere"}]
    play = playbook(kept=str(kept), bootstrap_batch=batch, bootstrap_roles=["home"])
    assert play.status != 0
    assert "bob: its storage host is not the one of this run" in play.output
    assert [path.name for path in kept.iterdir()] == ["alice"]


def test_cleanup_is_the_same_with_its_own_roles(site, playbook, kept):
    site.role("home", HOME)
    play = playbook(play="ansible_bootstrap.jupyterhub.cleanup", username="alice", kept=str(kept))
    assert (play.status, play.changed) == (0, 0), play.output
    play = playbook(
        play="ansible_bootstrap.jupyterhub.cleanup",
        username="alice",
        kept=str(kept),
        bootstrap_roles=["home"],
    )
    assert (kept / "alice").exists(), play.output


@pytest.mark.root
def test_without_root_the_storage_is_ones_own(site, playbook, kept, unprivileged):
    """The hub's own uid; no sudo, nothing to configure."""
    site.role("home", HOME)
    subprocess.run(["chown", "-R", str(SOMEBODY), site.path], check=True)
    environment = {"HOME": str(site.path), "ANSIBLE_ROLES_PATH": str(site.roles)}
    how = {"prefix": unprivileged, "environment": environment, "cwd": site.path}
    variables = {"bootstrap_root": str(site.root), "username": "alice", "kept": str(kept)}
    variables["bootstrap_roles"] = ["user_dir", "home"]
    nobody = {"bootstrap_uid": None, "bootstrap_gid": None}

    first = playbook(**how, **nobody, **variables)
    assert (first.status, first.changed) == (0, 2), first.output
    assert (kept / "alice").stat().st_uid == (site.root / "alice").stat().st_uid == SOMEBODY
    again = playbook(**how, **nobody, **variables)
    assert (again.status, again.changed) == (0, 0), again.output
    other = playbook(**how, **{**variables, "username": "bob"})
    assert other.status != 0 and "needs root" in other.output
    assert [path.name for path in kept.iterdir()] == ["alice"]
