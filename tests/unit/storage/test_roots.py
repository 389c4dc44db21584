"""Several storage roots: each has its own records and stages, and what is wrong with one is no fault of another's."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.storage import _cleanup, _homes, _probe, _scripts, _storage, _tutorials, _worker
from ansible_bootstrap.storage._names import STATE_DIRECTORY
from ansible_bootstrap.storage._state import identity, state_name
from ansible_bootstrap.storage._storage import Roots
from tests import hanging
from tests.unit.storage.conftest import MakeUser

pytestmark = pytest.mark.filterwarnings("ignore:.*fork")

Results = list[dict[str, Any]]

LOOK = partial(_probe.probe, uid=None, gid=None)


@pytest.fixture
def data(root: Path) -> Path:
    """A second storage root."""
    made = root.parent / "data"
    made.mkdir(mode=0o755)
    return made


@pytest.fixture
def roots(root: Path, data: Path) -> Roots:
    return Roots(str(root), (str(data),))


@pytest.fixture
def users(root: Path, data: Path, make_user: MakeUser) -> list[dict[str, Any]]:
    """One in both roots, one in the second alone, one in the first alone."""
    alice = make_user("alice", also=[str(data / "alice")])
    return [alice, make_user("bob", directory=str(data / "bob")), make_user("carol")]


def user_dir(roots: Roots, *users: Any, check: bool = False) -> Results:
    return _homes.ensure(list(users), roots, 1000, _homes.Options(), check=check).users


def test_every_role_finds_the_root_of_a_home(
    root: Path, data: Path, roots: Roots, users: list[Any], as_user: Callable[..., Any]
) -> None:
    (root.parent / "course").mkdir()
    (root.parent / "course/a.csv").touch()
    script = root.parent / "script"
    script.write_text("#!/bin/sh\ntouch done-for-$1\n")
    script.chmod(0o755)
    tutorial = _tutorials.Options([{"name": "course", "path": str(root.parent / "course")}])
    roles: list[Callable[..., Any]] = [
        lambda check: _homes.ensure(users, roots, 1000, _homes.Options(), check=check),
        lambda check: _tutorials.place(users, roots, 1000, tutorial, check=check),
        lambda check: _scripts.run(users, roots, 1000, _scripts.Options(str(script)), check=check),
        lambda check: _cleanup.clean(users, roots, 1000, ["course/a.csv"], 60, check=check),
    ]
    for role in roles:
        for check, changed in ((True, True), (False, True), (True, False), (False, False)):
            results = role(check).users
            assert [(user["changed"], user["msg"]) for user in results] == [(changed, "")] * 3
    for name, home in (("alice", root / "alice"), ("bob", data / "bob"), ("carol", root / "carol")):
        assert sorted(os.listdir(home)) == ["course", f"done-for-{name}"]
    assert os.listdir(data / "alice") == []
    for place, names in ((root, ("alice", "carol")), (data, ("alice", "bob"))):
        state = place / STATE_DIRECTORY
        assert {file.name for file in (state / "records").iterdir()} == {
            f"{identity([name])}.json" for name in names
        }
        assert os.listdir(state / "stage") == []


def test_a_root_that_is_not_mounted_fails_only_the_users_of_it(
    root: Path, data: Path, roots: Roots, users: list[Any]
) -> None:
    data.rmdir()
    for check in (True, False):
        results = user_dir(roots, *users, check=check)
        assert [user["failed"] for user in results] == [True, True, False]
        assert all(f"storage root {data} does not exist on this host" in user["msg"] for user in results[:2])
        assert f"{data}/alice: " in results[0]["msg"]
    assert (root / "alice").is_dir()
    data.mkdir(mode=0o755)
    assert not any(user["failed"] for user in user_dir(roots, *users))


@pytest.mark.root
def test_a_root_that_does_not_answer_says_nothing_against_the_host(
    root: Path, data: Path, roots: Roots, users: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub would take a host with a silent storage for one that is down, and turn everybody away."""
    monkeypatch.setattr(_worker, "SILENCE", 1.0)
    monkeypatch.setattr(_worker, "_LOOK", 0.1)
    alice, bob, carol = users
    with hanging.fuse(data, 0, for_all=True):
        results = user_dir(roots, *users)
        assert [(user["failed"], user["hangs"], user["silent"]) for user in results] == [
            (True, True, False),
            (True, True, False),
            (False, False, False),
        ]
        assert f"the storage {data} does not answer" in results[1]["msg"]
        (alone,) = user_dir(roots, bob)
        assert alone["hangs"] and not alone["silent"]
        with hanging.fuse(root, 0, for_all=True):
            assert [user["silent"] for user in user_dir(roots, alice, bob, carol)] == [True] * 3
    assert not any(user["failed"] for user in user_dir(roots, *users))


@pytest.mark.parametrize(
    ("others", "says"),
    [
        (("{root}",), "is given twice"),
        (("{root}/teams",), "teams lies in "),
        (("{above}",), "storage lies in "),
        (("data",), "absolute path"),
        (("{above}/x/../data",), "has no '..'"),
    ],
)
def test_roots_that_meet_are_refused_for_everybody(
    root: Path, make_user: MakeUser, others: tuple[str, ...], says: str
) -> None:
    paths = tuple(other.format(root=root, above=root.parent) for other in others)
    (alice,) = user_dir(Roots(str(root), paths), make_user("alice"))
    assert says in alice["msg"]
    assert os.listdir(root) == []


class TestRecordsElsewhere:
    """``records_dir``, on the mount of the roots."""

    @pytest.fixture
    def records(self, root: Path) -> Path:
        made = root.parent / "records"
        made.mkdir(mode=0o755)
        return made

    def test_each_root_has_its_own_place_there_and_nothing_in_itself(
        self, root: Path, data: Path, records: Path, users: list[Any]
    ) -> None:
        elsewhere = Roots(str(root), (str(data),), str(records))
        for check, changed in ((True, True), (False, True), (True, False), (False, False)):
            results = user_dir(elsewhere, *users, check=check)
            assert [(user["changed"], user["msg"]) for user in results] == [(changed, "")] * 3
            assert bool(os.listdir(records)) == ((check, changed) != (True, True))
        assert sorted(os.listdir(root)) == ["alice", "carol"]
        assert sorted(os.listdir(data)) == ["alice", "bob"]
        for place, names in ((root, ("alice", "carol")), (data, ("alice", "bob"))):
            state = records / state_name(str(place))
            assert state.stat().st_mode & 0o777 == 0o700
            assert {file.name for file in (state / "records").iterdir()} == {
                f"{identity([name])}.json" for name in names
            }

    def test_records_that_the_root_has_are_not_forgotten(
        self, root: Path, records: Path, make_user: MakeUser
    ) -> None:
        """Else tutorials that users have thrown away would come back."""
        alice, elsewhere = make_user("alice"), Roots(str(root), (), str(records))
        user_dir(Roots(str(root)), alice)
        for check in (True, False):
            said = user_dir(elsewhere, alice, check=check)[0]["msg"]
            assert said.startswith(f"the records of {root} are not in records_dir yet: `mv ")
        subprocess.run(shlex.split(said.partition("`")[2].rstrip("`")), check=True)
        assert [user["changed"] for user in user_dir(elsewhere, alice)] == [False]

    @pytest.mark.parametrize(
        ("where", "says"),
        [
            ("{root}/records", "lies in the storage root"),
            ("{root}", "lies in the storage root"),
            ("records", "absolute path"),
            ("{above}/missing", "missing does not exist on this host: `install -d -m 700 "),
            ("{above}/open", "open is writable by everybody"),
        ],
    )
    def test_a_place_that_is_no_good_is_refused(
        self, root: Path, make_user: MakeUser, where: str, says: str
    ) -> None:
        (root.parent / "open").mkdir()
        (root.parent / "open").chmod(0o777)
        place = where.format(root=root, above=root.parent)
        for check in (True, False):
            (alice,) = user_dir(Roots(str(root), (), place), make_user("alice"), check=check)
            assert says in alice["msg"]
            assert os.listdir(root) == []


@pytest.mark.root
def test_with_work_as_the_storage_is_opened_without_roots_rights(
    root: Path, data: Path, make_user: MakeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = root.parent / "told"
    told.touch(mode=0o666)
    told.chmod(0o666)
    opened = _storage.open_root

    def tell(path: str) -> int:
        with told.open("a") as file:
            file.write(f"{Path('/proc/self/status').read_text()}")
        return opened(path)

    monkeypatch.setattr(_storage, "open_root", tell)
    for place in (root, data):
        os.chown(place, 20050, 20060)
    roots = Roots(str(root), (str(data),), "", 20050)
    users = [
        make_user("alice", uid=20050, gid=20060),
        make_user("bob", directory=str(data / "b"), uid=20050, gid=20060),
    ]
    assert [user["msg"] for user in user_dir(roots, *users)] == ["", ""]
    status = told.read_text().splitlines()
    for field, value in {
        "Uid": "\t20050" * 4,
        "Gid": "\t20060" * 4,
        "Groups": "\t ",
        "NoNewPrivs": "\t1",
    }.items():
        assert [line for line in status if line.startswith(f"{field}:")] == [f"{field}:{value}"] * 2
    for field in ("CapPrm", "CapEff", "CapAmb"):
        assert status.count(f"{field}:\t{0:016x}") == 2
    assert os.geteuid() == 0


@pytest.mark.root
def test_a_name_of_one_root_is_another_directory_in_the_other(
    data: Path, roots: Roots, make_user: MakeUser
) -> None:
    """Nothing that is recorded of one counts for the other."""
    alice, bob = make_user("alice"), make_user("bob", directory=str(data / "alice"))
    assert [user["msg"] for user in user_dir(roots, alice, bob)] == ["", ""]
    assert (data / "alice").stat().st_uid == bob["uid"]
    (refused,) = user_dir(roots, {**bob, "directory": alice["directory"]})
    assert "recorded as that of the user alice" in refused["msg"]


def test_the_probe_speaks_of_each_root(root: Path, data: Path) -> None:
    answer = _probe.probe_all([str(root), str(data)], LOOK)
    assert answer["findings"] == []
    assert answer["about"]["kind"] == "plain"
    assert answer["about"][str(data)].startswith("kind plain, ")
    data.rmdir()
    answer = _probe.probe_all([str(root), str(data)], LOOK)
    assert answer["about"]["kind"] == "plain" and answer["about"][str(data)] == "kind missing"
    (finding,) = answer["findings"]
    assert f"storage root {data} does not exist" in finding["what"]


def test_the_probe_tells_a_root_that_a_link_puts_into_another(root: Path) -> None:
    (root / "teams").mkdir()
    link = root.parent / "link"
    link.symlink_to(root / "teams")
    (finding,) = _probe.probe_all([str(link), str(root)], LOOK)["findings"]
    assert f"the storage root {link} lies in {root} by a link" in finding["what"]
