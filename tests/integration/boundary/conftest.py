"""Fixtures of the tests across the privilege boundary.

===============  ===============================================================================
``machine``      a :class:`machine.Machine`, once for all these tests; its settings and the users'
                 directories are as new in each
``sudo``         calls the apply program as the hub's account, by the shipped sudoers line
``ssh``          the command that starts it through a real sshd on loopback, as shipped
===============  ===============================================================================
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from machine import EXAMPLES, HUB, Answer, Machine, interpreter, request, shipped_command


@pytest.fixture(scope="session")
def _machine(needs: Callable[..., None]) -> Iterator[Machine]:
    needs(root=True, programs=("sudo", "visudo", "unshare", "nsenter", "setpriv", "useradd"))
    python = interpreter()
    if python is None:
        needs(programs=("a Python >= 3.11 outside of /root",))
    machine = Machine(str(python))
    yield machine
    machine.remove()


@pytest.fixture
def machine(_machine: Machine) -> Iterator[Machine]:
    _machine.settings()
    yield _machine
    _machine.end_calls()
    for path in _machine.path(_machine.volumes).iterdir():
        shutil.rmtree(path)


@pytest.fixture
def sudo(machine: Machine) -> Callable[..., Answer]:
    """Call it once and wait for the answer; what is not a request goes to :meth:`Machine.start`."""

    def call(
        *users: Any,
        data: bytes | None = None,
        prefix: tuple[str, ...] = (),
        more: tuple[str, ...] = (),
        **options: Any,
    ) -> Answer:
        running = machine.start(*prefix, *shipped_command("behind-sudo"), *more, **options)
        if options.get("stdin", subprocess.PIPE) == subprocess.PIPE:
            running.send(request(*users) if data is None else data)
        return running.answer()

    return call


SSHD = """
Port {port}
ListenAddress 127.0.0.1
HostKey {keys}/host
AuthorizedKeysFile {keys}/authorized_keys
PidFile none
UsePAM yes
StrictModes no
PasswordAuthentication no
AcceptEnv LANG LC_* PYTHON* ANSIBLE_*
PermitUserEnvironment yes
Subsystem sftp internal-sftp
"""
"""More generous than Debian's, so that what holds here holds there; the shipped part is appended."""


@pytest.fixture
def ssh(machine: Machine, needs: Callable[..., None]) -> Iterator[list[str]]:
    """The examples' ``apply_command``, with the test's key, port and address."""
    needs(programs=("sshd", "ssh", "ssh-keygen"))
    keys = machine.world / "keys"
    machine.root("install", "-d", "-m", "755", str(keys), "/run/sshd")
    for name in ("host", "hub"):
        machine.root("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{keys}/{name}")
    machine.root("chown", HUB, f"{keys}/hub")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    public = machine.path(keys / "hub.pub").read_text().rpartition(" ")[0]
    line = (EXAMPLES / "behind-ssh/authorized_keys").read_text()
    assert "ssh-ed25519 AAAA-the-hubs-public-key" in line
    machine.path(keys / "authorized_keys").write_text(
        line.replace("ssh-ed25519 AAAA-the-hubs-public-key", public)
    )
    host = machine.path(keys / "host.pub").read_text()
    machine.path(keys / "known_hosts").write_text(f"[127.0.0.1]:{port} {host}")
    shipped = (EXAMPLES / "behind-ssh/sshd-ansible-bootstrap.conf").read_text()
    machine.path(keys / "sshd_config").write_text(SSHD.format(port=port, keys=keys) + shipped)
    server = machine.start(
        shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", f"{keys}/sshd_config", user="root"
    )
    server.wait_for(lambda: "listening on" in server.log)
    text = "\n".join(shipped_command("behind-ssh"))
    for there, here in (
        ("/etc/jupyterhub/ansible-bootstrap.key", f"{keys}/hub"),
        ("/etc/jupyterhub/ansible-bootstrap.known_hosts", f"{keys}/known_hosts"),
        ("root@storage.example.org", f"-p\n{port}\nroot@127.0.0.1"),
    ):
        assert there in text
        text = text.replace(there, here)
    yield text.split("\n")
    server.process.terminate()
    server.process.wait(10)
    machine.root("rm", "-rf", str(keys))
