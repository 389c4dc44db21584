"""The hub's account and the shipped sudoers line: one program, and nothing the caller brings along changes it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from machine import EXAMPLES, GROUP, HUB, OWNER, VENV, request, shipped_command

from ansible_bootstrap.apply.descendants import descendants

pytestmark = pytest.mark.root

SUDO = shipped_command("behind-sudo")
PYTHON = f"{VENV}/bin/python"
TERMINAL = [
    f"{VENV}/bin/python",
    "-c",
    "import fcntl, os, sys, termios; fcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0); os.execvp(sys.argv[2], sys.argv[2:])",
]
"""Before a descriptor and a command: makes that terminal the controlling one."""
EVIL = "import os; os.system('touch {sprung}')\n"


@pytest.fixture
def trap(machine):
    """A directory of the hub's account, full of what would be executed by somebody less careful."""
    trap = machine.world / "home/trap"
    sprung = machine.world / "home/sprung"
    inside = machine.path(trap)
    (inside / "ansible").mkdir(parents=True, exist_ok=True)
    names = (
        "sitecustomize",
        "usercustomize",
        "json",
        "yaml",
        "stat",
        "ansible/__init__",
        "ansible_bootstrap",
    )
    for name in names:
        (inside / f"{name}.py").write_text(EVIL.format(sprung=sprung))
    for name in ("ansible-playbook", "python3", "sh", "getent"):
        (inside / name).write_text(f"#!/bin/sh\ntouch {sprung}\n")
        (inside / name).chmod(0o755)
    (inside / "ansible.cfg").write_text(f"[defaults]\nroles_path = {trap}\ncallback_plugins = {trap}\n")
    # What Python would take for its virtualenv, were it called by the link beside it
    (inside / "lib/python3.11/site-packages").mkdir(parents=True)
    (inside / "lib/python3.11/site-packages/evil.pth").write_text(EVIL.format(sprung=sprung))
    (inside / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (inside / "bin").mkdir()
    for name, program in (("python", PYTHON), ("python3", PYTHON), ("env", "/usr/bin/env")):
        os.symlink(program, inside / "bin" / name)
    (inside / "settings.json").write_text(f'{{"storage_root": "{machine.volumes}", "uid": 1}}')
    machine.root("chown", "-R", HUB, str(trap))
    yield trap
    was_sprung = os.path.exists(machine.path(sprung))
    machine.root("rm", "-rf", str(trap), str(sprung))
    assert not was_sprung, "something of the caller's was executed"


def test_the_shipped_line_allows_one_command_and_no_other(machine):
    listed = machine.root("sudo", "-l", "-U", HUB).partition("may run the following")[2]
    commands = [line.strip() for line in listed.splitlines() if line.strip().startswith("(")]
    assert commands == [f"(root) NOSETENV: NOPASSWD: {' '.join(SUDO[2:])}"]


def test_every_other_way_to_call_it_is_refused_by_sudo(machine, trap):
    options, command = SUDO[:2], SUDO[2:]
    apply = ["-I", "-m", "ansible_bootstrap.apply"]
    calls = {
        "settings of the caller's": [*SUDO, "--settings", f"{trap}/settings.json"],
        "an empty argument": [*SUDO, ""],
        "a word": [*SUDO, "alice"],
        "an option of Ansible's": [*SUDO, "-e", "ansible_connection=local"],
        "without env": [*options, PYTHON, *apply],
        "without env, by a link": [*options, f"{trap}/bin/python", *apply],
        "a variable for env": [*options, "/usr/bin/env", "-i", f"PYTHONPATH={trap}", PYTHON, *apply],
        "env that keeps": [*options, "/usr/bin/env", PYTHON, *apply],
        "no isolation": [*options, "/usr/bin/env", "-i", PYTHON, "-m", "ansible_bootstrap.apply"],
        "code": [*options, "/usr/bin/env", "-i", PYTHON, "-I", "-c", "import os"],
        "another module": [
            *options,
            "/usr/bin/env",
            "-i",
            PYTHON,
            "-I",
            "-m",
            "ansible_bootstrap.apply.boundary",
        ],
        "a shell in the command": [*command[:-1], "ansible_bootstrap.apply; id"],
        "another interpreter": [*options, "/usr/bin/env", "-i", f"{trap}/bin/python", *apply],
        "a detour": [*options, "/usr/bin/env", "-i", f"{VENV}/bin/../bin/python", *apply],
        "ansible-playbook": [*options, f"{VENV}/bin/ansible-playbook", "--version"],
        "pip": [*options, f"{VENV}/bin/pip", "install", "x"],
        "a shell": [*options, "-s"],
        "as another user": [*options, "-u", "daemon", *command],
        "with another group": [*options, "-g", "shadow", *command],
        "keeping the environment": [*options, "-E", *command],
        "in another directory": [*options, "-D", str(trap), *command],
        "below another root": [*options, "-R", str(trap), *command],
        "with open descriptors": [*options, "-C", "100", *command],
        "with a time limit": [*options, "-T", "1", *command],
        "editing": [*options, "-e", "/etc/ansible-bootstrap/settings.yml"],
    }
    calls["a shell in the command"] = [*options, *calls["a shell in the command"]]
    for name in (
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "LD_PRELOAD",
        "ANSIBLE_CONFIG",
        "HOME",
        "TMPDIR",
        "SUDO_COMMAND",
    ):
        calls[name] = [*options, f"{name}={trap}", *command]
    running = {what: machine.start(*call) for what, call in calls.items()}
    for what, call in running.items():
        call.send(request("alice"))
        answer = call.answer()
        assert answer.status == 1 and answer.events == [] and "sudo: " in answer.log, (what, answer)
    assert not machine.exists("alice")


def test_what_sudo_takes_for_the_same_call_is_the_same_call(machine, sudo, trap):
    """sudo knows a program by inode and base name, and compares arguments as one text: both are the caller's to bend."""
    link = ["/usr/bin/sudo", "-n", f"{trap}/bin/env", *SUDO[3:]]
    running = [machine.start(*link, cwd=trap)]
    words = SUDO[3:]
    for place in range(1, len(words)):
        joined = [*words[: place - 1], " ".join(words[place - 1 : place + 1]), *words[place + 1 :]]
        running.append(machine.start(*SUDO[:3], *joined, cwd=trap))
    running.append(machine.start(*SUDO[:3], " ".join(words), cwd=trap))
    for call in running:
        call.send(request("root"))
        answer = call.answer()
        assert answer.status != 0 and answer.ok == set(), answer
    (refused,) = running[0].answer().outcomes.values()
    assert refused["reason"] == "refused", "the program itself was there, as it always is"


def test_a_sudoers_that_is_careless_elsewhere_does_not_open_this_command(machine, sudo, trap):
    """The rest of a machine's sudoers may keep what it likes; ours says that nothing is kept."""
    careless = machine.path("/etc/sudoers.d/zz-careless")
    careless.write_text(
        'Defaults env_keep += "LD_PRELOAD PYTHONPATH TMPDIR ANSIBLE_CONFIG"\nDefaults use_pty, log_output\n'
    )
    try:
        for name in ("LD_PRELOAD", "PYTHONPATH", "TMPDIR"):
            answer = machine.start("/usr/bin/sudo", "-n", f"{name}={trap}/x.so", *SUDO[2:]).answer()
            assert answer.status == 1 and "not allowed to set" in answer.log, (name, answer)
        answer = sudo("alice", env={"TMPDIR": str(trap), "ANSIBLE_CONFIG": f"{trap}/ansible.cfg"})
        assert answer.ok == {"alice"}, answer
    finally:
        careless.unlink()


def test_environment_directory_and_umask_of_the_caller_change_nothing(machine, sudo, trap):
    seen = machine.path(machine.world / "seen")
    task = {
        "name": "Tell",
        "ansible.builtin.shell": {"cmd": f"(env; pwd; umask; echo $0) > {machine.world}/seen"},
    }
    machine.settings(**{**machine.role("tell", task), "roles": ["user_dir", {"role": "tell", "as": "root"}]})
    names = re.findall(
        r"\w+",
        """PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONINSPECT LD_PRELOAD LD_LIBRARY_PATH LD_AUDIT HOME TMPDIR
        ANSIBLE_CONFIG ANSIBLE_ROLES_PATH ANSIBLE_LIBRARY ANSIBLE_STRATEGY ANSIBLE_BOOTSTRAP_OUTCOMES BASH_ENV ENV
        SUDO_ASKPASS SUDO_EDITOR RUNNER_ARGS VIRTUAL_ENV XDG_CONFIG_HOME SSH_AUTH_SOCK LOCPATH LC_ALL TERM""",
    )
    environment = dict.fromkeys(names, f"{trap}/json.py") | {
        "PATH": f"{trap}:/usr/bin:/bin",
        "TOKEN": "tok3n",
    }
    # nsenter, env and bash would choke on these themselves, so the last shell exports them
    exports = "; ".join(
        f"export {name}='{value}'" for name, value in environment.items() if name != "SHELLOPTS"
    )
    answer = sudo("alice", shell=f"cd {trap}; umask 000; {exports}")
    assert answer.ok == {"alice"}, answer
    text = seen.read_text()
    assert str(trap) not in text and "tok3n" not in text
    assert "\n0077\n" in text
    status = machine.home("alice").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (OWNER, GROUP, 0o750)


STDIN = {
    "closed": ("exec <&-", 2, "cut short|cannot be read|not files"),
    "empty": ("exec </dev/null", 2, "cut short"),
    "a directory": ("exec </", 1, "is a directory"),
    "for writing only": ("exec 0>>/dev/null", 2, "cannot be read"),
    "endless zeros": ("exec < <(cat /dev/zero)", 2, "longer than"),
    "a device": ("exec </dev/zero", 2, "not files"),
    "a file": ("exec </etc/passwd", 2, "not files"),
    "endless lines": ("exec < <(yes)", 2, "follows"),
    "noise": ("exec < <(head -c 100000 /dev/urandom; echo)", 2, "malformed|follows"),
    "a full disk for answers": (
        f"exec < <(echo '{request('alice').decode().strip()}'; sleep 2) >/dev/full",
        2,
        "not files",
    ),
    "closed answers": ("exec </dev/null >&-", 2, "cut short"),
}
"""What a shell does first, the exit status, and a word from the answer."""


def test_stdin_that_is_no_request_does_nothing(machine):
    """Each way ends by itself, with a clear word."""
    running = {what: machine.start(*SUDO, shell=shell) for what, (shell, _, _) in STDIN.items()}
    for what, call in running.items():
        answer = call.answer()
        _, status, word = STDIN[what]
        assert answer.status == status and re.search(word, answer.log), (what, answer)
        assert answer.ok == set()
    assert not machine.exists("alice")


def test_a_terminal_gets_the_same_lines_and_its_end_is_the_end(machine):
    """With sudo's ``use_pty``, which Debian sets, the death of sudo would leave Ansible running."""
    slow = {"name": "Wait", "ansible.builtin.command": {"argv": ["sleep", "300"]}}
    machine.settings(**machine.role("slow", slow))
    ours, theirs = pty.openpty()
    call = machine.start(*TERMINAL, "0", *SUDO, stdin=theirs)
    os.close(theirs)
    try:
        os.write(ours, request("alice"))
        call.wait_for(lambda: [event for event in call.events() if event["event"] == "role"])
        family = _family(call)
    finally:
        os.close(ours)
    call.process.wait(10)
    assert _left(family) == set()


@pytest.mark.parametrize("through", ["pipe", "terminal"])
def test_signals_to_sudo_end_the_run_and_whatever_it_started(machine, through):
    """The hub's account may signal its sudo, and a killed sudo is the end of stdin; the program itself it may not."""
    slow = {"name": "Wait", "ansible.builtin.command": {"argv": ["sleep", "300"]}}
    machine.settings(**{**machine.role("slow", slow), "roles": ["user_dir", "slow"]})
    prefix, popen, terminals = [], {}, []
    running = {}
    for name in ("TERM", "INT", "HUP", "QUIT", "KILL"):
        if through == "terminal":
            ours, theirs = pty.openpty()
            terminals += [ours, theirs]
            # stdin is a pipe: as where an admin starts a hub by hand
            prefix = [*TERMINAL, str(theirs)]
            popen = {"pass_fds": [theirs]}
        running[name] = machine.start(*prefix, *SUDO, **popen)
    try:
        for name, call in running.items():
            call.send(request(f"user-{name.lower()}"))
        for name, call in running.items():
            call.wait_for(
                lambda call=call: any("sleep 300" in _argv(pid) for pid in descendants(call.process.pid))
            )
            family = _family(call)
            sudo, program = _first(family, "/usr/bin/sudo"), _first(family, f"{VENV}/bin/python -I")
            direct = subprocess.run(
                [*machine.inside(HUB), "sh", "-c", f"kill -9 {program} || kill -STOP {program}"],
                check=False,
                capture_output=True,
            )
            assert direct.returncode != 0 and program in descendants() | set(family)
            sent = subprocess.run(
                [*machine.inside(HUB), "sh", "-c", f"kill -{name} {sudo}"], check=False, capture_output=True
            )
            if sent.returncode != 0 or name == "KILL":
                call.hang_up()  # where sudo has become root altogether, and after it is dead
            call.process.wait(10)
            assert _left(family) == set(), (name, call.log)
            assert "Traceback" not in call.log, call.log
            home = machine.home(f"user-{name.lower()}").stat()
            assert (home.st_uid, home.st_mode & 0o7777) == (OWNER, 0o750)
    finally:
        for descriptor in terminals:
            os.close(descriptor)


def test_a_caller_that_reads_nothing_holds_up_nobody_else(machine, sudo):
    """As where it is stopped (SIGSTOP): its answers fill the pipe, the work is done, others are served."""
    names = [f"student{number:03}" for number in range(200)]
    reader, writer = os.pipe()
    call = machine.start(*SUDO, shell=f"exec >&{writer}", pass_fds=[writer])
    os.close(writer)
    call.send(
        request(*({"name": name, "groups": ["g" * 500], "key": f"{name}-{'k' * 400}"} for name in names))
    )
    call.wait_for(lambda: machine.exists(names[-1]))
    assert sudo("alice").ok == {"alice"}
    assert call.process.poll() is None, "it was meant to be stuck"
    family = _family(call)
    os.close(reader)
    call.hang_up()
    call.process.wait(10)
    assert _left(family) == set()
    assert all(machine.exists(name) for name in names)


LIMITS = ("-n 8", "-n 12", "-f 0", "-f 64", "-v 50000", "-d 20000", "-t 1", "-u 1", "-s 64")
CAN_LIFT = int(re.findall(r"CapEff:\s+(\w+)", Path("/proc/self/status").read_text())[0], 16) >> 24 & 1
"""Whether root has CAP_SYS_RESOURCE, as it has outside of containers."""


def test_ulimits_of_the_caller_never_leave_half_a_home(machine, sudo):
    """Lifted where the machine lets root lift them; where not, a refusal or a failure that says why."""
    skeleton = machine.path(machine.world / "skeleton")
    skeleton.mkdir()
    content = os.urandom(300_000)
    (skeleton / "notes").write_bytes(content)
    machine.settings(extra_vars={"user_dir_skeleton": str(machine.world / "skeleton")})
    names = {limit: f"user{place}" for place, limit in enumerate(LIMITS)}
    reached = 0
    for limit, name in names.items():
        answer = sudo(name, shell=f"ulimit {limit}")
        if machine.exists(name):
            assert (machine.home(name) / "notes").read_bytes() == content, limit
        assert (answer.status == 0) == (answer.ok == {name}), (limit, answer)
        reached += bool(answer.events)
        if not answer.events:  # sudo itself had too little
            assert not machine.exists(name), (limit, answer)
            assert answer.log.startswith("sudo: ") or answer.status == -signal.SIGSEGV, (limit, answer)
        elif CAN_LIFT:
            assert answer.ok == {name}, (limit, answer)
        elif limit.startswith("-f"):
            assert "ulimit -f" in answer.refused, answer
        else:
            assert answer.ok or answer.outcomes[name]["message"], (limit, answer)
    assert reached > len(LIMITS) / 2
    stages = machine.path(machine.volumes / ".ansible_bootstrap/stage")
    assert list(stages.iterdir()) == []
    again = sudo(*names.values())
    assert again.ok == set(names.values()), again
    for name in names.values():
        assert (machine.home(name) / "notes").read_bytes() == content


LOWERED = (
    "chrt --idle -p 0 $$; taskset -p 1 $$; ionice -c 3 -p $$; renice 19 $$; echo 500 >/proc/$$/oom_score_adj; "
    "echo 999999999 >/proc/$$/timerslack_ns; ulimit {which} -c 0 -i 1 -l 0 -q 1 -n 64 -s 4096 -t 600 -u 1"
)
"""``which`` is -S for the soft limits alone: a container without CAP_SYS_RESOURCE lets nobody raise hard ones."""
TOLD = """
cat /proc/self/limits
cat /proc/self/oom_score_adj /proc/self/timerslack_ns
grep Cpus_allowed_list /proc/self/status
cut -d' ' -f 19,41 /proc/self/stat
ionice
"""
"""What a program of the admin's, run as a user, finds out about itself; 19 and 41 are niceness and scheduling policy."""


def test_a_run_has_the_limits_and_the_share_of_a_service_whatever_the_caller_lowered(machine, sudo):
    """With the caller's limit of one process, the user's program could not start ``cat``."""
    program = machine.world / "tell"
    machine.path(program).write_text(f"#!/bin/sh\nexec >told\n{TOLD}")
    machine.path(program).chmod(0o755)
    machine.settings(roles=["user_dir", "script"], extra_vars={"script_path": str(program)})
    told = {}
    lowered = LOWERED.format(which="" if CAN_LIFT else "-S")
    for name, shell in {"alice": "", "bob": f"{{ {lowered}; }} >/dev/null 2>&1"}.items():
        answer = sudo(name, shell=shell) if shell else sudo(name)
        assert answer.ok == {name}, answer
        text = (machine.home(name) / "told").read_text()
        # So many more than the user has at that moment.
        told[name] = re.sub(r"(?<=Max processes) +10\d\d +10\d\d ", " 1024 1024 ", text)
    assert told["bob"] == told["alice"]
    assert re.search(r"Max core file size +0 +0 ", told["bob"])


def test_programs_in_parallel_are_bounded_and_the_next_is_told_to_come_later(machine, sudo):
    """All slots but one are held here, the last by a caller that says nothing, and that not for long."""
    assert sudo("alice").ok == {"alice"}
    slots = machine.path("/run/ansible-bootstrap")
    number = max(16, 4 * (os.cpu_count() or 1))
    held = [os.open(slots / f"slot-{slot}", os.O_RDWR | os.O_CREAT, 0o600) for slot in range(1, number)]
    for descriptor in held:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        idle = machine.start(*SUDO)
        idle.wait_for(lambda: _is_locked(slots / "slot-0"))
        answer = sudo("bob")
        assert answer.status == 2 and answer.events[0]["reason"] == "apply_failed"
        assert "try again later" in answer.refused
        assert "no whole request line within 10 s" in idle.answer().refused
        assert sudo("bob").ok == {"bob"}
    finally:
        for descriptor in held:
            os.close(descriptor)


def test_a_caller_that_does_not_read_is_a_caller_that_has_gone(machine, sudo):
    """Its pipe is full; without a deadline the program would wait for it for ever."""
    running = {}
    for number, name in ((1, "alice"), (2, "bob")):
        pipe = machine.world / f"home/unread{number}"
        shell = f"mkfifo {pipe}; exec {number}<>{pipe}; head -c 65536 /dev/zero >&{number}"
        running[name] = machine.start(*SUDO, shell=shell)
    for name, call in running.items():
        call.send(request(name, diff=True))
    for name, call in running.items():
        assert call.answer(60).status == 3, (name, call.events(), call.log)
    assert "has read nothing for 30 s" not in running["bob"].log
    assert sudo("alice", "bob").ok == {"alice", "bob"}


def _is_locked(path: Path) -> bool:
    status = path.stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    return f" {device}:{status.st_ino} " in Path("/proc/locks").read_text()


def test_the_admins_policy_decides_which_users_the_caller_may_name(machine, sudo):
    machine.root("useradd", "--no-create-home", "--uid", "20077", "--home-dir", "/home/carol", "carol")
    bad: list[dict[str, object]] = [
        {"key": "uid 0", "uid": 0},
        {"key": "system uid", "uid": 33},
        {"key": "gid 0", "gid": 0},
        {"key": "outside", "directory": "/etc"},
        {"key": "climbing", "directory": f"{machine.volumes}/../home"},
        {"key": "the root itself", "directory": str(machine.volumes)},
        {"key": "our records", "directory": f"{machine.volumes}/.ansible_bootstrap/records"},
        {"key": "a group of hosts", "storage_host": "all"},
        {"key": "a pattern of hosts", "storage_host": "localhost,!x"},
        {"key": "a jinja host", "storage_host": "{{ x }}"},
    ]
    policies = {
        "fixed": ({}, [{"name": "mallory", "uid": OWNER + 1}, {"name": "daemon", "uid": 1}], ["alice"]),
        "nss": (
            {"uid": "nss", "gid": None},
            [
                {"name": "root"},
                {"name": "daemon"},
                {"name": HUB},
                {"name": "nobody-knows"},
                {"name": "carol", "uid": 20078},
            ],
            ["carol"],
        ),
        "request": (
            {"uid": "request", "gid": "request", "uid_min": 30_000, "uid_max": 30_010, "gid_min": 30_000},
            [
                {"name": "mallory", "uid": uid, "gid": gid}
                for uid, gid in ((29_999, 30_000), (30_011, 30_000), (30_005, 42), (20_001, 30_000))
            ]
            + [{"name": "mallory"}],
            [{"name": "dave", "uid": 30_005, "gid": 30_001}],
        ),
    }
    for what, (settings, refused, served) in policies.items():
        machine.settings(**settings)
        hostile = [{"name": "mallory", **user} for user in bad]
        hostile += [{"key": f"bad-{place}", **user} for place, user in enumerate(refused)]
        answer = sudo(*hostile, *served)
        assert answer.ok == {user if isinstance(user, str) else user["name"] for user in served}, (
            what,
            answer,
        )
        assert {outcome["reason"] for key, outcome in answer.outcomes.items() if key not in answer.ok} == {
            "refused"
        }
        assert not machine.exists("mallory")
    machine.settings()
    answer = sudo({"name": "mallory", "directory": f"{machine.volumes}/alice"})
    assert answer.status == 1 and answer.outcomes["mallory"]["message"], "another's directory"
    assert sudo({"name": "alice", "storage_host": "elsewhere"}).status == 1
    owners = {path.name: path.stat().st_uid for path in machine.path(machine.volumes).iterdir()}
    assert owners == {".ansible_bootstrap": 0, "alice": OWNER, "carol": 20_077, "dave": 30_005}


SITE = "{venv}/lib/python3*/site-packages"
SPOILS = {
    "interpreter's directory": ("chmod g+w {venv}/bin", "{venv}/bin"),
    "interpreter": ("chown -h {hub} {venv}/bin/python", "{venv}/bin/python"),
    "ansible-playbook": ("chmod o+w {venv}/bin/ansible-playbook", "{venv}/bin/ansible-playbook"),
    "virtualenv": ("chown {hub} {venv}", "{venv}"),
    "its configuration": ("chmod g+w {venv}/pyvenv.cfg", "{venv}/pyvenv.cfg"),
    "packages": (f"chmod g+w {SITE}", "site-packages"),
    "our package": (f"chown {{hub}} {SITE}/ansible_bootstrap", "ansible_bootstrap"),
    "our roles": (f"chmod o+w {SITE}/ansible_collections/ansible_bootstrap/jupyterhub/roles", "jupyterhub/roles"),
    "settings' directory": ("chmod g+w /etc/ansible-bootstrap", "/etc/ansible-bootstrap"),
    "a role's file": ("chmod o+w {world}/roles/greet/tasks/main.yml", "greet/tasks/main.yml"),
    "the inventory's variables": ("chown {hub} {world}/group_vars/all.yml", "group_vars/all.yml"),
    "above the storage root": ("chown {hub} {world}", "{world}"),
    "a skeleton's file": ("chmod g+w {world}/skel/.bashrc", "skel/.bashrc"),
}  # fmt: skip


def test_what_another_account_could_change_is_not_run_and_the_message_mends_it(machine, sudo):
    role = machine.role("greet", {"name": "Greet", "ansible.builtin.debug": {"msg": "hello"}})
    for name in ("group_vars/all.yml", "skel/.bashrc", "inventory.yml"):
        path = machine.path(machine.world / name)
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    variables = {"user_dir_skeleton": str(machine.world / "skel")}
    machine.settings(**role, inventory=str(machine.world / "inventory.yml"), extra_vars=variables)
    assert sudo().status == 0
    for what, (spoil, named) in SPOILS.items():
        words = {"venv": VENV, "hub": HUB, "world": machine.world}
        machine.root("sh", "-c", spoil.format(**words))
        answer = sudo("alice")
        assert answer.status == 2 and answer.events[0]["reason"] == "settings", (what, answer)
        assert named.format(**words) in answer.refused, (what, answer.refused)
        mend = re.findall("`([^`]+)`", answer.refused)[0]
        machine.root("sh", "-c", mend)
        answer = sudo()
        assert answer.status == 0, (what, mend, answer)
    assert not machine.exists("alice")
    printed = machine.root(PYTHON, "-I", "-m", "ansible_bootstrap.apply.boundary")
    assert printed.startswith("ok:"), printed


def test_the_line_that_is_usually_shown_hands_over_the_host_keys(machine):
    """What the example's README says of ``mkhomedir_helper``, on this machine."""
    assert "mkhomedir_helper erin 0000" in " ".join((EXAMPLES / "behind-sudo/README.md").read_text().split())
    helper = "/sbin/mkhomedir_helper"
    if not machine.path(helper).exists():
        pytest.skip("no mkhomedir_helper here")
    secret = machine.path("/etc/secrets")
    secret.mkdir()
    (secret / "host_key").write_text("private")
    (secret / "host_key").chmod(0o600)
    line = machine.path("/etc/sudoers.d/zz-usual")
    line.write_text(f"{HUB} ALL = (root) NOPASSWD: {helper}\n")
    machine.root(
        "useradd", "--no-create-home", "--uid", "20078", "--home-dir", f"{machine.volumes}/erin", "erin"
    )
    try:
        assert (
            machine.start("/usr/bin/sudo", "-n", helper, "erin", "0000", "/etc/secrets").answer().status == 0
        )
        key = machine.home("erin") / "host_key"
        assert key.read_text() == "private" and key.stat().st_uid == 20_078
    finally:
        line.unlink()


def _argv(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _family(call) -> dict[int, str | None]:
    return {pid: _started(pid) for pid in {call.process.pid, *descendants(call.process.pid)}}


def _first(family: dict[int, str | None], program: str) -> int:
    return min(pid for pid in family if _argv(pid).startswith(program))


def _left(family: dict[int, str | None], seconds: float = 5) -> set[str]:
    """Wait until all processes of a family have ended; return those that have not, and end them."""
    deadline = time.monotonic() + seconds
    while True:
        alive = {pid for pid, since in family.items() if since and _started(pid) == since}
        if not alive or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    words = {_argv(pid) for pid in alive}
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    return words
