from __future__ import annotations

import errno
import json
import os
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.storage import _homes
from ansible_bootstrap.storage._batch import LOCK_WAIT, run
from ansible_bootstrap.storage._homes import Options
from ansible_bootstrap.storage._state import identity
from tests.conftest import needs
from tests.unit.storage.conftest import MakeUser

PLAIN = Options()


def ensure(root: Path, *users: Any, check: bool = False, options: Options = PLAIN) -> list[dict[str, Any]]:
    return _homes.ensure(list(users), str(root), 1000, options, check=check).users


def one(root: Path, user: Any, *, check: bool = False, options: Options = PLAIN) -> dict[str, Any]:
    (result,) = ensure(root, user, check=check, options=options)
    return result


def record(root: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((root / f".ansible_bootstrap/records/{identity([name])}.json").read_text()))


def test_a_home_is_made_once(root: Path, make_user: MakeUser) -> None:
    alice = make_user("alice")
    assert one(root, alice, check=True)["changed"]
    assert os.listdir(root) == []

    said = {
        "key": "alice",
        "changed": True,
        "failed": False,
        "msg": "",
        "notes": [],
        "hangs": False,
        "silent": False,
    }
    assert one(root, alice) == said
    status = (root / "alice").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (alice["uid"], alice["gid"], 0o755)
    assert (root / ".ansible_bootstrap").stat().st_mode & 0o777 == 0o700

    assert not one(root, alice)["changed"]
    assert not one(root, alice, check=True)["changed"]


def test_directories_between_are_made_and_belong_to_us(root: Path, make_user: MakeUser) -> None:
    alice = make_user("alice", directory=str(root / "students" / "alice" / "work"))
    assert one(root, alice)["changed"]
    for path in (root / "students", root / "students" / "alice"):
        assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (os.geteuid(), 0o755)
    assert (root / "students/alice/work").stat().st_uid == alice["uid"]


@pytest.mark.root
def test_the_skeleton_is_copied_with_the_users_rights(
    root: Path, make_user: MakeUser, tmp_path: Path
) -> None:
    skeleton = tmp_path / "skel"
    (skeleton / "bin").mkdir(parents=True)
    (skeleton / "bin" / "run").write_text("#!/bin/sh\n")
    (skeleton / "bin" / "run").chmod(0o6755)
    (skeleton / "bin").chmod(0o555)
    (skeleton / "open").mkdir()
    (skeleton / "open/all").touch()
    for path in (skeleton / "open", skeleton / "open/all"):
        path.chmod(0o777)
    (skeleton / "link").symlink_to("/etc/shadow")
    os.link(skeleton / "bin" / "run", skeleton / "twin")
    os.utime(skeleton / "twin", (1_000_000_000, 1_000_000_000))
    alice = make_user("alice")

    assert one(root, alice, options=Options("0700", str(skeleton)))["changed"]

    home = root / "alice"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "bin/run").stat().st_mode) == 0o755
    assert stat.S_IMODE((home / "bin").stat().st_mode) == 0o555
    assert {stat.S_IMODE((home / name).stat().st_mode) for name in ("open", "open/all")} == {0o775}
    assert os.readlink(home / "link") == "/etc/shadow"
    assert (home / "twin").stat().st_nlink == 1
    assert (home / "twin").stat().st_mtime == 1_000_000_000
    assert {path.lstat().st_uid for path in home.rglob("*")} == {alice["uid"]}


@pytest.mark.root
def test_a_skeleton_file_the_user_may_not_read_is_an_error_that_names_it(
    root: Path, make_user: MakeUser, tmp_path: Path
) -> None:
    skeleton = tmp_path / "skel"
    skeleton.mkdir()
    (skeleton / "host_key").write_text("secret")
    (skeleton / "host_key").chmod(0o600)
    for check in (True, False):
        result = one(root, make_user("alice"), check=check, options=Options(skeleton=str(skeleton)))
        assert result["failed"]
        assert result["msg"] == f"{skeleton}/host_key is not readable for this user"
        assert not (root / "alice").exists()
    assert os.listdir(root / ".ansible_bootstrap" / "stage") == []


@pytest.mark.parametrize("kind", ["FIFO", "socket"])
def test_a_skeleton_with_a_special_file_is_refused_without_waiting(
    root: Path, make_user: MakeUser, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "skel").mkdir()
    special = tmp_path / "skel" / "special"
    if kind == "FIFO":
        os.mkfifo(special)
    else:
        socket.socket(socket.AF_UNIX).bind(os.path.relpath(special))
    result = one(root, make_user("alice"), options=Options(skeleton=str(tmp_path / "skel")))
    assert f"is a {kind}, which is not copied" in result["msg"]


def test_without_its_skeleton_no_home_is_made(root: Path, make_user: MakeUser, tmp_path: Path) -> None:
    options = Options(skeleton=str(tmp_path / "missing"))
    results = ensure(root, make_user("alice"), make_user("bob"), options=options)
    assert [result["failed"] for result in results] == [True, True]
    assert all(f"{tmp_path}/missing" in result["msg"] for result in results)
    assert not (root / "alice").exists() and not (root / "bob").exists()


@pytest.mark.root
@pytest.mark.parametrize("in_the_way", ["link", "dangling", "file", "FIFO", "other", "root"])
def test_what_is_in_the_way_is_left_as_it_is(
    root: Path, make_user: MakeUser, victim: Path, in_the_way: str
) -> None:
    place = root / "alice"
    if in_the_way == "link":
        place.symlink_to(victim)
    elif in_the_way == "dangling":
        place.symlink_to("nowhere")
    elif in_the_way == "file":
        place.write_text("mine")
    elif in_the_way == "FIFO":
        os.mkfifo(place)
    else:
        place.mkdir()
        (place / "data").write_text("mine")
        os.chown(place, 20009 if in_the_way == "other" else 0, 0)
    before = place.lstat()

    for check in (True, False):
        bad, good = ensure(root, make_user("alice"), make_user("bob"), check=check)
        assert bad["failed"]
        assert "left as it is" in bad["msg"]
        assert ("belongs to uid 20009" in bad["msg"]) == (in_the_way == "other")
        assert ("belongs to root and is not empty" in bad["msg"]) == (in_the_way == "root")
        assert not good["failed"]

    after = place.lstat()
    assert (before.st_ino, before.st_mode, before.st_uid) == (after.st_ino, after.st_mode, after.st_uid)
    assert (root / "bob").exists()


@pytest.mark.root
def test_the_empty_directory_that_docker_leaves_is_healed(
    root: Path, make_user: MakeUser, tmp_path: Path
) -> None:
    (tmp_path / "skel").mkdir()
    (tmp_path / "skel" / ".bashrc").write_text("")
    (root / "alice").mkdir(mode=0o755)
    options = Options(skeleton=str(tmp_path / "skel"))
    assert one(root, make_user("alice"), check=True, options=options)["changed"]
    assert (root / "alice").stat().st_uid == 0
    assert one(root, make_user("alice"), options=options)["changed"]
    assert (root / "alice").stat().st_uid == make_user("alice")["uid"]
    assert os.listdir(root / "alice") == [".bashrc"]


@pytest.mark.root
@pytest.mark.parametrize(
    ("adopt", "adopted"), [("own", {"jane-2edoe"}), ("any", {"jane-2edoe", "shared/inbox"}), ("never", set())]
)
def test_only_a_directory_that_carries_the_users_name_is_taken_for_theirs(
    root: Path, make_user: MakeUser, adopt: str, adopted: set[str]
) -> None:
    options = Options(adopt_empty=adopt)
    for directory in ("jane-2edoe", "shared/inbox"):
        (root / directory).mkdir(parents=True)
        user = make_user("jane.doe", directory=str(root / directory))
        for check in (True, False):
            result = one(root, user, check=check, options=options)
            assert result["changed"] == (directory in adopted), result
            assert result["failed"] != (directory in adopted)
        assert (root / directory).stat().st_uid == (user["uid"] if directory in adopted else 0)
        if directory not in adopted:
            why = "user_dir_adopt_empty is never" if adopt == "never" else "does not carry the user's name"
            assert why in result["msg"] and "or set user_dir_adopt_empty" in result["msg"]


@pytest.mark.root
def test_a_mount_point_is_healed_in_place(root: Path, make_user: MakeUser) -> None:
    home = root / "students" / "alice"
    home.mkdir(parents=True)
    alice = make_user("alice", directory=str(home))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", str(home)], check=True)
    try:
        assert one(root, alice)["changed"]
        status = home.stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (alice["uid"], 0o755)
        assert os.listdir(root / ".ansible_bootstrap" / "stage") == []
        assert not one(root, alice)["changed"]
    finally:
        subprocess.run(["umount", str(home)], check=True)


@pytest.mark.root
def test_group_and_mode_are_reported_and_repaired_only_if_told(root: Path, make_user: MakeUser) -> None:
    alice = make_user("alice", home=True)
    os.chown(root / "alice", alice["uid"], 20077)
    (root / "alice").chmod(0o700)
    result = one(root, alice)
    assert not result["changed"]
    assert "group is 20077, not 20001 and mode is 0700, not 0755" in result["notes"][0]
    assert (root / "alice").stat().st_gid == 20077

    enforce = Options(enforce_mode=True)
    assert one(root, alice, check=True, options=enforce)["changed"]
    assert (root / "alice").stat().st_gid == 20077
    assert one(root, alice, options=enforce)["changed"]
    assert ((root / "alice").stat().st_gid, (root / "alice").stat().st_mode & 0o777) == (alice["gid"], 0o755)
    assert not one(root, alice, options=enforce)["changed"]


def test_a_second_name_for_a_directory_is_refused(root: Path, make_user: MakeUser) -> None:
    one(root, make_user("alice"))
    thief = make_user("mallory", directory=str(root / "alice"), uid=make_user("alice")["uid"])
    result = one(root, thief)
    assert result["failed"]
    assert "recorded as that of the user alice" in result["msg"]
    assert record(root, "alice")["name"] == "alice"


def test_several_servers_of_one_user_share_one_result(root: Path, make_user: MakeUser) -> None:
    results = ensure(
        root,
        make_user("alice", key="alice/"),
        make_user("alice", key="alice/gpu"),
        make_user("alice", key="alice/"),
        make_user("alice", key="alice/x", gid=20099),
    )
    assert [(result["key"], result["changed"]) for result in results] == [
        ("alice/", True),
        ("alice/gpu", True),
        ("#3", False),
        ("alice/x", False),
    ]
    assert "repeats" in results[2]["msg"]
    assert "another uid or gid" in results[3]["msg"]


@pytest.mark.root
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"uid": 0}, "below uid_min"),
        ({"uid": 999}, "below uid_min"),
        ({"uid": True}, "integer"),
        ({"uid": None}, "must be given"),
        ({"directory": None}, "must be given"),
        ({"directory": "/etc"}, "not below the storage root"),
        ({"directory": "{root}/../etc"}, "'..'"),
        ({"directory": "{root}"}, "not below the storage root"),
        ({"directory": "{root}/.ansible_bootstrap/records"}, ".ansible_bootstrap"),
        ({"directory": "{root}/bob/inner"}, "inside another user's"),
        ({"name": "root"}, "root"),
        ({"name": "a\nb"}, "a username has only"),
        ({"groups": 5}, "groups"),
        ({"ansible_connection": "local"}, "only the fields"),
    ],
)
def test_a_bad_record_costs_only_itself(
    root: Path, make_user: MakeUser, fields: dict[str, Any], says: str
) -> None:
    if isinstance(fields.get("directory"), str):
        fields = {**fields, "directory": fields["directory"].format(root=root)}
    good, bad = ensure(root, make_user("bob"), {**make_user("alice"), **fields})
    assert good["changed"]
    assert bad["failed"]
    assert says in bad["msg"]
    assert sorted(os.listdir(root)) == [".ansible_bootstrap", "bob"]


@pytest.mark.root
def test_without_root_it_is_the_same_for_oneself_and_refused_for_others(
    root: Path, make_user: MakeUser, as_user: Callable[..., Any], tmp_path: Path
) -> None:
    alice, bob = make_user("alice"), make_user("bob")
    os.chown(root, alice["uid"], alice["gid"])
    skeleton = root.parent / "skel"
    skeleton.mkdir()
    (skeleton / ".bashrc").write_text("")

    def work() -> list[dict[str, Any]]:
        return ensure(root, alice, bob, options=Options(skeleton=str(skeleton)))

    mine, other = as_user(alice["uid"], work)
    assert mine["changed"], mine
    assert "needs root" in other["msg"]
    assert (root / "alice/.bashrc").stat().st_uid == alice["uid"]
    assert not as_user(alice["uid"], work)[0]["changed"]


@pytest.mark.usefixtures("in_process")
def test_one_sync_makes_the_whole_batch_safe_before_anything_shows(
    root: Path, make_user: MakeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(_homes, "sync", lambda _: seen.append((root / "alice").exists()))
    ensure(root, make_user("alice"), make_user("bob"), make_user("carol"))
    assert seen == [False]

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(_homes, "sync", broken)
    result = one(root, make_user("dave"))
    assert result["msg"] == "the disk reported an input/output error"
    assert not (root / "dave").exists()


def test_a_mode_that_is_none_is_found_before_anything_is_done(root: Path, make_user: MakeUser) -> None:
    one(root, make_user("alice"))
    (record,) = (root / ".ansible_bootstrap/records").iterdir()
    before = record.read_bytes()
    (root / "alice").rmdir()
    assert one(root, make_user("alice"), options=Options(mode="9"))["failed"]
    assert record.read_bytes() == before


@pytest.mark.usefixtures("in_process")
def test_nothing_is_recorded_of_a_home_that_could_not_be_put_in_its_place(
    root: Path, make_user: MakeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(*_: object) -> None:
        raise FileExistsError

    monkeypatch.setattr(_homes, "rename_directory", taken)
    assert "made by somebody else" in one(root, make_user("alice"))["msg"]
    assert os.listdir(root / ".ansible_bootstrap/records") == []


@pytest.mark.root
def test_a_full_disk_is_named_and_leaves_nothing(
    small_disk: Path, make_user: MakeUser, tmp_path: Path
) -> None:
    (tmp_path / "skel").mkdir()
    (tmp_path / "skel" / "big").write_bytes(b"x" * 512 * 1024)
    result = one(small_disk, make_user("alice"), options=Options(skeleton=str(tmp_path / "skel")))
    assert "no space is left" in result["msg"]
    assert os.listdir(small_disk / ".ansible_bootstrap" / "stage") == []
    assert one(small_disk, make_user("alice"))["changed"]


@pytest.mark.root
@pytest.mark.usefixtures("in_process")
def test_a_mount_point_is_the_users_only_when_all_else_is_done(
    root: Path, make_user: MakeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = root / "alice"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0700", "tmpfs", place], check=True)
    try:
        hers, real = place.stat().st_dev, os.fchmod

        def broken(directory: int, mode: int) -> None:
            if os.fstat(directory).st_dev == hers:
                raise OSError(errno.EIO, "Input/output error")
            real(directory, mode)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fchmod", broken)
            assert one(root, make_user("alice"))["failed"]
        assert place.stat().st_uid == 0
        synced = []
        monkeypatch.setattr(_homes, "sync", lambda directory: synced.append(os.fstat(directory).st_dev))
        assert one(root, make_user("alice"))["changed"]
        assert stat.S_IMODE(place.stat().st_mode) == 0o755
        assert synced[-1] == hers
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.root
def test_a_read_only_disk_is_named(small_disk: Path, make_user: MakeUser) -> None:
    one(small_disk, make_user("alice"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "read-only" in one(small_disk, make_user("bob"))["msg"]


def test_what_a_killed_run_left_is_swept_but_not_what_is_being_made(root: Path, make_user: MakeUser) -> None:
    one(root, make_user("alice"))
    stage, locks = root / ".ansible_bootstrap/stage", root / ".ansible_bootstrap/locks"
    bob, carol = (f"{identity([name])}-{make_user(name)['uid']}" for name in ("bob", "carol"))
    for name in (bob, carol):
        (stage / name / "half").mkdir(parents=True)
    import fcntl

    with (locks / identity(["carol"])).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        started = time.monotonic()
        report = _homes.ensure([make_user("dave"), make_user("bob")], str(root), 1000, PLAIN, check=False)
        assert time.monotonic() - started < LOCK_WAIT / 2
        assert {user["failed"] for user in report.users} == {False}
        assert os.listdir(stage) == [carol]
        assert os.listdir(root / "bob") == []

        results = run(
            [make_user("carol")], str(root), 1000, lambda *_: None, check=False, lock_wait=0.1
        ).users
        assert "another run is still at work" in results[0]["msg"]


def test_a_new_home_forgets_what_was_done_to_the_lost_one(root: Path, make_user: MakeUser) -> None:
    one(root, make_user("alice"))
    path = root / f".ansible_bootstrap/records/{identity(['alice'])}.json"
    path.write_text(json.dumps({**record(root, "alice"), "tutorials": {"course": {"state": "placed"}}}))
    one(root, make_user("alice"))
    assert "tutorials" in record(root, "alice")
    (root / "alice").rmdir()
    one(root, make_user("alice"))
    assert record(root, "alice") == {"name": "alice", "directory": "alice", "user_dir": {"made": True}}


@pytest.mark.parametrize("mode", ["755", "0o755", "rwx", "0999", "04755", "0455", ""])
def test_a_mode_that_is_none_is_everybodys_error(root: Path, make_user: MakeUser, mode: str) -> None:
    result = one(root, make_user("alice"), options=Options(mode))
    assert "mode" in result["msg"]
    assert not (root / "alice").exists()


@pytest.mark.root
@pytest.mark.parametrize("mode", ["0700", "0750", "0755"])
def test_default_acls_do_not_widen_a_home(
    root: Path, make_user: MakeUser, default_acl: Callable[[Path], int], tmp_path: Path, mode: str
) -> None:
    default_acl(root)
    (tmp_path / "skel/sub").mkdir(parents=True)
    (tmp_path / "skel/sub/file").write_text("for the user\n")
    options = Options(mode, str(tmp_path / "skel"))
    for path in (tmp_path, *tmp_path.parents[:-2]):
        path.chmod(path.stat().st_mode | 0o005)
    assert one(root, make_user("alice"), options=options)["changed"]
    assert stat.S_IMODE((root / "alice").stat().st_mode) == int(mode, 8)
    for path in (root / "alice", *(root / "alice").rglob("*")):
        assert os.listxattr(path) == [], path
    assert stat.S_IMODE((root / ".ansible_bootstrap").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "damage",
    [
        "[" * 100_000,
        '{"name": 1}',
        '{"name": "alice", "tutorials": [1]}',
        '{"name": "alice", "user_dir": "x"}',
    ],
)
def test_a_damaged_record_costs_its_user_alone(root: Path, make_user: MakeUser, damage: str) -> None:
    one(root, make_user("alice"))
    (root / f".ansible_bootstrap/records/{identity(['alice'])}.json").write_text(damage)
    users = [make_user("alice"), make_user("bob")]
    alice, bob = _homes.ensure(users, str(root), 1000, PLAIN, check=False).users
    assert "is damaged" in alice["msg"]
    assert not bob["failed"], bob


def test_a_fault_of_ours_is_a_sentence_for_each_user(root: Path, make_user: MakeUser) -> None:
    def work(storage: object, claims: list[object]) -> None:
        raise KeyError("x\n")

    (result,) = run([make_user("alice")], str(root), 1000, work, check=False).users
    assert "unexpected KeyError" in result["msg"] and result["msg"].isprintable()


@pytest.mark.root
def test_nobody_is_no_user(root: Path, make_user: MakeUser) -> None:
    assert "no user's" in one(root, make_user("nobody", uid=65534, gid=65534))["msg"]


@pytest.mark.root
def test_a_subvolume_in_the_homes_place_is_given_to_the_user(root: Path, make_user: MakeUser) -> None:
    needs(root=True, programs=("mkfs.btrfs", "btrfs"))
    image = root.parent / "disk.img"
    with image.open("wb") as file:
        file.truncate(256 << 20)
    subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(root)], check=True)
    try:
        root.chmod(0o755)
        subprocess.run(["btrfs", "-q", "subvolume", "create", str(root / "alice")], check=True)
        assert one(root, make_user("alice"))["changed"]
        assert (root / "alice").stat().st_uid == make_user("alice")["uid"]
        assert not one(root, make_user("alice"))["changed"]
    finally:
        subprocess.run(["umount", str(root)], check=True)
