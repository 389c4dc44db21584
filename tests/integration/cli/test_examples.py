"""Every example is run as it stands, but for its paths; so none can rot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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

    def runs(self, *command: str) -> str:
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
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
    tested |= {"clean-up", "shell-script"}
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
    assert "would change  alice" in example.runs("ansible-bootstrap", "run", "alice", "--check")
    assert "changed  alice: user_dir" in example.runs("ansible-bootstrap", "run", "alice")
    status = (example.root / "alice").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (*OWNER, 0o750)
    assert "ok  alice" in example.runs("ansible-bootstrap", "run", "alice")


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

    assert "would change  erin" in runs("ansible-bootstrap", "run", "erin", "--check")
    assert list(homes.iterdir()) == []
    assert "changed  erin: mkhomedir" in runs("ansible-bootstrap", "run", "erin")
    status = (homes / "erin").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (20077, 20077, 0o700)
    skeleton = {path.name for path in Path("/etc/skel").iterdir()}
    assert {path.name for path in (homes / "erin").iterdir()} == skeleton
    assert "ok  erin" in runs("ansible-bootstrap", "run", "erin")


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
    assert "would change  alice" in example.runs("ansible-bootstrap", "run", "alice", "--check")
    assert "changed  alice: user_dir, tutorials" in example.runs("ansible-bootstrap", "run", "alice")
    assert (example.root / "alice").stat().st_uid == OWNER[0]
    assert (example.root / "alice/tutorials/welcome.ipynb").is_file()
    assert "ok  alice" in example.runs("ansible-bootstrap", "run", "alice")


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
        assert "would change  alice" in example.runs("ansible-bootstrap", "run", "alice", "--check")
        assert "changed  alice: user_dir, script" in example.runs("ansible-bootstrap", "run", "alice")
        assert "PythonDataScienceHandbook" in (example.root / "alice/tutorials/README.md").read_text()
        assert os.listdir(example.root / "alice") == ["tutorials"]
        assert "ok  alice" in example.runs("ansible-bootstrap", "run", "alice")
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
    command = ("ansible-playbook", "ansible_bootstrap.jupyterhub.bootstrap", "-e", "@class.yml")
    example.runs(*command, "--check", "--diff")
    assert list(example.root.iterdir()) == []
    example.runs(*command)
    assert (example.root / "alice/tutorials/penguins.csv").is_file()
    assert (example.root / "staff/bob").stat().st_uid == OWNER[0]
    assert "changed=0 " in example.runs(*command)


@pytest.mark.parametrize("example", ["remote-storage"], indirect=True)
def test_remote_storage_as_far_as_one_machine_shows_it(example: Example) -> None:
    """The hosts themselves are in tests/integration/hosts."""
    hosts = json.loads(example.runs("ansible-inventory", "-i", "storage.yml", "--list"))
    assert set(hosts["_meta"]["hostvars"]) == {"storage1", "storage2"}
    shown = subprocess.run(
        [str(BIN / "ansible-bootstrap"), "run", "alice", "--json"],
        cwd=example.directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 1
    (outcome,) = json.loads(shown.stdout)
    assert (outcome["storage_host"], outcome["reason"]) == (
        "storage1",
        "unreachable",
    )  # As the configuration says.
