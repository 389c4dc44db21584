"""Fixtures of the suites that run the real apply program and the real playbooks.

==================  ==========================================================================
``site``            a storage root and a roles path of the test's own, which users can reach; :class:`Site`
``apply_program``   runs ``python -I -m ansible_bootstrap.apply`` for that site; :class:`ApplyProgram`
``playbook``        runs ``ansible-playbook`` for that site
``unprivileged``    what to put before a command to run it as :data:`SOMEBODY`, without any privilege
==================  ==========================================================================
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_bootstrap.apply.descendants import descendants

APPLY = (sys.executable, "-I", "-m", "ansible_bootstrap.apply")
CHECKOUT = Path(__file__).resolve().parents[2]
UID, GID = 20_000, 20_000
SOMEBODY = 1_000_000 + os.getpid()
"""A uid that nobody on the machine has, nor another process that runs these tests."""


class Site:
    """What an admin has: a storage root, and roles of their own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = path / "volumes"
        self.root.mkdir()
        self.roles = path / "roles"
        self.roles.mkdir()
        self.told = path / "told"
        """Where every user's role may leave what it has to say."""
        self.told.mkdir()
        self.told.chmod(0o777)

    def role(self, name: str, *tasks: dict[str, Any], **files: Any) -> str:
        """Write a role; ``handlers=…``, ``meta_argument_specs=…`` and so on are its other parts."""
        for part, content in {"tasks": list(tasks), **files}.items():
            folder, _, file = part.partition("_")
            target = self.roles / name / folder / f"{file or 'main'}.yml"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(yaml.safe_dump(content))
        return name

    def settings(self, **more: Any) -> dict[str, Any]:
        """Return the settings of the apply program, as the embedded hub would hand them over."""
        owner = {"uid": UID, "gid": GID} if os.geteuid() == 0 else {}
        return {
            "storage_root": str(self.root),
            "roles_path": [str(self.roles)],
            "roles": [],
            **owner,
            **more,
        }


@dataclasses.dataclass
class Answer:
    """What the apply program said, and how it ended."""

    status: int
    events: list[dict[str, Any]]
    log: str

    @property
    def outcomes(self) -> dict[str, dict[str, Any]]:
        """Each user's outcome by key; two for one key would be a fault."""
        found = [event["outcome"] for event in self.events if event["event"] == "outcome"]
        assert len({outcome["key"] for outcome in found}) == len(found), "two outcomes for one user"
        return {outcome["key"]: outcome for outcome in found}

    @property
    def ok(self) -> set[str]:
        return {key for key, outcome in self.outcomes.items() if outcome["status"] == "ok"}

    @property
    def run_id(self) -> str:
        return str(next(event["run"] for event in self.events if event["event"] == "accepted"))

    @property
    def refused(self) -> str:
        """The message with which the whole request was refused."""
        assert [event["event"] for event in self.events] == ["refused"], self.events
        return str(self.events[0]["message"])


class Running:
    """An apply program that has been given its request; its stdin is open."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        stdout: Path,
        stderr: Path,
        copies: Sequence[subprocess.Popen[bytes]] = (),
    ) -> None:
        self.process = process
        self._copies = copies
        self._stdout = stdout
        self._stderr = stderr

    def events(self) -> list[dict[str, Any]]:
        text = self._stdout.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    @property
    def directory(self) -> Path:
        """The run's directory on the control node."""
        run = self.wait_for(lambda: [event for event in self.events() if event["event"] == "accepted"])[0][
            "run"
        ]
        base = "/run/ansible-bootstrap" if os.geteuid() == 0 else f"/tmp/ansible-bootstrap-{os.geteuid()}"
        return Path(base, run)

    def wait_for(self, condition: Callable[[], Any], seconds: float = 30) -> Any:
        """Wait until the condition holds while the program lives; return its value."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert self.process.poll() is None, f"ended early: {self.answer(0)}"
            assert time.monotonic() < deadline, f"waited {seconds} s in vain: {self._stderr.read_text()}"
            time.sleep(0.02)
        return value

    def stop(self) -> None:
        """Close stdin: the caller wants no more."""
        assert self.process.stdin
        self.process.stdin.close()

    def answer(self, seconds: float = 60) -> Answer:
        """Wait for the end."""
        status = self.process.wait(seconds)
        for copy in self._copies:
            copy.wait(10)
        return Answer(status, self.events(), self._stderr.read_text())


class ApplyProgram:
    """Runs the apply program as the embedded hub does: ``--settings FILE``, a line on stdin, stdin open."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._started: list[Running] = []

    def settings_file(self, settings: dict[str, Any]) -> Path:
        path = self.site.path / f"settings-{len(self._started)}.json"
        path.write_text(json.dumps(settings))
        path.chmod(0o600)
        return path

    def start(
        self,
        users: list[Any] | None = None,
        *,
        raw: bytes | None = None,
        argv: tuple[str, ...] | None = None,
        prefix: tuple[str, ...] = (),
        settings: dict[str, Any] | None = None,
        popen: dict[str, Any] | None = None,
        **request: Any,
    ) -> Running:
        """Start it and hand over the request (or ``raw`` bytes, after which stdin ends)."""
        if argv is None:
            argv = ("--settings", str(self.settings_file(settings or self.site.settings())))
        number = len(self._started)
        stdout, stderr = self.site.path / f"stdout-{number}", self.site.path / f"stderr-{number}"
        copies: list[subprocess.Popen[bytes]] = []
        with contextlib.ExitStack() as opened:
            out, err = (opened.enter_context(path.open("wb")) for path in (stdout, stderr))
            if not argv:  # before the boundary it writes to no file
                copies = [
                    subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) for file in (out, err)
                ]
                out, err = (opened.enter_context(copy.stdin) for copy in copies if copy.stdin)
            process = subprocess.Popen(
                [*prefix, *APPLY, *argv], stdin=subprocess.PIPE, stdout=out, stderr=err, **(popen or {})
            )
        running = Running(process, stdout, stderr, copies)
        self._started.append(running)
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):
            if raw is None:
                users = [{"name": user} if isinstance(user, str) else user for user in users or []]
                line = json.dumps({"operation": "bootstrap", "users": users, **request})
                process.stdin.write(line.encode() + b"\n")
                process.stdin.flush()
            else:
                process.stdin.write(raw)
                process.stdin.close()
        return running

    def __call__(self, users: list[Any] | None = None, *roles: Any, **more: Any) -> Answer:
        """Run it to its end for these users, with these roles."""
        if roles:
            more["settings"] = {**(more.get("settings") or self.site.settings()), "roles": list(roles)}
        return self.start(users, **more).answer()

    def clean(self) -> None:
        for running in self._started:
            process = running.process
            if process.poll() is None:
                left = descendants(process.pid)
                process.kill()
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, 9)
                process.wait()
            if process.stdin:
                with contextlib.suppress(OSError):
                    process.stdin.close()


@pytest.fixture
def site() -> Iterator[Site]:
    path = Path(tempfile.mkdtemp(prefix="site-", dir="/tmp"))
    path.chmod(0o755)  # pytest's own directories are closed to users
    yield Site(path)
    shutil.rmtree(path)


@pytest.fixture
def apply_program(site: Site) -> Iterator[ApplyProgram]:
    program = ApplyProgram(site)
    yield program
    program.clean()


@dataclasses.dataclass
class Play:
    """How an ``ansible-playbook`` ended, and what it printed."""

    status: int
    output: str

    @property
    def changed(self) -> int:
        """The sum of ``changed=`` in the recap."""
        recap = self.output.rpartition("PLAY RECAP")[2]
        return sum(
            int(word.removeprefix("changed=")) for word in recap.split() if word.startswith("changed=")
        )


@pytest.fixture
def playbook(site: Site) -> Callable[..., Play]:
    """Run ``ansible-playbook`` with extra vars, without any configuration."""

    def run(
        *options: str,
        play: str = "ansible_bootstrap.jupyterhub.bootstrap",
        environment: dict[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        cwd: Path | None = None,
        **variables: Any,
    ) -> Play:
        owner = {"bootstrap_uid": UID, "bootstrap_gid": GID} if os.geteuid() == 0 else {}
        extra = {"bootstrap_root": str(site.root), **owner, **variables}
        done = subprocess.run(
            [
                *prefix,
                str(Path(sys.executable).parent / "ansible-playbook"),
                play,
                "-e",
                json.dumps({key: value for key, value in extra.items() if value is not None}),
                *options,
            ],
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": str(site.path),
                "LC_ALL": "C.UTF-8",
                "ANSIBLE_ROLES_PATH": str(site.roles),
                "ANSIBLE_NOCOLOR": "1",
                **(environment or {}),
            },
            cwd=cwd or site.path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=90,
            check=False,
        )
        return Play(done.returncode, done.stdout)

    return run


@pytest.fixture(scope="session")
def unprivileged(needs: Callable[..., None]) -> tuple[str, ...]:
    """Where the interpreter lies below a directory like /root, which strangers cannot enter, a mount
    namespace shows it to them.
    """
    needs(root=True, programs=("unshare", "setpriv"))
    script = ["set -e", "mount -t tmpfs tmpfs /mnt"]
    hidden: dict[Path, list[Path]] = {}
    for path in {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), CHECKOUT}:
        closed = [parent for parent in (path, *path.parents) if not parent.stat().st_mode & 0o001]
        if closed:
            hidden.setdefault(closed[-1], []).append(path)
    for number, (closed, paths) in enumerate(hidden.items()):
        stages = {f"/mnt/{number}-{place}": path for place, path in enumerate(paths)}
        script += [f"mkdir {stage}; mount --bind {path} {stage}" for stage, path in stages.items()]
        script += [f"mount -t tmpfs -o mode=755 tmpfs {closed}"]
        script += [f"mkdir -p {path}; mount --bind {stage} {path}" for stage, path in stages.items()]
    script.append(f'exec setpriv --reuid {SOMEBODY} --regid {SOMEBODY} --clear-groups --no-new-privs "$@"')
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(script), "sh")
