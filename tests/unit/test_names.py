"""The one policy for names."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_bootstrap.storage._names import (
    MAX_NAME,
    STATE_DIRECTORY,
    NameRefusedError,
    below,
    carries,
    check_directory,
    check_group,
    check_host,
    check_hub_name,
    check_key,
    check_name,
    component,
    sent_name,
)

GOOD = [
    "alice", "Alice", "alice.b", "a-b_c", "0", "1001", "_", "x@example.org", "x+y", "o'neil", "Ann Marie",
    "Zoë", "李雷", "аlice", "İ", "ß", "أحمد", "देवी", "waiting", "all", "localhost", "ungrouped", "user-00001", "null",
    "a" * MAX_NAME, "é" * 127,
]  # fmt: skip

BAD = {
    "": "empty",
    " ": "begins with",
    " alice": "begins with",
    "alice ": "does not end",
    "alice'": "does not end",
    "-rf": "begins with",
    ".": "begins with",
    "..": "begins with",
    ".bashrc": "begins with",
    "@all": "begins with",
    "+x": "begins with",
    "'": "begins with",
    "\u0301a": "begins with",
    "a/b": "letters, digits",
    "../etc": "letters, digits",
    "/etc": "letters, digits",
    "a\\b": "letters, digits",
    "a\nb": "letters, digits",
    "root\n": "letters, digits",
    "a\0b": "letters, digits",
    "a\tb": "letters, digits",
    "a\x7fb": "letters, digits",
    "\x1b[K": "letters, digits",
    "a\ud800": "letters, digits",
    "a\u202eb": "letters, digits",
    "a\u200bb": "letters, digits",
    "a\u00a0b": "letters, digits",
    "a\ue000b": "letters, digits",
    "{{ 7*7 }}": "letters, digits",
    "{% raw %}": "letters, digits",
    "$(id)": "letters, digits",
    "`id`": "letters, digits",
    "a;b": "letters, digits",
    "a|b": "letters, digits",
    "a&b": "letters, digits",
    "a>b": "letters, digits",
    'a"b': "letters, digits",
    "a*": "letters, digits",
    "a?b": "letters, digits",
    "~root": "letters, digits",
    "a:b": "letters, digits",
    "a,b": "letters, digits",
    "a=b": "letters, digits",
    "a!b": "letters, digits",
    "a#b": "letters, digits",
    "a%2fb": "letters, digits",
    "root": "root",
    "a" * (MAX_NAME + 1): "at most 128 characters",
    "a" * 200_000: "at most 128 characters",
    "李" * 86: "255 bytes",
    unicodedata.normalize("NFD", "Zoë"): "normal form C",
}


@pytest.mark.parametrize("name", GOOD)
def test_names_of_people_everywhere_are_good(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", BAD)
def test_a_bad_name_is_refused_by_the_rule_it_breaks(name):
    with pytest.raises(NameRefusedError, match=re.escape(BAD[name])) as refused:
        check_name(name)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 100, "the name is never repeated"


@pytest.mark.parametrize(
    "name", [*GOOD, "DOMAIN\\user", "oauth2|idp|id", "a|", "auth0|5f7c8ec7c33c6c004bbafe82"]
)
def test_names_of_directories_and_identity_providers_are_good_in_the_hub(name):
    assert check_hub_name(name) == name


@pytest.mark.parametrize(
    "name", [*(bad for bad in BAD if bad not in ("a\\b", "a|b")), "|a", "\\a", None, 7, b"a|b"]
)
def test_the_hub_takes_no_other(name):
    with pytest.raises(NameRefusedError):
        check_hub_name(name)


@given(st.text(max_size=40), st.text(max_size=40))
@example("a|b", component("a|b"))
@example(component("a|b"), component(component("a|b")))
def test_what_crosses_to_the_storage_host_keeps_to_the_policy_and_no_two_are_one(one, two):
    sent = sent_name(one)
    assert check_name(sent) == sent
    assert (sent == sent_name(two)) == (one == two)


@pytest.mark.parametrize("name", [None, 7, True, 1.5, ["alice"], {"name": "alice"}, b"alice"])
def test_what_is_no_text_is_no_name(name):
    with pytest.raises(NameRefusedError, match="must be a string"):
        check_name(name)


@given(st.text(max_size=300))
def test_whatever_passes_is_harmless(name):
    try:
        check_name(name)
    except NameRefusedError:
        return
    assert not set(name) & set('/\\\0\n\r\t"`$;|&<>*?~{}%()[]!#:=,^')
    assert name.isprintable() and name == name.strip()
    assert name[0] not in "-.@+"
    part = component(name)
    assert "/" not in part and part not in (".", "..", "", STATE_DIRECTORY)
    assert len(os.fsencode(part)) <= 255
    assert re.fullmatch(r"[a-z0-9_][a-z0-9_.-]*", part), "plain ASCII, lower case"


@given(st.text(max_size=40), st.text(max_size=40))
def test_two_names_never_meet_in_one_directory(one, two):
    assert (component(one) == component(two)) == (one == two)


def test_names_that_a_file_system_could_confuse_are_kept_apart():
    twins = [
        "alice",
        "Alice",
        "ALICE",
        "аlice",
        "İ",
        "i̇",
        "i",
        "a b",
        "a-b",
        "a_b",
        "a.b",
        "al x",
        "al-x020x",
        "straße",
        "strasse",
    ]
    parts = [component(name) for name in twins]
    assert len({part.casefold() for part in parts}) == len(twins)


def test_a_name_that_looks_like_a_slug_cannot_take_anothers_directory():
    victim = component("Alice")
    assert victim.startswith("alice-")
    assert component(victim) != victim
    assert component(component(victim)) not in (victim, component(victim))


def test_plain_names_are_their_own_directory():
    assert [component(name) for name in ("alice", "0", "a.b-c_d")] == ["alice", "0", "a.b-c_d"]
    assert component("x" * 63) == "x" * 63 and component("x" * 64) != "x" * 64


@pytest.mark.parametrize("key", ["alice", "alice/lab", "{{ x }}", "李", "a" * 512, "a b"])
def test_keys_are_any_printable_text(key):
    assert check_key(key) == key


@pytest.mark.parametrize("key", ["", "a" * 513, "a\n", "\x1b", "a\ud800", None, 3, "#3"])
def test_keys_that_would_spoil_a_log_or_pass_for_a_place_are_refused(key):
    with pytest.raises(NameRefusedError):
        check_key(key)


def test_groups_are_like_keys_but_for_the_places():
    assert check_group("#staff") == "#staff"
    with pytest.raises(NameRefusedError):
        check_group("staff\n")


@pytest.mark.parametrize("host", ["localhost", "store1", "store1.example.org", "10.0.0.1", "_x", "a-b"])
def test_hosts(host):
    assert check_host(host) == host


@pytest.mark.parametrize(
    "host",
    ["", "all", "ungrouped", "a,b", "a:b", "a*", "~a", "!a", "&a", "a[0]", "@file", "-a", ".a", "a.", "a b", "a\n", "é",
     "{{ x }}", "a" * 300, None, ["a"], 7, True],
)  # fmt: skip
def test_patterns_and_groups_are_no_host(host):
    with pytest.raises(NameRefusedError):
        check_host(host)


@pytest.mark.parametrize("directory", ["/v", "/volumes/alice", "/v/a b", "/v/{{ x }}", "/v/李"])
def test_directories(directory):
    assert check_directory(directory) == directory


@pytest.mark.parametrize(
    "directory",
    ["", "/", "//v", "v", "./v", "~", "/v/", "/v//a", "/v/.", "/v/..", "/v/../etc", "/v/./a", "/v\n", "/v/\0", "/v/\x1b",
     "/v/a\ud800", "/v/" + "a" * 4000, f"/v/{STATE_DIRECTORY}", f"/v/{STATE_DIRECTORY}/x",
     f"/v/{STATE_DIRECTORY.upper()}", "/v/Lost+Found/a", None, 7, ["/v"]],
)  # fmt: skip
def test_a_path_that_hides_something_is_no_directory(directory):
    with pytest.raises(NameRefusedError):
        check_directory(directory)


@given(st.lists(st.sampled_from(["a", "b", "..", ".", "", "volumes"]), max_size=6))
def test_what_is_below_the_root_stays_there(parts):
    path = "/volumes/" + "/".join(parts)
    try:
        root, inside = below(["/elsewhere", "/volumes"], check_directory(path))
    except NameRefusedError:
        return
    assert os.path.realpath(path).startswith("/volumes/")
    assert (root, list(inside)) == ("/volumes", path.split("/")[2:])


@pytest.mark.parametrize("directory", ["/volumes", "/volumesx/a", "/vol", "/etc", "/"])
def test_the_root_and_its_neighbours_are_not_below_it(directory):
    with pytest.raises(NameRefusedError):
        below(["/volumes"], directory)


@pytest.mark.parametrize(
    ("name", "path", "own"),
    [
        ("alice", "alice", True),
        ("alice", "Alice/gpu", True),
        ("jane.doe", "jane-2edoe", True),
        ("jane.doe", "jane_2Edoe", True),
        ("jane.doe", "students/jane%2edoe", True),
        ("Zoë", "zo-c3-ab", True),
        ("Alice", "-41lice", True),
        ("jane.doe@uni.example", component("jane.doe@uni.example"), True),
        ("jane.doe", f"jane-doe---{hashlib.sha256(b'jane.doe').hexdigest()[:8]}", True),
        ("jane.doe", f"jane-doe---{hashlib.sha256(b'jane-doe').hexdigest()[:8]}", False),
        ("alice", "shared/inbox", False),
        ("alice", "alice2", False),
        ("alice", "bob", False),
    ],
)
def test_whether_a_path_carries_a_name(name: str, path: str, own: bool) -> None:
    assert carries(name, path.split("/")) == own


def test_lost_and_found_is_nobodys_directory() -> None:
    with pytest.raises(NameRefusedError, match="lost"):
        check_directory("/volumes/lost+found")
