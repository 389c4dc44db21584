"""The role mkhomedir: check, converge, converge again, be killed half-way.

The helper asks the name service, so ansible-playbook runs in a mount namespace of its own, where
/etc/passwd also knows alice and bob. The machine's own is never touched.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import needs
from tests.roles.conftest import Playbook, Run, Storage
from tests.unit.storage.test_system_homes import in_namespace

Apply = Callable[..., Run]

TREE = ["alice", "alice/.bashrc", "alice/work", "bob", "bob/.bashrc", "bob/work"]


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    made = tmp_path / "skel"
    (made / "work").mkdir(parents=True)
    (made / ".bashrc").write_text("set -o vi\n")
    return made


@pytest.fixture
def apply(
    storage: Storage, skeleton: Path, playbook: Callable[..., Playbook], tmp_path: Path
) -> Callable[..., Run]:
    """Run the role for the users of ``storage``, with more variables if given."""
    needs(root=True, programs=("mkhomedir_helper", "mount", "strace"))
    passwd = tmp_path / "passwd"
    lines = [
        f"{user['name']}:x:{user['uid']}:{user['gid']}::{user['directory']}:/bin/sh\n"
        for user in storage.users
    ]
    passwd.write_text(Path("/etc/passwd").read_text() + "".join(lines))
    passwd.chmod(0o644)

    def run(*arguments: str, **more: Any) -> Run:
        variables = {"bootstrap_users": storage.users, "bootstrap_root": str(storage.root), **more}
        book = playbook("mkhomedir", mkhomedir_skeleton=str(skeleton), **variables)
        return Run(*in_namespace(passwd, lambda: astuple(book.run(*arguments))))

    return run


def is_whole(storage: Storage) -> None:
    assert storage.tree() == TREE
    for user in storage.users:
        home = Path(user["directory"])
        for path in (home, *home.rglob("*")):
            status = path.lstat()
            assert (status.st_uid, status.st_gid) == (user["uid"], user["gid"])
            assert stat.S_IMODE(status.st_mode) == (0o700 if path.is_dir() else 0o600)
        assert (home / ".bashrc").read_text() == "set -o vi\n"
    assert list((storage.root / ".ansible_bootstrap" / "stage").iterdir()) == []


def test_a_batch_gets_its_homes_once(storage: Storage, apply: Apply) -> None:
    predicted = apply("--check", "--diff")
    assert predicted.status == 0, predicted.output
    assert predicted.user("alice")["changed"]
    assert list(storage.root.iterdir()) == []
    assert '"mode": "0700"' in predicted.output

    applied = apply()
    assert applied.status == 0, applied.output
    assert applied.user("bob")["changed"]
    is_whole(storage)

    (storage.root / "alice" / ".bashrc").write_text("mine\n")
    for arguments in ((), ("--check",)):
        again = apply(*arguments)
        assert again.status == 0
        assert not again.result["changed"]
        assert "changed=0" in again.output
    assert (storage.root / "alice" / ".bashrc").read_text() == "mine\n"


def test_one_bad_user_costs_only_itself(storage: Storage, apply: Apply) -> None:
    (storage.root / "alice").symlink_to("/etc")
    storage.users.append({"name": "stranger", "directory": f"{storage.root}/x", "uid": 20009, "gid": 20009})
    run = apply()
    assert run.status == 2
    assert [user["failed"] for user in run.result["users"]] == [True, False, True]
    assert "symbolic link" in run.user("alice")["msg"]
    assert "not a system user" in run.user("stranger")["msg"]
    assert "2 of 3 users failed" in run.result["msg"]
    assert os.readlink(storage.root / "alice") == "/etc"
    assert (storage.root / "bob" / ".bashrc").exists()
    assert not (storage.root / "x").exists()


def test_killed_half_way_the_next_run_makes_it_whole(storage: Storage, apply: Apply, tmp_path: Path) -> None:
    real = shutil.which("mkhomedir_helper", path="/sbin:/usr/sbin")
    helper = tmp_path / "helper"
    helper.write_text(
        "#!/bin/sh\n"
        f'strace -f -o /dev/null -e trace=chown -e inject=chown:signal=KILL:when=2 {real} "$@"\n'
        "kill -9 $PPID\n"
    )
    helper.chmod(0o755)

    killed = apply(mkhomedir_helper=str(helper))
    assert killed.status == 2
    assert "does the work was killed" in killed.user("alice")["msg"]
    status = (storage.root / "alice").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o700)

    assert apply("--check").user("alice")["changed"]
    run = apply()
    assert run.status == 0, run.output
    is_whole(storage)
    assert not apply().result["changed"]
