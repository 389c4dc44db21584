"""The stop protocol: however the caller leaves, nothing of the run is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ansible_bootstrap.descendants import descendants

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
    """Wait until these processes are dead; return who is not."""
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
            "ansible.builtin.command": {"argv": [sys.executable, str(script), f"{site.path}/left", "go"]},
        },
        {
            "name": "Stay",
            "ansible.builtin.command": {"argv": [sys.executable, str(script), f"{site.path}/stay", "stay"]},
        },
    )
    return lambda: all((site.path / name).exists() for name in ("left", "stay"))


@pytest.mark.parametrize("how", ["stdin", "TERM"])
def test_the_stop_ends_every_descendant(site, apply_program, stubborn, how):
    running = apply_program.start(["alice"], settings=site.settings(roles=["stubborn"]))
    directory = running.directory
    running.wait_for(stubborn)
    family = {pid: _started(pid) for pid in descendants(running.process.pid)}
    assert {int((site.path / name).read_text()) for name in ("left", "stay")} <= set(family)
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
    left = site.path / "left"
    site.role(
        "leaver",
        {"name": "L", "ansible.builtin.command": {"argv": [sys.executable, str(script), str(left), "go"]}},
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
