"""``ansible-bootstrap doctor`` as the hub's account, with the apply program behind a real sudo and a real ssh."""

from __future__ import annotations

import json
from typing import Any

import pytest
from machine import EXAMPLES, GROUP, HUB, OWNER, VENV, Machine

pytestmark = pytest.mark.root


class Doctor:
    """The command, with an example's configuration."""

    def __init__(self, machine: Machine, apply_command: list[str] | None = None) -> None:
        self._machine = machine
        self._config = machine.world / "home/jupyterhub_config.py"
        text = (EXAMPLES / "behind-sudo/jupyterhub_config.py").read_text()
        place = {"directory": f"{machine.volumes}/{{username}}", "uid": OWNER, "gid": GROUP}
        text += f"c.JupyterHub.spawner_class = 'simple'\nc.AnsibleBootstrap.place = {place}\n"
        text += f"c.AnsibleBootstrap.state_dir = '{machine.world}/home/state'\n"
        if apply_command:
            text += f"c.AnsibleBootstrap.apply_command = {apply_command}\n"
        machine.path(self._config).write_text(text)

    def says(self, *before: str) -> list[dict[str, Any]]:
        """Run it, after ``before`` on its command line, and return the findings."""
        words = ("doctor", "alice", "--json", "--config", str(self._config))
        call = self._machine.start(*before, f"{VENV}/bin/ansible-bootstrap", *words)
        status = call.process.wait(60)
        said = json.loads(call.output())
        assert said["users"][0]["directory"] == f"{self._machine.volumes}/alice", said
        findings: list[dict[str, Any]] = said["findings"]
        assert status == (2 if findings else 0), said
        return findings


SUDO = {
    "no sudoers line": (
        "mv {sudoers} {spare}",
        "sudo: a password is required",
        "install -m 440 ansible-bootstrap.sudoers {sudoers}",
        "mv {spare} {sudoers}",
    ),
    "a line that is not the shipped one": (
        "cp -p {sudoers} {spare}; sed -i 's/ -I / /' {sudoers}",
        "sudo: a password is required",
        "install -m 440 ansible-bootstrap.sudoers {sudoers}",
        "mv {spare} {sudoers}",
    ),
    "settings that everybody can write": (
        "chmod 666 {settings}", "writable by everybody", "chmod go-w {settings}", "chmod go-w {settings}",
    ),
    "settings of the hub's": (
        "chown {hub} {settings}", "belongs to uid", "chown root {settings}", "chown root {settings}"
    ),
    "no settings": (
        "mv {settings} {spare}", "does not exist", "install -D -m 600 settings.yml {settings}", "mv {spare} {settings}"
    ),
}  # fmt: skip
SSH = {
    "no host key": (
        "mv {known} {spare}", "Host key verification failed", "ssh-keyscan -p {port} 127.0.0.1 >> {known}",
        "ssh-keyscan -p {port} 127.0.0.1 >> {known}",
    ),
    "another host key": (
        "ssh-keygen -q -t ed25519 -N '' -f {spare}2 && echo \"[127.0.0.1]:{port} $(cat {spare}2.pub)\" > {known}",
        "has changed",
        'ssh-keygen -f "{known}" -R "[127.0.0.1]:{port}"',
        'ssh-keygen -f "{known}" -R "[127.0.0.1]:{port}"; ssh-keyscan -p {port} 127.0.0.1 >> {known}',
    ),
    "a key that the other side does not know": (
        "mv {keys}/authorized_keys {spare}",
        "Permission denied (publickey",
        "cat authorized_keys >> /root/.ssh/authorized_keys",
        "mv {spare} {keys}/authorized_keys",
    ),
    "a key of root's": (
        "chown root {keys}/hub", "Permission denied", "chown {uid} {keys}/hub", "chown {uid} {keys}/hub"
    ),
    "a key that others can read": (
        "chmod 644 {keys}/hub", "are too open", "chmod 600 {keys}/hub", "chmod 600 {keys}/hub"
    ),
    "settings that everybody can write": SUDO["settings that everybody can write"],
}  # fmt: skip
"""What an admin does wrong, what is found, what mends it, and that (without the words around it)."""


def words(machine: Machine, **more: Any) -> dict[str, Any]:
    keys = machine.world / "keys"
    return {
        "sudoers": "/etc/sudoers.d/ansible-bootstrap",
        "settings": "/etc/ansible-bootstrap/settings.yml",
        "spare": machine.world / "spare",
        "hub": HUB,
        "uid": machine.root("id", "-u", HUB).strip(),
        "keys": keys,
        "known": keys / "known_hosts",
        **more,
    }


def assert_each_is_found(
    machine: Machine, doctor: Doctor, faults: dict[str, tuple[str, ...]], words: dict[str, Any]
) -> None:
    assert doctor.says() == []
    for name, fault in faults.items():
        spoil, what, mend, mended = (text.format(**words) for text in fault)
        machine.root("sh", "-c", spoil)
        (finding,) = doctor.says()
        assert (finding["check"], finding["level"]) == ("apply program", "error"), name
        assert what in finding["what"] and mend in finding["mend"], (name, finding)
        machine.root("sh", "-c", mended)
    assert doctor.says() == [], "what mends is what was said"


def test_through_sudo(machine: Machine) -> None:
    assert_each_is_found(machine, Doctor(machine), SUDO, words(machine))
    # Past the boundary, the storage is looked at by root.
    machine.root("rmdir", str(machine.volumes))
    try:
        (finding,) = Doctor(machine).says()
    finally:
        machine.root("install", "-d", "-m", "755", str(machine.volumes))
    assert finding["check"] == "storage" and f"`install -d -m 755 {machine.volumes}`" in finding["what"]


def test_a_hub_that_may_gain_no_privileges(machine: Machine) -> None:
    """As a system service with ``NoNewPrivileges=yes``, or in a pod."""
    (finding,) = Doctor(machine).says("setpriv", "--no-new-privs")
    assert "no new privileges" in finding["what"] and "NoNewPrivileges=no" in finding["mend"]


def test_through_ssh(machine: Machine, ssh: list[str]) -> None:
    port = ssh[ssh.index("-p") + 1]
    assert_each_is_found(machine, Doctor(machine, ssh), SSH, words(machine, port=port))
    (finding,) = Doctor(machine, [*ssh[:-1], "root@127.0.0.2"]).says()
    assert "Connection refused" in finding["what"] and "root@127.0.0.2 </dev/null`" in finding["mend"]
