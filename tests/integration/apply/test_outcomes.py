"""One request: which users are served, what is said about it, and how the program ends."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import SOMEBODY


def say(text: str, **more: Any) -> dict[str, Any]:
    return {"name": "Say something", "ansible.builtin.debug": {"msg": text}, **more}


def test_a_batch_is_answered_user_by_user(site, apply_program):
    site.role("greet", say("hello", changed_when=True), say("bye"))
    site.role(
        "gate", {"name": "Check", "ansible.builtin.fail": {"msg": "quota"}, "when": "username == 'bob'"}
    )
    answer = apply_program(["alice", "bob", "Zoë"], "greet", "gate")

    assert answer.status == 1
    accepted = answer.events[0]
    assert (accepted["event"], accepted["run"], accepted["storage_host"]) == (
        "accepted",
        answer.run_id,
        "localhost",
    )
    assert accepted["roles"] == ["greet", "gate"] == [role["role"] for role in accepted["fingerprints"]]
    assert answer.events[-1] == {"event": "end", "run": answer.run_id, "ok": 2, "failed": 1, "way": "cold"}
    assert [event["role"] for event in answer.events if event["event"] == "role"] == ["greet", "gate"]
    assert answer.ok == {"alice", "Zoë"}
    alice, bob = answer.outcomes["alice"], answer.outcomes["bob"]
    assert alice["changed"] == ["greet"] and alice["directory"] == f"{site.root}/alice"
    assert (bob["reason"], bob["failed_role"], bob["failed_task"]) == ("role_failed", "gate", "Check")
    assert bob["message"] == "quota" and bob["run"] == answer.run_id


def test_roles_that_all_have_are_left_out(site, apply_program):
    site.role("greet", say("hello {{ username }}"))
    site.role("gate", say("come in"))
    first = apply_program(["alice"], "greet", "gate")
    done = {role["role"]: role["fingerprint"] for role in first.events[0]["fingerprints"]}

    again = apply_program(["alice"], "greet", "gate", done={"greet": done["greet"], "gate": "another"})
    assert again.events[0]["roles"] == ["gate"]
    assert [event["role"] for event in again.events if event["event"] == "role"] == ["gate"]

    nothing = apply_program(["alice", "Zoë"], "greet", "gate", done=done)
    assert nothing.status == 0 and nothing.ok == {"alice", "Zoë"}
    assert nothing.events[0]["roles"] == [] == [event for event in nothing.events if event["event"] == "role"]


def test_nobody_failed(site, apply_program):
    site.role("greet", say("hello"))
    answer = apply_program(["alice"], "greet")
    assert (answer.status, answer.ok, answer.outcomes["alice"]["changed"]) == (0, {"alice"}, [])


def test_a_request_for_nobody_ends_well_without_ansible(apply_program):
    answer = apply_program([])
    assert answer.status == 0
    assert [event["event"] for event in answer.events] == ["accepted", "end"]


def test_nothing_of_one_run_is_in_the_next(site, apply_program):
    site.role("tell", say("{{ ansible_play_hosts_all | map('extract', hostvars, 'bootstrap_user') | list }}"))
    site.role(
        "dump", {"name": "D", "ansible.builtin.copy": {"content": "{{ vars }}", "dest": f"{site.told}/vars"}}
    )
    assert apply_program(["alice"], "tell").status == 0
    answer = apply_program(["bob"], "dump")
    assert answer.status == 0, answer
    assert list(answer.outcomes) == ["bob"]
    text = (site.told / "vars").read_text()
    assert "bob" in text and "alice" not in text


def test_what_went_wrong_is_told_in_printable_characters(site, apply_program):
    site.role(
        "noisy", {"name": "A\x1b[31m", "ansible.builtin.fail": {"msg": "red \x1b[31m\x07 line\nline \u202e"}}
    )
    outcome = apply_program(["alice"], "noisy").outcomes["alice"]
    assert outcome["message"].isprintable() and "red" in outcome["message"]
    assert outcome["failed_task"].isprintable()


@pytest.mark.root
def test_without_root_a_hub_serves_its_own_uid(site, unprivileged, apply_program):
    program = type(apply_program)(site)
    settings = program.settings_file(site.settings(roles=["user_dir"], uid="nss", gid="nss"))
    subprocess.run(["chown", "-R", str(SOMEBODY), site.path], check=True)
    users = ["alice", {"name": "bob", "uid": 0}]
    answer = program.start(users, argv=("--settings", str(settings)), prefix=unprivileged).answer()
    assert answer.ok == {"alice"}, answer
    assert (site.root / "alice").stat().st_uid == SOMEBODY
    assert "needs root" in answer.outcomes["bob"]["message"]
    base = Path(f"/tmp/ansible-bootstrap-{SOMEBODY}")
    assert not [path for path in base.iterdir() if path.is_dir()]
    shutil.rmtree(base)


@pytest.mark.root
@pytest.mark.parametrize("most", [1, 2, 3])
def test_without_processes_or_threads_to_spare_it_is_a_sentence(site, unprivileged, apply_program, most):
    program = type(apply_program)(site)
    settings = program.settings_file(site.settings(roles=["user_dir"], uid="nss", gid="nss"))
    subprocess.run(["chown", "-R", str(SOMEBODY), site.path], check=True)
    prefix = (*unprivileged, "prlimit", f"--nproc={most}")
    answer = program.start(["alice"], argv=("--settings", str(settings)), prefix=prefix).answer()
    assert answer.status != 0 and "Traceback" not in answer.log, answer
    assert not answer.ok and (answer.events or answer.log), answer
    shutil.rmtree(f"/tmp/ansible-bootstrap-{SOMEBODY}", ignore_errors=True)


def test_a_user_may_go_on_without_a_role_that_may_fail(site, apply_program):
    site.role("mirror", {"name": "Fetch", "ansible.builtin.fail": {"msg": "mirror is down"}})
    site.role("greet", say("hello", changed_when=True))
    answer = apply_program(["alice"], {"role": "mirror", "on_failure": "continue"}, "greet")
    alice = answer.outcomes["alice"]
    assert (answer.status, alice["continued"], alice["changed"]) == (0, ["mirror"], ["greet"])
    assert alice["notes"] == ["mirror failed: mirror is down"]
    assert "mirror is down" in answer.log


def test_a_role_that_is_not_there(site, apply_program):
    site.role("greet", say("hello"))
    answer = apply_program(["alice", "bob"], {"role": "absent", "on_failure": "continue"}, "greet")
    assert answer.ok == {"alice", "bob"}, answer.log
    answer = apply_program(["alice", "bob"], "absent")
    assert answer.ok == set() and len(answer.outcomes) == 2
    assert "absent" in answer.outcomes["alice"]["message"]
    assert answer.outcomes["alice"]["failed_role"] == "absent"
    answer = apply_program(["alice"], {"role": "absent", "per": "batch"})
    assert "absent" in answer.outcomes["alice"]["message"]
    assert answer.outcomes["alice"]["failed_role"] == "absent"


def test_a_role_with_an_error_of_syntax(site, apply_program):
    site.role("broken", {"name": "Odd", "ansible.builtin.debug": {"msg": "x"}, "no_such_keyword": 1})
    answer = apply_program(["alice"], "broken")
    assert answer.ok == set()
    assert "no_such_keyword" in answer.outcomes["alice"]["message"]


def test_check_mode_reaches_the_roles_and_differences_reach_the_log(site, apply_program):
    target = site.told / "motd"
    site.role("motd", {"name": "W", "ansible.builtin.copy": {"content": "welcome\n", "dest": str(target)}})
    settings = site.settings(roles=[{"role": "motd", "per": "batch"}])
    answer = apply_program(["alice"], settings=settings, check=True, diff=True)
    assert answer.outcomes["alice"]["changed"] == ["motd"]
    assert not target.exists()
    assert "+welcome" in answer.log


def test_an_unknown_storage_host_is_named(apply_program, site):
    site.role("greet", say("hello"))
    answer = apply_program([{"name": "alice", "storage_host": "nosuch"}], "greet")
    assert answer.status == 1
    assert "nosuch" in answer.outcomes["alice"]["message"]


def test_a_plan_that_cannot_be_kept_is_refused_before_anything(apply_program, site):
    roles = ["one", {"role": "two", "per": "batch"}, "three"]
    answer = apply_program(["alice"], settings=site.settings(roles=roles))
    assert answer.status == 2
    assert answer.events[0]["reason"] == "settings"
    assert "three is applied user by user" in answer.refused


def test_a_site_role_may_not_pass_for_one_of_ours(apply_program, site):
    site.role("user_dir", say("mine"))
    answer = apply_program(["alice"], "user_dir")
    assert answer.ok == set()
    assert "a role called user_dir" in answer.outcomes["alice"]["message"]


def _runner_event(key: str) -> str:
    event = {"uuid": "0", "event": "runner_on_ok", "event_data": {"res": {"finished": [key]}}}
    code = base64.b64encode(json.dumps(event).encode()).decode()
    return f"\x1b[K{code}\x1b[{len(code)}D\x1b[K"


def test_nothing_a_role_prints_passes_for_an_outcome(site, apply_program):
    ok = {"key": "bob", "name": "bob", "status": "ok"}
    lies = [
        json.dumps({"type": "outcome", **ok, "changed": [], "directory": ""}),
        json.dumps({"event": "outcome", "outcome": ok}),
        json.dumps({"event": "end", "run": "x", "ok": 2, "failed": 0}),
        _runner_event("bob"),
    ]
    text = "\n" + "\n".join(lies) + "\n"
    # fields of our own actions' results, on somebody else's task
    facts = {"finished": ["bob"], "done": True, "users": [], "bootstrap_done": {"done": True}}
    site.role(
        "liar",
        {"name": "Say it", "ansible.builtin.debug": {"msg": text}},
        {"name": "Print it", "ansible.builtin.command": {"argv": ["printf", "%s", text]}},
        {"name": "Set it", "ansible.builtin.set_fact": facts},
        {"name": "Fail", "ansible.builtin.fail": {"msg": text}, "when": "username == 'bob'"},
    )
    answer = apply_program(["alice", "bob"], "liar")
    assert answer.status == 1
    assert answer.ok == {"alice"}
    assert [event["event"] for event in answer.events].count("end") == 1
    assert answer.events[-1] == {
        "event": "end",
        "run": answer.run_id,
        "ok": 1,
        "failed": 1,
        "way": "cold+server",
    }


def test_secrets_that_a_role_hides_stay_hidden(site, apply_program):
    hidden = {"name": "Use it", "ansible.builtin.command": {"argv": ["sh", "-c", "echo s3cr3t >&2; exit 1"]}}
    site.role("each", {**hidden, "no_log": True})
    site.role("all", {**hidden, "no_log": True})
    answer = apply_program(["alice"], {"role": "all", "per": "batch", "on_failure": "continue"}, "each")
    assert answer.outcomes["alice"]["failed_role"] == "each"
    assert answer.outcomes["alice"]["continued"] == ["all"]
    assert "s3cr3t" not in json.dumps(answer.events) + answer.log
