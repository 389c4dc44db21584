"""What holds for every name, key, directory and record: whatever is accepted is harmless, distinct, and stays as it is."""

from __future__ import annotations

import itertools
import json
import posixpath
import unicodedata
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_bootstrap.storage import _batch, _sources, _users
from ansible_bootstrap.storage._errors import StorageError, printable
from ansible_bootstrap.storage._names import (
    STATE_DIRECTORY,
    NameRefusedError,
    below,
    check_directory,
    check_key,
    check_name,
    component,
)
from ansible_bootstrap.storage._users import Policy, UserRefusedError
from tests.fuzz import targets

# Names that are near each other, which random text hardly ever is.
NEAR = st.text(alphabet="aAbBéÉеİıſsßK1 .-_'@+", min_size=1, max_size=12)
NAME = NEAR | st.text(min_size=1, max_size=30)
PART = st.sampled_from(
    ["", ".", "..", "a", "A", "b c", STATE_DIRECTORY, STATE_DIRECTORY.upper(), "é", "\x1b", "~"]
)
PATH = st.lists(PART | st.text(max_size=5), max_size=6).map("/".join)


def _folded(text: str) -> str:
    """As the least discerning file system has it."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", text).casefold())


@given(NAME, NAME)
@example("Alice", "alice")
@example("\u00e9", "e\u0301")
@example("\u212a", "K")
@example("al x", "al\\x020x")
def test_no_two_names_share_a_directory_even_where_case_and_form_are_folded(one: str, two: str) -> None:
    assert (_folded(component(one)) == _folded(component(two))) == (one == two)


@given(NAME)
def test_a_component_is_a_directory_of_its_own_below_the_root(name: str) -> None:
    directory = f"/volumes/{component(name)}"
    assert check_directory(directory) == directory
    assert below(["/volumes"], directory)[1] == (component(name),)


@given(PATH, PATH)
def test_a_directory_that_is_accepted_is_the_one_it_says(root: str, rest: str) -> None:
    directory = f"/{root}/{rest}"
    try:
        parts = below([f"/{root}"], check_directory(directory))[1]
    except NameRefusedError as error:
        assert str(error).isprintable()
        return
    assert posixpath.join(posixpath.normpath(f"/{root}"), *parts).replace("//", "/") == directory
    assert not {"", ".", ".."} & set(parts)
    assert STATE_DIRECTORY not in [part.casefold() for part in parts]


@given(st.text(max_size=20) | st.sampled_from(["#1", "#", "", "a\n", "a b"]))
def test_a_key_that_is_accepted_spoils_no_log_and_passes_for_no_place(key: str) -> None:
    try:
        check_key(key)
    except NameRefusedError:
        return
    assert key
    assert key.isprintable()
    assert not key.startswith("#")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
ID = st.integers(-1, 3000) | st.sampled_from([2**32 - 1, 2**32, 0])
RECORD = st.fixed_dictionaries(
    {"name": NAME},
    optional={
        "key": NAME | ANYTHING,
        "directory": PATH.map(lambda path: f"/volumes/{path}") | ANYTHING,
        "uid": ID | ANYTHING,
        "gid": ID | ANYTHING,
        "storage_host": st.sampled_from(["localhost", "all", "a:b", "*"]) | ANYTHING,
        "also": st.lists(PATH.map(lambda path: f"/volumes/{path}") | ANYTHING, max_size=9) | ANYTHING,
        "groups": st.lists(NAME | ANYTHING, max_size=2) | ANYTHING,
        "ansible_connection": ANYTHING,
    },
)
POLICY = st.builds(
    Policy,
    root=st.just("/volumes"),
    uid=st.sampled_from(["nss", "request"]) | st.integers(1, 70000),
    gid=st.sampled_from(["nss", "request", None]) | st.integers(1, 70000),
    uid_min=st.integers(500, 1500),
    uid_max=st.integers(2000, 70000),
)


@given(RECORD | ANYTHING, POLICY, st.sampled_from([0, 1000]))
def test_every_user_of_a_run_is_within_the_admins_bounds(raw: Any, policy: Policy, euid: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_users.os, "geteuid", lambda: euid)
        try:
            user = _users.resolve_user(_users.parse_user(raw), policy)
        except UserRefusedError as error:
            assert str(error).isprintable()
            return
    assert check_name(user["name"]) == raw["name"]
    assert all(below(["/volumes"], directory) for directory in (user["directory"], *user["also"]))
    if euid == 0:
        assert policy.uid_min <= user["uid"] <= policy.uid_max
        assert user["uid"] != 0
    else:
        assert user["uid"] == euid
    again = _users.parse_user(json.loads(json.dumps(user)))
    assert again == user, "what is sent is what was meant"


@given(st.lists(RECORD | ANYTHING, max_size=5), st.booleans())
def test_a_module_has_one_result_for_each_record_and_one_claim_for_each_directory(
    raw: list[Any], also: bool
) -> None:
    keys, whose, refused = _batch._claim(raw, "/volumes", 1000, also=also)
    claims = set(itertools.chain(*whose.values()))
    assert len(keys) == len(raw)
    assert sorted([*whose, *refused]) == sorted(keys)
    assert all(some and some[0].main for some in whose.values())
    assert len(set(keys)) == len(keys)
    assert len({claim.home.parts for claim in claims}) == len(claims)
    for one in claims:
        assert one.home.uid >= 1000
        for two in claims:
            apart = two.home.parts[: len(one.home.parts)] != one.home.parts
            assert apart or (one.home.name, one.home.uid) == (two.home.name, two.home.uid)
    assert all(message.isprintable() for message in refused.values())


@given(st.lists(RECORD | ANYTHING, max_size=4))
def test_both_sides_of_the_boundary_answer_every_record(raw: list[Any]) -> None:
    targets.users(raw)


@given(
    st.dictionaries(st.sampled_from(["operation", "users", "check", "diff", "x"]), ANYTHING, max_size=4)
    | st.fixed_dictionaries(
        {
            "operation": st.sampled_from(["bootstrap", "cleanup", "describe"]),
            "users": st.lists(RECORD | ANYTHING, max_size=3),
        }
    )
)
def test_a_request_is_refused_or_is_what_it_says(raw: Any) -> None:
    targets.request(json.dumps(raw, default=str).encode() + b"\n")


SOURCE = st.fixed_dictionaries(
    {"name": st.sampled_from(["course", "b", "../c", ""]) | ANYTHING},
    optional={
        "url": st.sampled_from(
            ["https://example.org/a.zip", "file:///etc/passwd", "http://u:p@h/", "http://[", "http:// x"]
        )
        | ANYTHING,
        "path": st.sampled_from(["/srv/a", "b"]) | ANYTHING,
        "dest": PATH | ANYTHING,
        "checksum": ANYTHING,
        "strip_components": st.integers(-1, 60) | ANYTHING,
    },
)


@given(st.lists(SOURCE | ANYTHING, max_size=3) | ANYTHING)
def test_a_tutorial_is_put_inside_the_home_or_refused(raw: Any) -> None:
    try:
        sources = _sources.parse_sources(raw)
    except StorageError as error:
        assert str(error).isprintable()
        return
    for source in sources:
        assert source.dest
        assert not {"", ".", ".."} & set(source.dest)
        assert "/" not in "".join(source.dest)
        assert not source.dest[0].startswith(STATE_DIRECTORY)
        assert bool(source.url) != bool(source.path)
        assert not source.url or source.url.startswith(("http://", "https://"))


@given(st.text())
@example("\ud800")
@example("\x1b[K\u202e")
def test_whatever_is_quoted_can_be_printed(text: str) -> None:
    assert printable(text).isprintable()
    assert not printable(text) or printable(text).encode("utf-8")
