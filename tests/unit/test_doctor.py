"""``ansible-bootstrap doctor`` and broken set-ups: each fault is found, named, and the only thing that is said.

The command runs in this process, with a configuration file of its own. The apply program is a stand-in that is told
what a storage host's probe says; the real one answers in ``tests/integration/cli/test_doctor.py``.
"""

from __future__ import annotations

import http.server
import importlib.metadata
import io
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubespawner.spawner
import pytest

from ansible_bootstrap import findings
from ansible_bootstrap.cli import checks
from ansible_bootstrap.cli import main as cli
from ansible_bootstrap.cli.init import SPAWNERS
from ansible_bootstrap.cli.sources import find_missing
from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.place import Place
from ansible_bootstrap.settings import load_settings, make_settings
from ansible_bootstrap.state.directory import ensure_state_dir
from ansible_bootstrap.state.ledger import Ledger

APPLY = """
import json, pathlib, sys
request = json.loads(sys.stdin.readline())
said = json.loads(pathlib.Path(__file__).with_name("said.json").read_text()).get(request["operation"])
host = request["users"][0]["storage_host"] if request["users"] else "localhost"
if said is None:
    said = {"event": "end", "run": "r", "ok": 0, "failed": 0}
elif said.get("event") == "probed":
    said["storage_host"] = host
    said["findings"] = said.get("by_host", {}).get(host, [])
    said.pop("by_host", None)
print(json.dumps(said))
"""
DESCRIBED = {"event": "described", "roles": []}


class Hub:
    """A hub's configuration, in a directory of its own, with a storage root that is right."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.directory, self.patch, self._capsys = directory, monkeypatch, capsys
        self.root, self.state = directory / "homes", directory / "state"
        self.state.mkdir(mode=0o700)
        (directory / "apply.py").write_text(APPLY)
        self.apply = [sys.executable, "-S", str(directory / "apply.py")]
        monkeypatch.setattr(AnsibleBootstrap, "apply_argv", lambda config: self._argv(config))
        monkeypatch.setattr("ansible_bootstrap.hub.install._running_hub", lambda: None)
        monkeypatch.setattr(findings, "SYSTEM", directory / "system")
        self.mounts("/ ext4")
        self.says()
        self.settings = {
            "storage_root": str(self.root),
            "state_dir": str(self.state),
            "uid": 1000,
            "gid": 100,
        }
        self.lines = [
            "from ansible_bootstrap import setup",
            "c.JupyterHub.spawner_class = 'docker'",
            f"c.DockerSpawner.volumes = {{'{self.root}/{{username}}': '/home/jovyan'}}",
        ]
        self.last = "setup(c)"

    def _argv(self, config: AnsibleBootstrap) -> list[str]:
        ensure_state_dir(config.state_dir)
        return self.apply

    def says(self, *findings: dict[str, str], host: str = "localhost", **answers: Any) -> None:
        """What the apply program says; ``findings`` of that storage host."""
        probed = {"event": "probed", "about": {"filesystem": "ext4"}, "by_host": {host: findings}}
        said = {"describe": DESCRIBED, "probe": probed, **answers}
        (self.directory / "said.json").write_text(json.dumps(said))

    def mounts(self, *mounts: str) -> None:
        """What the machine has mounted, each as ``<directory> <type>``."""
        lines = [
            f"{number} 0 8:1 / {point} rw - {kind} dev rw\n"
            for number, (point, kind) in enumerate(map(str.split, mounts))
        ]
        (self.directory / "system/proc").mkdir(parents=True, exist_ok=True)
        mountinfo = self.directory / "mountinfo"
        mountinfo.write_text("".join(lines))
        self.patch.setattr("ansible_bootstrap.storage._mounts.MOUNTINFO", str(mountinfo))

    def has(self, *lines: str, **settings: Any) -> None:
        """Add to the configuration."""
        self.lines += lines
        self.settings |= settings

    def knows(self, **directories: str) -> None:
        """Have the ledger know where servers had their storage."""
        places = [Place(name, where, storage_host="localhost") for name, where in directories.items()]
        Ledger(self.state).note_places(places, "an earlier configuration")

    def versions(self, **versions: str) -> None:
        real = importlib.metadata.version

        def version(package: str) -> str:
            said = versions.get(package.replace("-", "_")) or real(package)
            if said == "none":
                raise importlib.metadata.PackageNotFoundError(package)
            return said

        self.patch.setattr(checks, "version", version)

    def command(self, *args: str) -> tuple[int, str]:
        """Run the command; return its exit status and what it printed."""
        ours = [f"c.AnsibleBootstrap.{name} = {value!r}" for name, value in self.settings.items()]
        config = self.directory / "config.py"
        config.write_text("\n".join([*self.lines, *ours, self.last, ""]))
        status = cli.main(["doctor", "--config", str(config), *args])
        return status, self._capsys.readouterr().out

    def says_of_itself(self, *args: str) -> Any:
        status, said = self.command("--json", *args)
        answer = json.loads(said)
        levels = {finding["level"] for finding in answer["findings"]}
        assert status == (2 if "error" in levels else 1 if levels else 0)
        return answer


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Hub:
    return Hub(tmp_path, monkeypatch, capsys)


# -- nothing to say --------------------------------------------------------------------------------


def a_hook_of_ours(hub: Hub) -> None:
    hub.last = "from ansible_bootstrap import pre_spawn_hook; c.DockerSpawner.pre_spawn_hook = pre_spawn_hook"


def a_class_of_ours(hub: Hub) -> None:
    hub.last = "from dockerspawner import DockerSpawner; from ansible_bootstrap import bootstrapped\n"
    hub.last += "c.JupyterHub.spawner_class = bootstrapped(DockerSpawner)"


def setup_in_another_file(hub: Hub) -> None:
    (hub.directory / "ours.py").write_text("from ansible_bootstrap import setup; setup(c)")
    hub.last = "load_subconfig('ours.py')"


def local_servers_in_a_container(hub: Hub) -> None:
    (hub.directory / "system/.dockerenv").touch()
    hub.has("c.JupyterHub.spawner_class = 'simple'")
    hub.has(f"c.SimpleLocalProcessSpawner.home_dir_template = '{hub.root}/{{username}}'")


def a_container_with_the_storage_mounted(hub: Hub) -> None:
    (hub.directory / "system/.dockerenv").touch()
    hub.mounts("/ overlay", f"{hub.directory} ext4")


def a_role_of_a_collection(hub: Hub) -> None:
    (hub.directory / "ansible_collections/my/own/roles/data").mkdir(parents=True)
    (hub.directory / "roles/quota").mkdir(parents=True)
    hub.has(collections_path=[str(hub.directory)], roles_path=[str(hub.directory / "roles")])
    hub.has(roles=["user_dir", "my.own.data", "quota"])


def users_who_are_where_they_were(hub: Hub) -> None:
    hub.knows(alice=f"{hub.root}/alice")


RIGHT: list[Callable[[Hub], None]] = [
    lambda hub: None,
    a_hook_of_ours,
    a_class_of_ours,
    setup_in_another_file,
    local_servers_in_a_container,
    a_container_with_the_storage_mounted,
    a_role_of_a_collection,
    users_who_are_where_they_were,
]


@pytest.mark.parametrize("arrange", RIGHT, ids=lambda arrange: arrange.__name__)
def test_of_a_hub_that_is_right_nothing_is_said(hub: Hub, arrange: Callable[[Hub], None]) -> None:
    arrange(hub)
    answer = hub.says_of_itself()
    assert answer["findings"] == []
    (user,) = answer["users"]
    assert user["directory"] == f"{hub.root}/{user['name']}"
    assert answer["about"]["hosts"] == {"localhost": {"filesystem": "ext4"}}


# -- broken set-ups --------------------------------------------------------------------------------


def raises(hub: Hub) -> None:
    hub.has("1 / 0")


def misspelled(hub: Hub) -> None:
    hub.has(storge_root="/volumes")


def no_root(hub: Hub) -> None:
    del hub.settings["storage_root"]


def of_a_wrong_type(hub: Hub) -> None:
    hub.has(timeout="soon")


def impossible(hub: Hub) -> None:
    hub.has(uid_min=3000, uid_max=2000)


def no_inventory(hub: Hub) -> None:
    hub.has(inventory="/etc/nowhere.yml")


def both_sides(hub: Hub) -> None:
    hub.has(apply_command=["/usr/bin/sudo", "-n", "apply"])


def no_setup(hub: Hub) -> None:
    hub.last = ""


def a_hook_of_the_site(hub: Hub) -> None:
    hub.last = "def mine(spawner): pass\nc.Spawner.pre_spawn_hook = mine"


def no_such_spawner(hub: Hub) -> None:
    hub.has("c.JupyterHub.spawner_class = 'nospawner.NoSpawner'", place="/homes/{username}")


def old_ansible(hub: Hub) -> None:
    hub.versions(ansible_core="2.16.3")


def new_hub(hub: Hub) -> None:
    hub.versions(jupyterhub="7.0.0b1")


def no_runner(hub: Hub) -> None:
    hub.versions(ansible_runner="none")


def misspelled_role(hub: Hub) -> None:
    hub.has(roles=["user_dir", "tutorial"])


def misspelled_site_role(hub: Hub) -> None:
    (hub.directory / "roles/class_list").mkdir(parents=True)
    hub.has(roles=["user_dir"], cleanup_roles=["clas_list"], roles_path=[str(hub.directory / "roles")])


def tutorial(hub: Hub, *, needed: bool = True, **source: Any) -> None:
    role = {"role": "tutorials", "on_failure": "block" if needed else "continue"}
    hub.has(
        roles=["user_dir", role],
        extra_vars={"tutorials_sources": [{"name": "course", "dest": "t", **source}]},
    )


def a_tutorial_that_is_not_there(hub: Hub) -> None:
    tutorial(hub, path=f"{hub.directory}/course.zip")


def a_tutorial_that_may_fail(hub: Hub) -> None:
    tutorial(hub, path=f"{hub.directory}/course.zip", needed=False)


def a_tutorial_of_no_server(hub: Hub) -> None:
    with socket.socket() as taken:  # Bound, and nobody listens.
        taken.bind(("127.0.0.1", 0))
        tutorial(hub, url=f"http://127.0.0.1:{taken.getsockname()[1]}/course.zip?token=secret")


def a_misspelled_source(hub: Hub) -> None:
    tutorial(hub, path="/", strip_component=1)


def no_roles_path(hub: Hub) -> None:
    hub.has(roles_path=["/etc/no roles"])


def slow_tasks(hub: Hub) -> None:
    (hub.directory / "roles/slow").mkdir(parents=True)
    hub.has(roles=["slow"], roles_path=[str(hub.directory / "roles")], task_timeout=300)


def slow_script(hub: Hub) -> None:
    hub.has(roles=["user_dir", "script"], timeout=25, extra_vars={"script_timeout": 600, "script_path": "/x"})


def few_spawns(hub: Hub) -> None:
    hub.has("c.JupyterHub.concurrent_spawn_limit = 5", at_login=False)


def a_file_for_state(hub: Hub) -> None:
    (hub.directory / "file").touch()
    hub.has(state_dir=str(hub.directory / "file"))


def state_of_another_account(hub: Hub) -> None:
    """Doctor is run by root for a hub that is not root."""
    hub.state.mkdir(mode=0o700, exist_ok=True)
    os.chown(hub.state, 1500, 1500)


def state_on_nfs(hub: Hub) -> None:
    hub.mounts("/ ext4", f"{hub.state} nfs4")


def damaged_ledger(hub: Hub) -> None:
    (hub.state / "ledger.sqlite").write_text("no database at all" * 100)


def no_apply_program(hub: Hub) -> None:
    hub.apply = ["/nowhere/apply"]


def sudo_refuses(hub: Hub) -> None:
    hub.apply = [sys.executable, "-S", "-c", "import sys; input(); sys.exit('sudo: a password is required')"]


def a_banner(hub: Hub) -> None:
    hub.apply = [sys.executable, "-S", "-c", "input(); print('Welcome to storage1!')"]


def refused_by_the_other_side(hub: Hub) -> None:
    hub.says(describe={"event": "refused", "reason": "settings", "message": "settings.yml is missing"})


def an_older_other_side(hub: Hub) -> None:
    hub.says(probe={"event": "refused", "reason": "refused", "message": "malformed request: operation"})


def a_squashed_root(hub: Hub) -> None:
    hub.says({"level": "error", "what": "root is squashed here", "mend": "no_root_squash"})


def in_a_container(hub: Hub) -> None:
    (hub.directory / "system/.dockerenv").touch()
    hub.mounts("/ overlay", "/elsewhere ext4")


def in_a_container_with_one_root_mounted(hub: Hub) -> None:
    (hub.directory / "system/.dockerenv").touch()
    hub.has(storage_roots=["/opt/data"])
    hub.mounts("/ overlay", f"{hub.directory} ext4")


def in_a_pod(hub: Hub) -> None:
    (hub.directory / "system/proc/1").mkdir()
    (hub.directory / "system/proc/1/cgroup").write_text("0::/kubepods/pod1\n")


def unknown_spawner(hub: Hub) -> None:
    from jupyterhub.spawner import Spawner

    does = {"__module__": "yarnspawner.spawner", "start": None, "stop": None, "poll": None}
    module = SimpleNamespace(YarnSpawner=type("YarnSpawner", (Spawner,), does))
    hub.patch.setitem(sys.modules, "yarnspawner", module)
    hub.has("c.JupyterHub.spawner_class = 'yarnspawner.YarnSpawner'")
    del hub.settings["uid"], hub.settings["gid"]


def volumes_of_no_pod(hub: Hub) -> None:
    hub.has(place={"volumes": {"home": "/volumes/home"}})


def named_volume(hub: Hub) -> None:
    hub.has("c.DockerSpawner.volumes = {'jupyterhub-{username}': '/home/jovyan'}")


def claim_of_each_user(hub: Hub) -> None:
    hub.patch.setattr(kubespawner.spawner, "load_config", lambda **given: None)
    hub.has("c.JupyterHub.spawner_class = 'kubespawner.KubeSpawner'")
    hub.has(
        "c.KubeSpawner.volumes = [{'name': 'h', 'persistentVolumeClaim': {'claimName': 'claim-{username}'}}]"
    )
    hub.has("c.KubeSpawner.volume_mounts = [{'name': 'h', 'mountPath': '/home/jovyan'}]")


def moved(hub: Hub) -> None:
    hub.knows(alice="/old/alice", bob="/old/bob", carol="/old/carol", dan="/old/dan", eve=f"{hub.root}/eve")


def another_escape(hub: Hub) -> None:
    hub.knows(**{"jane.doe": f"{hub.root}/jane-2edoe", "bob": f"{hub.root}/bob"})
    hub.has("c.DockerSpawner.escape = 'legacy'")


@pytest.mark.parametrize(
    ("users", "said"), [(moved, "4 users are elsewhere"), (another_escape, "1 user is elsewhere")]
)
def test_status_counts_the_users_that_doctor_counts(
    hub: Hub, users: Callable[[Hub], None], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    users(hub)
    hub.command()  # Writes the configuration.
    assert cli.main(["status", "--config", str(hub.directory / "config.py")]) == 0
    assert said in capsys.readouterr().out


BROKEN: list[tuple[Callable[[Hub], None], str, str, str, str]] = [
    (raises, "configuration", "error", "ZeroDivisionError", ""),
    (misspelled, "configuration", "error", "storge_root is not a setting; did you mean 'storage_root'?", ""),
    (no_root, "configuration", "error", "storage_root is not set", ""),
    (of_a_wrong_type, "configuration", "error", "'timeout' trait", ""),
    (impossible, "configuration", "error", "uid_max is below uid_min", ""),
    (no_inventory, "configuration", "error", "'/etc/nowhere.yml' is neither", ""),
    (both_sides, "configuration", "error", "move them there", ""),
    (no_setup, "hook", "error", "no server waits for its storage", "setup(c)"),
    (a_hook_of_the_site, "hook", "warning", "the site's own", "setup(c)"),
    (no_such_spawner, "hook", "error", "spawner_class cannot be loaded", "install"),
    (old_ansible, "versions", "error", "ansible-core 2.16.3 is too old", "ansible-core>=2.19,<2.23"),
    (new_hub, "versions", "warning", "jupyterhub 7.0.0b1 is newer", "jupyterhub>=5.2,<7.0"),
    (no_runner, "versions", "error", "ansible-runner is not installed", "ansible-runner>=2.4"),
    (misspelled_role, "roles", "error", "no role 'tutorial'", "did you mean 'tutorials'?"),
    (misspelled_site_role, "roles", "error", "no role 'clas_list'", "did you mean 'class_list'?"),
    (
        no_roles_path,
        "roles",
        "error",
        "/etc/no roles is not a directory",
        "install -d '/etc/no roles'",
    ),
    (a_tutorial_that_is_not_there, "sources", "error", "source course: ", "tutorials_sources"),
    (a_tutorial_that_may_fail, "sources", "warning", "source course: ", "tutorials_sources"),
    (a_tutorial_of_no_server, "sources", "error", "/course.zip: ", "tutorials_sources"),
    (a_misspelled_source, "sources", "error", "unknown fields: strip_component", "tutorials_sources"),
    (slow_tasks, "timeouts", "warning", "task_timeout (300 s) is more than", "task_timeout = 60"),
    (slow_script, "timeouts", "warning", "script_timeout (600 s) is more than", "timeout = 1200"),
    (few_spawns, "timeouts", "warning", "each run has at most 5 users", "concurrent_spawn_limit = 100"),
    (a_file_for_state, "state_dir", "error", "not a directory", ""),
    pytest.param(
        state_of_another_account,
        "state_dir",
        "error",
        "is uid 1500's, and this is root",
        "sudo -u '#1500' ansible-bootstrap doctor",
        marks=pytest.mark.root,
    ),
    (state_on_nfs, "state_dir", "warning", "is on nfs4", "local disk"),
    (damaged_ledger, "state_dir", "warning", "everybody is bootstrapped once more", "mv "),
    (no_apply_program, "apply program", "error", "cannot start '/nowhere/apply'", ""),
    (sudo_refuses, "apply program", "error", "sudo: a password is required", ""),
    (a_banner, "apply program", "error", "Welcome to storage1!", ""),
    (refused_by_the_other_side, "apply program", "error", "settings.yml is missing", ""),
    (an_older_other_side, "storage", "error", "malformed request: operation", ""),
    (a_squashed_root, "storage", "error", "root is squashed here", "no_root_squash"),
    (in_a_container, "container", "error", "is not a mount", "docker run -v"),
    (in_a_container_with_one_root_mounted, "container", "error", "/opt/data is not a mount", ""),
    (in_a_pod, "container", "error", "is not a mount", ""),
    (
        unknown_spawner,
        "users",
        "error",
        "YarnSpawner is a spawner of an unknown class",
        "AnsibleBootstrap.place",
    ),
    (volumes_of_no_pod, "users", "error", "place has volumes, which ", "for KubeSpawner"),
    (named_volume, "users", "error", "unresolved", ""),
    (claim_of_each_user, "users", "error", "unresolved", ""),
    (
        another_escape,
        "known users",
        "warning",
        "1 user would get another directory than they have: jane.doe: ",
        "",
    ),
    (moved, "known users", "warning", "4 users would get another directory than they have: ", "accept NAME"),
]


@pytest.mark.parametrize(
    ("arrange", "check", "level", "what", "mend"), BROKEN, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_broken_set_up_is_found_and_named(
    hub: Hub, arrange: Callable[[Hub], None], check: str, level: str, what: str, mend: str
) -> None:
    arrange(hub)
    (finding,) = hub.says_of_itself()["findings"]
    assert (finding["check"], finding["level"]) == (check, level)
    assert what in finding["what"]
    assert mend in finding["mend"]


def test_several_faults_are_all_told_and_what_rests_on_them_is_not_looked_at(hub: Hub) -> None:
    misspelled(hub)
    impossible(hub)
    no_setup(hub)
    old_ansible(hub)
    status, said = hub.command()
    assert status == 2
    made = re.findall(r"^(ok|warning|error|skipped) +([a-z_ ]+)$", said, re.M)
    assert [name for _, name in made] == list(checks.CHECKS)
    assert dict(map(reversed, made))["users"] == "skipped"
    assert len(re.findall(r"^error +[a-z ]+: ", said, re.M)) == 4
    assert "→ add to the configuration: from ansible_bootstrap import setup; setup(c)" in said


def test_a_missing_configuration_is_a_finding_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json", "--config", str(tmp_path / "none.py")]) == 2
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert "name the hub's configuration with --config FILE" in finding["what"]


# -- what init writes ------------------------------------------------------------------------------


@pytest.mark.parametrize("spawner", SPAWNERS)
def test_of_what_init_writes_nothing_is_said(
    spawner: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kubespawner.spawner, "load_config", lambda **given: None)
    options = ["--spawner", spawner, "--storage-root", str(hub.root), "--roles", "user_dir, tutorials"]
    assert cli.main(["init", *options, "--directory", str(hub.directory / "new")]) == 0
    config = hub.directory / "new/jupyterhub_config.py"
    said = capsys.readouterr().out
    assert f"ansible-bootstrap doctor --config {config}" in said
    assert "pip install" not in said
    config.write_text(f"c.AnsibleBootstrap.state_dir = {str(hub.state)!r}\n{config.read_text()}")
    assert cli.main(["doctor", "--json", "--config", str(config)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["findings"] == []
    ids = [] if SPAWNERS[spawner].uid == "nss" else [int(SPAWNERS[spawner].uid)]
    assert [user["uid"] for user in answer["users"]] == ids


def test_init_says_which_package_is_missing_and_which_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ansible_bootstrap.cli.init.distributions", lambda name: iter(()))
    options = ["--spawner", "kube", "--storage-root", f"{tmp_path}/homes", "--directory", str(tmp_path)]
    assert cli.main(["init", *options]) == 0
    said = capsys.readouterr().out
    assert f"{sys.executable} -m pip install jupyterhub-kubespawner\n" in said
    assert f"# install -d -m 755 {tmp_path}/homes\n" in said


def test_init_overwrites_nothing_unless_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "settings.yml").write_text("mine")
    command = [
        "init",
        "--spawner",
        "docker",
        "--boundary",
        "sudo",
        "--directory",
        str(tmp_path),
        "--uid",
        "1001",
    ]
    assert cli.main(command) == 2
    assert "settings.yml is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yml"]
    (tmp_path / "settings.yml").rename(tmp_path / "others")
    (tmp_path / "settings.yml").symlink_to("others")
    before = (tmp_path / "others").read_text()
    assert cli.main([*command, "--force"]) == 0
    assert f"install -D -m 600 {tmp_path}/settings.yml /etc/ansible-bootstrap/" in capsys.readouterr().out
    assert (tmp_path / "others").read_text() == before, "written through a link"
    assert load_settings(tmp_path / "settings.yml").uid == 1001
    assert "apply_command" in (tmp_path / "jupyterhub_config.py").read_text()
    example = Path(__file__).parents[2] / "examples/behind-sudo/ansible-bootstrap.sudoers"
    assert _rules(tmp_path / "ansible-bootstrap.sudoers") == _rules(example)


def _rules(sudoers: Path) -> list[str]:
    return [line for line in sudoers.read_text().splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "--spawner is missing"),
        (["--spawner", "docker", "--roles", "user_dir,my_role"], "my_role: add your own roles later"),
        (["--spawner", "docker", "--storage-root", "volumes"], "storage-root"),
        (["--spawner", "docker", "--storage-root", '/"]; import os'], "storage-root"),
        (["--spawner", "simple", "--boundary", "sudo"], "run under the hub's own account"),
        (["--spawner", "docker", "--uid", "0"], "uid"),
        (["--spawner", "docker", "--uid", "1000; import os"], "uid"),
    ],
    ids=[
        "no spawner",
        "a site role",
        "a relative root",
        "code for a root",
        "nothing to bound",
        "root's uid",
        "code for a uid",
    ],
)
def test_init_refuses_what_could_not_be_used(
    args: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cli.main(["init", "--directory", str(tmp_path), *args]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_at_a_terminal_init_asks_for_what_is_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"spawner": "simple", "storage-root": "/srv/homes", "roles": ""}
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return answers.get(question.partition(" [")[0].partition(" (")[0], "")

    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", answer)
    assert cli.main(["init", "--authenticator", "dummy", "--directory", str(tmp_path)]) == 0
    written = (tmp_path / "jupyterhub_config.py").read_text()
    assert "'dummy'" in written
    assert "/srv/homes/{username}" in written
    assert "['user_dir']" in written
    assert asked and not any("authenticator" in question for question in asked)


# -- users -----------------------------------------------------------------------------------------


def test_users_who_are_named_are_shown_with_what_their_server_would_mount(hub: Hub) -> None:
    (hub.directory / "class.csv").write_text("name,uid\nbob,1001\n")
    answer = hub.says_of_itself("jane.doe", "--roster", str(hub.directory / "class.csv"))
    shown = {user["name"]: (user["directory"], user["uid"], user["storage_host"]) for user in answer["users"]}
    assert shown == {
        "jane.doe": (f"{hub.root}/jane-2edoe", 1000, "localhost"),
        "bob": (f"{hub.root}/bob", 1001, "localhost"),
    }
    assert f"jane.doe: '{hub.root}/jane-2edoe' on localhost (uid 1000)" in hub.command("jane.doe")[1]


def test_of_many_users_without_a_place_some_are_named_and_the_rest_is_counted(hub: Hub) -> None:
    named_volume(hub)
    findings = hub.says_of_itself(*(f"student{number}" for number in range(12)))["findings"]
    assert len(findings) == 6
    assert findings[-1]["what"] == "7 more users have no place"


def test_twenty_of_the_ledgers_users_are_tried_and_all_are_compared(hub: Hub) -> None:
    hub.knows(**{f"student{number}": f"/old/student{number}" for number in range(30)})
    answer = hub.says_of_itself()
    assert len(answer["users"]) == 20
    (finding,) = answer["findings"]
    assert finding["what"].startswith("30 users would get another directory")
    assert (
        f"student29: '/old/student29' on localhost → '{hub.root}/student29' on localhost (uid 1000), "
        in finding["what"]
    )
    assert finding["what"].endswith(", …")


def test_a_user_whose_place_only_a_hub_can_tell_is_where_their_last_server_was(hub: Hub) -> None:
    hub.has("c.AnsibleBootstrap.place = lambda spawner: {'directory': spawner.user.url_of_their_own}")
    (finding,) = hub.says_of_itself("alice")["findings"]
    assert "only a running hub knows it" in finding["what"]
    place = Place("alice", f"{hub.root}/chosen", storage_host="localhost")
    settings = cli._load_config(hub.directory / "config.py")
    Ledger(hub.state).note_places([place], settings.place_digest())
    answer = hub.says_of_itself("alice")
    assert answer["findings"] == []
    assert [user["directory"] for user in answer["users"]] == [f"{hub.root}/chosen"]


def test_nothing_is_printed_that_a_terminal_could_act_upon(hub: Hub) -> None:
    hub.says({"level": "error", "what": "\x1b[31mred [bold]X", "mend": "\x07"})
    _, said = hub.command("al\x1b[31mice", "[bold]bob")
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "\\x1b[31mred [bold]X" in said
    assert "[bold]bob" in said


def test_a_check_that_fails_itself_is_a_finding_and_the_others_go_on(hub: Hub) -> None:
    def breaks(site: Any) -> Any:
        raise ZeroDivisionError("a fault of ours")

    hub.patch.setattr(checks, "CHECKS", {**checks.CHECKS, "roles": breaks})
    hub.patch.setattr("ansible_bootstrap.cli.doctor.CHECKS", checks.CHECKS)
    (finding,) = hub.says_of_itself()["findings"]
    assert (finding["check"], finding["level"]) == ("roles", "error")
    assert "ZeroDivisionError: a fault of ours" in finding["what"]


def test_a_hub_that_cannot_be_asked_is_a_finding(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUPYTERHUB_API_TOKEN", raising=False)
    (finding,) = hub.says_of_itself("--hub")["findings"]
    assert finding["check"] == "users"
    assert "--hub needs a token" in finding["what"]


def test_each_storage_host_of_the_users_is_probed(hub: Hub) -> None:
    hub.has("c.AnsibleBootstrap.storage_host = lambda spawner: 'host-' + spawner.user.name[0]")
    hub.says({"level": "warning", "what": "the disk is nearly full"}, host="host-b")
    answer = hub.says_of_itself("alice", "bob")
    assert set(answer["about"]["hosts"]) == {"host-a", "host-b"}
    (finding,) = answer["findings"]
    assert finding["what"] == "host-b: the disk is nearly full"


def test_behind_a_boundary_the_command_is_shown_that_can_be_tried(hub: Hub) -> None:
    no_apply_program(hub)
    hub.settings = {"state_dir": str(hub.state), "apply_command": ["/usr/bin/sudo", "-n", "a b"]}
    (finding,) = hub.says_of_itself("alice")["findings"]
    assert "`/usr/bin/sudo -n 'a b' </dev/null`" in finding["mend"]


@pytest.mark.parametrize(
    ("said", "mend"),
    [
        ("/usr/bin/env: ‘/opt/ours/bin/python’: No such file or directory", "python3 -m venv /opt/ours && /opt/ours/bin/pip"),
        (
            "/opt/ours/bin/python: Error while finding module specification for 'ansible_bootstrap.apply' "
            "(ModuleNotFoundError: No module named 'ansible_bootstrap')",
            "as root: /opt/ours/bin/pip install",
        ),
        ("No ED25519 host key is known for storage1 and you have requested strict checking.",
         "ssh-keyscan storage1 >> ~/.ssh/known_hosts"),
        ("Warning: Identity file /etc/k not accessible: No such file or directory.", "ssh-keygen -t ed25519 -f /etc/k"),
    ],
)  # fmt: skip
def test_what_a_broken_chain_says_has_its_mend(hub: Hub, said: str, mend: str) -> None:
    """What real chains say more often is in ``tests/integration/boundary/test_doctor_boundary.py``."""
    hub.apply = [sys.executable, "-S", "-c", f"import sys; input(); sys.exit({said!r})"]
    hub.settings = {"state_dir": str(hub.state), "apply_command": ["/usr/bin/ssh", "storage1"]}
    (finding,) = hub.says_of_itself("alice")["findings"]
    assert finding["check"] == "apply program" and mend in finding["mend"], finding


def test_the_versions_are_those_of_the_package() -> None:
    wanted = importlib.metadata.requires("ansible-bootstrap") or []
    (first, end) = checks.SUPPORTED["ansible-core"]
    bounds = {f">={first[0]}.{first[1]}", f"<{end[0]}.{end[1]}"}
    assert any(set(line.removeprefix("ansible-core").split(",")) == bounds for line in wanted)


@pytest.mark.parametrize(("status", "missing"), [(200, False), (405, False), (404, True)])
async def test_a_tutorials_server_is_asked_and_no_token_is_told(status: int, missing: bool) -> None:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/course.zip?token=secret"
        given = {"storage_root": "/v", "roles": ["tutorials"]}
        variables = {"tutorials_sources": [{"name": "course", "url": url}]}
        found = [each async for each in find_missing(make_settings({**given, "extra_vars": variables}, ""))]
        variables = {"tutorials_sources": [{"name": "course", "url": "{{ course_url }}"}]}
        assert [
            each async for each in find_missing(make_settings({**given, "extra_vars": variables}, ""))
        ] == []
        server.shutdown()
    assert asked == ["/course.zip?token=secret"]
    assert bool(found) == missing and "secret" not in str(found)
