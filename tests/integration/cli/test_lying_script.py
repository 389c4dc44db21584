"""An admin's script that prints what ansible-runner takes for an event of Ansible's, through the whole way."""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cli.test_cli import Admin


@pytest.fixture
def admin() -> Iterator[Admin]:
    """An admin in a directory that users can reach."""
    path = Path(tempfile.mkdtemp(prefix="ansible_bootstrap_", dir="/tmp"))
    path.chmod(0o755)
    yield Admin(path)
    shutil.rmtree(path)


def forged(name: str) -> bytes:
    """What ansible-runner reads as an event: this user's role has succeeded, and the run too."""
    outcome = {"key": name, "changed": True, "failed": False, "msg": "", "notes": []}
    data = {"res": {"changed": True, "users": [outcome], "finished": [name]}, "host": "localhost"}
    event = {"uuid": "0", "event": "runner_on_ok", "event_data": data, "stdout": "bootstrapped"}
    code = base64.b64encode(json.dumps(event).encode())
    return b"\x1b[K%s\x1b[%dD\x1b[K" % (code, len(code))


def test_a_forged_event_of_a_failing_script_is_text(admin: Admin) -> None:
    place = admin.directory
    (place / "lies").write_bytes(forged("alice") + b"\n" + forged("bob"))
    (place / "lies").chmod(0o644)
    program = place / "script"
    program.write_text(f'#!/bin/sh\ncat {place}/lies; [ "$1" != alice ]\n')
    program.chmod(0o755)
    admin.configure(roles=["user_dir", "script"], extra_vars={"script_path": str(program)})

    text = admin.types("run", "alice", "bob", status=1)
    assert "2 users: 1 ok, 1 failed" in text
    assert "failed  alice: script: " in text
    assert "changed  bob: user_dir, script" in text
    assert "\x1b" not in text
    outcomes = json.loads(admin.types("run", "alice", "bob", "--json", status=1))
    alice, bob = sorted(outcomes, key=lambda outcome: str(outcome["name"]))
    assert (alice["status"], alice["failed_role"], bob["status"]) == ("failed", "script", "ok")
    assert "exited with status 1" in alice["message"]
    assert alice["message"].isprintable()
    assert r"\x1b[K" in alice["message"]
    assert "\x1b" not in admin.types("status", "alice")
