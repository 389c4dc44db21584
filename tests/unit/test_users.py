"""The owner of a directory, and where it is."""

from __future__ import annotations

import os
import pwd

import pytest

from ansible_bootstrap.storage import _users
from ansible_bootstrap.storage._users import (
    FIELDS,
    Policy,
    UserRefusedError,
    parse_user,
    parse_users,
    resolve_user,
    resolve_users,
)

ROOT = "/volumes"
PEOPLE = {
    "alice": pwd.struct_passwd(("alice", "x", 1500, 1600, "", f"{ROOT}/home/alice", "/bin/sh")),
    "AliceW": pwd.struct_passwd(("AliceW", "x", 1502, 100, "", f"{ROOT}/AliceW", "/bin/sh")),
    "jane.doe@uni.example": pwd.struct_passwd(
        ("jane.doe@uni.example", "x", 1503, 100, "", "/home/jane", "/bin/sh")
    ),
    "carl": pwd.struct_passwd(("carl@uni.example", "x", 1504, 100, "", "/home/carl", "/bin/sh")),
    "bob": pwd.struct_passwd(("bob", "x", 1501, 100, "", "/home/bob", "/bin/sh")),
    "daemon": pwd.struct_passwd(("daemon", "x", 2, 2, "", "/", "/bin/sh")),
    "toor": pwd.struct_passwd(("toor", "x", 0, 0, "", "/root", "/bin/sh")),
}


@pytest.fixture(autouse=True)
def as_root_among_people(monkeypatch):
    def getpwnam(name: str) -> pwd.struct_passwd:
        return PEOPLE[{"1500": "alice", "ALICE": "alice"}.get(name, name)]

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", getpwnam)


def user(name: str = "alice", **more: object) -> dict[str, object]:
    return parse_user({"name": name, **more})


def test_a_name_is_enough():
    assert user() == {
        "key": "alice", "name": "alice", "directory": None, "also": [], "uid": None, "gid": None, "storage_host": None, "groups": [],
    }  # fmt: skip
    assert set(user()) == set(FIELDS)


@pytest.mark.parametrize(
    "raw",
    [None, "alice", 7, [], {}, {"name": None}, {"name": "a/b"}, {"name": "a", "shell": "x"}, {"name": "a", "uid": "1"},
     {"name": "a", "uid": True}, {"name": "a", "uid": -1}, {"name": "a", "uid": 2**32 - 1}, {"name": "a", "gid": 1.0},
     {"name": "a", "directory": "x"}, {"name": "a", "storage_host": "all"}, {"name": "a", "groups": ["x\n"]},
     {"name": "a", "groups": [["x"]]}, {"name": "a", "key": ["x"]}, {"name": "a", "__ansible_unsafe": "x"}],
)  # fmt: skip
def test_what_is_no_user(raw):
    with pytest.raises(UserRefusedError):
        parse_user(raw)


def test_groups_that_are_no_list_are_refused():
    with pytest.raises(UserRefusedError):
        parse_user({"name": "alice", "groups": "staff"})
    with pytest.raises(UserRefusedError):
        parse_user({"name": "alice", "groups": 7})


def test_the_system_user_of_that_name():
    whole = resolve_user(user(), Policy(ROOT))
    assert (whole["uid"], whole["gid"], whole["directory"]) == (1500, 1600, f"{ROOT}/home/alice")
    whole = resolve_user(user("bob"), Policy(ROOT))
    assert whole["directory"] == f"{ROOT}/bob", "a home elsewhere is not used"


@pytest.mark.parametrize("name", ["carol", "0", "1600", "Alice", "a b"])
def test_nobody_of_that_name(name):
    with pytest.raises(UserRefusedError, match="not a system user"):
        resolve_user(user(name), Policy(ROOT))


@pytest.mark.parametrize(("name", "uid"), [("AliceW", 1502), ("jane.doe@uni.example", 1503), ("carl", 1504)])
def test_a_name_that_the_system_knows_is_good(name, uid):
    assert resolve_user(user(name), Policy(ROOT))["uid"] == uid


@pytest.mark.parametrize("name", ["1500", "ALICE"])
def test_a_name_service_that_takes_one_name_for_another_makes_no_two_users_one(name):
    with pytest.raises(UserRefusedError, match=r"account is 'alice'.*username_map"):
        resolve_user(user(name), Policy(ROOT))


@pytest.mark.parametrize("name", ["daemon", "toor"])
def test_a_system_account_is_never_worked_for(name):
    with pytest.raises(UserRefusedError, match="uid_min"):
        resolve_user(user(name), Policy(ROOT))


def test_one_uid_for_all():
    whole = resolve_user(user("Carol"), Policy(ROOT, uid=1000, gid=100))
    assert (whole["uid"], whole["gid"]) == (1000, 100)
    assert whole["directory"].startswith(f"{ROOT}/carol-")
    with pytest.raises(UserRefusedError, match="set gid too"):
        resolve_user(user("carol"), Policy(ROOT, uid=1000))
    with pytest.raises(UserRefusedError, match="the request says uid 1001, the settings say 1000"):
        resolve_user(user("carol", uid=1001), Policy(ROOT, uid=1000, gid=100))
    with pytest.raises(UserRefusedError, match="gid"):
        resolve_user(user("carol", gid=0), Policy(ROOT, uid=1000, gid=100))


def test_ids_of_the_request_within_bounds():
    policy = Policy(ROOT, uid="request", uid_min=1000, uid_max=2000, gid_min=100)
    whole = resolve_user(user("carol", uid=1000, gid=100), policy)
    assert (whole["uid"], whole["gid"]) == (1000, 100)
    for ids in (
        {"uid": 999, "gid": 100},
        {"uid": 2001, "gid": 100},
        {"uid": 1000, "gid": 99},
        {"uid": 0, "gid": 100},
    ):
        with pytest.raises(UserRefusedError):
            resolve_user(user("carol", **ids), policy)
    with pytest.raises(UserRefusedError, match="names no uid"):
        resolve_user(user("carol", gid=100), policy)
    with pytest.raises(UserRefusedError, match="names no gid"):
        resolve_user(user("carol", uid=1000), policy)


def test_a_fixed_uid_with_the_system_users_group():
    whole = resolve_user(user("bob"), Policy(ROOT, uid=1000, gid="nss"))
    assert (whole["uid"], whole["gid"]) == (1000, 100)


def test_without_root_the_owner_is_oneself(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 900)
    monkeypatch.setattr(os, "getegid", lambda: 901)
    for policy in (Policy(ROOT), Policy(ROOT, uid=900), Policy(ROOT, uid="request")):
        whole = resolve_user(user("carol"), policy)
        assert (whole["uid"], whole["gid"]) == (900, 901), "its own, though below uid_min"
    for asked, policy in (
        ({"uid": 0}, Policy(ROOT)),
        ({}, Policy(ROOT, uid=1000)),
        ({"gid": 0}, Policy(ROOT)),
    ):
        with pytest.raises(UserRefusedError, match="needs root"):
            resolve_user(user("carol", **asked), policy)


@pytest.mark.parametrize("directory", ["/etc", "/volumes", "/volumesx/a"])
def test_a_directory_of_the_request_lies_below_the_root(directory):
    with pytest.raises(UserRefusedError, match="not below"):
        resolve_user(user(directory=directory), Policy(ROOT))
    assert resolve_user(user(directory=f"{ROOT}/x/y"), Policy(ROOT))["directory"] == f"{ROOT}/x/y"


def test_one_bad_user_never_costs_another():
    raw = [
        {"name": "alice"},
        None,
        {"name": "a/b"},
        {"name": "bob", "storage_host": "other"},
        {"name": "carol", "key": "alice"},
        {"name": "bob"},
    ]
    good, failures = parse_users(raw, "here")
    assert [one["key"] for one in good] == ["alice", "bob"]
    assert {one["storage_host"] for one in good} == {"here"}
    assert [failure["key"] for failure in failures] == ["#2", "a/b", "bob", "#5"]
    assert {failure["reason"] for failure in failures} == {"refused"}
    whole, lost = resolve_users([*good, user("daemon")], Policy(ROOT))
    assert [one["name"] for one in whole] == ["alice", "bob"]
    assert [failure["name"] for failure in lost] == ["daemon"]


def test_named_servers_are_one_name_with_several_keys():
    good, failures = parse_users(
        [{"name": "alice", "key": "alice/a"}, {"name": "alice", "key": "alice/b"}], "here"
    )
    assert [one["key"] for one in good] == ["alice/a", "alice/b"] and not failures


def test_a_failure_says_where():
    assert _users.failure(user(), "no", "role_failed", role="x", task="y") == {
        "key": "alice", "name": "alice", "reason": "role_failed", "msg": "no", "role": "x", "task": "y",
    }  # fmt: skip


@pytest.mark.parametrize(
    "policy", [Policy(ROOT, uid=65534, gid=100), Policy(ROOT, uid="request", gid="request")]
)
def test_nobody_is_no_user(policy):
    with pytest.raises(UserRefusedError, match="no user's"):
        resolve_user(user("nobody", uid=65534, gid=None if policy.gid == 100 else 100), policy)
