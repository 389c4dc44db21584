"""A spare, started ahead of its request: quicker than a cold run, and in nothing else different from one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ansible_bootstrap
from ansible_bootstrap.descendants import descendants

DUMP = """
import locale, logging, multiprocessing, os, random, resource, signal, sys
from ansible import constants

def group(process):
    try:
        with open(f"/proc/{process}/autogroup") as file:
            return int(file.read().split()[-1])
    except FileNotFoundError:  # This kernel has none.
        return 10

def state(_):
    ansible = os.getppid()
    config = constants.config
    with open(f"/proc/{ansible}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    with open(f"/proc/{ansible}/status") as file:
        status = [line for line in file if line.startswith(("Sig", "Shd", "Umask", "Groups", "NoNewPrivs"))]
    return {
        "settings": {name: repr(config.get_config_value_and_origin(name)) for name in config.get_configuration_definitions()},
        "constants": {
            name: repr(sorted(map(repr, value)) if isinstance(value, (set, frozenset)) else value)
            for name, value in vars(constants).items()
            if name.isupper()
        },
        "environment": dict(os.environ),
        "argv": sys.argv, "path": sys.path, "executable": sys.executable, "optimize": sys.flags.optimize,
        "directory": os.getcwd(), "status": [line for line in status if not line.startswith("SigQ")],
        "limits": [resource.getrlimit(number) for number in range(16)],
        "encodings": [sys.getfilesystemencoding(), sys.getdefaultencoding(), locale.getlocale(), sys.flags.utf8_mode],
        "start": multiprocessing.get_start_method(), "log": [logging.root.level, len(logging.root.handlers)],
        "terminal": [os.readlink(f"/proc/{ansible}/fd/{number}").rstrip("0123456789") for number in (0, 1, 2)],
        "leads its session and has a controlling terminal": [int(fields[3]) == ansible, int(fields[4]) != 0],
        "descriptors": sorted(os.readlink(f"/proc/{ansible}/fd/{n}").rstrip("0123456789[]:") for n in os.listdir(f"/proc/{ansible}/fd")),
        "name": __import__("__main__").__name__,
        "priority": [os.getpriority(os.PRIO_PROCESS, ansible), group(ansible)],
        "\\n random": random.random(),
    }

class FilterModule:
    def filters(self):
        return {"state": state}
"""


class Zygote:
    """What forks spare apply programs, as the client starts it."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        path.mkdir()
        self.settings = path / "settings.json"
        self.write(settings)
        self.log = path / "log"
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = [
            sys.executable,
            "-I",
            "-m",
            "ansible_bootstrap.apply",
            "--settings",
            self.settings,
            "--warm",
        ]
        with theirs, self.log.open("wb") as log:
            self.process = subprocess.Popen(program, stdin=theirs, stdout=log, stderr=log)
        self.spares: list[Spare] = []

    def write(self, settings: dict[str, Any]) -> None:
        self.settings.write_text(json.dumps(settings))
        self.settings.chmod(0o600)

    def fork(self) -> Spare:
        self.spares.append(Spare(self, self.path / f"{len(self.spares)}.out"))
        return self.spares[-1]

    def born(self, standard: list[int]) -> tuple[int, int]:
        """Have a program forked with these descriptors; return its pid and pidfd."""
        socket.send_fds(self._control, [b"fork"], standard)
        line, received, _, _ = socket.recv_fds(self._control, 32, 1)
        assert line, f"it has ended: {self.log.read_text()}"
        return int(line), received[0]

    def end(self) -> None:
        for spare in self.spares:
            spare.end()
        self._control.close()
        assert self.process.wait(30) == 0


class Spare:
    """A spare apply program as the client has it."""

    def __init__(self, zygote: Zygote, out: Path) -> None:
        self.write = zygote.write
        self.zygote = zygote
        self._out, self._log = out, zygote.log
        theirs, ours = os.pipe()
        with self._out.open("wb") as stdout, self._log.open("ab") as stderr:
            self.pid, self._pidfd = zygote.born([theirs, stdout.fileno(), stderr.fileno()])
        os.close(theirs)
        self.stdin = os.fdopen(ours, "wb", 0)

    def engine(self) -> int:
        """Wait for the engine, the one child of what serves the request; return its pid."""
        return int(self.wait_for(lambda: list(descendants(self.keeper())))[0])

    def keeper(self) -> int:
        """Return the pid of what will serve the request, the one child of the program that was forked."""
        return int(
            self.wait_for(lambda: [pid for pid in descendants(self.pid) if _parent(pid) == self.pid])[0]
        )

    def send_signal(self, number: int) -> None:
        signal.pidfd_send_signal(self._pidfd, number)

    def lives(self, seconds: float = 0) -> bool:
        """Whether it is still there after so many seconds, or sooner if it is not."""
        return not select.select([self._pidfd], [], [], seconds)[0]

    def end(self) -> None:
        family = descendants(self.pid) if self.lives() else set()
        with contextlib.suppress(ProcessLookupError):
            self.send_signal(signal.SIGKILL)
        for pid in family:
            if _state(pid):
                os.kill(pid, signal.SIGKILL)
        assert not self.lives(10)
        self.stdin.close()
        os.close(self._pidfd)

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
        """Ask, and wait for the end; return what the exit status has to be, by its last line."""
        self.ask(*names, **more)
        assert not self.lives(90)
        match self.events[-1]:
            case {"event": "end", "failed": failed}:
                return 1 if failed else 0
            case {"event": "refused"}:
                return 2
        raise AssertionError(self.log)

    @property
    def events(self) -> list[dict[str, Any]]:
        text = self._out.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def outcomes(self) -> dict[str, str]:
        found = [event["outcome"] for event in self.events if event["event"] == "outcome"]
        return {outcome["name"]: outcome["status"] for outcome in found}


def _directories() -> set[Path]:
    base = Path("/run/ansible-bootstrap" if os.geteuid() == 0 else f"/tmp/ansible-bootstrap-{os.geteuid()}")
    return set(base.glob("*"))


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


@pytest.fixture
def spare(site: Any) -> Iterator[Callable[..., Spare]]:
    """Forks the first spare of a new zygote."""
    started: list[Zygote] = []

    def start(*roles: Any, **more: Any) -> Spare:
        path = site.path / f"zygote-{len(started)}"
        started.append(Zygote(path, site.settings(roles=list(roles), **more)))
        return started[-1].fork()

    yield start
    for one in started:
        one.end()


def say(text: str) -> dict[str, Any]:
    return {"name": "Say something", "ansible.builtin.debug": {"msg": text}, "changed_when": True}


def comparable(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events without what is of this run alone."""
    text = json.dumps(events)
    text = re.sub(r'"run": "[^"]*"', '"run": "R"', text)
    made: list[dict[str, Any]] = json.loads(re.sub(r'"seconds": [0-9.]+', '"seconds": 0', text))
    return made


def test_a_warm_run_says_and_does_what_a_cold_one_does(site, apply_program, spare):
    site.role("greet", say("hello"))
    site.role("gate", {"name": "Check", "ansible.builtin.fail": {"msg": "no"}, "when": "username == 'bob'"})
    roles = ["user_dir", "greet", "gate", {"role": "greet", "per": "batch"}]
    warm = spare(*roles)
    warm.engine()
    engine = warm.engine()
    status = warm.run("alice", "bob", "Zoë")
    assert warm.log == ""
    assert _gone({engine})
    made = sorted(path.name for path in site.root.iterdir())
    for path in site.root.iterdir():
        if not path.name.startswith("."):
            path.rmdir()
    subprocess.run(["rm", "-rf", site.root / ".ansible_bootstrap"], check=True)
    cold = apply_program(["alice", "bob", "Zoë"], *roles)
    assert (status, comparable(warm.events)) == (cold.status, comparable(cold.events))
    assert warm.outcomes == {"alice": "ok", "bob": "failed", "Zoë": "ok"}
    assert sorted(path.name for path in site.root.iterdir()) == made


def test_a_run_sees_the_same_ansible_warm_and_cold(site, apply_program, spare):
    site.role(
        "dump",
        {
            "name": "Dump",
            "ansible.builtin.copy": {"content": "{{ '' | state | to_json }}", "dest": "{{ dump_to }}"},
        },
    )
    plugins = site.roles / "dump" / "filter_plugins"
    plugins.mkdir()
    (plugins / "dump.py").write_text(DUMP)
    role = {"role": "dump", "per": "batch"}
    states = {}
    for way in ("cold", "warm", "warm again"):
        to = site.path / f"state {way}"
        variables = {"extra_vars": {"dump_to": str(to)}}
        if way == "cold":
            assert apply_program(["alice"], role, settings=site.settings(**variables)).status == 0
        else:
            warm = spare(role, **variables)
            warm.engine()
            assert warm.run("alice") == 0, warm.log
            assert warm.log == "", "it was a cold run"
        text = re.sub(r"(/run/ansible-bootstrap|/tmp/ansible-bootstrap-\d+)/[\w-]+", "RUN", to.read_text())
        text = re.sub(r"ansible-local-\w+|#\d+", "N", text.replace(str(to), "TO"))
        states[way] = json.loads(text)
    numbers = {state.pop("\n random") for state in states.values()}
    assert len(numbers) == 3
    assert states["warm"]["environment"]["ANSIBLE_LOCAL_TEMP"] == "RUN/tmp"
    assert states["cold"]["priority"] == [10, 10]  # A hub goes first.
    for part in states["cold"]:
        assert states["warm"][part] == states["cold"][part], part
        assert states["warm again"][part] == states["cold"][part], part


def test_a_text_that_no_terminal_can_show_fails_neither_a_cold_run_nor_a_warm_one(site, apply_program, spare):
    """A file name in Latin-1, say; Ansible prepares the streams for it that it finds when it is imported."""
    site.role("show", {"name": "Show", "ansible.builtin.debug": {"msg": "{{ '' | odd }}"}})
    plugins = site.roles / "show" / "filter_plugins"
    plugins.mkdir()
    (plugins / "odd.py").write_text(
        "from ansible.utils.display import Display\n\nclass FilterModule:\n    def filters(self):\n"
        "        return {'odd': lambda _: Display().display('caf\\udce9') or 'shown'}\n"
    )
    warm = spare("show")
    warm.engine()
    assert warm.run("alice") == 0, warm.log
    assert warm.log == ""
    assert apply_program(["alice"], "show").status == 0


def test_two_warm_runs_share_nothing(site, spare):
    site.role(
        "dump",
        {
            "name": "D",
            "ansible.builtin.copy": {"content": "{{ vars }}", "dest": f"{site.path}/vars-{{{{ username }}}}"},
        },
    )
    first = spare("dump", extra_vars={"secret": "s3cr3t"})
    first.engine()
    first.ask("alice")
    first.write(site.settings(roles=["dump"]))
    second = first.zygote.fork()
    engines = {first.engine(), second.engine()}
    assert second.run("bob") == 0
    assert not first.lives(90)
    text = (site.path / "vars-bob").read_text()
    assert "bob" in text and "alice" not in text and "s3cr3t" not in text
    assert len({spare.events[0]["run"] for spare in (first, second)}) == 2
    assert len(engines) == 2 and _gone(engines)


def test_the_settings_are_those_of_the_time_of_the_request(site, spare):
    site.role(
        "tell", {"name": "T", "ansible.builtin.copy": {"content": "{{ what }}", "dest": f"{site.path}/told"}}
    )
    warm = spare("absent", extra_vars={"what": "before"})
    warm.engine()
    warm.write(site.settings(roles=["tell"], extra_vars={"what": "after"}))
    assert warm.run("alice") == 0, warm.log
    assert (site.path / "told").read_text() == "after"
    assert warm.log == "", "nothing that Ansible reads while it starts has changed"


def test_settings_that_ansible_reads_while_it_starts_make_the_run_a_cold_one(site, spare):
    site.role("tell", {"name": "T", "ansible.builtin.copy": {"content": "x", "dest": f"{site.path}/told"}})
    warm = spare("tell")
    engine = warm.engine()
    site.roles.rename(site.path / "moved")
    warm.write({**site.settings(roles=["tell"]), "roles_path": [str(site.path / "moved")]})
    assert warm.run("alice") == 0, warm.log
    assert (site.path / "told").exists()
    assert warm.log.count("starts cold") == 1 and "settings have changed" in warm.log
    assert _gone({engine})


def test_settings_that_have_changed_since_the_import_make_runs_cold_ones(site, spare):
    site.role("tell", {"name": "T", "ansible.builtin.copy": {"content": "x", "dest": f"{site.path}/told"}})
    first = spare("tell")
    first.engine()
    site.roles.rename(site.path / "moved")
    first.write({**site.settings(roles=["tell"]), "roles_path": [str(site.path / "moved")]})
    second = first.zygote.fork()
    assert second.run("alice") == 0, second.log
    assert (site.path / "told").exists()
    assert "starts cold: the settings have changed since Ansible was imported" in second.log


def test_after_a_change_of_the_installation_nothing_is_forked_any_more(spare):
    warm = spare("user_dir")
    warm.engine()
    file = Path(ansible_bootstrap.__file__)
    before = file.stat()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    try:
        with pytest.raises(AssertionError, match="the installation has changed"):
            warm.zygote.fork()
    finally:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert warm.lives(), "what was forked before finds out by itself"


def test_an_engine_that_died_makes_the_run_a_cold_one(site, spare):
    site.role("greet", say("hello"))
    warm = spare("greet")
    os.kill(warm.engine(), signal.SIGKILL)
    assert warm.run("alice") == 0
    assert warm.log.count("starts cold") == 1
    assert warm.outcomes == {"alice": "ok"}


def test_settings_that_were_wrong_at_first_are_read_again(site, spare):
    site.role("greet", say("hello"))
    warm = spare("greet", no_such_setting=1)
    warm.wait_for(lambda: "starts cold" in warm.log)
    assert warm.lives()
    warm.write(site.settings(roles=["greet"]))
    assert warm.run("alice") == 0
    assert warm.outcomes == {"alice": "ok"}


def test_settings_that_stay_wrong_are_refused_as_ever(site, spare):
    warm = spare("greet", no_such_setting=1)
    assert warm.run("alice") == 2
    assert [event["event"] for event in warm.events] == ["refused"]


def _parent(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


@pytest.mark.parametrize("soon", [True, False])
def test_a_spare_that_is_not_needed_leaves_quietly(site, spare, soon):
    before = _directories()
    warm = spare("user_dir")
    engine = set() if soon else {warm.engine()}
    warm.stdin.close()
    assert not warm.lives(30)
    assert warm.log == "" and warm.events == []
    assert _gone(engine)
    assert not {
        path for path in _directories() - before if path.name.startswith("spare-") and not _held(path)
    }


def _held(path: Path) -> bool:
    """Whether it is another program's, which holds its lock."""
    return subprocess.run(["flock", "-n", path, "true"], check=False).returncode != 0


def test_a_spare_that_is_told_to_end_does(spare):
    warm = spare("user_dir")
    engine = warm.engine()
    warm.send_signal(signal.SIGTERM)
    assert not warm.lives(30)
    assert _gone({engine})


def test_a_spare_that_is_killed_takes_its_engine_along(spare):
    warm = spare("user_dir")
    engine = warm.engine()
    warm.send_signal(signal.SIGKILL)
    assert _gone({engine})


@pytest.mark.parametrize("victim", ["front", "keeper"])
def test_kill_9_during_a_warm_run_leaves_no_process(site, spare, victim):
    begun = site.path / "begun"
    site.role(
        "stay",
        {"name": "S", "ansible.builtin.shell": {"cmd": f"setsid sleep 20 & touch {begun}; sleep 20"}},
    )
    warm = spare("stay")
    warm.ask("alice")
    warm.wait_for(begun.exists)
    keeper = warm.keeper()
    family = descendants(warm.pid) | {warm.pid}
    os.kill(keeper if victim == "keeper" else warm.pid, signal.SIGKILL)
    assert not warm.lives(5)
    assert _gone(family)
    # It collects the one that it has forked, as soon as it has ended, and has no other.
    warm.wait_for(lambda: warm.zygote.process.pid not in {_parent(pid) for pid in family}, 5)
    if victim == "keeper":
        assert "was killed by signal 9" in warm.log


@pytest.mark.parametrize("how", ["stdin", "TERM"])
def test_a_stop_during_a_warm_run_leaves_no_process(site, spare, how):
    begun = site.path / "begun"
    site.role(
        "stay",
        {"name": "S", "ansible.builtin.shell": {"cmd": f"setsid sleep 600 & touch {begun}; sleep 600"}},
    )
    warm = spare("stay")
    engine = warm.engine()
    warm.ask("alice")
    warm.wait_for(begun.exists)
    family = descendants(warm.pid)
    assert engine in family and len(family) >= 4
    if how == "stdin":
        warm.stdin.close()
    else:
        warm.send_signal(signal.SIGTERM)
    assert not warm.lives(15)
    assert warm.events[-1]["event"] != "end"
    assert _gone(family)


def test_an_installation_that_changed_meanwhile_is_started_anew(tmp_path):
    """The request is still there for the program that takes over."""
    code = """
import itertools, sys
from ansible_bootstrap import standby
standby.installed = itertools.count().__next__
def load(): raise AssertionError
ours = [sys.executable, "-c", "print('new:', input())"]
with standby.Standby(print, None, "a") as ready:
    print(ready.wait(load, ours))
"""
    done = subprocess.run(
        [sys.executable, "-uc", code], input="request\n", capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["the next run starts cold: Ansible is not imported", "new: request"]
    same = code.replace("itertools.count().__next__", "lambda: ['a']")
    done = subprocess.run(
        [sys.executable, "-uc", same], input="request\n", capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[1:] == ["True"]


def test_an_engine_that_died_when_it_was_ready_makes_the_run_a_cold_one(site, spare):
    site.role("greet", say("hello"))
    warm = spare("greet")
    engine = warm.engine()
    warm.wait_for(lambda: _waits_for_its_command_line(engine))
    os.kill(engine, signal.SIGKILL)
    assert _gone({engine})
    assert warm.run("alice") == 0, warm.log
    assert warm.log.count("starts cold") == 1
    assert warm.outcomes == {"alice": "ok"}


def _waits_for_its_command_line(engine: int) -> bool:
    """It has closed ``READY`` by then, so of its two pipes one is left."""
    pipes = 0
    for number in Path(f"/proc/{engine}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            pipes += os.readlink(number).startswith("pipe:")
    return pipes == 1
