"""The role script: check, converge, converge again, be killed half-way; and the scripts of examples/shell-script."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.roles.conftest import CHECKOUT, Playbook, Storage

Book = Callable[..., Playbook]
EXAMPLE = CHECKOUT / "examples/shell-script"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for programs that every user may enter."""
    made = Path(tempfile.mkdtemp(prefix="ansible_bootstrap_", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def _put(place: Path, text: str) -> str:
    path = place / "script"
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)
    return str(path)


def _variables(storage: Storage, path: str, **more: Any) -> dict[str, Any]:
    return {
        "bootstrap_users": storage.users,
        "bootstrap_root": str(storage.root),
        "script_path": path,
        **more,
    }


def _homes(storage: Storage) -> None:
    for user in storage.users:
        os.mkdir(user["directory"], 0o755)
        os.chown(user["directory"], user["uid"], user["gid"])


def test_a_batch_has_it_run_once(storage: Storage, playbook: Book, place: Path) -> None:
    _homes(storage)
    book = playbook("script", **_variables(storage, _put(place, 'echo "$1 $(id -u)" >>ran\n')))

    predicted = book.run("--check", "--diff")
    assert predicted.status == 0, predicted.output
    assert predicted.user("alice")["changed"]
    assert "is done" in predicted.output
    assert storage.tree() == ["alice", "bob"]

    applied = book.run()
    assert applied.status == 0, applied.output
    for user in storage.users:
        assert Path(user["directory"], "ran").read_text() == f"{user['name']} {user['uid']}\n"

    again = book.run()
    assert again.status == 0
    assert "changed=0" in again.output
    assert (storage.root / "alice/ran").read_text().count("\n") == 1


def test_always_runs_each_time_and_a_failure_costs_one_user(
    storage: Storage, playbook: Book, place: Path
) -> None:
    _homes(storage)
    path = _put(place, "echo ran >>ran; [ $1 = alice ] || { echo not you; exit 3; }\n")
    book = playbook("script", **_variables(storage, path, script_when="always"))
    for _ in range(2):
        run = book.run()
        assert run.status == 2
        assert not run.result["changed"]
        assert not run.user("alice")["failed"]
        assert run.user("bob")["msg"] == f"script {path} exited with status 3: not you"
    assert (storage.root / "alice/ran").read_text() == "ran\nran\n"


def test_a_missing_path_and_a_wrong_word_are_refused(storage: Storage, playbook: Book) -> None:
    missing = _variables(storage, "")
    del missing["script_path"]
    assert "script_path" in playbook("script", **missing).run().output
    refused = playbook("script", **_variables(storage, "/bin/true", script_as="nobody")).run()
    assert refused.status == 2
    assert "must be one of" in refused.output


def test_killed_half_way_the_next_run_completes(storage: Storage, playbook: Book, place: Path) -> None:
    _homes(storage)
    path = _put(place, "[ -e half ] && exec touch whole; touch half; sleep 60\n")
    book = playbook("script", **_variables(storage, path))
    book.kill_module_when(
        lambda: all((storage.root / name / "half").exists() for name in ("alice", "bob")), storage.root
    )
    run = book.run()
    assert run.status == 0, run.output
    assert storage.tree() == [
        f"{name}{file}" for name in ("alice", "bob") for file in ("", "/half", "/whole")
    ]


# The example's scripts, with a web of our own: both find wget and unzip by PATH, and its first directory is covered.


@pytest.fixture
def volumes(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What playbooks find at /volumes; they run in a mount namespace of their own."""
    fakes = place / "fakes"
    fakes.mkdir()
    for name, text in {
        "wget": """
            import sys, zipfile
            assert sys.argv[-1] == "https://github.com/jakevdp/PythonDataScienceHandbook/archive/master.zip"
            (name,) = [a.split("=")[1] for a in sys.argv if a.startswith("--output-document=")] or ["master.zip"]
            with zipfile.ZipFile(name, "w") as file:
                file.writestr("PythonDataScienceHandbook-master/README.md", "welcome")
        """,
        "unzip": """
            import sys, zipfile
            where = sys.argv[sys.argv.index("-d") + 1] if "-d" in sys.argv else "."
            zipfile.ZipFile(next(a for a in sys.argv if a.endswith(".zip"))).extractall(where)
        """,
    }.items():
        lines = "\n".join(line[12:] for line in text.splitlines())
        (fakes / name).write_text(f"#!/usr/bin/env python3{lines}\n")
        (fakes / name).chmod(0o755)
    made = tmp_path / "volumes"
    (made / "jupyterhub").mkdir(parents=True)
    for directory in (tmp_path, made, made / "jupyterhub"):
        directory.chmod(0o755)
    ours = not os.path.isdir("/volumes")
    if ours:
        os.mkdir("/volumes")
    mounts = f'mount --bind {made} /volumes; mount --bind {fakes} /usr/local/sbin; exec "$@"'
    start = subprocess.Popen

    def in_a_namespace(command: list[str], **options: Any) -> Any:
        return start(["unshare", "--mount", "sh", "-ec", mounts, "sh", *command], **options)

    monkeypatch.setattr("tests.roles.conftest.subprocess.Popen", in_a_namespace)
    yield made / "jupyterhub"
    if ours:
        os.rmdir("/volumes")


@pytest.mark.root
def test_the_pages_script_runs_unchanged(playbook: Book, place: Path, volumes: Path) -> None:
    path = shutil.copy(EXAMPLE / "page-bootstrap.sh", place)
    alice = {"name": "alice", "directory": "/volumes/jupyterhub/alice", "uid": 20001, "gid": 20001}
    book = playbook(
        "script",
        bootstrap_users=[alice],
        bootstrap_root="/volumes/jupyterhub",
        script_path=path,
        script_as="root",
    )
    assert book.run("--check").user("alice")["changed"]
    assert list(volumes.iterdir()) == []

    run = book.run()
    assert run.status == 0, run.output
    tutorials = volumes / "alice/tutorials"
    assert (tutorials / "PythonDataScienceHandbook-master/README.md").read_text() == "welcome"
    assert not (tutorials / "master.zip").exists()
    assert "belongs to root" in run.user("alice")["notes"][0]

    again = book.run()
    assert "changed=0" in again.output


@pytest.mark.root
def test_our_script_does_it_better(playbook: Book, place: Path, volumes: Path) -> None:
    path = shutil.copy(EXAMPLE / "bootstrap.sh", place)
    home = volumes / "alice"
    (home / ".tutorials.new/left").mkdir(parents=True)  # as if it had been killed
    for each in (home, home / ".tutorials.new", home / ".tutorials.new/left"):
        os.chown(each, 20001, 20001)
    alice = {"name": "alice", "directory": "/volumes/jupyterhub/alice", "uid": 20001, "gid": 20001}
    variables = {
        "bootstrap_users": [alice],
        "bootstrap_root": "/volumes/jupyterhub",
        "script_path": path,
    }
    wget = place / "fakes/wget"
    works = wget.read_text()
    wget.write_text("#!/bin/sh\necho no route to host; exit 4\n")
    failed = playbook("script", **variables).run().user("alice")
    assert "exited with status 4" in failed["msg"]
    assert "no route to host" in failed["msg"]
    assert not (home / "tutorials").exists()

    wget.write_text(works)
    run = playbook("script", **variables).run()
    assert run.status == 0, run.output
    assert os.listdir(home) == ["tutorials"]
    readme = home / "tutorials/PythonDataScienceHandbook-master/README.md"
    assert readme.read_text() == "welcome"
    assert readme.stat().st_uid == 20001
    assert "changed=0" in playbook("script", **variables).run().output
