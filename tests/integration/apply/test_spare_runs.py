"""A spare, started ahead of its request: quicker than a cold run, and in nothing else different from one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ansible_bootstrap
from ansible_bootstrap.apply.descendants import descendants


class Spare:
    """A spare apply program as the client has it."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        path.mkdir()
        self._settings = path / "settings.json"
        self.write(settings)
        self._out, self._err = path / "out", path / "log"
        program = [
            sys.executable,
            "-I",
            "-m",
            "ansible_bootstrap.apply",
            "--settings",
            self._settings,
            "--spare",
        ]
        with self._out.open("wb") as stdout, self._err.open("wb") as stderr:
            self.process = subprocess.Popen(
                program,
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                bufsize=0,
                start_new_session=True,
            )
        assert self.process.stdin is not None
        self.stdin = self.process.stdin

    def write(self, settings: dict[str, Any]) -> None:
        self._settings.write_text(json.dumps(settings))
        self._settings.chmod(0o600)

    def waiting(self) -> int:
        """Wait until Ansible waits; return its pid."""
        return int(self.wait_for(lambda: next(filter(_waits, descendants(self.process.pid)), None)))

    def keeper(self) -> int:
        """Return the pid of what will serve the request, the one child of the program."""
        mine = self.process.pid
        return int(self.wait_for(lambda: [pid for pid in descendants(mine) if _parent(pid) == mine])[0])

    def lives(self, seconds: float = 0) -> bool:
        """Whether it is still there after so many seconds, or sooner if it is not."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.returncode is None

    def end(self) -> None:
        family = descendants(self.process.pid) if self.lives() else set()
        self.process.kill()
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        self.stdin.close()

    def wait_for(self, condition: Callable[[], Any], seconds: float = 60) -> Any:
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited in vain: {self.log}"
            time.sleep(0.02)
        return value

    def ask(self, *names: str, **more: Any) -> None:
        users = [{"name": name} for name in names]
        self.stdin.write(json.dumps({"operation": "bootstrap", "users": users, **more}).encode() + b"\n")

    def run(self, *names: str, **more: Any) -> int:
        """Ask, and wait for the end; return the exit status."""
        self.ask(*names, **more)
        assert not self.lives(90)
        return int(self.process.returncode)

    @property
    def events(self) -> list[dict[str, Any]]:
        text = self._out.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    @property
    def way(self) -> str:
        return str(self.events[-1]["way"])

    @property
    def log(self) -> str:
        return self._err.read_text()

    @property
    def outcomes(self) -> dict[str, str]:
        found = [event["outcome"] for event in self.events if event["event"] == "outcome"]
        return {outcome["name"]: outcome["status"] for outcome in found}


def _waits(pid: int) -> bool:
    """Whether it is an Ansible that has the pipe open from which its go comes."""
    with contextlib.suppress(OSError):
        for number in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(number).endswith("/go"):
                    return b"ansible-playbook" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def _parent(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def _gone(pids: set[int], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while any(_state(pid) not in ("", "Z") for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _directories() -> set[Path]:
    base = Path("/run/ansible-bootstrap" if os.geteuid() == 0 else f"/tmp/ansible-bootstrap-{os.geteuid()}")
    return set(base.glob("spare-*"))


@pytest.fixture
def spare(site: Any) -> Iterator[Callable[..., Spare]]:
    """Starts a spare for a run of these roles."""
    started: list[Spare] = []

    def start(*roles: Any, **more: Any) -> Spare:
        started.append(Spare(site.path / f"spare-{len(started)}", site.settings(roles=list(roles), **more)))
        return started[-1]

    yield start
    for one in started:
        one.end()


def say(text: str) -> dict[str, Any]:
    return {"name": "Say something", "ansible.builtin.debug": {"msg": text}, "changed_when": True}


def comparable(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events without what is of this run alone."""
    text = json.dumps(events)
    text = re.sub(r'"run": "[^"]*"', '"run": "R"', text).replace('"way": "spare', '"way": "cold')
    made: list[dict[str, Any]] = json.loads(re.sub(r'"seconds": [0-9.]+', '"seconds": 0', text))
    return made


# A run


def test_it_takes_a_slot_with_its_request(spare):
    ahead = spare("user_dir")
    ahead.waiting()
    program = {ahead.process.pid, ahead.keeper()}

    def slots() -> list[str]:
        opened = [str(link.readlink()) for pid in program for link in Path(f"/proc/{pid}/fd").iterdir()]
        return [name for name in opened if "/slot-" in name]

    assert slots() == []
    assert ahead.run("alice") == 0


def test_a_run_of_a_spare_says_and_does_what_a_cold_one_does(site, apply_program, spare):
    site.role("greet", say("hello"))
    site.role("gate", {"name": "Check", "ansible.builtin.fail": {"msg": "no"}, "when": "username == 'bob'"})
    roles = ["user_dir", "greet", "gate", {"role": "greet", "per": "batch"}]
    ahead = spare(*roles)
    waiting = ahead.waiting()
    status = ahead.run("alice", "bob", "Zoë")
    assert (ahead.log, ahead.way) == ("", "spare+worker")
    assert _gone({waiting})
    made = sorted(path.name for path in site.root.iterdir())
    for path in site.root.iterdir():
        if not path.name.startswith("."):
            path.rmdir()
    subprocess.run(["rm", "-rf", site.root / ".ansible_bootstrap"], check=True)
    cold = apply_program(["alice", "bob", "Zoë"], *roles)
    assert cold.events[-1]["way"] == "cold+worker"
    assert (status, comparable(ahead.events)) == (cold.status, comparable(cold.events))
    assert ahead.outcomes == {"alice": "ok", "bob": "failed", "Zoë": "ok"}
    assert sorted(path.name for path in site.root.iterdir()) == made


def test_a_request_that_comes_before_ansible_has_started_is_served_as_soon_as_it_has(site, spare):
    ahead = spare("user_dir")
    assert ahead.run("alice") == 0
    assert (ahead.way, ahead.outcomes) == ("spare+worker", {"alice": "ok"})


def test_roles_that_everybody_has_are_left_out(site, spare):
    site.role("greet", say("hello"))
    first = spare("user_dir", "greet")
    assert first.run("alice") == 0
    fingerprints = {each["role"]: each["fingerprint"] for each in first.events[0]["fingerprints"]}
    second = spare("user_dir", "greet")
    assert second.run("alice", done={"user_dir": fingerprints["user_dir"]}) == 0
    assert (second.way, second.events[0]["roles"]) == ("spare", ["greet"])
    assert [event["role"] for event in second.events if event["event"] == "role"] == ["greet"]


def test_nothing_polls_while_it_waits(spare):
    ahead = spare("user_dir")
    waiting = ahead.waiting()

    def switches(pid: int) -> int:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("voluntary")).split()[1])

    before = switches(waiting), switches(ahead.keeper())
    time.sleep(1.5)
    assert (switches(waiting), switches(ahead.keeper())) == before


# What makes it a cold one


def test_the_settings_are_those_of_the_time_of_the_request(site, spare):
    site.role(
        "tell", {"name": "T", "ansible.builtin.copy": {"content": "{{ what }}", "dest": f"{site.told}/told"}}
    )
    ahead = spare("absent", extra_vars={"what": "before"})
    waiting = ahead.waiting()
    ahead.write(site.settings(roles=["tell"], extra_vars={"what": "after"}))
    assert ahead.run("alice") == 0, ahead.log
    assert (site.told / "told").read_text() == "after"
    assert ahead.log.count("starts cold") == 1 and "settings have changed" in ahead.log
    assert ahead.way.startswith("cold") and _gone({waiting})


@pytest.mark.parametrize("more", [{"check": True}, {"diff": True}])
def test_a_request_that_needs_another_run_gets_one(spare, more):
    ahead = spare("user_dir")
    assert ahead.run("alice", **more) == 0
    assert ahead.way.startswith("cold") and "the request needs another" in ahead.log


def test_with_an_inventory_nothing_is_started_ahead(site, spare):
    hosts = site.path / "hosts"
    hosts.write_text("localhost\n")
    ahead = spare("user_dir", inventory=str(hosts))
    assert ahead.run("alice") == 0
    assert ahead.way.startswith("cold") and "with an inventory" in ahead.log


def test_an_ansible_that_died_while_it_waited_makes_the_run_a_cold_one(site, spare):
    site.role("greet", say("hello"))
    ahead = spare("greet")
    os.kill(ahead.waiting(), signal.SIGKILL)
    ahead.wait_for(lambda: len(descendants(ahead.process.pid)) == 1)
    assert ahead.run("alice") == 0
    assert ahead.log.count("starts cold") == 1 and ahead.way.startswith("cold")
    assert ahead.outcomes == {"alice": "ok"}


def test_settings_that_were_wrong_at_first_are_read_again(site, spare):
    site.role("greet", say("hello"))
    ahead = spare("greet", no_such_setting=1)
    ahead.wait_for(lambda: "starts cold" in ahead.log)
    assert ahead.lives()
    ahead.write(site.settings(roles=["greet"]))
    assert ahead.run("alice") == 0
    assert ahead.outcomes == {"alice": "ok"}


def test_settings_that_stay_wrong_are_refused_as_ever(spare):
    ahead = spare("greet", no_such_setting=1)
    assert ahead.run("alice") == 2
    assert [event["event"] for event in ahead.events] == ["refused"]


@pytest.mark.alone(reason="it touches the installed package, so all apply programs that wait start anew")
def test_after_a_change_of_the_installation_the_program_starts_anew(site, spare):
    ahead = spare("user_dir")
    waiting = ahead.waiting()
    file = Path(ansible_bootstrap.__file__)
    before = file.stat()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    try:
        assert ahead.run("alice") == 0, ahead.log
    finally:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (ahead.way, ahead.outcomes) == ("cold+worker", {"alice": "ok"})
    assert _gone({waiting})


# Its end


@pytest.mark.parametrize("soon", [True, False])
def test_a_spare_that_is_not_needed_leaves_quietly(spare, soon):
    ahead = spare("user_dir")
    waiting = set() if soon else {ahead.waiting()}
    made = {path for path in _directories() for pid in waiting if str(path) in _command_line(pid)}
    assert soon or made
    ahead.stdin.close()
    assert not ahead.lives(30)
    assert (ahead.process.returncode, ahead.log, ahead.events) == (0, "", [])
    assert _gone(waiting)
    assert not any(path.exists() for path in made)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_spare_that_is_ended_takes_its_ansible_along(spare, number):
    ahead = spare("user_dir")
    family = {ahead.waiting(), ahead.keeper()}
    ahead.process.send_signal(number)
    assert not ahead.lives(30)
    assert _gone(family)


@pytest.mark.parametrize("victim", ["front", "keeper"])
def test_kill_9_during_its_run_leaves_no_process(site, spare, victim):
    begun = site.told / "begun"
    site.role(
        "stay",
        {"name": "S", "ansible.builtin.shell": {"cmd": f"setsid sleep 20 & touch {begun}; sleep 20"}},
    )
    ahead = spare("stay")
    ahead.ask("alice")
    ahead.wait_for(begun.exists)
    family = descendants(ahead.process.pid) | {ahead.process.pid}
    os.kill(ahead.keeper() if victim == "keeper" else ahead.process.pid, signal.SIGKILL)
    assert not ahead.lives(5)
    assert _gone(family)
    if victim == "keeper":
        assert "was killed by signal 9" in ahead.log


@pytest.mark.parametrize("how", ["stdin", "TERM"])
def test_a_stop_during_its_run_leaves_no_process(site, spare, how):
    begun = site.told / "begun"
    site.role(
        "stay",
        {"name": "S", "ansible.builtin.shell": {"cmd": f"setsid sleep 600 & touch {begun}; sleep 600"}},
    )
    ahead = spare("stay")
    waiting = ahead.waiting()
    ahead.ask("alice")
    ahead.wait_for(begun.exists)
    family = descendants(ahead.process.pid)
    assert waiting in family and len(family) >= 4
    if how == "stdin":
        ahead.stdin.close()
    else:
        ahead.process.terminate()
    assert not ahead.lives(15)
    assert ahead.events[-1]["event"] != "end"
    assert _gone(family)
