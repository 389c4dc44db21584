"""A real hub of an unprivileged account, with the examples' configuration: what it brings about, and what leaks."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import time
from pathlib import Path

import httpx
import pytest
from machine import EXAMPLES, GROUP, HUB, OWNER, VENV

from ansible_bootstrap.apply.descendants import descendants

pytestmark = pytest.mark.root

HERE = Path(__file__).parent
SECRET = "tok3n-of-the-hub"
STUDENTS = "The preparation of your storage is misconfigured. Please tell your administrator."


class Hub:
    """``jupyterhub`` as the machine's account of that name, and an admin's client of its API."""

    def __init__(self, machine, example: str) -> None:
        self.machine = machine
        self.directory = machine.world / f"hub-{secrets.token_hex(3)}"
        inside = machine.path(self.directory)
        inside.mkdir(mode=0o755)
        shipped = (EXAMPLES / example / "jupyterhub_config.py").read_text()
        (inside / "jupyterhub_config.py").write_text(shipped + (HERE / "boundary_hub.py").read_text())
        shutil.copy(HERE.parent / "hub/fake_server.py", inside / "server.py")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.token = secrets.token_hex(16)
        self.state = self.directory / "own/state"
        test = {
            "port": port,
            "token": self.token,
            "server": f"{self.directory}/server.py",
            "state": str(self.state),
            "place": {"directory": f"{machine.volumes}/{{username}}", "uid": OWNER, "gid": GROUP},
        }
        (inside / "test.json").write_text(json.dumps(test))
        machine.root("install", "-d", "-o", HUB, f"{self.directory}/own")
        self.call = machine.start(
            f"{VENV}/bin/python", "-m", "jupyterhub", "-f", f"{self.directory}/jupyterhub_config.py",
            env={"HUB_TEST": f"{self.directory}/test.json", "A_SECRET": SECRET},
            cwd=f"{self.directory}/own",
        )  # fmt: skip
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}/hub/api",
            headers={"Authorization": f"token {self.token}"},
            timeout=60,
        )
        self.call.wait_for(self._up)

    def _up(self) -> bool:
        try:
            return self.client.get("/").is_success
        except httpx.HTTPError:
            return False

    def start(self, name: str) -> httpx.Response:
        """Press Start for a user."""
        assert self.client.post("/users", json={"usernames": [name]}).status_code in {201, 409}
        return self.client.post(f"/users/{name}/server")

    def ready(self, name: str, seconds: float = 20) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            servers = self.client.get(f"/users/{name}").json()["servers"]
            if servers and servers[""]["ready"]:
                return True
            time.sleep(0.1)
        return False

    def end(self) -> None:
        self.client.close()
        self.call.process.terminate()
        self.call.process.wait(15)


@pytest.fixture
def start_hub(machine):
    hubs: list[Hub] = []

    def start(example: str) -> Hub:
        hubs.append(Hub(machine, example))
        return hubs[-1]

    yield start
    for hub in hubs:
        hub.end()
        machine.root("rm", "-rf", str(hub.directory))


def test_a_hub_without_privileges_has_a_users_directory_made(machine, start_hub):
    hub = start_hub("behind-sudo")
    lines = Path(f"/proc/{hub.call.process.pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines)
    assert len(set(status["Uid"].split())) == 1 and status["Uid"].split()[0] != "0"
    assert int(status["CapEff"], 16) == 0, "it has no privilege of its own"

    hub.start("alice")
    assert hub.ready("alice"), hub.call.log
    home = machine.home("alice").stat()
    assert (home.st_uid, home.st_gid, home.st_mode & 0o7777) == (OWNER, GROUP, 0o750)

    # The admin's word changes, and holds from the next login on; a mistake is one sentence for the student.
    machine.settings(roles=["absent"])
    refused = hub.start("bob")
    assert refused.status_code == 503, refused.text
    machine.root("chmod", "g+w", "/etc/ansible-bootstrap")
    try:
        refused = hub.start("carol")
        assert refused.status_code == 503 and refused.json()["message"] == STUDENTS
    finally:
        machine.root("chmod", "g-w", "/etc/ansible-bootstrap")
    assert "chmod go-w /etc/ansible-bootstrap" in hub.call.log, "the admin is told how to mend it"
    assert not machine.exists("bob") and not machine.exists("carol")


def test_nothing_secret_of_the_hubs_is_on_the_other_side_and_all_that_is_written_is_private(
    machine, start_hub
):
    waiting, go = machine.world / "waiting", machine.world / "go"
    pause = f"touch {waiting}; until [ -e {go} ]; do sleep 0.05; done"
    role = machine.role("pause", {"name": "Pause", "ansible.builtin.command": {"argv": ["sh", "-c", pause]}})
    variables = {"site_password": "the-admins-own"}
    machine.settings(**{**role, "roles": ["user_dir", {"role": "pause", "as": "root"}]}, extra_vars=variables)
    hub = start_hub("behind-sudo")
    secret = {SECRET, hub.token}
    with httpx.Client(base_url=hub.client.base_url, headers=hub.client.headers, timeout=0.5) as impatient:
        impatient.post("/users", json={"usernames": ["alice"]})
        with pytest.raises(httpx.ReadTimeout):
            impatient.post("/users/alice/server")
    hub.call.wait_for(lambda: os.path.exists(machine.path(waiting)))

    runs = machine.path("/run/ansible-bootstrap")
    (run,) = (path for path in runs.iterdir() if path.is_dir())
    everything = {
        path: path.read_bytes() for path in run.rglob("*") if path.is_file() and not path.is_symlink()
    }
    assert any(b"alice" in content for content in everything.values()), "looked in the wrong place"
    family = descendants(hub.call.process.pid)
    roots = {pid for pid in family if os.path.exists(f"/proc/{pid}") and os.stat(f"/proc/{pid}").st_uid == 0}
    assert len(roots) > 3
    environments = {
        pid: _read(f"/proc/{pid}/environ") for pid in roots if b"sudo" not in _read(f"/proc/{pid}/cmdline")
    }
    arguments = {pid: _read(f"/proc/{pid}/cmdline") for pid in family}
    for word in secret:
        for what in (everything, environments, arguments):
            assert not [key for key, content in what.items() if word.encode() in content], f"{word} is seen"
    assert not [pid for pid, content in arguments.items() if b"the-admins-own" in content], "ps shows it"
    assert not [pid for pid, content in environments.items() if b"SUDO_" in content or b"HUB_TEST" in content]
    _assert_private(run, 0)
    assert runs.stat().st_mode & 0o7777 == 0o700

    machine.path(go).touch()
    assert hub.ready("alice"), hub.call.log
    hub.call.wait_for(lambda: not run.exists())
    _assert_private(machine.path(machine.volumes / ".ansible_bootstrap"), 0)
    hubs_uid = int(machine.root("id", "-u", HUB))
    _assert_private(machine.path(hub.state), hubs_uid)
    settings = machine.path("/etc/ansible-bootstrap/settings.yml")
    read = machine.start("cat", "/etc/ansible-bootstrap/settings.yml").answer()
    assert settings.stat().st_mode & 0o7777 == 0o600 and read.status != 0
    assert machine.start("touch", f"{machine.volumes}/x").answer().status != 0
    written = [machine.path(machine.volumes / ".ansible_bootstrap"), machine.path(hub.state)]
    left = b"".join(path.read_bytes() for top in written for path in top.rglob("*") if path.is_file())
    for word in (*secret, "the-admins-own"):
        assert word.encode() not in left
        assert word not in hub.call.log.replace(f"token {word}", "")


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _assert_private(top: Path, owner: int) -> None:
    seen = [top, *top.rglob("*")]
    assert len(seen) > 1, f"nothing in {top}"
    for path in seen:
        status = path.lstat()
        assert path.is_symlink() or status.st_mode & 0o077 == 0, (
            f"{path} is open to others: {oct(status.st_mode)}"
        )
        assert status.st_uid == owner, path
