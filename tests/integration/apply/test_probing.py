"""The operation ``probe``: what stands between a run and its storage root, tried on the way that a run takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import ApplyProgram, Site

UID = 20_001


def probe(apply_program: ApplyProgram, host: str | None = None, **more: Any) -> tuple[dict[str, Any], str]:
    """Return the answer, and what its findings say."""
    users = [{"name": "x", "storage_host": host}] if host else []
    answer = apply_program.start(users, operation="probe", **more).answer()
    assert answer.status == 0, answer
    (event,) = answer.events
    assert event["event"] == "probed"
    assert event["storage_host"] == (host or "localhost")
    return event, " ".join(f"{finding['what']} {finding['mend']}" for finding in event["findings"])


def inventory(site: Site, text: str, name: str = "hosts.yml") -> dict[str, Any]:
    path = site.path / name
    path.write_text(text)
    path.chmod(0o755 if text.startswith("#!") else 0o644)
    return site.settings(inventory=str(path), roles=["user_dir"])


@pytest.mark.parametrize("check", [False, True])
def test_nothing_is_said_of_a_root_that_serves_and_nothing_is_left(
    site: Site, apply_program: ApplyProgram, check: bool
) -> None:
    event, said = probe(apply_program, check=check)
    assert said == ""
    assert event["about"]["kind"] == "plain"
    assert event["about"]["owner"] == event["about"]["account"] == str(os.geteuid())
    assert event["about"]["python"].count(".") == 2
    assert list(site.root.iterdir()) == []


def test_each_storage_root_is_probed(site: Site, apply_program: ApplyProgram) -> None:
    data = site.path / "data"
    data.mkdir()
    settings = site.settings(storage_roots=[str(data)])
    event, said = probe(apply_program, settings=settings)
    assert said == "" and event["about"][str(data)].startswith("kind plain, ")
    data.rmdir()
    event, said = probe(apply_program, settings=settings)
    assert event["about"]["kind"] == "plain"
    assert f"storage root {data} does not exist on this host" in said


@pytest.mark.parametrize(
    "user", [{"storage_host": "all"}, {"ansible_connection": "ssh"}, {"name": "{{ x }}"}]
)
def test_what_the_policy_refuses_is_probed_nowhere(apply_program: ApplyProgram, user: dict[str, str]) -> None:
    answer = apply_program.start([{"name": "x", **user}], operation="probe").answer()
    (event,) = answer.events
    assert (event["event"], event["reason"]) == ("refused", "refused")


def test_a_root_that_is_not_there(site: Site, apply_program: ApplyProgram) -> None:
    site.root.rmdir()
    event, said = probe(apply_program)
    assert event["about"]["kind"] == "missing"
    assert f"storage root {site.root} does not exist on this host: mount it" in said


BROKEN = {
    "yaml": ("all:\n  hosts:\n    t1: {\n", "YAML parsing failed"),
    "script": ("#!/bin/sh\necho the CMDB is down >&2\nexit 1\n", "non-zero exit code 1. "),
}


@pytest.mark.parametrize("kind", list(BROKEN))
def test_an_inventory_that_ansible_cannot_read_is_told_with_its_own_error(
    kind: str, site: Site, apply_program: ApplyProgram
) -> None:
    text, error = BROKEN[kind]
    settings = inventory(site, text, "hosts.sh" if kind == "script" else "hosts.yml")
    _, said = probe(apply_program, "t1", settings=settings)
    answer = apply_program([{"name": "alice", "storage_host": "t1"}], settings=settings)
    outcome = answer.outcomes["alice"]
    assert outcome["reason"] == "settings"
    for message in (said, outcome["message"]):
        assert "the inventory has no host called t1" in message
        assert error in message
        assert settings["inventory"] in message
        assert kind != "script" or "the CMDB is down" in message


def test_a_host_that_does_not_answer(site: Site, apply_program: ApplyProgram) -> None:
    settings = inventory(site, "all:\n  hosts:\n    t1: {ansible_host: 127.0.0.1, ansible_port: 9}\n")
    event, said = probe(apply_program, "t1", settings=settings)
    assert "t1 does not answer" in said
    assert "port 9" in said
    assert event["about"] == {}


def test_a_python_that_is_too_old_is_named_with_the_one_that_is_needed(
    site: Site, apply_program: ApplyProgram
) -> None:
    python = site.path / "python3.6"
    python.write_text(
        "#!/bin/sh\ncase $2 in *version_info*) echo 3.6.8; exit;; esac\n"
        "echo 'SyntaxError: future feature annotations is not defined' >&2; exit 1\n"
    )
    python.chmod(0o755)
    host = f"{{ansible_connection: local, ansible_python_interpreter: {python}}}"
    settings = inventory(site, f"all:\n  hosts:\n    t1: {host}\n")
    _, said = probe(apply_program, "t1", settings=settings)
    answer = apply_program([{"name": "alice", "storage_host": "t1"}], settings=settings)
    for message in (said, answer.outcomes["alice"]["message"]):
        assert f"Python 3.6.8 was found ({python}), and >= 3.9 is needed" in message


@pytest.mark.root
def test_a_read_only_root_is_served_with_the_records_elsewhere(
    site: Site, apply_program: ApplyProgram, needs: Any
) -> None:
    """As the probe advises."""
    needs(root=True, programs=("unshare",))
    root, records = site.root, site.path / "records"
    records.mkdir(mode=0o700)
    for place in (root / "alice", site.path / "course"):
        place.mkdir()
    (site.path / "course/a.csv").touch()
    (root / "alice/old").touch()
    home = f"mount -t tmpfs -o mode=755,uid={UID},gid={UID} tmpfs {root}/alice"
    script = f'mount --bind {root} {root} && mount -o remount,bind,ro {root} && {home} && exec "$@"'
    prefix = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")
    tutorial = {"tutorials_sources": [{"name": "course", "path": str(site.path / "course")}]}
    settings = {
        "storage_root": str(root),
        "uid": UID,
        "gid": UID,
        "roles": ["user_dir", "tutorials"],
        "extra_vars": tutorial,
    }
    event, said = probe(apply_program, settings=settings, prefix=prefix)
    assert event["about"]["kind"] == "read-only" and "set records_dir to a directory of this host" in said
    settings["records_dir"] = str(records)
    event, said = probe(apply_program, settings=settings, prefix=prefix)
    assert event["about"]["kind"] == "records elsewhere" and event["findings"][0]["level"] == "warning"
    answer = apply_program(["alice", "bob"], settings=settings, prefix=prefix)
    assert answer.ok == {"alice"}, answer
    assert answer.outcomes["alice"]["changed"] == ["tutorials"]
    assert "read-only" in answer.outcomes["bob"]["message"]
    assert len(list(records.glob("*/records/*.json"))) == 1


@pytest.mark.root
def test_an_export_that_squashes_all_is_served_as_its_own_uid(
    site: Site, apply_program: ApplyProgram, needs: Any
) -> None:
    """As the probe advises, or with a module that becomes the account of that uid: neither needs a chown."""
    needs(root=True, programs=("bindfs", "sudo", "unshare"))
    os.chown(site.root, UID, UID)
    passwd = site.path / "passwd"
    passwd.write_text(Path("/etc/passwd").read_text() + f"homes:x:{UID}:{UID}::/:/bin/sh\n")
    ids = " ".join(f"--{what}={UID}" for what in ("force-user", "force-group", "create-for-user"))
    script = (
        f'mount --bind {passwd} /etc/passwd; bindfs --chown-deny {ids} {site.root} {site.root}; exec "$@"'
    )
    prefix = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")
    become = {"ansible_become": True, "ansible_become_user": "homes", "ansible_connection": "local"}
    host = {**become, "ansible_python_interpreter": "/usr/bin/python3"}
    (site.path / "hosts.yml").write_text(f"all: {{hosts: {{t1: {host}}}}}\n")
    wanted = {"storage_root": str(site.root), "uid": UID, "gid": UID}
    _, said = probe(apply_program, settings=wanted, prefix=prefix)
    assert f"all accounts are squashed on {site.root} (fuse)" in said
    assert f"set work_as and uid to {UID}, and gid to {UID}" in said

    event, said = probe(apply_program, settings={**wanted, "work_as": UID}, prefix=prefix)
    assert said == "" and event["about"]["account"] == str(UID)
    for changed in (["user_dir"], []):
        answer = apply_program(["bob"], settings={**wanted, "work_as": UID}, prefix=prefix)
        assert answer.ok == {"bob"}, answer
        assert answer.outcomes["bob"]["changed"] == changed

    settings = {**wanted, "inventory": str(site.path / "hosts.yml")}
    event, said = probe(apply_program, "t1", settings=settings, prefix=prefix)
    assert said == ""
    assert event["about"]["account"] == str(UID)
    answer = apply_program([{"name": "alice", "storage_host": "t1"}], settings=settings, prefix=prefix)
    assert answer.ok == {"alice"}, answer
    assert (site.root / "alice").stat().st_uid == UID
