"""The stop protocol: however the caller leaves, nothing of the run is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ansible_bootstrap.apply.descendants import descendants

STUBBORN = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
for _ in range(2):
    os.setsid() if os.getpid() != os.getpgrp() else None
    if os.fork():
        if sys.argv[2] == "stay":
            time.sleep(600)
        os._exit(0)
os.setsid()
with open(sys.argv[1] + ".new", "w") as file:
    file.write(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""
"""Leaves its session, forks twice and ignores every polite signal."""


def _started(pid: int) -> str | None:
    """When a process began, to tell it from a later one of the same number; None for the dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def gone(pids: dict[int, str | None], seconds: float = 3) -> set[int]:
    """Wait until these processes have ended; return those that have not."""
    deadline = time.monotonic() + seconds
    while True:
        alive = {pid for pid, since in pids.items() if since and _started(pid) == since}
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.02)


@pytest.fixture
def stubborn(site):
    """A role that leaves one process behind and waits for another, neither of which means to end."""
    script = site.path / "stubborn.py"
    script.write_text(STUBBORN)
    site.role(
        "stubborn",
        {
            "name": "Leave",
            "ansible.builtin.command": {"argv": ["/usr/bin/python3", str(script), f"{site.told}/left", "go"]},
        },
        {
            "name": "Stay",
            "ansible.builtin.command": {
                "argv": ["/usr/bin/python3", str(script), f"{site.told}/stay", "stay"]
            },
        },
    )
    return lambda: all((site.told / name).exists() for name in ("left", "stay"))


@pytest.mark.parametrize("how", ["stdin", "TERM"])
def test_the_stop_ends_every_descendant(site, apply_program, stubborn, how):
    running = apply_program.start(["alice"], settings=site.settings(roles=["stubborn"]))
    directory = running.directory
    running.wait_for(stubborn)
    family = {pid: _started(pid) for pid in descendants(running.process.pid)}
    assert {int((site.told / name).read_text()) for name in ("left", "stay")} <= set(family)
    assert directory.is_dir()

    begin = time.monotonic()
    if how == "stdin":
        running.stop()
    else:
        running.process.send_signal(getattr(signal, f"SIG{how}"))
    assert running.answer(10).status == 3
    assert time.monotonic() - begin < 8
    assert gone(family, 0.5) == set()
    assert not directory.exists()


def test_a_caller_that_is_killed(site, apply_program, stubborn):
    settings = apply_program.settings_file(site.settings(roles=["stubborn"]))
    caller = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            "p = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
            'p.stdin.write(b\'{"operation": "bootstrap", "users": [{"name": "alice"}]}\\n\')\n'
            "p.stdin.flush(); print(p.pid, flush=True); time.sleep(600)",
            *(sys.executable, "-I", "-m", "ansible_bootstrap.apply", "--settings", str(settings)),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        program = int(caller.stdout.readline())
        deadline = time.monotonic() + 30
        while not stubborn():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        family = {pid: _started(pid) for pid in descendants(program) | {program}}
        assert len(family) > 4
    finally:
        caller.kill()
        caller.wait()
        caller.stdout.close()
    assert gone(family) == set()


def test_a_process_that_a_role_leaves_behind_ends_with_the_run(site, apply_program):
    script = site.path / "stubborn.py"
    script.write_text(STUBBORN)
    left = site.told / "left"
    site.role(
        "leaver",
        {
            "name": "L",
            "ansible.builtin.command": {"argv": ["/usr/bin/python3", str(script), str(left), "go"]},
        },
        {"name": "W", "ansible.builtin.wait_for": {"path": str(left), "sleep": 1}},
    )
    answer = apply_program(["alice"], "leaver")
    assert answer.status == 0, answer
    assert gone({int(left.read_text()): _started(int(left.read_text()))}, 0) == set()


def test_stdin_that_ends_once_all_is_said_changes_nothing(site, apply_program):
    site.role("greet", {"name": "Greet", "ansible.builtin.debug": {"msg": "hello"}})
    running = apply_program.start(["alice"], settings=site.settings(roles=["greet"]))
    running.wait_for(
        lambda: (
            [event for event in running.events() if event["event"] == "end"] or running.process.poll() == 0
        )
    )
    running.stop()
    answer = running.answer()
    assert answer.status == 0
    assert "Traceback" not in answer.log


def test_a_stop_before_ansible_has_begun(apply_program, site):
    site.role("greet", {"name": "Greet", "ansible.builtin.debug": {"msg": "hello"}})
    running = apply_program.start(["alice"], settings=site.settings(roles=["greet"]))
    directory = running.directory
    running.stop()
    assert running.answer(4).status == 3
    assert not directory.exists()


def test_a_killed_programs_directory_is_swept_by_the_next(site, apply_program, stubborn):
    site.role("greet", {"name": "Greet", "ansible.builtin.debug": {"msg": "hello"}})
    running = apply_program.start(["alice"], settings=site.settings(roles=["stubborn"]))
    directory = running.directory
    running.wait_for(stubborn)
    family = {pid: _started(pid) for pid in descendants(running.process.pid)}
    try:
        running.process.kill()
        running.process.wait()
        assert directory.is_dir()
        # A run that lives meanwhile keeps its own.
        other = apply_program.start(["bob"], settings=site.settings(roles=["stubborn"]))
        other.wait_for(other.directory.is_dir)
        assert apply_program(["carol"], "greet").status == 0
        assert not directory.exists()
        assert other.directory.is_dir()
        other.stop()
        other.answer()
    finally:
        for pid in gone(family, 0):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def script(site, tmp_path_factory):
    """The admin's, which takes 20 s the first time, with a daemon; whatever runs it shows its path."""
    path = Path(tempfile.mkdtemp(prefix="script-", dir="/tmp")) / "slow"
    path.parent.chmod(0o755)
    path.write_text(
        "#!/bin/sh\n[ -e begun ] && exit 0\ntouch begun\n"
        f"setsid sh -c 'trap : TERM; sleep 20; : {path}' &\nsleep 20\n: done\n"
    )
    path.chmod(0o755)
    yield str(path)
    shutil.rmtree(path.parent)


def script_settings(site, script):
    return site.settings(roles=["user_dir", "script"], extra_vars={"script_path": script})


def zombies_of(pids):
    """Those that a process of ours does not reap: what has no parent any more falls to the machine's first process."""
    return [pid for pid in pids if (stat := _stat(pid)) and stat[0] == "Z" and stat[1] != "1"]


def _stat(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def keeper_of(front: int) -> int:
    (keeper,) = (pid for pid in descendants(front) if _stat(pid)[1] == str(front))
    return keeper


@pytest.mark.root
@pytest.mark.parametrize(
    "victim", ["the front", "the keeper", "both at once", "ansible-playbook", "a worker", "the module"]
)
def test_kill_9_of_any_process_of_a_run_leaves_none(site, apply_program, script, victim):
    settings = script_settings(site, script)
    running = apply_program.start(["alice"], settings=settings)
    begun = site.root / "alice/begun"
    running.wait_for(begun.exists)
    front = running.process.pid
    keeper = keeper_of(front)
    running.wait_for(lambda: len([pid for pid in descendants(front) if script in _command(pid)]) >= 2)
    family = {pid: _started(pid) for pid in descendants(front) | {front}}
    chain = [front, keeper]  # down to the script, each the parent of the next
    at = next(pid for pid in family if script in _command(pid))
    above = []
    while at != keeper:
        above.insert(0, at)
        at = int(_stat(at)[1])
    chain += above
    victims = {
        "the front": chain[:1],
        "the keeper": chain[1:2],
        "both at once": chain[:2],
        "ansible-playbook": chain[2:3],
        "a worker": chain[3:4],
        "the module": chain[4:5],
    }[victim]
    if len(victims) == 2:
        os.kill(victims[1], signal.SIGSTOP)  # so that the keeper has no time to notice
    for pid in victims:
        os.kill(pid, signal.SIGKILL)

    again = None
    if victim == "both at once":
        again = apply_program(["alice"], settings=settings)  # it ends what is left in their cgroup
    answer = running.answer(10)
    assert gone(family, 4) == set()
    assert zombies_of(family) == []
    if victim == "the keeper":
        assert answer.status == 4
        assert "was killed by signal 9: all that it had started is ended" in answer.log
    elif victim in ("ansible-playbook", "a worker", "the module"):
        assert answer.status == 1, answer
    again = again or apply_program(["alice"], settings=settings)
    assert again.status == 0, again
    assert again.ok == {"alice"}


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except OSError:
        return ""


@pytest.mark.root
def test_a_signal_to_the_callers_session_does_not_reach_what_ends_the_run(site, apply_program, script):
    running = apply_program.start(
        ["alice"], settings=script_settings(site, script), popen={"start_new_session": True}
    )
    running.wait_for((site.root / "alice/begun").exists)
    family = {pid: _started(pid) for pid in descendants(running.process.pid) | {running.process.pid}}
    os.killpg(running.process.pid, signal.SIGKILL)
    assert running.answer(5).status == -9
    assert gone(family, 4) == set()
