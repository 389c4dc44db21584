"""The request line and the events."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_bootstrap.errors import RefusedError
from ansible_bootstrap.protocol import (
    MAX_REQUEST_BYTES,
    Accepted,
    End,
    Outcome,
    OutcomeEvent,
    Request,
    User,
    parse_event,
    parse_request,
    parse_users,
)
from ansible_bootstrap.storage._users import parse_user


def line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def test_a_request():
    request = parse_request(line({"operation": "bootstrap", "users": [{"name": "alice"}], "check": True}))
    assert (request.operation, request.check, request.diff) == ("bootstrap", True, False)
    assert request.users == [{"name": "alice"}]


def test_what_is_written_can_be_read():
    request = Request(
        operation="cleanup", users=[User(name="Zoë", uid=1, groups=("a",)).model_dump(mode="json")]
    )
    assert parse_request(request.model_dump_json().encode() + b"\n") == request
    (user,), refused = parse_users(parse_request(request.model_dump_json().encode() + b"\n").users)
    assert user == User(name="Zoë", key="Zoë", uid=1, groups=("a",)) and not refused


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (b"", "newline"),
        (b"{}", "newline"),
        (b"{}\n", "operation"),
        (b"[]\n", "malformed"),
        (b'"x"\n', "malformed"),
        (b'{"operation": "bootstrap"\n', "malformed"),
        (b'{"operation": "bootstrap", "operation": "bootstrap"}\n', "twice"),
        (b'{"operation": "bootstrap", "users": [{"a": {"b": 1, "b": 2}}]}\n', "twice"),
        (b'{"operation": "bootstrap", "users": [Infinity]}\n', "Infinity"),
        (b'{"operation": "bootstrap", "users": {}}\n', "users"),
        (b'{"operation": "bootstrap", "check": 1}\n', "check"),
        (b'{"operation": "bootstrap", "ansible_connection": "local"}\n', "ansible_connection"),
        (b"\xff\n", "malformed"),
        (b"[" * 200_000 + b"\n", "malformed"),
        (b" " * MAX_REQUEST_BYTES + b"\n", "longer"),
    ],
)
def test_malformed_requests(raw, rule):
    with pytest.raises(RefusedError, match=rule):
        parse_request(raw)


@given(st.binary(max_size=200))
def test_whatever_comes_is_a_request_or_refused(raw):
    try:
        parse_request(raw + b"\n")
    except RefusedError as error:
        assert len(error.details) < 1000


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELD = st.sampled_from(["name", "key", "directory", "uid", "gid", "storage_host", "groups", "also", "other"])
USER = (
    st.dictionaries(
        FIELD, ANYTHING | st.sampled_from(["alice", "#1", "/v/a", ["/v/b"], ["/v/b"] * 9]), max_size=5
    )
    | ANYTHING
)


@given(st.lists(USER, max_size=6))
def test_every_record_gets_exactly_one_answer(raw):
    good, refused = parse_users(raw)
    assert len(good) + len(refused) == len(raw)
    keys = [user.key for user in good] + [outcome.key for outcome in refused]
    assert len(set(keys)) == len(keys)
    for outcome in refused:
        assert outcome.reason == "refused" and outcome.message
        json.dumps(outcome.model_dump(mode="json")).encode("ascii")


@given(USER)
def test_the_storage_host_agrees_on_what_a_user_is(raw):
    """Both sides of the boundary parse alone; what the one lets through is no surprise to the other."""
    good, _ = parse_users([raw])
    if good:
        record = parse_user(good[0].model_dump(mode="json"))
        assert record["name"] == good[0].name and record["key"] == good[0].key
        assert record["also"] == list(good[0].also)


def test_hostile_input_is_not_repeated():
    _, (outcome,) = parse_users([{"name": "x", "{{ evil }}\x1b": 1}])
    assert "\x1b" not in outcome.message


def test_events():
    outcome = Outcome(key="a", name="a", status="ok", changed=("user_dir",))
    for event in (
        Accepted(run="r", storage_host="h"),
        OutcomeEvent(outcome=outcome),
        End(run="r", ok=1, failed=0),
    ):
        assert parse_event(event.model_dump_json().encode()) == event


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"x",
        b"{}",
        b'{"event": "x"}',
        b'{"event": "end", "run": "r", "ok": "1", "failed": 0}',
        b'{"event": "end", "run": "r", "ok": 1, "failed": 0, "x": 1}',
    ],
)
def test_what_is_no_event(raw):
    with pytest.raises(ValueError):
        parse_event(raw)


def test_further_directories_are_few_and_judged_as_the_first_is():
    also = [f"/v/{number}" for number in range(9)]
    good, refused = parse_users(
        [
            {"name": name, "also": some}
            for name, some in zip("abc", (also[:8], also, ["/v/../x"]), strict=True)
        ]
    )
    assert [user.also for user in good] == [tuple(also[:8])]
    assert ["at most 8" in refused[0].message, "no '..'" in refused[1].message] == [True, True]
