"""Faults on the control node."""

from __future__ import annotations

import time

import pytest

GREET = {"name": "Greet", "ansible.builtin.debug": {"msg": "hello"}}


@pytest.mark.root
@pytest.mark.parametrize("limit", ["size=4k", "size=64k,nr_inodes=4", "size=24k", "ro"])
def test_a_full_disk_under_the_runs_directory_is_a_clear_fault(site, apply_program, limit):
    site.role("greet", GREET)
    base = "/run/ansible-bootstrap"
    setup = f'mkdir -p -m 700 {base}; mount -t tmpfs -o mode=700,{limit} tmpfs {base}; exec "$@"'
    prefix = ("unshare", "--mount", "--propagation", "private", "sh", "-c", setup, "sh")
    begin = time.monotonic()
    answer = apply_program.start(["alice"], settings=site.settings(roles=["greet"]), prefix=prefix).answer(30)
    assert time.monotonic() - begin < 20
    assert "Traceback" not in answer.log
    last = answer.events[-1]
    if last["event"] == "refused":
        assert (answer.status, last["reason"]) == (2, "apply_failed")
        text = last["message"]
    else:
        assert answer.status == 1 and answer.outcomes["alice"]["reason"] == "apply_failed", answer
        text = answer.outcomes["alice"]["message"]
    assert "No space left" in text or "Read-only" in text, text


@pytest.mark.root
def test_a_run_directory_that_is_somebody_elses_is_refused(site, apply_program):
    site.role("greet", GREET)
    base = "/run/ansible-bootstrap"
    for spoil, said in (("chmod 755", "is not a private directory"), ("chown 12345", "belongs to uid 12345")):
        setup = f'mkdir -p -m 700 {base}; mount -t tmpfs -o mode=700 tmpfs {base}; {spoil} {base}; exec "$@"'
        prefix = ("unshare", "--mount", "--propagation", "private", "sh", "-c", setup, "sh")
        answer = apply_program.start(
            ["alice"], settings=site.settings(roles=["greet"]), prefix=prefix
        ).answer()
        assert answer.events[-1]["event"] == "refused"
        assert f"{base} {said}" in answer.events[-1]["message"]


def test_an_inventory_that_is_not_there_is_a_matter_of_settings(site, apply_program):
    site.role("greet", GREET)
    settings = site.settings(roles=["greet"], inventory=str(site.path / "absent.yml"))
    answer = apply_program.start([{"name": "alice", "storage_host": "store"}], settings=settings).answer()
    assert answer.status == 2
    assert answer.events[0]["reason"] == "settings"
    assert (
        "absent.yml' is neither the absolute path of an inventory nor a list" in answer.events[0]["message"]
    )


def test_a_host_that_the_inventory_does_not_have_is_one_too(site, apply_program):
    settings = site.settings(roles=["user_dir"], inventory="store1,store2")
    answer = apply_program.start([{"name": "alice", "storage_host": "store"}], settings=settings).answer()
    assert answer.status == 1
    assert answer.outcomes["alice"]["reason"] == "settings"
    assert "no host called store" in answer.outcomes["alice"]["message"]


def test_a_hundred_users_have_a_hundred_outcomes_and_one_run(site, apply_program):
    site.role("greet", GREET)
    names = [f"student{number:03}" for number in range(100)]
    answer = apply_program(names, {"role": "greet", "per": "batch"})
    assert answer.ok == set(names)
    assert [event["event"] for event in answer.events].count("role") == 1


def test_a_role_that_hangs_for_one_costs_only_that_one(site, apply_program):
    hang = {
        "name": "Hang",
        "ansible.builtin.command": {"argv": ["sleep", "600"]},
        "when": "username == 'bob'",
    }
    site.role("greet", hang, GREET)
    begin = time.monotonic()
    settings = site.settings(roles=["greet"], task_timeout=2)
    answer = apply_program.start(["alice", "bob", "carol"], settings=settings).answer(30)
    assert time.monotonic() - begin < 15
    assert answer.ok == {"alice", "carol"}
    assert answer.outcomes["bob"]["failed_task"] == "Hang"
    assert "2" in answer.outcomes["bob"]["message"]


def test_runs_side_by_side_leave_each_other_alone(site, apply_program):
    """Each makes its directory while the others sweep."""
    site.role("greet", GREET)
    settings = site.settings(roles=["greet"])
    running = [apply_program.start([f"user{number}"], settings=settings) for number in range(6)]
    for number, one in enumerate(running):
        answer = one.answer()
        assert answer.ok == {f"user{number}"}, answer


def test_a_role_for_the_batch_that_hangs_is_ended_too(site, apply_program):
    site.role("hang", {"name": "Hang", "ansible.builtin.command": {"argv": ["sleep", "600"]}})
    roles = ["user_dir", {"role": "hang", "per": "batch", "on_failure": "continue"}]
    answer = apply_program.start(["alice"], settings=site.settings(roles=roles, task_timeout=2)).answer(30)
    assert answer.ok == {"alice"}
    assert answer.outcomes["alice"]["continued"] == ["hang"]
    assert answer.outcomes["alice"]["changed"] == ["user_dir"]
