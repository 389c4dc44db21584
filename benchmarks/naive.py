"""The obvious hook: one ``ansible_runner.run`` for each spawn, with stock modules."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import ansible_runner

from benchmarks.machine import owner

PLAYBOOK = Path(__file__).with_name("naive_course.yml")
BIN = Path(sys.executable).parent


def bootstrap(username: str, root: Path, archive: Path) -> int:
    """Give one user directory and course; return Ansible's exit status. Blocks: call it in a thread."""
    uid, gid = owner()
    with tempfile.TemporaryDirectory() as data:
        result = ansible_runner.run(
            private_data_dir=data,
            playbook=str(PLAYBOOK),
            inventory="localhost,",
            extravars={
                "username": username,
                "root": str(root),
                "archive": str(archive),
                "uid": uid,
                "gid": gid,
                "ansible_python_interpreter": sys.executable,
            },
            envvars={"PATH": f"{BIN}:{os.environ['PATH']}"},
            quiet=True,
            cancel_callback=lambda: False,  # Given, runner leaves the hub's signal handlers alone.
        )
    return int(result.rc)
