"""A machine of the test's own, as an admin sets it up after the examples: a mount namespace.

It has an ``/etc`` of its own (accounts, sudoers, settings), root's virtualenv at ``/opt/ansible-bootstrap``, and an
unprivileged account ``jupyterhub``, all in memory: nothing is seen outside or left behind.
So the shipped files are used as they are, paths and all.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).resolve().parents[3]
EXAMPLES = CHECKOUT / "examples"
VENV = "/opt/ansible-bootstrap"
HUB = "jupyterhub"
OWNER, GROUP = 20_001, 20_002

_SETUP = """
set -e
mount -t tmpfs -o mode=755 tmpfs {world}
for each in etc opt; do
    mkdir -p {world}/.$each/up {world}/.$each/work
    mount -t overlay overlay -o lowerdir=/$each,upperdir={world}/.$each/up,workdir={world}/.$each/work /$each
done
mkdir -p -m 700 /run/ansible-bootstrap && mount -t tmpfs -o mode=700 tmpfs /run/ansible-bootstrap
rm -rf /etc/ansible-bootstrap && mkdir -m 755 /etc/ansible-bootstrap
mkdir -m 755 {world}/volumes {world}/roles
getent passwd {hub} >/dev/null && userdel -f {hub}
useradd --system --create-home --home-dir {world}/home --shell /bin/sh {hub}
echo ready
exec sleep infinity
"""


def interpreter() -> str | None:
    """A Python >= 3.11 that every account can execute: one below /root is of no use to the hub's."""
    for candidate in ("/usr/bin/python3", os.path.realpath(sys.executable)):
        path = Path(candidate).resolve()
        if path.exists() and all(step.stat().st_mode & 0o001 for step in (path, *path.parents)):
            test = subprocess.run(
                [candidate, "-c", "import sys, venv; assert sys.version_info >= (3, 11)"],
                check=False,
                stderr=subprocess.DEVNULL,
            )
            if test.returncode == 0:
                return candidate
    return None


def shipped_command(example: str) -> list[str]:
    """The ``apply_command`` of an example's jupyterhub_config.py."""
    tree = ast.parse((EXAMPLES / example / "jupyterhub_config.py").read_text())
    (value,) = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).endswith("apply_command")
    )
    command: list[str] = ast.literal_eval(value)
    return command


@dataclasses.dataclass
class Answer:
    """What came back: the exit status, the events, and whatever else was said."""

    status: int
    events: list[dict[str, Any]]
    log: str

    @property
    def outcomes(self) -> dict[str, dict[str, Any]]:
        return {
            event["outcome"]["key"]: event["outcome"] for event in self.events if event["event"] == "outcome"
        }

    @property
    def ok(self) -> set[str]:
        return {key for key, outcome in self.outcomes.items() if outcome["status"] == "ok"}

    @property
    def refused(self) -> str:
        """Why nothing was done: sudo's words, or the program's."""
        assert not [event for event in self.events if event["event"] != "refused"], self
        return str(self.events[0]["message"]) if self.events else self.log


class Call:
    """A program that has been started on the machine; stdin is open."""

    def __init__(self, command: Sequence[str], **popen: Any) -> None:
        popen.setdefault("stdin", subprocess.PIPE)
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **popen
        )
        # Pipes, as a hub has them: a file would fall under the ulimits that some tests set.
        self._out, self._err = bytearray(), bytearray()
        self._readers = [
            threading.Thread(target=_read, args=(pipe, into), daemon=True)
            for pipe, into in ((self.process.stdout, self._out), (self.process.stderr, self._err))
        ]
        for reader in self._readers:
            reader.start()

    def send(self, data: bytes) -> None:
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(data)
            self.process.stdin.flush()

    def hang_up(self) -> None:
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def output(self) -> str:
        """All that it has printed, once it has ended."""
        for reader in self._readers:
            reader.join(5)
        return self._out.decode()

    def events(self) -> list[dict[str, Any]]:
        text = self._out.decode()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    @property
    def log(self) -> str:
        return self._err.decode("utf-8", "replace")

    def wait_for(self, condition: Callable[[], Any], seconds: float = 30) -> Any:
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert self.process.poll() is None, (self.process.returncode, self.events(), self.log)
            assert time.monotonic() < deadline, (self.events(), self.log)
            time.sleep(0.02)
        return value

    def answer(self, seconds: float = 40) -> Answer:
        status = self.process.wait(seconds)
        for reader in self._readers:
            reader.join(5)
        return Answer(status, self.events(), self.log)

    def end(self) -> None:
        if self.process.stdin:
            self.hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for reader, pipe in zip(self._readers, (self.process.stdout, self.process.stderr), strict=True):
            reader.join(5)
            assert pipe and not reader.is_alive(), f"somebody still holds the output of {self.process.args}"
            pipe.close()


def _read(pipe: Any, into: bytearray) -> None:
    while chunk := os.read(pipe.fileno(), 1 << 16):
        into += chunk


class Machine:
    """See the module's docstring. ``path`` turns a path of the machine into one of ours."""

    def __init__(self, python: str) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="ansible-bootstrap-test-", dir="/var/lib"))
        self.base.chmod(0o755)
        self.world = self.base / "world"
        self.world.mkdir()
        self.volumes = self.world / "volumes"
        self._calls: list[Call] = []
        script = _SETUP.format(world=self.world, hub=HUB)
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            assert self._holder.stdout and self._holder.stdout.readline() == "ready\n"
            self._install(python)
        except BaseException:
            self.remove()
            raise

    def _install(self, python: str) -> None:
        """What the example's README says; ``[hub]`` as well, for the hub has to run from somewhere."""
        self.root(python, "-m", "venv", "--without-pip", VENV)
        pip = (sys.executable, "-m", "pip", "--python", f"{VENV}/bin/python", "install", "--quiet")
        self.root(
            *pip,
            "--disable-pip-version-check",
            "--no-compile",  # most of it is never imported here
            f"{CHECKOUT}[hub]",
            env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"},
        )
        self.root("visudo", "-cf", str(EXAMPLES / "behind-sudo/ansible-bootstrap.sudoers"))
        shipped = EXAMPLES / "behind-sudo/ansible-bootstrap.sudoers"
        self.root("install", "-m", "440", str(shipped), "/etc/sudoers.d/ansible-bootstrap")
        self.settings()

    def path(self, path: str | Path) -> Path:
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def inside(self, user: str = "root") -> list[str]:
        """What to put before a command to run it on the machine as somebody."""
        enter = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--"]
        become = ["setpriv", "--reuid", user, "--regid", user, "--init-groups", "--"]
        return enter if user == "root" else [*enter, *become]

    def root(self, *command: str, **options: Any) -> str:
        """Do what an admin does."""
        done = subprocess.run(
            [*self.inside(), *command], capture_output=True, text=True, check=False, **options
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def settings(self, **changes: Any) -> None:
        """Write the shipped settings file, with our storage root and owner, and ``changes``; None takes a key away."""
        settings = yaml.safe_load((EXAMPLES / "behind-sudo/settings.yml").read_text())
        settings |= {"storage_root": str(self.volumes), "uid": OWNER, "gid": GROUP, **changes}
        path = self.path("/etc/ansible-bootstrap/settings.yml")
        path.unlink(missing_ok=True)
        path.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value is not None}))
        path.chmod(0o600)

    def role(self, name: str, *tasks: dict[str, Any]) -> dict[str, Any]:
        """Write a site role; return settings that use it alone."""
        folder = self.path(self.world / "roles" / name / "tasks")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "main.yml").write_text(yaml.safe_dump(list(tasks)))
        return {"roles_path": [str(self.world / "roles")], "roles": [name]}

    def start(self, *command: str, user: str = HUB, shell: str = "", **popen: Any) -> Call:
        """Start a command as somebody; ``shell`` is what a shell does first."""
        argv = ["bash", "-c", f'{shell}; exec "$@"', "sh", *command] if shell else list(command)
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.world / "home"),
            **popen.pop("env", {}),
        }
        # By `env` on the inside: some of these would be the end of nsenter itself.
        variables = [f"{name}={value}" for name, value in environment.items()]
        enter = [*self.inside(user), "env", "-i", *variables]
        cwd = popen.pop("cwd", None)
        if cwd:
            enter += ["sh", "-c", f'cd {shlex.quote(str(cwd))} && exec "$@"', "sh"]
        call = Call([*enter, *argv], **popen)
        self._calls.append(call)
        return call

    def home(self, name: str) -> Path:
        """A user's directory, seen from here."""
        return self.path(self.volumes / name)

    def exists(self, name: str) -> bool:
        return os.path.lexists(self.home(name))

    def end_calls(self) -> None:
        while self._calls:
            self._calls.pop().end()

    def remove(self) -> None:
        self.end_calls()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._holder.pid, signal.SIGKILL)
        self._holder.wait()
        if self._holder.stdout:
            self._holder.stdout.close()
        shutil.rmtree(self.base)


def request(*users: str | dict[str, Any], **more: Any) -> bytes:
    """A request line."""
    records = [{"name": user} if isinstance(user, str) else user for user in users]
    return json.dumps({"operation": "bootstrap", "users": records, **more}).encode() + b"\n"
