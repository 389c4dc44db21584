"""The apply program on the storage's side of an ssh connection: a real sshd on loopback, the examples' files."""

from __future__ import annotations

import os
import signal
import time

import pytest
from machine import GROUP, OWNER, request

from ansible_bootstrap.apply.descendants import descendants

pytestmark = pytest.mark.root


def test_a_hub_without_any_right_on_the_storage_has_a_directory_made(machine, ssh):
    call = machine.start(*ssh)
    call.send(request("alice"))
    answer = call.answer()
    assert (answer.status, answer.ok) == (0, {"alice"}), answer
    home = machine.home("alice").stat()
    assert (home.st_uid, home.st_gid, home.st_mode & 0o7777) == (OWNER, GROUP, 0o750)


NOT_EVEN = {"a terminal": "PTY allocation request failed", "forwarding": "forwarding failed"}
"""What ``restrict`` refuses before any program is started, and the client's word for it."""


def test_whatever_else_is_asked_for_the_one_program_answers(machine, ssh):
    sprung = machine.world / "home/sprung"
    asked = {
        "a command": ([], ["touch", str(sprung)]),
        "a shell's words": ([], [f"; touch {sprung} #"]),
        "settings": ([], ["--", "--settings", "/etc/passwd"]),
        "a subsystem": (["-s"], ["sftp"]),
        "a terminal": (["-tt"], []),
        "variables": (
            ["-o", f"SetEnv PYTHONPATH={sprung} PYTHONINSPECT=1 ANSIBLE_CONFIG={sprung} LC_ALL={sprung}"],
            [],
        ),
        "forwarding": (["-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1"], []),
    }
    running = {
        what: machine.start(*ssh[:-1], *options, ssh[-1], *words) for what, (options, words) in asked.items()
    }
    for what, call in running.items():
        call.send(b'{"operation": "describe", "users": []}\n')
        answer = call.answer()
        if what in NOT_EVEN:
            assert answer.status == 255 and NOT_EVEN[what] in answer.log, answer
        else:
            assert [event["event"] for event in answer.events] == ["described"], (what, answer)
            assert answer.status == 0, answer
    assert not os.path.exists(machine.path(sprung))
    call = machine.start(*ssh[:-1], "-N", "-W", "127.0.0.1:22", ssh[-1])
    assert call.answer().status == 255, "no tunnel through the storage host"


@pytest.mark.parametrize("how", ["stdin", "killed"])
def test_the_end_of_the_connection_is_the_end_of_the_run(machine, ssh, how):
    sleep = f"sleep 301.{os.getpid()}"
    slow = {"name": "Wait", "ansible.builtin.command": {"argv": sleep.split()}}
    machine.settings(**{**machine.role("slow", slow), "roles": ["user_dir", "slow"]})
    call = machine.start(*ssh)
    call.send(request("alice"))
    call.wait_for(lambda: _running(sleep))
    family = _running(sleep) | _running("ansible_bootstrap.apply") | _running("ansible-playbook")
    mine = {pid for pid in family if pid in descendants(_sshd_of(family))}
    assert len(mine) > 3
    if how == "stdin":
        call.hang_up()
    else:
        call.process.send_signal(signal.SIGKILL)
    call.process.wait(10)
    deadline = time.monotonic() + 8
    while left := {pid for pid in mine if os.path.exists(f"/proc/{pid}") and _argv(pid)}:
        assert time.monotonic() < deadline, {_argv(pid) for pid in left}
        time.sleep(0.05)
    assert machine.home("alice").stat().st_uid == OWNER, "what was done by then is whole"
    assert [path for path in machine.path("/run/ansible-bootstrap").iterdir() if path.is_dir()] == []


def _argv(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read().replace("\0", " ")
    except OSError:
        return ""


def _running(words: str) -> set[int]:
    return {int(pid) for pid in os.listdir("/proc") if pid.isdigit() and words in _argv(int(pid))}


def _sshd_of(family: set[int]) -> int:
    """The sshd that serves the connection of one of these."""
    return next(pid for pid in _running("sshd: root@notty") if descendants(pid) & family)
