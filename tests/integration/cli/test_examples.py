"""Every example is run as it stands, but for its paths; so none can rot.

Check mode and a second run are tried with the quick start; for each role, ``tests/roles`` does so.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.integration.cli import command
from tests.integration.conftest import SOMEBODY, Site

EXAMPLES = Path(__file__).parents[3] / "examples"
BIN = Path(sys.executable).parent
OWNER = (20001, 100) if os.geteuid() == 0 else (os.geteuid(), os.getegid())


class Example:
    """A copy of an example in which the system's paths are below a directory of the test's own."""

    def __init__(self, name: str, directory: Path) -> None:
        self.directory = directory / name
        self.system = directory / "system"
        self.root = self.system / "volumes/jupyterhub"
        self.root.mkdir(mode=0o755, parents=True)
        shutil.copytree(EXAMPLES / name, self.directory)
        (self.system / "srv").mkdir()
        shutil.copytree(EXAMPLES.parent / "ansible_bootstrap/demo/tutorial", self.system / "srv/course")
        for path in [*self.directory.rglob("*.py"), *self.directory.rglob("*.yml")]:
            text = path.read_text()
            for there in ("/volumes", "/srv"):
                text = text.replace(f'"{there}', f'"{self.system}{there}').replace(
                    f" {there}", f" {self.system}{there}"
                )
            text = text.replace("/etc/jupyterhub", str(self.directory))
            text = text.replace("uid = 1000", f"uid = {OWNER[0]}").replace("gid = 100", f"gid = {OWNER[1]}")
            text = text.replace("uid: 1000", f"uid: {OWNER[0]}").replace("gid: 100", f"gid: {OWNER[1]}")
            path.write_text(text)

    def runs(self, program: str, *args: str) -> str:
        if program == "ansible-bootstrap":
            done = command.run(*args, cwd=self.directory)
        else:
            argv = [BIN / program, *args]
            done = subprocess.run(
                argv, cwd=self.directory, capture_output=True, text=True, timeout=100, check=False
            )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def example(request: pytest.FixtureRequest) -> Iterator[Example]:
    path = Path(tempfile.mkdtemp(prefix="example-", dir="/tmp"))
    path.chmod(0o755)  # pytest's own directories are closed to users
    yield Example(request.param, path)
    shutil.rmtree(path)


def test_every_example_has_a_test_and_a_line_in_the_readme() -> None:
    tested = {"quickstart", "site-roles", "remote-storage", "ansible-only", "user-directory", "system-users"}
    tested |= {"clean-up", "shell-script", "kubernetes"}
    tested |= {"behind-sudo", "behind-ssh"}  # in tests/integration/boundary
    tested |= {"ldap-docker"}  # in tests/integration/docker
    tested |= {"monitoring"}  # its alerts and dashboard are in tests/unit/test_monitoring_example.py
    assert {path.name for path in EXAMPLES.iterdir() if path.is_dir()} == tested
    for name in tested:
        assert f"({name})" in (EXAMPLES / "README.md").read_text()


@pytest.mark.parametrize("example", ["quickstart"], indirect=True)
def test_quickstart(example: Example) -> None:
    assert "would change  alice" in example.runs("ansible-bootstrap", "run", "alice", "--check")
    assert "changed  alice: user_dir, tutorials" in example.runs("ansible-bootstrap", "run", "alice")
    assert (example.root / "alice").stat().st_mode & 0o777 == 0o750
    assert (example.root / "alice/tutorials/welcome.ipynb").is_file()
    assert "ok  alice" in example.runs("ansible-bootstrap", "run", "alice")


@pytest.mark.parametrize("example", ["monitoring"], indirect=True)
def test_monitoring(example: Example) -> None:
    (example.directory / "prometheus.token").write_text("secret\n")
    assert "would change  alice" in example.runs("ansible-bootstrap", "run", "alice", "--check")


@pytest.mark.parametrize("example", ["user-directory"], indirect=True)
def test_user_directory(example: Example) -> None:
    assert "changed  alice: user_dir" in example.runs("ansible-bootstrap", "run", "alice")
    status = (example.root / "alice").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (*OWNER, 0o750)


@pytest.mark.root
@pytest.mark.parametrize("example", ["system-users"], indirect=True)
def test_system_users(example: Example, needs: Callable[..., None]) -> None:
    """In a mount namespace in which NSS knows erin, whose home is below a directory of the test's own."""
    needs(root=True, programs=("unshare", "mkhomedir_helper"))
    homes = example.system / "home"
    homes.mkdir(mode=0o755)
    config = example.directory / "jupyterhub_config.py"
    config.write_text(config.read_text().replace('"/home"', f'"{homes}"'))
    passwd = example.system / "passwd"
    passwd.write_text(Path("/etc/passwd").read_text() + f"erin:x:20077:20077::{homes}/erin:/bin/sh\n")
    passwd.chmod(0o644)

    def runs(*command: str) -> str:
        script = 'mount --bind "$0" /etc/passwd && exec "$@"'
        namespace = ("unshare", "--mount", "sh", "-c", script, str(passwd))
        done = subprocess.run(
            [*namespace, str(BIN / command[0]), *command[1:]],
            cwd=example.directory,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "changed  erin: mkhomedir" in runs("ansible-bootstrap", "run", "erin")
    status = (homes / "erin").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (20077, 20077, 0o700)
    skeleton = {path.name for path in Path("/etc/skel").iterdir()}
    assert {path.name for path in (homes / "erin").iterdir()} == skeleton


CLEAN_UP = """
import asyncio, logging, pathlib
from ansible_bootstrap.dispatch.client import ApplyClient
from ansible_bootstrap.cli.main import _load_config
from ansible_bootstrap.protocol import OutcomeEvent, Request

settings = _load_config(pathlib.Path("jupyterhub_config.py"))

async def argv():
    return settings.apply_argv()

def tell(event):
    if isinstance(event, OutcomeEvent):
        print(event.outcome.status, *event.outcome.changed)

async def clean_up():
    client = ApplyClient(argv, logging.getLogger())
    run = await client.start(Request(operation="cleanup", users=[{"name": "alice"}]), tell, limit=60)
    await run.finish()

asyncio.run(clean_up())
"""


@pytest.mark.parametrize("example", ["clean-up"], indirect=True)
def test_clean_up(example: Example) -> None:
    """By hand as in its README, and with the operation that the hub asks for after a stop."""
    example.runs("ansible-bootstrap", "run", "alice")
    home = example.root / "alice"
    old, young = home / "scratch/old", home / "scratch/young"
    for path in (home / ".cache/pip/http/x", home / "work.ipynb", old, young):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (home / ".cache/link").symlink_to("/etc")
    for path in home.rglob("*"):
        os.chown(path, *OWNER, follow_symlinks=False)
    os.utime(old, (0, 0))
    by_hand = ("ansible-playbook", "ansible_bootstrap.jupyterhub.cleanup")
    by_hand += ("-e", "@by-hand.yml", "-e", "username=alice")

    shown = example.runs(*by_hand, "--check", "--diff")
    assert f"{home}/.cache/pip" in shown
    assert f"{home}/scratch/old" in shown
    assert old.exists()

    assert example.runs("python", "-c", CLEAN_UP).split() == ["ok", "cleanup"]
    assert sorted(str(path.relative_to(home)) for path in home.rglob("*")) == [
        *(".cache", ".cache/link", "scratch", "scratch/young", "work.ipynb")
    ]
    assert example.runs("python", "-c", CLEAN_UP).split() == ["ok"]
    assert "changed=0 " in example.runs(*by_hand)


@pytest.mark.parametrize("example", ["ldap-docker"], indirect=True)
def test_ldap_docker(example: Example) -> None:
    """The hub, LDAP and Docker themselves are in tests/integration/docker."""
    assert "changed  alice: user_dir, tutorials" in example.runs("ansible-bootstrap", "run", "alice")
    assert (example.root / "alice").stat().st_uid == OWNER[0]
    assert (example.root / "alice/tutorials/welcome.ipynb").is_file()


def test_shell_script() -> None:
    """Not below tmp_path: every user must be able to reach the script."""
    made = Path(tempfile.mkdtemp(prefix="ansible_bootstrap_", dir="/tmp"))
    made.chmod(0o755)
    try:
        example = Example("shell-script", made)
        place = example.system / "srv/bootstrap"
        place.mkdir()
        script = Path(shutil.copy(example.directory / "bootstrap.sh", place))
        for name in ("wget", "unzip"):
            script.write_text(script.read_text().replace(f"\n{name} ", f"\n{place}/{name} "))
        (place / "wget").write_text(
            '#!/bin/sh\nfor last; do :; done\necho "$last" >.tutorials.new/master.zip\n'
        )
        (place / "unzip").write_text('#!/bin/sh\nmkdir "$4" && cp "$2" "$4/README.md"\n')
        for name in ("wget", "unzip"):
            (place / name).chmod(0o755)
        assert "changed  alice: user_dir, script" in example.runs("ansible-bootstrap", "run", "alice")
        assert "PythonDataScienceHandbook" in (example.root / "alice/tutorials/README.md").read_text()
        assert os.listdir(example.root / "alice") == ["tutorials"]
    finally:
        shutil.rmtree(made)


@pytest.mark.parametrize("example", ["site-roles"], indirect=True)
def test_site_roles(example: Example) -> None:
    outcomes = json.loads(example.runs("ansible-bootstrap", "run", "alice", "bob", "--json"))
    assert [outcome["changed"] for outcome in outcomes] == [["user_dir", "my_datasets", "class_list"]] * 2
    note = example.root / "alice/datasets.txt"
    assert "Hello alice" in note.read_text() and note.stat().st_uid == OWNER[0]
    listed = (example.system / "srv/class-list.txt").read_text().splitlines()
    assert listed == [f"{name} {OWNER[0]} {example.root}/{name}" for name in ("alice", "bob")]
    again = json.loads(example.runs("ansible-bootstrap", "run", "alice", "bob", "--json"))
    assert [outcome["changed"] for outcome in again] == [[], []]


@pytest.mark.parametrize("example", ["ansible-only"], indirect=True)
def test_ansible_only(example: Example) -> None:
    by_hand = ("ansible-playbook", "ansible_bootstrap.jupyterhub.bootstrap", "-e", "@class.yml")
    example.runs(*by_hand, "--check", "--diff")
    assert list(example.root.iterdir()) == []
    example.runs(*by_hand)
    assert (example.root / "alice/tutorials/penguins.csv").is_file()
    assert (example.root / "staff/bob").stat().st_uid == OWNER[0]
    assert "changed=0 " in example.runs(*by_hand)


@pytest.mark.parametrize("example", ["remote-storage"], indirect=True)
def test_remote_storage_as_far_as_one_machine_shows_it(example: Example) -> None:
    """The hosts themselves are in tests/integration/hosts."""
    hosts = json.loads(example.runs("ansible-inventory", "-i", "storage.yml", "--list"))
    assert set(hosts["_meta"]["hostvars"]) == {"storage1", "storage2"}
    shown = command.run("run", "alice", "--json", cwd=example.directory)
    assert shown.returncode == 1
    (outcome,) = json.loads(shown.stdout)
    assert (outcome["storage_host"], outcome["reason"]) == (
        "storage1",
        "unreachable",
    )  # As the configuration says.


Z2JH = """
c.JupyterHub.spawner_class = "kubespawner.KubeSpawner"
c.KubeSpawner.uid, c.KubeSpawner.fs_gid = {uid}, {fsGid}
c.KubeSpawner.volumes = [{{"name": "home", "persistentVolumeClaim": {{"claimName": "{pvcName}"}}}}]
c.KubeSpawner.volume_mounts = [{{"name": "home", "mountPath": "/home/jovyan", "subPath": "{subPath}"}}]
"""
"""What the chart makes of ``singleuser``, before ``hub.extraConfig``."""


@pytest.mark.root
def test_kubernetes_as_far_as_one_machine_shows_it(
    site: Site, unprivileged: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's pod is a process under that account, and the volume a directory."""
    values = yaml.safe_load((EXAMPLES / "kubernetes/values.yaml").read_text())
    volume, claim = yaml.safe_load_all((EXAMPLES / "kubernetes/home.yaml").read_text())
    hub, users = values["hub"], values["singleuser"]
    (mounted,), (mount,) = hub["extraVolumes"], hub["extraVolumeMounts"]
    assert mounted["name"] == mount["name"] and claim["spec"]["volumeName"] == volume["metadata"]["name"]
    claims = {claim["metadata"]["name"], mounted["persistentVolumeClaim"]["claimName"]}
    assert claims == {users["storage"]["static"]["pvcName"]}
    account = hub["containerSecurityContext"]
    assert (account["runAsUser"], account["runAsGroup"]) == (users["uid"], users["fsGid"]) == (1000, 100)

    (site.path / "state").mkdir()
    root = site.root / "users"
    root.mkdir(mode=0o755)
    for path in (root, site.path / "state"):
        os.chown(path, SOMEBODY, SOMEBODY)
    for path in (site.path, site.root):
        path.chmod(0o755)
    text = Z2JH.format(**users, **users["storage"]["static"]) + hub["extraConfig"]["bootstrap"]
    for there, here in {
        mount["mountPath"]: site.root,
        "/srv/jupyterhub": site.path / "state",
        "= 1000, 100": f"= {SOMEBODY}, {SOMEBODY}",
        "uid = 1000": f"uid = {SOMEBODY}",
        "gid = 100": f"gid = {SOMEBODY}",
    }.items():
        text, times = re.subn(rf"{re.escape(there)}(?!\d)", str(here), text)
        assert times
    config = site.path / "jupyterhub_config.py"
    config.write_text(text)
    cluster = (
        site.path / "kubeconfig"
    )  # In a pod, KubeSpawner takes its service account; it asks nobody here.
    none = {"name": "none", "cluster": {"server": "https://127.0.0.1:1"}, "user": {}}
    none["context"] = {"cluster": "none", "user": "none"}
    parts = {key: [none] for key in ("clusters", "contexts", "users")}
    cluster.write_text(json.dumps({"current-context": "none", **parts}))
    monkeypatch.setenv("KUBECONFIG", str(cluster))

    def runs(*words: str) -> subprocess.CompletedProcess[str]:
        command = [*unprivileged, str(BIN / "ansible-bootstrap"), *words, "--config", str(config)]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)

    assert "would change  jane.doe" in runs("run", "jane.doe", "--check").stdout
    assert "changed  jane.doe: user_dir" in runs("run", "jane.doe").stdout
    home = (root / "jane-doe---d48722fc").stat()
    assert (home.st_uid, home.st_gid) == (SOMEBODY, SOMEBODY)
    assert "ok  jane.doe" in runs("run", "jane.doe").stdout
    # With the chart's own group of the hub, nobody would have a directory; the doctor says so before a student does.
    config.write_text(text.replace(f"gid = {SOMEBODY}", "gid = 100"))
    said = runs("doctor", "jane.doe")
    assert said.returncode == 2 and "cannot make directories of gid 100" in said.stdout
    assert f"set gid to {SOMEBODY}" in said.stdout
