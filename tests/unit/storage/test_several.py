"""Users with several directories: beside each other, inside each other, and inside somebody else's."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.storage import _homes, _tutorials
from ansible_bootstrap.storage._homes import Options
from ansible_bootstrap.storage._state import identity
from tests.unit.storage.conftest import MakeUser

PLAIN = Options()


def ensure(root: Path, *users: Any, check: bool = False, options: Options = PLAIN) -> list[dict[str, Any]]:
    return _homes.ensure(list(users), str(root), 1000, options, check=check).users


def one(root: Path, user: Any, *, check: bool = False, options: Options = PLAIN) -> dict[str, Any]:
    (result,) = ensure(root, user, check=check, options=options)
    return result


def owners(root: Path) -> dict[str, int]:
    """Of everything below the root but our state."""
    found = (path for path in sorted(root.rglob("*")) if ".ansible_bootstrap" not in path.parts)
    return {str(path.relative_to(root)): path.lstat().st_uid for path in found}


def converges(root: Path, *users: Any, options: Options = PLAIN) -> None:
    """Check mode says that all change and writes nothing; then they do; then nothing is left to do."""

    def said(*, check: bool) -> set[tuple[bool, str]]:
        return {(one["changed"], one["msg"]) for one in ensure(root, *users, check=check, options=options)}

    before = owners(root)
    assert said(check=True) == {(True, "")}
    assert owners(root) == before
    assert said(check=False) == {(True, "")}
    assert said(check=True) == said(check=False) == {(False, "")}


def test_all_are_made_with_owner_and_mode_and_only_the_home_gets_the_skeleton(
    root: Path, make_user: MakeUser, tmp_path: Path
) -> None:
    skeleton = root.parent / "skel"
    skeleton.mkdir()
    (skeleton / ".bashrc").touch()
    alice = make_user("alice", also=[str(root / "work/alice"), str(root / "data/alice")])
    converges(root, alice, options=Options("0755", str(skeleton)))
    for path in (root / "alice", root / "work/alice", root / "data/alice"):
        status = path.stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (
            alice["uid"],
            alice["gid"],
            0o755,
        )
    assert os.listdir(root / "alice") == [".bashrc"]
    assert os.listdir(root / "work/alice") == []


def test_a_second_directory_that_is_gone_is_made_again(root: Path, make_user: MakeUser) -> None:
    alice = make_user("alice", also=[str(root / "work/alice")])
    one(root, alice)
    (root / "work/alice").rmdir()
    converges(root, alice)


def test_what_the_user_has_in_them_stays(root: Path, make_user: MakeUser) -> None:
    alice = make_user("alice", also=[str(root / "alice-work")])
    one(root, alice)
    (root / "alice-work/thesis").write_text("years")
    assert not one(root, alice)["changed"]
    assert (root / "alice-work/thesis").read_text() == "years"


@pytest.mark.root
def test_dockers_leftover_in_any_of_their_places_becomes_the_users(root: Path, make_user: MakeUser) -> None:
    for path in ("alice", "work/alice"):
        (root / path).mkdir(parents=True)
    alice = make_user("alice", also=[str(root / "work/alice")])
    converges(root, alice)
    assert owners(root) == {"alice": alice["uid"], "work": 0, "work/alice": alice["uid"]}


def test_the_tutorial_goes_to_the_home(root: Path, make_user: MakeUser) -> None:
    course = root.parent / "course"
    course.mkdir()
    (course / "01.ipynb").touch()
    alice = make_user("alice", also=[str(root / "alice-work")])
    one(root, alice)
    source = {"name": "course", "path": str(course), "dest": "course"}
    (said,) = _tutorials.place([alice], str(root), 1000, _tutorials.Options([source]), check=False).users
    assert said["changed"]
    assert (root / "alice/course/01.ipynb").exists()
    assert os.listdir(root / "alice-work") == []


@pytest.mark.root
class TestInside:
    """Directories inside another one of the same user's."""

    def test_they_are_made_with_the_users_rights(self, root: Path, make_user: MakeUser) -> None:
        alice = make_user("alice", also=[str(root / "alice/work"), str(root / "alice/a/b/c")])
        converges(root, alice)
        assert set(owners(root).values()) == {alice["uid"]}
        assert set(owners(root)) == {"alice", "alice/work", "alice/a", "alice/a/b", "alice/a/b/c"}
        status = (root / "alice/a/b/c").stat()
        assert (status.st_gid, stat.S_IMODE(status.st_mode)) == (alice["gid"], 0o755)

    def test_a_home_that_nobody_has_recorded_is_the_users_if_it_carries_the_name(
        self, root: Path, make_user: MakeUser
    ) -> None:
        make_user("alice", home=True)
        converges(root, make_user("alice", directory=str(root / "alice/notebooks")))
        # All homes of containers have one uid, so the uid alone says nothing.
        same = make_user("alice")["uid"]
        said = one(root, make_user("bob", directory=str(root / "alice/bob"), uid=same))
        assert f"alice, below the storage root, belongs to uid {same}" in said["msg"]
        assert not (root / "alice/bob").exists()

    @pytest.mark.parametrize("order", [("", "gpu", "cpu"), ("gpu", "", "cpu"), ("gpu", "cpu", "")])
    def test_named_servers_and_the_default_one_work_in_any_order(
        self, root: Path, make_user: MakeUser, order: tuple[str, ...]
    ) -> None:
        for server in order:
            converges(root, make_user("alice", directory=f"{root}/alice/{server}".rstrip("/")))
        assert owners(root) == dict.fromkeys(["alice", "alice/cpu", "alice/gpu"], make_user("alice")["uid"])

    def test_named_servers_in_one_batch_work_whatever_comes_first(
        self, root: Path, make_user: MakeUser
    ) -> None:
        converges(
            root,
            make_user("alice", key="alice#2", directory=str(root / "alice/gpu")),
            make_user("alice"),
            make_user("bob"),
        )

    def test_the_skeleton_is_copied_into_a_home_inside(self, root: Path, make_user: MakeUser) -> None:
        skeleton = root.parent / "skel"
        skeleton.mkdir()
        (skeleton / ".bashrc").touch()
        make_user("alice", home=True)
        notebooks = make_user("alice", directory=str(root / "alice/notebooks"))
        converges(root, notebooks, options=Options("0700", str(skeleton)))
        assert stat.S_IMODE((root / "alice/notebooks").stat().st_mode) == 0o700
        assert (root / "alice/notebooks/.bashrc").stat().st_uid == notebooks["uid"]

    def test_dockers_leftover_inside_is_replaced_by_its_user_but_only_if_it_is_empty(
        self, root: Path, make_user: MakeUser
    ) -> None:
        make_user("alice", home=True)
        (root / "alice/work").mkdir()
        alice = make_user("alice", also=[str(root / "alice/work")])
        converges(root, alice)
        assert (root / "alice/work").stat().st_uid == alice["uid"]

        (root / "alice/full").mkdir()
        (root / "alice/full/roots").touch()
        said = one(root, make_user("alice", also=[str(root / "alice/full")]))
        assert "alice/full belongs to root and is not empty" in said["msg"]
        assert os.listdir(root / "alice/full") == ["roots"]

    def test_a_parent_with_something_else_in_it_stays_roots(self, root: Path, make_user: MakeUser) -> None:
        one(root, make_user("alice", directory=str(root / "alice/gpu")))
        for put in (
            lambda: (root / "alice/file").touch(),
            lambda: one(root, make_user("bob", directory=str(root / "alice/bob"))),
        ):
            put()
            said = one(root, make_user("alice"))
            assert "belongs to root and is not empty" in said["msg"]
            assert (root / "alice").stat().st_uid == 0
            (root / "alice/file").unlink(missing_ok=True)

    def test_the_admin_may_forbid_to_take_a_parent(self, root: Path, make_user: MakeUser) -> None:
        one(root, make_user("alice", directory=str(root / "alice/gpu")))
        said = one(root, make_user("alice"), options=Options(adopt_empty="never"))
        assert "user_dir_adopt_empty is never" in said["msg"]
        assert (root / "alice").stat().st_uid == 0

    def test_a_parent_does_not_become_a_users_while_another_run_makes_something_in_it(
        self, root: Path, make_user: MakeUser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one(root, make_user("alice", directory=str(root / "alice/gpu")))
        lock = os.open(root / ".ansible_bootstrap/locks" / identity(["alice"]), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)  # As the run does that makes it alice's.
        monkeypatch.setattr("ansible_bootstrap.storage._storage._ABOVE", 0.1)
        said = one(root, make_user("bob", directory=str(root / "alice/bob")))
        os.close(lock)
        assert "another run is at work on the directory above" in said["msg"]
        assert not (root / "alice/bob").exists()

    def test_links_in_the_way_lead_nowhere(self, root: Path, make_user: MakeUser, victim: Path) -> None:
        alice = make_user("alice", home=True, also=[str(root / "alice/a/work")])
        bob = make_user("bob", home=True)
        for target in (victim, Path(bob["directory"])):
            (root / "alice/a").symlink_to(target)
            assert "links are not followed" in one(root, alice)["msg"]
            (root / "alice/a").unlink()
            (root / "alice/a").mkdir()
            (root / "alice/a/work").symlink_to(target)
            assert "alice/a/work is a symbolic link" in one(root, alice)["msg"]
            (root / "alice/a/work").unlink()
            (root / "alice/a").rmdir()
        assert os.listdir(bob["directory"]) == []

    def test_a_fifo_in_the_place_of_one_is_left_and_named_once(self, root: Path, make_user: MakeUser) -> None:
        alice = make_user("alice", home=True, also=[str(root / "alice/work")])
        os.mkfifo(root / "alice/work")
        msg = one(root, alice)["msg"]
        assert "is a FIFO, not a directory: left as it is" in msg and msg.count("alice/work") == 1
        assert (root / "alice/work").is_fifo()

    @pytest.mark.parametrize("planted", ["link", "file", "tree"])
    def test_what_is_planted_under_the_name_of_the_stage_goes_and_nothing_else(
        self, root: Path, make_user: MakeUser, victim: Path, planted: str
    ) -> None:
        alice = make_user("alice", home=True, also=[str(root / "alice/work")])
        stage = root / f"alice/.ansible_bootstrap-{identity(['alice', 'work'])[:16]}"
        if planted == "link":
            stage.symlink_to(victim)
        elif planted == "file":
            stage.touch()
        else:
            stage.mkdir()
            (stage / "link").symlink_to(victim)
            for path in (stage, stage / "link"):
                os.chown(path, alice["uid"], alice["gid"], follow_symlinks=False)
        assert one(root, alice)["msg"] == ""
        assert os.listdir(root / "alice") == ["work"]

    def test_a_user_who_races_harms_no_other(self, root: Path, make_user: MakeUser, victim: Path) -> None:
        """A link appears in the place, in one directory after the other, after root has looked and before the child acts."""
        alice = make_user("alice", home=True, also=[str(root / "alice/a/work")])
        original = _homes._inside

        def raced(*arguments: Any) -> None:
            os.symlink(victim, "a", dir_fd=arguments[0])
            original(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_homes, "_inside", raced)
            said = one(root, alice)
        assert "links are not followed" in said["msg"]
        (root / "alice/a").unlink()
        converges(root, alice)


@pytest.mark.root
class TestSomebodyElses:
    """One uid for all, as containers have it: only names keep users apart."""

    @pytest.fixture
    def users(self, root: Path, make_user: MakeUser) -> Callable[..., dict[str, Any]]:
        def make(name: str, *also: str, **fields: Any) -> dict[str, Any]:
            return make_user(name, uid=20001, gid=100, also=[str(root / path) for path in also], **fields)

        return make

    @pytest.mark.parametrize("path", ["alice", "alice/bob", "alice/work", "alice/work/bob"])
    def test_a_directory_of_theirs_is_refused(self, root: Path, users: Callable[..., Any], path: str) -> None:
        one(root, users("alice", "alice/work"))
        before = owners(root)
        said = one(root, users("bob", path))
        assert "another user's" in said["msg"] or "that of the user alice" in said["msg"]
        assert owners(root) == {**before, **({"bob": 20001} if "bob" in owners(root) else {})}

    def test_two_users_who_name_each_others_directory_both_get_nothing(
        self, root: Path, users: Callable[..., Any]
    ) -> None:
        said = ensure(root, users("alice", "bob"), users("bob", "alice"), users("carol"))
        assert [one["msg"] for one in said] == ["another user of this batch has the same directory"] * 2 + [
            ""
        ]
        assert list(owners(root)) == ["carol"]

    def test_nobody_loses_the_home_because_somebody_names_it_first(
        self, root: Path, users: Callable[..., Any]
    ) -> None:
        said = ensure(root, users("mallory", "alice", "alice/in"), users("alice"))
        assert said[0]["failed"]
        assert said[1]["msg"] == ""
        assert list(owners(root)) == ["alice"]

    def test_one_above_others_homes_is_refused(self, root: Path, users: Callable[..., Any]) -> None:
        one(root, users("alice", directory=str(root / "students/alice")))
        said = one(root, users("bob", "students", directory=str(root / "students/bob")))
        assert "students belongs to root and is not empty" in said["msg"]
        assert owners(root) == {"students": 0, "students/alice": 20001}

    @pytest.mark.parametrize(
        ("also", "why"),
        [
            (["/etc"], "/etc is not below the storage root"),
            (["{root}"], "is not below the storage root"),
            (["{root}/../x"], "no '..'"),
            (["{root}/.ansible_bootstrap/stage/x"], "is not a user's directory"),
            (["{root}/" + str(number) for number in range(9)], "at most 8"),
            ("{root}/x", "malformed also"),
            ([7], "absolute path"),
        ],
    )
    def test_what_the_policy_does_not_allow_refuses_the_user_whole(
        self, root: Path, users: Callable[..., Any], also: Any, why: str
    ) -> None:
        also = json.loads(json.dumps(also).replace("{root}", str(root)))
        said = one(root, {**users("alice"), "also": also})
        assert why in said["msg"]
        assert owners(root) == {}
