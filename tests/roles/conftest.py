"""Fixtures of the role tests, which run a real ansible-playbook.

storage     a storage root, and the users alice and bob whose directories shall lie below it
playbook    write a playbook that applies one role of ours, and run it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass
class Storage:
    """A storage root and its users."""

    root: Path
    users: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str) -> dict[str, Any]:
        own = os.geteuid()
        number = 20001 + len(self.users) if own == 0 else own
        group = number if own == 0 else os.getegid()
        user = {"name": name, "directory": str(self.root / name), "uid": number, "gid": group}
        self.users.append(user)
        return user

    def tree(self) -> list[str]:
        """Everything below the root, but for our state."""
        found = [str(path.relative_to(self.root)) for path in self.root.rglob("*")]
        return sorted(path for path in found if not path.startswith(".ansible_bootstrap"))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    root = tmp_path / "storage"
    root.mkdir(mode=0o755)
    made = Storage(root)
    made.add("alice")
    made.add("bob")
    return made


@dataclass
class Run:
    """What a run of ansible-playbook came to."""

    status: int
    result: dict[str, Any]
    output: str

    def user(self, key: str) -> dict[str, Any]:
        return next(user for user in self.result["users"] if user["key"] == key)


class Playbook:
    """A playbook of one role."""

    def __init__(self, directory: Path, role: str, variables: dict[str, Any]) -> None:
        self._directory = directory
        self._book = directory / "play.json"
        play = {
            "hosts": "localhost",
            "gather_facts": False,
            "vars": variables,
            "tasks": [{"ansible.builtin.include_role": {"name": f"ansible_bootstrap.jupyterhub.{role}"}}],
        }
        self._book.write_text(json.dumps([play]))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self._directory),
            "ANSIBLE_REMOTE_TMP": str(self._directory / "remote"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
            "LC_ALL": "C.UTF-8",
        }
        return subprocess.Popen(
            [str(Path(sys.executable).with_name("ansible-playbook")), "-vvv", str(self._book), *arguments],
            cwd=CHECKOUT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str) -> Run:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=60)
        return Run(process.returncode, _result(output), output)

    def kill_module_when(self, condition: Callable[[], bool], root: Path) -> None:
        """Start the playbook; kill -9 the module, known by the locks it holds, once the condition is true."""
        process = self.start()
        until = time.monotonic() + 30
        while not condition():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < until
        holders = _holders(root / ".ansible_bootstrap" / "locks")
        assert holders
        os.kill(holders[0], 9)
        process.communicate(timeout=60)
        assert process.returncode != 0
        while _holders(root / ".ansible_bootstrap" / "locks"):
            assert time.monotonic() < until, "a child outlived the module"


@pytest.fixture
def playbook(tmp_path: Path) -> Iterator[Callable[..., Playbook]]:
    yield lambda role, **variables: Playbook(tmp_path, role, variables)


def _result(output: str) -> dict[str, Any]:
    """The module's result, as -vvv prints it."""
    decoder = json.JSONDecoder()
    for place in range(len(output)):
        if output.startswith("=> {", place):
            found, _ = decoder.raw_decode(output, place + 3)
            if "users" in found:
                return dict(found)
    return {}


def _holders(locks: Path) -> list[int]:
    """Processes that have a lock open, the oldest first."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            targets = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:
            continue
        if any(target.startswith(f"{locks}/") for target in targets):
            found.append(int(process.name))
    return sorted(found)
