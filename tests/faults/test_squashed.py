"""Storage that does not obey root: each kind is named, with a way out that changes something, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.storage import _homes, _probe, _tutorials
from tests.faults.conftest import mounted
from tests.unit.storage.conftest import MakeUser

pytestmark = pytest.mark.root

UID = 20001
SQUASHED_ROOT = ("--chown-deny", "--create-for-user=65534", "--create-for-group=65534")
SQUASHED_ALL = (
    "--chown-deny",
    *(f"--{what}={UID}" for what in ("force-user", "create-for-user")),
    "--force-group=20001",
)
NO_OWNERS = ("--chown-ignore", "--chmod-ignore", "--force-user=0", "--force-group=0", "--perms=0777")
OWNED_BY_THE_MOUNT = ("--chown-deny", "--chmod-ignore", "--force-user=0", "--force-group=0", "--perms=0755")


@pytest.fixture
def bindfs(root: Path, needs: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """Has the storage root behave like a file server with these options."""
    needs(root=True, programs=("bindfs",))
    with contextlib.ExitStack() as stack:

        def mount(*options: str) -> None:
            subprocess.run(["bindfs", *options, str(root), str(root)], check=True)
            stack.callback(subprocess.run, ["umount", str(root)], check=True)

        yield mount


def user_dir(user: dict[str, Any], root: Path, *, check: bool = False) -> dict[str, Any]:
    return _homes.ensure([user], str(root), 1000, _homes.Options(), check=check).users[0]


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        (SQUASHED_ROOT, "root squashed", "no_root_squash"),
        (SQUASHED_ALL, "all squashed", f"set uid to {UID}, and ansible_become_user"),
        (NO_OWNERS, "no owners", "mount it with the options uid=N,gid=N"),
        (OWNED_BY_THE_MOUNT, "no owners", "mount it with the options uid=N,gid=N"),
        ((), "plain", ""),
    ],
)
def test_the_probe_says_what_it_is_and_what_to_do(
    options: tuple[str, ...], kind: str, says: str, root: Path, bindfs: Callable[..., None]
) -> None:
    bindfs(*options)
    answer = _probe.probe(str(root), UID, UID)
    assert answer["about"]["kind"] == kind, answer
    assert answer["about"]["filesystem"] == "fuse"
    text = " ".join(finding["mend"] for finding in answer["findings"])
    assert says in text
    assert "chmod go-w" not in text
    assert os.listdir(root) == []


def test_a_run_says_that_root_is_squashed_and_leaves_nothing(
    root: Path, bindfs: Callable[..., None], make_user: MakeUser
) -> None:
    bindfs(*SQUASHED_ROOT)
    for _ in range(2):
        alice = user_dir(make_user("alice"), root)
        assert alice["msg"].startswith(f"root is squashed on {root} (fuse)")
        assert "no_root_squash" in alice["msg"]
        assert os.listdir(root) == []


def test_state_of_nobodys_is_a_squashed_root_for_check_mode_too(
    root: Path, bindfs: Callable[..., None], make_user: MakeUser
) -> None:
    """An earlier version has left it."""
    bindfs(*SQUASHED_ROOT)
    (root / ".ansible_bootstrap").mkdir(mode=0o700)
    for check in (True, False):
        assert "root is squashed" in user_dir(make_user("alice"), root, check=check)["msg"]


def test_where_all_are_squashed_no_chown_is_advised_without_the_way_that_helps(
    root: Path, bindfs: Callable[..., None], make_user: MakeUser, as_user: Callable[..., Any]
) -> None:
    """That way is to work as the uid, which the file system gives to everybody anyway."""
    bindfs(*SQUASHED_ALL)
    alice = make_user("alice", uid=UID, gid=UID)
    refused = user_dir(alice, root)
    assert f"if that changes nothing: all accounts are squashed on {root}" in refused["msg"]
    done = as_user(UID, lambda: user_dir(alice, root))
    assert done["changed"], done
    assert (root / "alice").stat().st_uid == UID
    assert not as_user(UID, lambda: user_dir(alice, root))["changed"]


def test_a_read_only_root_is_told_by_check_mode_too(root: Path, make_user: MakeUser) -> None:
    with mounted(root, "-t", "tmpfs", "-o", "ro,mode=755", "tmpfs"):
        for check in (True, False):
            alice = user_dir(make_user("alice"), root, check=check)
            assert alice["msg"].startswith(f"the file system is read-only: {root} (tmpfs)")
        assert _probe.probe(str(root), None, None)["about"]["kind"] == "read-only"


def test_a_read_only_root_serves_homes_that_exist_where_our_records_are_mounted(
    root: Path, make_user: MakeUser
) -> None:
    alice, bob = make_user("alice", home=True), make_user("bob")
    (root / ".ansible_bootstrap").mkdir(mode=0o700)
    (root / "course").mkdir()
    (root / "course/a.csv").write_text("1,2\n")
    with contextlib.ExitStack() as stack:
        stack.enter_context(mounted(root, "--bind", str(root)))
        subprocess.run(["mount", "-o", "remount,bind,ro", str(root)], check=True)
        stack.enter_context(mounted(root / ".ansible_bootstrap", "-t", "tmpfs", "-o", "mode=700", "tmpfs"))
        stack.enter_context(
            mounted(root / "alice", "-t", "tmpfs", "-o", f"mode=755,uid={UID},gid={UID}", "tmpfs")
        )
        answer = _probe.probe(str(root), None, None)
        assert answer["about"]["kind"] == "records elsewhere", answer
        assert answer["findings"][0]["level"] == "warning"
        source = {"name": "course", "path": str(root / "course")}
        for check in (True, False):
            assert not user_dir(alice, root, check=check)["failed"]
            assert "the file system is read-only" in user_dir(bob, root, check=check)["msg"]
            options = _tutorials.Options([source])
            (tutored,) = _tutorials.place([alice], str(root), 1000, options, check=check).users
            assert tutored["changed"] and not tutored["failed"], tutored
        assert (root / "alice/course/a.csv").exists()


@pytest.fixture
def automount(root: Path) -> Iterator[None]:
    """The storage root is an autofs map, and its daemon has ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # the map's daemon is another process group: what is of its own it lets through
        os.close(reader)
        os.setpgid(0, 0)
        signal.pause()
    try:
        until = time.monotonic() + 10
        while os.getpgid(child) != child:
            assert time.monotonic() < until
            time.sleep(0.01)
        options = f"fd={writer},pgrp={child},minproto=5,maxproto=5,indirect"
        subprocess.run(
            ["mount", "-i", "-t", "autofs", "-o", options, "map", str(root)], check=True, pass_fds=(writer,)
        )
        os.close(reader)
        yield
        subprocess.run(["umount", str(root)], check=True)
    finally:
        os.close(writer)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_an_autofs_map_is_told_by_check_mode_too(automount: None, root: Path, make_user: MakeUser) -> None:
    for check in (True, False):
        assert user_dir(make_user("alice"), root, check=check)["msg"].startswith(f"{root} is an autofs map")
    assert _probe.probe(str(root), None, None)["about"]["kind"] == "autofs map"


@contextlib.contextmanager
def own_mount(place: Path, uid: int) -> Iterator[None]:
    """A FUSE mount of a user's own, which admits nobody else; its server is never asked."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={uid},group_id={uid}"
    subprocess.run(
        ["mount", "-i", "-t", "fuse", "-o", options, "own", str(place)], check=True, pass_fds=(device,)
    )
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)
        os.close(device)


def test_a_mount_of_the_users_own_that_root_may_not_enter_is_left_alone(
    root: Path, make_user: MakeUser, needs: Callable[..., None]
) -> None:
    alice, bob, carol = (make_user(name, home=True) for name in ("alice", "bob", "carol"))
    course = root.parent / "course"
    course.mkdir()
    (course / "a.csv").write_text("1,2\n")
    source = {"name": "course", "path": str(course)}
    with own_mount(root / "alice", alice["uid"]), own_mount(root / "bob", 20099):
        for check in (True, False):
            everybody = [alice, bob, carol]
            for report in (
                _homes.ensure(everybody, str(root), 1000, _homes.Options(), check=check),
                _tutorials.place(everybody, str(root), 1000, _tutorials.Options([source]), check=check),
            ):
                own, strangers, plain = report.users
                assert not own["failed"] and not own["changed"], own
                assert own["notes"] == [f"{root}/alice is the user's, and root may not enter it: left alone"]
                assert strangers["failed"] and "permission denied" in strangers["msg"]
                assert not plain["failed"], plain
    assert (root / "carol/course/a.csv").exists()
    assert os.listdir(root / "alice") == os.listdir(root / "bob") == []


def test_a_probe_that_was_killed_is_cleared_up_by_the_next(root: Path) -> None:
    """At each of its system calls that change something."""
    for step in ("rmdir", "mkdir", "rename_directory", "rename", "fchown"):
        _killed_at(step, root)
        assert _probe.probe(str(root), UID, UID)["about"]["kind"] == "plain"
        assert os.listdir(root) == [], step


def _killed_at(step: str, root: Path) -> None:
    """Have a probe die after the first such step, then after the second, until one gets through."""
    for count in range(1, 20):
        child = os.fork()
        if child == 0:
            try:
                _make_fatal(step, count)
                os._exit(0 if _probe.probe(str(root), UID, UID)["about"]["kind"] == "plain" else 3)
            finally:
                os._exit(4)
        if os.waitpid(child, 0)[1] == 0:
            assert count > 1, f"{step} is no step of a probe"
            return
    pytest.fail(f"{step} never ended")


def _make_fatal(step: str, count: int) -> None:
    owner = _probe if hasattr(_probe, step) else os
    real, left = getattr(owner, step), [count]

    def fatal(*args: Any, **named: Any) -> Any:
        done = real(*args, **named)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    setattr(owner, step, fatal)


def test_a_probe_beside_runs_touches_nothing_of_theirs(root: Path, make_user: MakeUser) -> None:
    alice = make_user("alice")
    assert user_dir(alice, root)["changed"]
    before = sorted(str(path) for path in root.rglob("*"))
    assert _probe.probe(str(root), None, None)["findings"] == []
    assert sorted(str(path) for path in root.rglob("*")) == before
    assert not user_dir(alice, root)["changed"]


def test_a_uid_that_the_containers_user_namespace_does_not_have(
    root: Path, needs: Callable[..., None]
) -> None:
    needs(root=True, programs=("unshare",))
    code = f"from ansible_bootstrap.storage import _probe; print(_probe.probe({str(root)!r}, {UID}, {UID}))"
    child = subprocess.Popen(
        ["unshare", "--user", "sh", "-c", 'read go; exec "$@"', "sh", sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 10
    while os.readlink(f"/proc/{child.pid}/ns/user") == os.readlink("/proc/self/ns/user"):
        assert time.monotonic() < until
        time.sleep(0.01)
    for ids in ("uid_map", "gid_map"):
        Path(f"/proc/{child.pid}/{ids}").write_text("0 0 1000\n")
    said, _ = child.communicate("go\n", timeout=30)
    assert f"uid {UID} or gid {UID} does not exist in this host's user namespace" in said
    assert os.listdir(root) == []
