"""Storage that does not obey root: each kind is named, with a way out that changes something, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.storage import _cleanup, _homes, _probe, _scripts, _state, _system_homes, _tutorials
from ansible_bootstrap.storage._mkhomedir_helper import Options
from ansible_bootstrap.storage._storage import Roots
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


@pytest.fixture
def records(root: Path) -> Path:
    made = root.parent / "records"
    made.mkdir(mode=0o700)
    return made


def user_dir(user: dict[str, Any], root: Path | Roots, *, check: bool = False) -> dict[str, Any]:
    roots = root if isinstance(root, Roots) else Roots(str(root))
    return _homes.ensure([user], roots, 1000, _homes.Options(), check=check).users[0]


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        (SQUASHED_ROOT, "root squashed", "no_root_squash"),
        (SQUASHED_ALL, "all squashed", f"set work_as and uid to {UID}, and gid to {UID}"),
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


def test_homes_on_a_squashed_root_are_served_with_the_records_elsewhere(
    root: Path, records: Path, bindfs: Callable[..., None], make_user: MakeUser
) -> None:
    alice, bob = make_user("alice", home=True), make_user("bob")
    (root / "alice/old").touch()
    os.chown(root / "alice/old", alice["uid"], alice["gid"])
    bindfs(*SQUASHED_ROOT)
    roots = Roots(str(root), (), str(records))
    for check in (True, False):
        results = _homes.ensure([alice, bob], roots, 1000, _homes.Options(), check=check).users
        assert results[0]["msg"] == "" and results[1]["msg"].startswith("no new home can be made")
        (cleaned,) = _cleanup.clean([alice], roots, 1000, ["old"], 60, check=check).users
        assert cleaned["changed"] and not cleaned["failed"], cleaned
    assert os.listdir(root) == ["alice"] and os.listdir(root / "alice") == []
    assert len(list(records.glob("*/records/*.json"))) == 1


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


def test_a_root_that_squashes_all_is_served_as_its_own_uid_from_the_first_name_on(
    root: Path, bindfs: Callable[..., None], make_user: MakeUser
) -> None:
    skeleton, course, script = root.parent / "skel", root.parent / "course", root.parent / "script"
    for directory in (skeleton, course):
        directory.mkdir()
        (directory / "a.csv").touch()
    script.write_text("#!/bin/sh\nid -u >ran; id -G >>ran\n")
    script.chmod(0o755)
    os.chown(root, UID, UID)
    root.chmod(0o700)
    bindfs(*SQUASHED_ALL)
    roots = Roots(str(root), (), "", UID)
    users = [
        make_user("alice", uid=UID, gid=UID, also=[str(root / "alice/work"), str(root / "data/alice")]),
        make_user("bob", uid=UID, gid=UID),
    ]
    home, tutorial = _homes.Options("0750", str(skeleton)), [{"name": "course", "path": str(course)}]
    roles: list[Callable[[bool], Any]] = [
        lambda check: _homes.ensure(users, roots, 1000, home, check=check),
        lambda check: _tutorials.place(users, roots, 1000, _tutorials.Options(tutorial), check=check),
        lambda check: _scripts.run(users, roots, 1000, _scripts.Options(str(script)), check=check),
        lambda check: _cleanup.clean(users, roots, 1000, ["course/a.csv"], 60, check=check),
    ]
    for role in roles:
        for check, changed in ((True, True), (False, True), (True, False), (False, False)):
            results = role(check).users
            assert [(user["changed"], user["msg"], user["notes"]) for user in results] == [
                (changed, "", [])
            ] * 2
    for name in ("alice", "bob"):
        assert (root / name).stat().st_mode & 0o7777 == 0o750
        assert (root / name / "ran").read_text() == f"{UID}\n{UID}\n"
        assert sorted(os.listdir(root / name)) == sorted(
            ["a.csv", "course", "ran"] + ["work"] * (name == "alice")
        )
    assert (root / "data/alice").is_dir()
    assert _probe.probe(str(root), UID, UID, work_as=UID)["findings"] == []


def test_the_way_out_of_a_mount_that_gives_all_files_one_owner_serves_its_uid(
    root: Path, bindfs: Callable[..., None], make_user: MakeUser
) -> None:
    """As ``uid=N,gid=N,dir_mode=0700,file_mode=0600`` of cifs, or ``umask=077,quiet`` of vfat."""
    owner = (f"--force-user={UID}", f"--force-group={UID}", "--perms=u=rwX,go=")
    bindfs("--chown-ignore", "--chmod-ignore", *owner)
    roots = Roots(str(root), work_as=UID)
    assert _probe.probe(str(root), UID, UID, work_as=UID)["findings"] == []
    alice = make_user("alice", uid=UID)
    for changed in (True, False):
        report = user_dir(alice, roots)
        assert (report["failed"], report["changed"]) == (False, changed), report


def test_another_uid_or_group_than_the_squashed_one_is_told_what_to_set(
    root: Path, bindfs: Callable[..., None], make_user: MakeUser
) -> None:
    os.chown(root, UID, UID)
    bindfs(*SQUASHED_ALL)
    roots = Roots(str(root), (), "", UID)
    stranger = user_dir(make_user("alice", uid=UID + 1, gid=UID), roots)
    assert (
        stranger["msg"]
        == f"work_as is {UID}, so all is that uid's, and not uid {UID + 1}'s: set uid to it, too"
    )
    records = root.parent / "records"
    records.mkdir(mode=0o700)
    os.chown(records, UID, UID)
    elsewhere = user_dir(make_user("dave", uid=UID, gid=UID), Roots(str(root), (), str(records), UID))
    assert elsewhere["msg"].startswith("no new home can be made")
    group = user_dir(make_user("bob", uid=UID, gid=UID + 1), roots)
    assert group["msg"].endswith(f"and that cannot be changed: set gid to {UID}")
    system = _homes.ensure(
        [make_user("carol", uid=33, gid=33)],
        Roots(str(root), (), "", 33),
        1000,
        _homes.Options(),
        check=False,
    )
    assert "below uid_min" in system.users[0]["msg"]
    assert sorted(os.listdir(root)) == [".ansible_bootstrap"]
    assert os.listdir(root / ".ansible_bootstrap/stage") == []


def test_what_needs_root_is_refused_where_all_is_done_as_another_uid(root: Path, make_user: MakeUser) -> None:
    os.chown(root, UID, UID)
    alice, roots = make_user("alice", uid=UID, gid=UID, home=True), Roots(str(root), (), "", UID)
    script = root.parent / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    as_root = _scripts.Options(str(script), as_root=True)
    (said,) = _scripts.run([alice], roots, 1000, as_root, check=False).users
    assert "script_as root needs root" in said["msg"]
    (said,) = _system_homes.ensure([alice], roots, 1000, Options(), check=False).users
    assert "mkhomedir_helper needs root" in said["msg"]


def test_a_read_only_root_is_told_by_check_mode_too(root: Path, make_user: MakeUser) -> None:
    with mounted(root, "-t", "tmpfs", "-o", "ro,mode=755", "tmpfs"):
        for check in (True, False):
            alice = user_dir(make_user("alice"), root, check=check)
            assert alice["msg"].startswith(f"the file system is read-only: {root} (tmpfs)")
        assert _probe.probe(str(root), None, None)["about"]["kind"] == "read-only"


@pytest.mark.parametrize("way", ["records_dir", "a mount in the root"])
def test_a_read_only_root_serves_homes_that_exist_where_our_records_are_elsewhere(
    way: str, root: Path, records: Path, make_user: MakeUser
) -> None:
    alice, bob = make_user("alice", home=True), make_user("bob")
    (root / "course").mkdir()
    (root / "course/a.csv").write_text("1,2\n")
    with contextlib.ExitStack() as stack:
        there = ""
        if way == "records_dir":
            there = str(records)
        else:
            (root / ".ansible_bootstrap").mkdir(mode=0o700)
        stack.enter_context(mounted(root, "--bind", str(root)))
        subprocess.run(["mount", "-o", "remount,bind,ro", str(root)], check=True)
        if not there:
            options = ("-t", "tmpfs", "-o", "mode=700", "tmpfs")
            stack.enter_context(mounted(root / ".ansible_bootstrap", *options))
        stack.enter_context(
            mounted(root / "alice", "-t", "tmpfs", "-o", f"mode=755,uid={UID},gid={UID}", "tmpfs")
        )
        answer = _probe.probe(str(root), None, None, records_dir=there)
        assert answer["about"]["kind"] == "records elsewhere", answer
        assert answer["findings"][0]["level"] == "warning"
        roots = Roots(str(root), (), there)
        tutorials = _tutorials.Options([{"name": "course", "path": str(root / "course")}])
        for check, changed in ((True, True), (False, True), (False, False)):
            assert not user_dir(alice, roots, check=check)["failed"]
            assert "the file system is read-only" in user_dir(bob, roots, check=check)["msg"]
            (tutored,) = _tutorials.place([alice], roots, 1000, tutorials, check=check).users
            assert (tutored["changed"], tutored["msg"]) == (changed, "")
        assert (root / "alice/course/a.csv").exists()
        (cleaned,) = _cleanup.clean([alice], roots, 1000, ["course/*.csv"], 60, check=False).users
        assert cleaned["changed"] and not (root / "alice/course/a.csv").exists()
        (tutored,) = _tutorials.place([alice], roots, 1000, tutorials, check=False).users
        assert not tutored["changed"], "what was recorded counts"
    assert sorted(os.listdir(root)) == sorted(
        ["alice", "course"] + [".ansible_bootstrap"] * (way != "records_dir")
    )


def test_where_records_are_on_another_mount_no_home_is_made_and_none_is_left_half(
    root: Path, records: Path, make_user: MakeUser
) -> None:
    roots = Roots(str(root), (), str(records))
    alice, bob, carol = make_user("alice"), make_user("bob", home=True), make_user("carol")
    (root / "carol").mkdir()  # as Docker leaves it
    with mounted(records, "-t", "tmpfs", "-o", "mode=700", "tmpfs"):
        before = sorted(os.listdir(root))
        for check in (True, False):
            results = _homes.ensure([alice, bob, carol], roots, 1000, _homes.Options(), check=check).users
            assert [user["failed"] for user in results] == [True, False, True]
            for user in (results[0], results[2]):
                assert user["msg"].startswith(f"no new home can be made: that is done in {records}/")
                assert "set records_dir to a directory on the mount of the storage root" in user["msg"]
            assert sorted(os.listdir(root)) == before
            assert (root / "carol").stat().st_uid == 0
        assert [path.name for path in records.glob("*/stage/*")] == []
        answer = _probe.probe(str(root), None, None, records_dir=str(records))
        assert answer["about"]["kind"] == "records elsewhere"
    assert user_dir(alice, roots)["changed"], "on the mount of the root they are made"
    answer = _probe.probe(str(root), None, None, records_dir=str(records))
    assert (answer["about"]["kind"], answer["findings"]) == ("plain", [])


def test_what_a_user_gets_is_synced_before_records_on_another_file_system_count(
    root: Path, records: Path, make_user: MakeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure in between would leave a record of what is not there."""
    alice = make_user("alice", home=True)
    (root / "course").mkdir()
    script = root.parent / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    log = root.parent / "log"

    def logged(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(directory: int, *rest: Any) -> Any:
            with log.open("a") as file:
                file.write(f"{real.__name__} {os.fstat(directory).st_dev}\n")
            return real(directory, *rest)

        return call

    for module in (_tutorials, _scripts):
        monkeypatch.setattr(module, "sync", logged(module.sync))
    monkeypatch.setattr(_state, "put_draft", logged(_state.put_draft))
    with mounted(records, "-t", "tmpfs", "-o", "mode=700", "tmpfs"):
        roots, here, there = Roots(str(root), (), str(records)), root.stat().st_dev, records.stat().st_dev
        tutorials = _tutorials.Options([{"name": "course", "path": str(root / "course")}])
        roles: list[Callable[[], Any]] = [
            lambda: _tutorials.place([alice], roots, 1000, tutorials, check=False),
            lambda: _scripts.run([alice], roots, 1000, _scripts.Options(str(script)), check=False),
        ]
        for role in roles:
            log.unlink(missing_ok=True)
            assert role().users[0]["changed"]
            lines = log.read_text().splitlines()
            last = len(lines) - 1 - lines[::-1].index(f"put_draft {there}")
            assert {f"sync {here}", f"sync {there}"} <= set(lines[:last])


@pytest.mark.parametrize("state", ["missing", "partial"])
def test_mkhomedir_makes_no_home_whose_half_it_could_not_take_away(
    state: str, root: Path, records: Path, make_user: MakeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots, alice = Roots(str(root), (), str(records)), make_user("alice")
    account = pwd.struct_passwd(
        ("alice", "x", alice["uid"], alice["gid"], "", str(root / "alice"), "/bin/sh")
    )
    monkeypatch.setattr(_system_homes, "system_user", lambda name: account)
    monkeypatch.setattr(_system_homes, "SETTLED", 0)
    if state == "partial":
        (root / "alice").mkdir(mode=0o700)
    with mounted(records, "-t", "tmpfs", "-o", "mode=700", "tmpfs"):
        for check in (True, False):
            (result,) = _system_homes.ensure([alice], roots, 1000, Options(), check=check).users
            assert result["msg"].startswith("no new home can be made")
    assert (root / "alice").exists() == (state == "partial")


def test_a_home_on_a_mount_below_the_root_is_told_with_both_places(root: Path, make_user: MakeUser) -> None:
    (root / "big").mkdir()
    alice = make_user("alice", directory=str(root / "big/alice"))
    with mounted(root / "big", "-t", "tmpfs", "-o", "mode=755", "tmpfs"):
        said = user_dir(alice, root)["msg"]
        assert said.startswith(
            f"{root}/big/alice is on another mount than {root}/.ansible_bootstrap, from where"
        )
        assert os.listdir(root / "big") == []


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
