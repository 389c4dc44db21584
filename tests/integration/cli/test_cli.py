"""``ansible-bootstrap`` as an admin types it, with the real apply program and the real roles."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli import command

OWNER = (20001, 100) if os.geteuid() == 0 else (os.geteuid(), os.getegid())


class Admin:
    """An admin in a directory with a ``jupyterhub_config.py``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "storage"
        self.root.mkdir(mode=0o755)
        self.configure()

    def configure(self, **settings: Any) -> None:
        settings = {
            "storage_root": str(self.root),
            "state_dir": str(self.directory / "state"),
            "uid": OWNER[0],
            "gid": OWNER[1],
            **settings,
        }
        lines = [f"c.AnsibleBootstrap.{name} = {value!r}" for name, value in settings.items()]
        (self.directory / "jupyterhub_config.py").write_text("\n".join(["c = get_config()", *lines, ""]))

    def command(self, *args: str) -> list[str]:
        return [str(Path(sys.executable).parent / "ansible-bootstrap"), *args]

    def types(self, *args: str, status: int = 0) -> str:
        done = command.run(*args, cwd=self.directory)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout if status != 2 else done.stderr

    def homes(self) -> set[str]:
        return {path.name for path in self.root.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def admin(tmp_path: Path) -> Admin:
    tmp_path.chmod(0o755)
    return Admin(tmp_path)


def test_two_hundred_by_roster_are_one_run_and_a_bad_one_costs_only_itself(admin: Admin) -> None:
    names = [f"student{number}" for number in range(199)]
    roster = admin.directory / "class.txt"
    roster.write_text("\n".join([*names[:100], "{{ lookup('pipe', 'id') }}", *names[100:]]) + "\n")
    outcomes = json.loads(admin.types("run", "--roster", str(roster), "--json", status=1))
    assert len(outcomes) == 200
    assert {outcome["name"] for outcome in outcomes if outcome["status"] == "ok"} == set(names)
    assert admin.homes() == set(names)
    assert len({outcome["run"] for outcome in outcomes if outcome["run"]}) == 1
    (bad,) = (outcome for outcome in outcomes if outcome["status"] == "failed")
    assert bad["reason"] == "refused"
    (run,) = json.loads(admin.types("status", "--json"))["runs"]
    assert run["users"] == 199


def test_check_first_then_do_then_nothing_is_left_to_do(admin: Admin) -> None:
    assert "would change  alice: user_dir" in admin.types("run", "alice", "--check")
    assert list(admin.root.iterdir()) == []
    assert "changed  alice: user_dir" in admin.types("run", "alice")
    status = (admin.root / "alice").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (*OWNER, 0o755)
    assert "ok  alice" in admin.types("run", "alice")


def test_a_hub_that_observes_is_not_changed_by_the_command_either(admin: Admin) -> None:
    admin.configure(mode="observe")
    assert "would change  alice: user_dir" in admin.types("run", "alice")
    assert admin.homes() == set()


def test_one_fault_of_all_is_said_once(admin: Admin) -> None:
    admin.root.rmdir()
    said = admin.types("run", *(f"student{number}" for number in range(20)), status=1)
    assert "20 users alike: user_dir: " in said
    assert len(said.splitlines()) == 3


def test_a_name_that_stands_in_the_roster_too_counts_once(admin: Admin) -> None:
    (admin.directory / "class.txt").write_text("alice\nbob\n")
    assert "2 users: 2 ok" in admin.types("run", "alice", "--roster", "class.txt", "--check")


def test_a_complete_user_is_left_out_until_forgotten(admin: Admin) -> None:
    """Also while a role finds nothing to do: what is not asked for cannot be found to be so."""
    (admin.directory / "class.csv").write_text("username,groups\nalice,a;b\nbob\n")
    assert "2 users: 2 ok, 0 failed" in admin.types("run", "--roster", "class.csv")
    said = admin.types("run", "--roster", "class.csv", "carol")
    assert "changed  carol: user_dir" in said
    assert "2 were complete already" in said
    assert "were complete" not in admin.types("run", "--roster", "class.csv", "--again")
    assert "Forgot 'alice'; 1 directory had a record." in admin.types("forget", "alice")
    assert "Forgot 2 users; 1 directory had a record." in admin.types("forget", "--roster", "class.csv")
    assert "Forgot 'nobody'; no directories had a record." in admin.types("forget", "nobody")
    assert "1 was complete already" in admin.types("run", "alice", "bob", "carol")
    assert "Forgot everybody; 3 directories had a record." in admin.types("forget", "--all")


def test_a_home_that_was_removed_is_made_again_though_the_user_was_complete(admin: Admin) -> None:
    admin.types("run", "alice")
    (admin.root / "alice").rmdir()
    assert "changed  alice: user_dir" in admin.types("run", "alice")


def test_a_directory_is_where_the_hubs_spawner_will_mount_it(admin: Admin) -> None:
    pytest.importorskip("dockerspawner")
    config = admin.directory / "jupyterhub_config.py"
    config.write_text(
        config.read_text() + "c.JupyterHub.spawner_class = 'docker'\n"
        f"c.DockerSpawner.volumes = {{'{admin.root}/{{username}}': '/home/jovyan'}}\n"
    )
    said = admin.types("run", "emmy.noether", "Grace")
    assert "the hub would call this user 'grace', not 'Grace'" in said
    assert admin.homes() == {"emmy-2enoether", "-47race"}


def test_a_long_run_says_how_far_it_is_where_there_is_no_terminal(admin: Admin) -> None:
    """So that the mail of a cron job has it; a program that reads JSON, and an admin who says --quiet, get nothing."""
    code = "import sys, ansible_bootstrap.cli.report as r; r.LINE_SECONDS = 0.02;"
    code += "from ansible_bootstrap.cli.main import main; sys.exit(main(sys.argv[1:]))"

    def said(*args: str) -> str:
        command = [sys.executable, "-c", code, "run", *names, *args]
        done = subprocess.run(
            command, cwd=admin.directory, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    names = [f"student{number}" for number in range(5)]
    assert re.search(r"^bootstrapping: 0 of 5$", said(), re.MULTILINE)
    assert "bootstrapping:" not in said("--quiet", "--again")
    assert "bootstrapping:" not in said("--json", "--again")


def test_json_has_the_fields_that_scripts_rely_on(admin: Admin) -> None:
    (outcome,) = json.loads(admin.types("run", "alice", "--json"))
    wanted = {
        "key": "alice",
        "name": "alice",
        "status": "ok",
        "changed": ["user_dir"],
        "failed_role": None,
        "message": "",
        "storage_host": "localhost",
        "directory": str(admin.root / "alice"),
    }
    assert wanted.items() <= outcome.items()
    assert 0 < outcome["seconds"] < 60


def test_diff_shows_what_a_check_would_make(admin: Admin) -> None:
    done = subprocess.run(
        admin.command("run", "alice", "--check", "--diff"),
        cwd=admin.directory,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(admin.root / "alice") in done.stderr


def test_a_failure_names_the_user_the_role_and_the_cause(admin: Admin) -> None:
    (admin.root / "bob").write_text("a file where the directory should be\n")
    said = admin.types("run", "alice", "bob", status=1)
    assert "changed  alice: user_dir" in said
    assert "failed  bob: user_dir: " in said
    assert "2 users: 1 ok, 1 failed" in said
    assert "bob" in admin.types("status", "bob")
    assert "Nothing is known of carol" in admin.types("status", "carol")


def test_a_missing_storage_root_is_said_so_and_not_made(admin: Admin) -> None:
    admin.root.rmdir()
    assert "does not exist" in admin.types("run", "alice", status=1)
    assert not admin.root.exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["run"], "nobody to bootstrap"),
        (["run", "alice", "--roster", "missing.txt"], "missing.txt: No such file"),
        (["run", "alice", "--config", "missing.py"], "no missing.py"),
        (["run", "alice", "--frobnicate"], "unrecognized arguments"),
        (["run", "--hub", "--hub-url", "ftp://hub"], "is not the URL of a hub's API"),
        (["forget"], "nobody to forget"),
        (["forget", "alice", "--all"], "nobody to forget"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_wrong(admin: Admin, args: list[str], said: str) -> None:
    assert said in admin.types(*args, status=2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"roles": ["user_dirr"]}, "user_dirr"),
        ({"uid": "nobody-knows"}, "uid: a number, 'nss' or 'request'"),
        ({"extra_vars": {"bootstrap_root": "/"}}, "bootstrap_root"),
        ({"storage_rot": "/volumes"}, "did you mean 'storage_root'"),
    ],
)
def test_a_wrong_setting_is_named(admin: Admin, settings: dict[str, Any], said: str) -> None:
    admin.configure(**settings)
    done = command.run("run", "alice", cwd=admin.directory)
    assert done.returncode in (1, 2)
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_configuration_that_fails_is_an_error_that_names_it(admin: Admin) -> None:
    (admin.directory / "jupyterhub_config.py").write_text("1 / 0\n")
    assert "jupyterhub_config.py: ZeroDivisionError" in admin.types("run", "alice", status=2)


def test_ctrl_c_ends_the_run_and_everything_it_started(admin: Admin) -> None:
    role = admin.directory / "roles/sleeper/tasks"
    role.mkdir(parents=True)
    seconds = str(4711 + os.getpid())
    (role / "main.yml").write_text(f"- ansible.builtin.command: sleep {seconds}\n")
    admin.configure(roles=[{"role": "sleeper", "as": "root"}], roles_path=[str(admin.directory / "roles")])
    with subprocess.Popen(
        admin.command("run", "alice"),
        cwd=admin.directory,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # the parent of the tests may ignore it
    ) as process:
        try:
            wait_for(lambda: running("sleep", seconds))
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=10)
        finally:
            process.terminate()
    assert process.returncode == 130
    assert "interrupted with 0 of 1 users done; the same command again continues" in said
    wait_for(lambda: not running("sleep", seconds))


def running(*command: str) -> bool:
    """Whether a process has exactly this command line."""
    wanted = "\0".join(command).encode() + b"\0"
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cmdline").read_bytes() == wanted:
                return True
        except OSError:
            continue
    return False


def wait_for(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)
