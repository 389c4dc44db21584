"""The callback that writes outcomes: which results it believes."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.callback import outcomes

OURS = "ansible_bootstrap.jupyterhub."
USERS = [{"key": name, "name": name, "directory": f"/v/{name}"} for name in ("alice", "bob")]


class Told:
    """Tells the callback what Ansible would, and reads what it wrote."""

    def __init__(self, path: Any) -> None:
        self.path = path
        self.callback = outcomes.CallbackModule()
        self.callback.get_option = lambda name: str(path) if name == "path" else ""
        self.callback.set_options()
        self.ok("batch", users=USERS, failures=[])

    def result(self, action: str, host: str = "", role: str = "", name: str = "Do it", **data: Any) -> Any:
        """A result as Ansible hands it over; ``host`` is a user's key, or empty for the storage host."""
        user = {"bootstrap_user": {"key": host}} if host else {}
        ours = action in ("batch", "outcome", "user_dir", "tutorials")
        return SimpleNamespace(
            _result=data,
            _host=SimpleNamespace(get_vars=lambda: user, get_name=lambda: host or "localhost"),
            _task=SimpleNamespace(
                resolved_action=OURS + action if ours else action,
                _role=SimpleNamespace(get_name=lambda: role) if role else None,
                get_name=lambda: name,
                _uuid=name,
            ),
        )

    def ok(self, action: str, *where: str, **data: Any) -> None:
        self.callback.v2_runner_on_ok(self.result(action, *where, **data))

    def failed(self, action: str, *where: str, **data: Any) -> None:
        self.callback.v2_runner_on_failed(self.result(action, *where, **data))

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All but how the modules ran, and that the run is over."""
        return [line for line in self.all_lines if line["type"] not in ("module", "over")]

    @property
    def all_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def outcome(self, key: str) -> dict[str, Any]:
        (found,) = [line for line in self.lines if line.get("key") == key]
        return found


@pytest.fixture
def told(tmp_path) -> Told:
    return Told(tmp_path / "outcomes")


def failure(key: str, **more: str) -> dict[str, Any]:
    return {"key": key, "name": key, "reason": "role_failed", "msg": "", "role": "r", "task": "t", **more}


def test_without_a_file_it_stands_aside(tmp_path):
    callback = outcomes.CallbackModule()
    callback.get_option = lambda name: ""
    callback.set_options()
    assert callback.disabled


def test_silence_is_failure(told):
    told.callback.v2_playbook_on_stats(None)
    assert {line["status"] for line in told.lines} == {"failed"}
    assert {line["key"] for line in told.lines} == {"alice", "bob"}


def test_the_word_of_other_actions_counts_for_nothing(told):
    for action in (
        "ansible.builtin.debug",
        "evil.jupyterhub.outcome",
        "outcomes",
        "ansible_bootstrap.jupyterhubx.outcome",
    ):
        told.ok(
            action, completed=["alice"], users=[], failures=[failure("bob")], continued=[failure("alice")]
        )
        told.failed(action, completed=["alice"], failures=[failure("bob")])
    assert told.lines == []


def test_each_gets_one_outcome_the_first(told):
    told.ok("outcome", completed=["alice"])
    told.ok("outcome", failures=[failure("alice")], completed=["alice", "nobody"])
    assert told.outcome("alice")["status"] == "ok"
    assert len(told.lines) == 1


def test_changes_and_notes_of_our_modules_go_to_their_users(told):
    users = [
        {"key": "alice", "changed": True, "notes": ["made \x1b[1mit"]},
        {"key": "bob", "changed": False},
    ]
    told.ok("user_dir", "", OURS + "user_dir", changed=True, users=users)
    told.ok("ansible.builtin.copy", "bob", "datasets", changed=True)
    told.ok("outcome", completed=["alice", "bob"])
    assert told.outcome("alice")["changed"] == ["user_dir"]
    assert told.outcome("alice")["notes"] == ["user_dir: made \\x1b[1mit"]
    assert told.outcome("bob")["changed"] == ["datasets"]


def test_a_failure_names_role_task_and_message(told):
    told.failed(
        "ansible.builtin.command",
        "alice",
        "datasets",
        name="datasets : Fetch",
        msg="rc 1",
        rc=1,
        stderr="no route",
    )
    told.failed("outcome", "alice", failures=[failure("alice", role="datasets", task="Fetch")])
    outcome = told.outcome("alice")
    assert (outcome["failed_role"], outcome["failed_task"]) == ("datasets", "Fetch")
    assert outcome["message"] == "rc 1: no route"
    assert outcome["reason"] == "role_failed"


def test_of_a_loop_the_item_that_failed_speaks(told):
    for host, said in (("alice", "this one"), ("bob", "another")):  # side by side
        item = told.result("ansible.builtin.command", host, "datasets", msg=said)
        told.callback.v2_runner_item_on_failed(item)
    told.failed("ansible.builtin.command", "alice", "datasets", msg="One or more items failed", results=[{}])
    told.failed("outcome", "alice", failures=[failure("alice")])
    assert told.outcome("alice")["message"] == "this one"


def test_unreachable_wins_over_the_role_it_struck(told):
    told.callback.v2_runner_on_unreachable(
        told.result("ansible.builtin.copy", "alice", "datasets", msg="timed out")
    )
    told.failed("outcome", failures=[failure("alice")])
    assert (told.outcome("alice")["reason"], told.outcome("alice")["message"]) == ("unreachable", "timed out")


def test_a_directory_that_cannot_be_made_says_nothing_against_the_host(told):
    said = "Task failed: Failed to create temporary directory. In some cases, you may have been able …"
    told.callback.v2_runner_on_unreachable(told.result("ansible.builtin.copy", "alice", "datasets", msg=said))
    told.failed("outcome", failures=[failure("alice")])
    assert told.outcome("alice")["reason"] == "role_failed"


def test_what_befell_the_batch_later_explains_more_than_what_befell_one_earlier(told):
    told.failed("ansible.builtin.command", "alice", "datasets", msg="rescued by the role itself")
    told.failed("ansible.builtin.command", "", "quota", msg="no quota")
    told.ok("outcome", failures=[failure("alice", role="quota")])
    assert told.outcome("alice")["message"] == "no quota"


def test_a_batch_that_cannot_begin_is_told_as_lost(tmp_path):
    told = Told(tmp_path / "outcomes")
    told.callback._users.clear()
    told.failed("batch", msg="the roles path has a role called user_dir")
    told.callback.v2_playbook_on_stats(None)
    assert told.lines == [
        {"type": "lost", "reason": "settings", "message": "the roles path has a role called user_dir"}
    ]


def test_continued_is_said_once_a_role(told):
    told.failed("ansible.builtin.command", "alice", "mirror", msg="mirror is down")
    for _ in range(2):
        told.ok("outcome", continued=[failure("alice", role="mirror")])
    told.ok("outcome", completed=["alice"])
    outcome = told.outcome("alice")
    assert (outcome["status"], outcome["continued"]) == ("ok", ["mirror"])
    assert outcome["notes"] == ["mirror failed: mirror is down"]


def test_messages_are_bounded_and_printable(told):
    told.failed(
        "ansible.builtin.command", "alice", "r", msg="\x1b[31m" + "x" * 100_000, stderr="\0\n" * 10_000
    )
    told.failed("outcome", "alice", failures=[failure("alice")])
    message = told.outcome("alice")["message"]
    assert message.isprintable() and len(message) < 10_000


def test_what_the_module_fetched_is_passed_on_also_if_somebody_failed(told):
    users = [{"key": "alice", "changed": True}]
    told.ok("tutorials", "", OURS + "tutorials", users=users, fetched=2)
    told.failed("tutorials", "", OURS + "tutorials", users=users, fetched=1, msg="1 of 2 users failed")
    told.ok("tutorials", "", OURS + "tutorials", users=users, fetched=0)
    assert told.lines == [
        {"type": "fetched", "role": "tutorials", "count": 2},
        {"type": "fetched", "role": "tutorials", "count": 1},
    ]


def test_nobody_else_has_fetched_anything(told):
    told.ok("ansible.builtin.get_url", "", "datasets", fetched=5)
    told.ok("evil.jupyterhub.tutorials", "", "datasets", users=[], fetched=5)
    assert told.lines == []


def test_how_a_module_ran_and_the_end_of_the_run_are_told(told):
    users = [{"key": "alice", "changed": False, "failed": False, "msg": "", "notes": []}]
    told.ok("user_dir", "", OURS + "user_dir", users=users, in_worker=True)
    told.ok("tutorials", "", OURS + "tutorials", users=users)
    told.callback.v2_playbook_on_stats(None)
    lines = [line for line in told.all_lines if line["type"] in ("module", "over")]
    assert lines == [
        {"type": "module", "way": "worker"},
        {"type": "module", "way": "ansible"},
        {"type": "over"},
    ]
    assert told.all_lines[-1] == {"type": "over"}, "whoever has no outcome yet gets one before"
