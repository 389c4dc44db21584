"""The role user_dir: check, converge, converge again, be killed half-way."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.roles.conftest import Playbook, Storage

Book = Callable[..., Playbook]


def _variables(storage: Storage, **more: Any) -> dict[str, Any]:
    return {"bootstrap_users": storage.users, "bootstrap_root": str(storage.root), **more}


def test_a_batch_gets_its_directories_once(storage: Storage, playbook: Book, tmp_path: Path) -> None:
    skeleton = tmp_path / "skel"
    (skeleton / "work").mkdir(parents=True)
    (skeleton / ".bashrc").write_text("set -o vi\n")
    book = playbook("user_dir", **_variables(storage, user_dir_skeleton=str(skeleton), user_dir_mode="0750"))

    predicted = book.run("--check", "--diff")
    assert predicted.status == 0, predicted.output
    assert predicted.user("alice")["changed"]
    assert list(storage.root.iterdir()) == []
    assert "set -o vi" not in predicted.output
    assert '"mode": "0750"' in predicted.output

    applied = book.run()
    assert applied.status == 0, applied.output
    assert storage.tree() == [
        *("alice", "alice/.bashrc", "alice/work"),
        *("bob", "bob/.bashrc", "bob/work"),
    ]
    for user in storage.users:
        status = os.stat(user["directory"])
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (
            user["uid"],
            user["gid"],
            0o750,
        )
        assert os.stat(f"{user['directory']}/.bashrc").st_uid == user["uid"]

    again = book.run()
    assert again.status == 0
    assert not again.result["changed"]
    assert "changed=0" in again.output


@pytest.mark.root
def test_one_bad_user_costs_only_itself(storage: Storage, playbook: Book) -> None:
    (storage.root / "mallory").symlink_to("/etc")
    storage.add("mallory")
    storage.users.append("no record")
    storage.users.append(
        {**storage.users[0], "name": "{{ lookup('pipe', 'touch /tmp/pwned') }}", "key": "evil"}
    )
    users = [
        {key: {"__ansible_unsafe": value} if isinstance(value, str) else value for key, value in user.items()}
        if isinstance(user, dict)
        else user
        for user in storage.users
    ]

    run = playbook("user_dir", bootstrap_users=users, bootstrap_root=str(storage.root)).run()

    assert run.status == 2
    assert [user["failed"] for user in run.result["users"]] == [False, False, True, True, True]
    assert "symbolic link" in run.user("mallory")["msg"]
    assert "3 of 5 users failed" in run.result["msg"]
    assert os.stat("/etc").st_uid == 0
    assert storage.tree() == ["alice", "bob", "mallory"]
    assert not os.path.exists("/tmp/pwned")


def test_killed_half_way_nothing_shows_and_the_next_run_completes(
    storage: Storage, playbook: Book, tmp_path: Path
) -> None:
    skeleton = tmp_path / "skel"
    skeleton.mkdir()
    for number in range(4000):
        (skeleton / f"{number}.txt").write_text("x")
    book = playbook("user_dir", **_variables(storage, user_dir_skeleton=str(skeleton)))
    stages = storage.root / ".ansible_bootstrap" / "stage"

    book.kill_module_when(lambda: any(stages.glob("*/*.txt")), storage.root)
    assert storage.tree() == []
    assert any(stages.iterdir())

    run = book.run()
    assert run.status == 0, run.output
    assert len(list((storage.root / "alice").iterdir())) == 4000
    assert len(list((storage.root / "bob").iterdir())) == 4000
    assert list(stages.iterdir()) == []
