"""A site role that works as the user: what stock modules do with its rights, and what they cannot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.apply.descendants import descendants
from tests.faults.conftest import Flipper
from tests.integration.conftest import GID, SOMEBODY, UID, ApplyProgram, Site

pytestmark = pytest.mark.root

LOCAL = """\
#!/usr/bin/python
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.told import WORD


def main():
    module = AnsibleModule({})
    with open("local", "w") as file:
        file.write(WORD)
    module.exit_json(changed=True)


main()
"""

ROUNDS = {"loop": list(range(25)), "ignore_errors": True, "register": "rounds"}

RIGHTS = "id -u; id -g; id -G; awk '/NoNewPrivs/ {print $2}' /proc/self/status; echo $HOME; pwd; echo $USER"


def task(name: str, module: str, args: object, **more: Any) -> dict[str, Any]:
    return {"name": name, f"ansible.builtin.{module}": args, **more}


@pytest.fixture
def course(site: Site) -> Iterator[Path]:
    """A git repository, an archive and a file that everybody can read."""
    path = site.path / "course"
    path.mkdir()
    (path / "lesson").write_text("one")
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "safe.directory=*", "-C", str(path))
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "one")):
        subprocess.run([*git, *words], check=True)
    subprocess.run(["tar", "-cf", site.path / "course.tar", "-C", path, "lesson"], check=True)
    subprocess.run(["chown", "-R", f"{UID}:{GID}", path], check=True)  # git asks whose it is
    yield path


def families(site: Site, course: Path) -> None:
    """A role that uses them all, with a library, module_utils, a template, a handler and an inner role."""
    for path, text in {
        "all/library/local.py": LOCAL,
        "all/module_utils/told.py": "WORD = 'told'\n",
        "all/templates/hello.j2": "hello {{ username }}",
        "all/files/static": "static",
    }.items():
        (site.roles / path).parent.mkdir(parents=True, exist_ok=True)
        (site.roles / path).write_text(text)
    site.role("inner", task("Inner", "copy", {"content": "inner", "dest": "{{ user_dir }}/inner"}))
    site.role(
        "all",
        task("Directory", "file", {"path": "{{ user_dir }}/dir", "state": "directory"}),
        task("Link", "file", {"src": "dir", "path": "{{ user_dir }}/link", "state": "link"}),
        task("Template", "template", {"src": "hello.j2", "dest": "{{ user_dir }}/template"}, notify="Follow"),
        task("Copy", "copy", {"src": "static", "dest": "{{ user_dir }}/copied"}),
        task("Line", "lineinfile", {"path": "{{ user_dir }}/line", "line": "one", "create": True}),
        task("Get", "get_url", {"url": f"file://{course}/lesson", "dest": "{{ user_dir }}/got"}),
        task("Clone", "git", {"repo": str(course), "dest": "{{ user_dir }}/clone"}),
        task("Command", "command", {"argv": ["touch", "command"]}),
        task("Shell", "shell", "echo $WORD > shell", environment={"WORD": "given"}),
        task("Unpack", "unarchive", {"src": f"{site.path}/course.tar", "dest": "{{ user_dir }}/dir"}),
        {"name": "Local", "local": {}},
        task("Stat", "stat", {"path": "{{ user_dir }}/template"}, register="seen"),
        task("Slurp", "slurp", {"src": "{{ user_dir }}/template"}, register="read"),
        task(
            "Compare",
            "assert",
            {"that": ["seen.stat.uid == user_uid", "read.content | b64decode == 'hello ' ~ username"]},
        ),
        {
            "name": "Try",
            "block": [task("Fail", "command", {"argv": ["false"]})],
            "rescue": [task("Rescue", "copy", {"content": "x", "dest": "{{ user_dir }}/rescued"})],
        },
        task("Include", "include_role", {"name": "inner"}),
        task("Begin", "shell", "sleep 1; touch later", register="job", **{"async": 30, "poll": 0}),
        task(
            "Wait",
            "async_status",
            {"jid": "{{ job.ansible_job_id }}"},
            register="state",
            until="state.finished",
            retries=60,
            delay=0.2,
        ),
        handlers=[task("Follow", "copy", {"content": "x", "dest": "{{ user_dir }}/handled"})],
    )


def outside(site: Site) -> dict[str, tuple[int, int, int]]:
    """Everything but the homes, as it is."""
    return {
        str(path): (path.lstat().st_uid, path.lstat().st_mode, path.lstat().st_mtime_ns)
        for path in site.path.rglob("*")
        if site.root not in (path, *path.parents) and not path.name.startswith(("std", "settings-"))
    }


def test_every_family_of_modules_leaves_files_of_the_users_only(site, apply_program, course):
    families(site, course)
    before = outside(site)
    answer = apply_program(["alice", "bob"], "user_dir", "all")
    assert answer.ok == {"alice", "bob"}, answer.outcomes["alice"]["message"]
    assert "server" in answer.events[-1]["way"]
    for name in ("alice", "bob"):
        home = site.root / name
        made = {path.relative_to(home).as_posix(): path for path in home.rglob("*")}
        assert {
            *("dir", "dir/lesson", "link", "template", "copied", "line", "got", "clone/lesson", "command"),
            *("shell", "local", "rescued", "inner", "later", "handled"),
        } <= set(made)
        assert {(path.lstat().st_uid, path.lstat().st_gid) for path in made.values()} == {(UID, GID)}
        assert (home / "shell").read_text() == "given\n" and (home / "local").read_text() == "told"
    assert outside(site) == before
    again = apply_program(["alice"], "user_dir", "all")
    assert again.ok == {"alice"}, again


@pytest.mark.parametrize("groups", [[], [23_456, 23_457]])
def test_the_rights_of_a_task_are_the_users_whatever_it_says(site, apply_program, groups):
    site.role(
        "rights",
        task("Plain", "shell", f"({RIGHTS}) > plain"),
        task("Say no", "shell", f"({RIGHTS}) > no; false", become=False, ignore_errors=True),
        task("See all", "shell", "env | sort > env"),
    )
    answer = apply_program(["alice"], "user_dir", {"role": "rights", "groups": groups})
    assert answer.ok == {"alice"}, answer
    home = site.root / "alice"
    want = [str(UID), str(GID), " ".join(map(str, [GID, *groups])), "1", str(home), str(home), "alice"]
    for name in ("plain", "no"):
        assert (home / name).read_text().splitlines() == want
    names = {line.partition("=")[0] for line in (home / "env").read_text().splitlines()}
    assert names - {"PWD", "_", "SHLVL", "OLDPWD"} <= {
        "HOME",
        "LANG",
        "LOGNAME",
        "PATH",
        "SHELL",
        "USER",
        "LC_ALL",
        "LC_CTYPE",
    }


@pytest.mark.parametrize("how", [{"become": True}, {"become": True, "become_method": "ansible.builtin.su"}])
def test_become_gains_nothing(site, apply_program, how):
    site.role("climb", task("Climb", "shell", f"touch {site.told}/climbed-$(id -u)", **how))
    answer = apply_program(["alice"], "user_dir", "climb")
    assert answer.ok == set()
    assert answer.outcomes["alice"]["failed_role"] == "climb"
    assert not list(site.told.iterdir())


def test_planted_links_and_fifos_cost_their_owner_only(site, apply_program):
    """Each name of the role's is planted by its user; what the links lead to is root's."""
    assert apply_program(["alice"], "user_dir").ok == {"alice"}
    home, victim = site.root / "alice", site.path / "victim"
    victim.mkdir()
    (victim / "file").write_text("kept")
    (victim / "file").chmod(0o600)
    plants = {"dangling": site.path / "absent", "to_file": victim / "file", "to_directory": victim}
    for name, target in plants.items():
        (home / name).symlink_to(target)
        os.chown(home / name, UID, GID, follow_symlinks=False)
    os.mkfifo(home / "fifo")
    os.chown(home / "fifo", UID, GID)
    steps = []
    for name in (*plants, "fifo"):
        for module, more in {
            "copy": {"content": "x", "dest": f"{{{{ user_dir }}}}/{name}", "force": True},
            "file": {"path": f"{{{{ user_dir }}}}/{name}", "mode": "0666", "state": "file"},
            "lineinfile": {"path": f"{{{{ user_dir }}}}/{name}/file", "line": "x", "create": True},
            "shell": f"timeout 1 sh -c 'echo x >> {name}; chmod 666 {name}/file'",
        }.items():
            steps.append(task(f"{module} {name}", module, more, ignore_errors=True))
    site.role("walk", *steps)
    before = outside(site)
    answer = apply_program(["alice"], settings=site.settings(roles=["walk"], task_timeout=15))
    assert len(answer.outcomes) == 1
    assert outside(site) == before and (victim / "file").read_text() == "kept"


def test_a_user_who_exchanges_a_directory_for_a_link_gains_nothing(site, apply_program, record_property):
    """25 rounds; ``work`` is a directory of the user's or a link to root's, as often as the user can say so."""
    assert apply_program(["alice"], "user_dir").ok == {"alice"}
    home, victim = site.root / "alice", site.path / "victim"
    victim.mkdir()
    for name in ("template", "copy", "file"):
        (victim / name).write_text("kept")
    (home / "work").mkdir()
    (home / "trap").symlink_to(victim)
    for name in ("work", "trap"):
        os.chown(home / name, UID, GID, follow_symlinks=False)
    site.role(
        "write",
        task("Template", "template", {"src": "text.j2", "dest": "{{ user_dir }}/work/template"}, **ROUNDS),
        task("Copy", "copy", {"content": "{{ item }}", "dest": "{{ user_dir }}/work/copy"}, **ROUNDS),
        task(
            "File", "file", {"path": "{{ user_dir }}/work/file", "state": "touch", "mode": "0666"}, **ROUNDS
        ),
        task(
            "Count",
            "copy",
            {
                "content": "{{ rounds.results | select('failed') | length }}",
                "dest": f"{site.told}/{{{{ username }}}}",
            },
        ),
    )
    (site.roles / "write/templates").mkdir()
    (site.roles / "write/templates/text.j2").write_text("{{ item }}")
    before = outside(site)
    hostile = Flipper(UID, home, "work", "trap")
    try:
        hostile.wait_for_flips()
        running = apply_program.start(["alice"], settings=site.settings(roles=["write"]))
        flips = hostile.flips
        assert running.answer(90).ok == {"alice"}
        flips = hostile.flips - flips
    finally:
        hostile.end()
    met = int((site.told / "alice").read_text())
    assert met > 0 and flips > 1000, "the tasks met the link"
    (site.told / "alice").unlink()
    before.pop(str(site.told))
    after = outside(site)
    after.pop(str(site.told))
    assert after == before
    assert {(victim / name).read_text() for name in ("template", "copy", "file")} == {"kept"}
    record_property("counted", {"rounds": 75, "flips": flips, "victims": 0})


def _alive(*words: str) -> list[int]:
    found = subprocess.run(["pgrep", "-f", " ".join(words)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def _until(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_task_that_hangs_is_ended_and_its_process_is_gone(site, apply_program):
    seconds = f"{4000 + os.getpid() % 1000}.25"
    site.role("hang", task("Hang", "command", f"sleep {seconds}", when="username == 'bob'"))
    running = apply_program.start(
        ["alice", "bob"], settings=site.settings(roles=["user_dir", "hang"], task_timeout=3)
    )
    running.wait_for(lambda: _alive("sleep", seconds))
    answer = running.answer()
    assert answer.ok == {"alice"} and "Timed out" in answer.outcomes["bob"]["message"], answer
    assert not _alive("sleep", seconds)


def test_what_a_users_repository_has_git_run_is_the_users_and_forges_nothing(site, apply_program):
    """A file system monitor of the repository's own configuration, which ``git`` starts."""
    assert apply_program(["alice"], "user_dir").ok == {"alice"}
    home, seconds = site.root / "alice", f"{6000 + os.getpid() % 1000}.25"
    for words in (["init", "-q", str(home / "course")], ["init", "-q", "--bare", str(home / "source")]):
        subprocess.run(["git", *words], check=True, env={"PATH": os.environ["PATH"], "HOME": "/"})
    evil = home / "evil.sh"
    evil.write_text(
        f"#!/bin/sh\nexec >{home}/said 2>&1\nid -u\np=$PPID\n"
        "while [ $p -gt 1 ]; do\n"
        "  [ \"$(awk '/^Uid/ {print $2}' /proc/$p/status)\" = 0 ] && { kill -9 $p && echo killed; break; }\n"
        "  grep -q python /proc/$p/comm && echo '{\"changed\": false}' >/proc/$p/fd/1 && echo forged\n"
        "  p=$(awk '/^PPid/ {print $2}' /proc/$p/status)\n"
        f"done\nsetsid sleep {seconds} &\n"
    )
    evil.chmod(0o755)
    with (home / "course/.git/config").open("a") as config:
        config.write(f"[core]\n\tfsmonitor = {evil}\n")
    subprocess.run(["chown", "-R", f"{UID}:{GID}", str(home)], check=True)
    site.role("look", task("Look", "command", {"argv": ["git", "-C", "{{ user_dir }}/course", "status"]}))
    answer = apply_program(["alice"], "user_dir", "look")
    assert answer.outcomes["alice"]["changed"] == ["look"], "not what the repository said"
    said = (home / "said").read_text()
    assert said.startswith(f"{UID}\n") and "forged" not in said and "killed" not in said, said
    assert not _alive("sleep", seconds)


def test_a_user_who_closes_the_own_home_fails_alone(site, apply_program):
    site.role("note", task("Note", "copy", {"content": "x", "dest": "{{ user_dir }}/note"}))
    assert apply_program(["alice"], "user_dir").ok == {"alice"}
    (site.root / "alice").chmod(0)
    answer = apply_program(["alice", "bob"], "user_dir", "note")
    assert answer.ok == {"bob"}, answer
    assert answer.outcomes["alice"]["reason"] == "role_failed", "the host counts as down for all otherwise"
    assert "Permission denied" in answer.outcomes["alice"]["message"]


@pytest.mark.parametrize("how", ["end", "kill"])
def test_the_server_ends_with_the_playbook(site, how):
    """By Ansible alone: nobody else would end what is left."""
    seconds = "0" if how == "end" else f"{5000 + os.getpid() % 1000}.25"
    site.role("stay", task("Stay", "shell", f"touch {site.told}/begun; sleep {seconds}"))
    variables = {
        "bootstrap_root": str(site.root),
        "bootstrap_uid": UID,
        "bootstrap_gid": GID,
        "username": "alice",
        "bootstrap_roles": ["user_dir", "stay"],
    }
    with subprocess.Popen(
        [
            str(Path(sys.executable).parent / "ansible-playbook"),
            "ansible_bootstrap.jupyterhub.bootstrap",
            *("-e", json.dumps(variables)),
        ],
        env={"PATH": os.environ["PATH"], "HOME": str(site.path), "ANSIBLE_ROLES_PATH": str(site.roles)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd=site.path,
    ) as playbook:
        family: set[int] = set()

        def begun() -> bool:
            family.update(descendants(playbook.pid))
            return (site.told / "begun").exists() or playbook.poll() is not None

        _until(begun, 30)
        servers = {pid for pid in family | descendants(playbook.pid) if b"user_server" in _argv(pid)}
        # It is the child of a worker that has ended, so no descendant of the playbook's any more.
        servers |= {pid for pid in _alive("user_server import serve") if str(site.path) in _cwd(pid)}
        assert servers
        if how == "kill":
            assert _alive("sleep", seconds)
            playbook.send_signal(signal.SIGKILL)
        playbook.wait(30)
    _until(lambda: not [pid for pid in servers if _argv(pid)])
    assert how == "end" or not _alive("sleep", seconds)


def _argv(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _cwd(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def test_check_mode_before_there_is_a_directory(site, apply_program):
    site.role(
        "all",
        task("Copy", "copy", {"content": "x", "dest": "{{ user_dir }}/copied"}),
        task("Make", "file", {"path": "{{ user_dir }}/dir", "state": "directory"}),
        task("Do", "command", {"argv": ["touch", "done"], "creates": "done"}),
    )
    settings = site.settings(roles=["user_dir", "all"])
    answer = apply_program.start(["alice"], settings=settings, check=True).answer()
    assert answer.outcomes["alice"]["status"] == "ok", answer
    assert answer.outcomes["alice"]["changed"] == ["user_dir", "all"]
    assert not (site.root / "alice").exists()


def test_an_account_that_is_not_root_works_as_nobody_else(site, apply_program, unprivileged):
    """A hub without root: a role for another uid is refused, not done as the hub."""
    program = ApplyProgram(site)
    site.role("tell", task("Tell", "shell", f"id -u > {site.told}/uid"))
    settings = program.settings_file(site.settings(roles=["tell"], uid=UID, gid=GID))
    subprocess.run(["chown", "-R", str(SOMEBODY), site.path], check=True)
    answer = program.start(["alice"], argv=("--settings", str(settings)), prefix=unprivileged).answer()
    program.clean()
    assert answer.ok == set()
    assert not (site.told / "uid").exists()
