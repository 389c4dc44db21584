"""A role of the site's, written as if for one user, and applied to a batch of users."""

from __future__ import annotations

import json
import os
import re

import pytest

CALLED = ["waiting", "all", "localhost", "ungrouped", "staff", "store", "user-00003"]
"""Students whose names mean something else to Ansible: patterns, groups, hosts."""


def told(site) -> dict[str, str]:
    return {path.name: path.read_text() for path in site.told.iterdir()}


def tell(site, name: str = "Tell", **more) -> dict[str, object]:
    """A task that leaves a file named after the user."""
    words = "{{ user_dir }} {{ user_uid }} {{ user_gid }} {{ storage_host }}"
    copy = {"content": words, "dest": f"{site.told}/{{{{ username }}}}"}
    return {"name": name, "ansible.builtin.copy": copy, **more}


def test_one_user_of_a_batch_fails_alone(site, apply_program):
    site.role(
        "datasets",
        tell(site),
        {
            "name": "Check the quota",
            "ansible.builtin.fail": {"msg": "disk quota"},
            "when": "username == 'student07'",
        },
    )
    inventory = site.path / "inventory.ini"
    inventory.write_text(
        "[staff]\nstore ansible_connection=local ansible_python_interpreter=/usr/bin/python3\n"
    )
    names = CALLED + [f"student{number:02}" for number in range(5, 9)]
    users = [{"name": name, "storage_host": "store"} for name in names]
    settings = site.settings(roles=["datasets"], inventory=str(inventory))
    answer = apply_program(users, settings=settings)

    assert answer.status == 1
    assert answer.ok == set(names) - {"student07"}
    failed = answer.outcomes["student07"]
    assert (failed["failed_role"], failed["failed_task"]) == ("datasets", "Check the quota")
    assert (failed["message"], failed["reason"]) == ("disk quota", "role_failed")
    assert answer.outcomes["waiting"]["changed"] == ["datasets"]
    assert set(told(site)) == set(names)
    uid, gid = (settings.get("uid", os.geteuid()), settings.get("gid", os.getegid()))
    assert told(site)["all"] == f"{site.root}/all {uid} {gid} store"


def test_five_users_at_once(site, apply_program):
    """per: batch: one task for all, and the role finds the users as a list."""
    where = site.path / "list"
    task = {
        "name": "List",
        "ansible.builtin.copy": {"content": "{{ bootstrap_users | to_json }}", "dest": str(where)},
    }
    site.role(
        "class_list",
        task,
        {"name": "Count", "ansible.builtin.debug": {"msg": "{{ bootstrap_users | length }}"}},
    )
    names = ["all", "bob", "carol", "localhost", "waiting"]
    answer = apply_program(names, {"role": "class_list", "per": "batch"})
    assert (answer.status, answer.ok) == (0, set(names))
    assert all(outcome["changed"] == ["class_list"] for outcome in answer.outcomes.values())
    text = where.read_text()
    assert all(f'"name": "{name}"' in text for name in names)
    assert text.count('"directory"') == 5


WHERE = {
    "block": [{"name": "Block", "block": ["FAIL"]}],
    "rescue": [
        {"name": "Block", "block": [{"name": "First", "ansible.builtin.fail": {}}], "rescue": ["FAIL"]}
    ],
    "always": [
        {"name": "Block", "block": [{"name": "Fine", "ansible.builtin.debug": {}}], "always": ["FAIL"]}
    ],
    "imported": [{"name": "Import", "ansible.builtin.import_tasks": "more.yml"}],
    "included": [{"name": "Include", "ansible.builtin.include_tasks": "more.yml"}],
    "inner": [{"name": "Inner", "ansible.builtin.include_role": {"name": "inner"}}],
    "loop": [
        {"name": "Fail", "ansible.builtin.fail": {"msg": "no luck"}, "loop": [1, 2], "when": "item == 2"}
    ],
    "template": [{"name": "Fail", "ansible.builtin.debug": {"msg": "{{ no_luck }}"}}],
    "module": [
        {"name": "Fail", "ansible.builtin.command": {"argv": ["sh", "-c", "echo no luck >&2; exit 3"]}}
    ],
    "nowhere": [{"name": "Fine", "ansible.builtin.debug": {}}],
}
"""Each fails in a role of its own, for the user called like it."""

FAIL = {"name": "Fail", "ansible.builtin.fail": {"msg": "no luck"}}


def _with_failure(tasks):
    return json.loads(json.dumps(tasks).replace('"FAIL"', json.dumps(FAIL)))


def test_a_failure_is_one_users_wherever_it_is(site, apply_program):
    site.role("inner", FAIL)
    for where, tasks in WHERE.items():
        site.role(f"in_{where}", *_with_failure(tasks), tasks_more=[FAIL])
    site.role("odd", {"name": "Apply", "ansible.builtin.include_role": {"name": "in_{{ username }}"}})
    site.role("next", tell(site))
    answer = apply_program(list(WHERE), "odd", "next")
    assert answer.ok == {"nowhere"}, answer
    assert set(told(site)) == {"nowhere"}, "who had failed was touched by the next role"
    for where in set(WHERE) - {"nowhere"}:
        outcome = answer.outcomes[where]
        assert re.search("no.luck", outcome["message"]), (where, outcome)
        assert (outcome["failed_role"], outcome["failed_task"]) == ("odd", "Fail"), (where, outcome)


@pytest.mark.parametrize("where", ["handler", "dependency"])
def test_a_failure_of_what_a_role_brings_along(site, apply_program, where):
    only_bob = {**FAIL, "when": "username == 'bob'"}
    if where == "handler":
        site.role("odd", tell(site, notify="Fail", changed_when=True), handlers=[only_bob])
    else:
        site.role("inner", only_bob)
        site.role("odd", tell(site), meta={"dependencies": [{"role": "inner"}]})
    site.role("next", {"name": "Next", "ansible.builtin.debug": {}, "changed_when": True})
    answer = apply_program(["alice", "bob"], "odd", "next")
    assert answer.ok == {"alice"}, answer
    bob = answer.outcomes["bob"]
    assert (bob["failed_role"], bob["failed_task"], bob["message"]) == ("odd", "Fail", "no luck")
    assert "next" not in bob["changed"] and "next" in answer.outcomes["alice"]["changed"]


def test_a_failure_that_the_role_itself_rescues_is_none(site, apply_program):
    rescue = [{"name": "Recover", "ansible.builtin.debug": {}}]
    site.role("careful", {"name": "Try", "block": [FAIL], "rescue": rescue}, {**FAIL, "ignore_errors": True})
    answer = apply_program(["alice"], "careful")
    assert (answer.status, answer.ok) == (0, {"alice"})
    assert answer.outcomes["alice"]["message"] == ""


def test_an_argument_of_the_wrong_type(site, apply_program):
    site.role(
        "typed",
        tell(site),
        meta_argument_specs={
            "argument_specs": {"main": {"options": {"typed_count": {"type": "int", "required": True}}}}
        },
    )
    settings = site.settings(roles=["typed"], extra_vars={"typed_count": "many"})
    answer = apply_program(["alice"], settings=settings)
    assert answer.ok == set()
    assert "typed_count" in answer.outcomes["alice"]["message"]
    assert answer.outcomes["alice"]["failed_role"] == "typed"
    assert not told(site)
    settings["extra_vars"]["typed_count"] = "{{ 40 + 2 }}"
    assert apply_program(["alice"], settings=settings).ok == {"alice"}


def test_an_argument_of_the_wrong_type_for_a_whole_batch(site, apply_program):
    options = {"typed_count": {"type": "int", "required": True}}
    site.role(
        "typed",
        {"name": "Say", "ansible.builtin.debug": {}},
        meta_argument_specs={"argument_specs": {"main": {"options": options}}},
    )
    roles = [{"role": "typed", "per": "batch"}]
    settings = site.settings(roles=roles, extra_vars={"typed_count": "many"})
    answer = apply_program(["alice", "bob"], settings=settings)
    assert answer.ok == set()
    assert {outcome["failed_role"] for outcome in answer.outcomes.values()} == {"typed"}
    assert "typed_count" in answer.outcomes["alice"]["message"]
    settings["extra_vars"]["typed_count"] = 42
    assert apply_program(["alice", "bob"], settings=settings).ok == {"alice", "bob"}


@pytest.mark.parametrize("variable", ["user_dir_child_timeout", "user_dir_enforce_mode", "user_dir_uid_min"])
def test_an_argument_of_the_wrong_type_for_a_role_of_ours(site, apply_program, variable):
    settings = site.settings(roles=["user_dir"], extra_vars={variable: "many"})
    answer = apply_program(["alice"], settings=settings)
    assert answer.ok == set()
    alice = answer.outcomes["alice"]
    # By the module, and not by Ansible before it, which costs a sixth of a run.
    assert (alice["failed_role"], alice["failed_task"]) == (
        "user_dir",
        "Give every user of the batch a directory",
    )
    assert variable.removeprefix("user_dir_") in alice["message"]


def test_facts_of_one_user_are_not_anothers(site, apply_program):
    site.role(
        "facts",
        {"name": "Set", "ansible.builtin.set_fact": {"mine": "{{ username }}"}},
        {"name": "Compare", "ansible.builtin.assert": {"that": ["mine == username"]}},
        {"name": "Ask", "ansible.builtin.command": {"argv": ["echo", "{{ username }}"]}, "register": "asked"},
        {"name": "Compare again", "ansible.builtin.assert": {"that": ["asked.stdout == username"]}},
    )
    names = [f"student{number}" for number in range(4)]
    answer = apply_program(names, "facts")
    assert answer.ok == set(names), answer


def test_users_are_served_side_by_side(site, apply_program):
    """Each waits for all the others: one after the other, none would ever come through."""
    meet = 'touch "$0/$1"; until [ $(ls "$0" | wc -l) = 4 ]; do sleep 0.05; done'
    argv = ["sh", "-c", meet, str(site.told), "{{ username }}"]
    site.role("meet", {"name": "Meet", "ansible.builtin.command": {"argv": argv}})
    settings = site.settings(roles=["meet"], forks=4, task_timeout=20)
    names = {"alice", "bob", "carol", "dave"}
    assert apply_program(sorted(names), settings=settings).ok == names


def test_an_outcome_is_reported_as_soon_as_the_user_is_done(site, apply_program):
    """The last user sleeps; the first has an outcome long before."""
    gate = site.told / "gate"
    wait = f"until [ -e {gate} ]; do sleep 0.05; done"
    hold = {
        "name": "Hold",
        "ansible.builtin.command": {"argv": ["sh", "-c", wait]},
        "when": "username == 'slow'",
    }
    site.role("hold", hold)
    running = apply_program.start(["slow", "quick"], settings=site.settings(roles=["hold"]))
    running.wait_for(lambda: [event for event in running.events() if event["event"] == "outcome"])
    assert [event["outcome"]["key"] for event in running.events() if event["event"] == "outcome"] == ["quick"]
    gate.touch()
    assert running.answer().ok == {"slow", "quick"}


@pytest.mark.parametrize("per", ["user", "batch"])
def test_handlers_run_before_the_next_role(site, apply_program, per):
    line = {"ansible.builtin.shell": {"cmd": f"echo {{{{ item }}}} >> {site.told}/order"}}
    site.role(
        "first",
        {"name": "Notify", "ansible.builtin.debug": {}, "changed_when": True, "notify": "Follow"},
        handlers=[{"name": "Follow", **line, "loop": ["handler"]}],
    )
    site.role("second", {"name": "Second", **line, "loop": ["second"]})
    answer = apply_program(["alice"], {"role": "first", "per": per}, {"role": "second", "per": per})
    assert answer.status == 0
    assert (site.told / "order").read_text().split() == ["handler", "second"]


def test_a_handler_that_may_fail(site, apply_program):
    site.role("odd", tell(site, notify="Fail"), handlers=[FAIL])
    answer = apply_program(["alice"], {"role": "odd", "on_failure": "continue"})
    assert answer.ok == {"alice"}
    assert answer.outcomes["alice"]["continued"] == ["odd"]
