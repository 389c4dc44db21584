"""What a hostile owner, or an admin with unusual habits, can have put into a storage root or a home beforehand."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.storage import _homes, _tutorials
from tests.faults import killing
from tests.faults.conftest import mounted, small
from tests.unit.storage.conftest import MakeUser

pytestmark = pytest.mark.root


@pytest.fixture
def course(root: Path) -> Path:
    tree = root.parent / "course"
    (tree / "data").mkdir(parents=True)
    (tree / ".bashrc").write_text("ours\n")
    (tree / "data/a.csv").write_text("1,2\n")
    return tree


@pytest.fixture
def serve(root: Path, course: Path) -> Callable[..., list[dict[str, Any]]]:
    """Apply a role to users; `skeleton` and `dest` are of the tree `course`."""

    def apply(
        role: str, *users: dict[str, Any], dest: str = "course", **options: Any
    ) -> list[dict[str, Any]]:
        if role == "user_dir":
            wanted = _homes.Options(skeleton=str(course), **options)
            return _homes.ensure(list(users), str(root), 1000, wanted, check=False).users
        source = {"name": "course", "path": str(course), "dest": dest}
        return _tutorials.place(list(users), str(root), 1000, _tutorials.Options([source]), check=False).users

    return apply


Serve = Callable[..., list[dict[str, Any]]]


@pytest.mark.parametrize("mode", [0o1777, 0o1775, 0o777, 0o775, 0o757])
def test_a_root_that_others_can_write_is_refused_sticky_or_not(
    mode: int, root: Path, make_user: MakeUser, serve: Serve
) -> None:
    root.chmod(mode)
    for role in ("user_dir", "tutorials"):
        (alice,) = serve(role, make_user("alice"))
        who = "everybody" if mode & 0o002 else "group 0"
        assert f"storage root {root} is writable by {who}: `chmod go-w {root}`" in alice["msg"]
    assert os.listdir(root) == []


def test_a_root_whose_group_is_inherited(root: Path, make_user: MakeUser, serve: Serve) -> None:
    os.chown(root, 0, 20099)
    root.chmod(0o2755)
    alice = make_user("alice", directory=str(root / "students/alice"))
    assert serve("user_dir", alice, mode="0700")[0]["changed"]
    home = root / "students/alice"
    for path in (home, *home.rglob("*")):
        assert path.stat().st_gid == alice["gid"]
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "data").stat().st_mode) == 0o755
    assert not serve("user_dir", alice, mode="0700")[0]["changed"]


@pytest.mark.parametrize("where", ["root", "home"])
def test_default_acls_give_nobody_more_than_the_modes_say(
    where: str, root: Path, make_user: MakeUser, serve: Serve, course: Path, needs: Callable[..., None]
) -> None:
    needs(root=True, programs=("setfacl",))
    alice = make_user("alice", home=where == "home")
    (course / "private").write_text("secret")
    (course / "private").chmod(0o600)
    os.chown(course / "private", alice["uid"], alice["gid"])
    place = root if where == "root" else root / "alice"
    subprocess.run(["setfacl", "-d", "-m", "u:20009:rwx,g:20009:rwx,o::rwx", str(place)], check=True)

    role, made = ("user_dir", root / "alice") if where == "root" else ("tutorials", root / "alice/course")
    (result,) = serve(role, alice)
    assert result["changed"], result

    assert not serve(role, alice)[0]["changed"]
    for path in (made, *made.rglob("*"), root / ".ansible_bootstrap"):
        assert not path.stat().st_mode & 0o022, f"{path} may be written by others"
    assert stat.S_IMODE((made / "private").stat().st_mode) == 0o600
    assert not root.stat().st_mode & 0o022
    for name in ("stage", "locks", "records", "cache"):
        assert stat.S_IMODE((root / ".ansible_bootstrap" / name).stat().st_mode) == 0o700


def test_a_mount_inside_the_home(root: Path, make_user: MakeUser, serve: Serve) -> None:
    """A tutorial cannot be moved onto it in one step: this is said, and nothing of it is left behind."""
    alice, bob = make_user("alice", home=True), make_user("bob", home=True)
    (root / "alice/scratch").mkdir()
    os.chown(root / "alice/scratch", alice["uid"], alice["gid"])
    with mounted(
        root / "alice/scratch", "-t", "tmpfs", "-o", f"size=1m,uid={alice['uid']},mode=755", "tmpfs"
    ):
        for _ in range(2):
            bad, good = serve("tutorials", alice, bob, dest="scratch/course")
            assert "it is on another file system" in bad["msg"]
            assert not good["failed"]
            assert os.listdir(root / "alice/scratch") == []
            assert os.listdir(root / "alice") == ["scratch"]
        assert not serve("user_dir", alice)[0]["failed"]
    assert serve("tutorials", alice, dest="scratch/course")[0]["changed"]
    assert os.listdir(root / "alice/scratch") == ["course"]


@pytest.mark.parametrize("kind", ["secret", "hard link", "dangling", "FIFO", "socket"])
def test_what_a_user_planted_is_neither_followed_nor_waited_for(
    kind: str, root: Path, make_user: MakeUser, serve: Serve, course: Path
) -> None:
    """In the place of a tutorial, of a directory on the way to it, and of what a new home would have got."""
    alice = make_user("alice", home=True)
    with small(root, "size=4m"):
        secret = root / "roots_file"
        secret.write_text("root's\n")
        secret.chmod(0o600)
        home = root / "alice"
        home.mkdir()
        os.chown(home, alice["uid"], alice["gid"])
        for name in (".bashrc", "course"):
            if kind in ("secret", "dangling"):
                (home / name).symlink_to(secret if kind == "secret" else root / "none")
            elif kind == "hard link":
                os.link(secret, home / name)
            elif kind == "FIFO":
                os.mkfifo(home / name)
            else:
                subprocess.run(
                    ["python3", "-c", f"import socket; socket.socket(1).bind({str(home / name)!r})"],
                    check=True,
                )
        before = killing.tree(secret, times=True), _planted(home)
        for dest in ("course", "course/inner", ".bashrc"):
            for role in ("user_dir", "tutorials"):
                (result,) = (
                    serve(role, alice, dest=dest, mode="0700", enforce_mode=True)
                    if role == "user_dir"
                    else serve(role, alice, dest=dest)
                )
                assert result["failed"] == (role == "tutorials" and dest == "course/inner"), result
                assert (killing.tree(secret, times=True), _planted(home)) == before
        assert not (root / "none").exists()


def _planted(home: Path) -> list[tuple[str, int, int, int]]:
    found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in os.scandir(home)]
    return sorted((name, status.st_ino, status.st_mode, status.st_uid) for name, status in found)


def test_a_repository_of_the_users_is_not_run(root: Path, make_user: MakeUser, serve: Serve) -> None:
    """Git runs programs that a repository names; nothing of ours starts git, in a home least of all."""
    alice = make_user("alice", home=True)
    repository = root / "alice/course"
    (repository / ".git/hooks").mkdir(parents=True)
    (repository / ".git/config").write_text("[core]\n\tfsmonitor = touch /tmp/ansible_bootstrap_pwned\n")
    (repository / ".git/index.lock").write_text("")
    (repository / ".git/hooks/post-checkout").write_text("#!/bin/sh\ntouch /tmp/ansible_bootstrap_pwned\n")
    (repository / ".git/hooks/post-checkout").chmod(0o755)
    for path in (repository, *repository.rglob("*")):
        os.chown(path, alice["uid"], alice["gid"])
    before = killing.tree(root / "alice", times=True)
    (result,) = serve("tutorials", alice)
    assert "is the user's own: left as it is" in result["notes"][0]
    assert killing.tree(root / "alice", times=True) == before
    assert not os.path.exists("/tmp/ansible_bootstrap_pwned")


@pytest.mark.parametrize("spelled", [".Ansible_Bootstrap", ".ANSIBLE_BOOTSTRAP", ".anſible_bootſtrap"])
def test_our_own_state_is_nobodys_home_however_it_is_spelled(
    spelled: str, root: Path, make_user: MakeUser, serve: Serve
) -> None:
    """On a file system that folds case these are the state directory, and an empty one below it is root's."""
    for path in (spelled, f"{spelled}/stage"):
        (result,) = serve("user_dir", make_user("alice", directory=str(root / path)))
        assert ".ansible_bootstrap is not a user's directory" in result["msg"]
    assert not (root / spelled).exists()
