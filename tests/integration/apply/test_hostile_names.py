"""Hostile usernames, all in one batch with ordinary users, and the ordinary users are always served."""

from __future__ import annotations

import unicodedata

import pytest

from ansible_bootstrap.apply import runner
from ansible_bootstrap.protocol import User
from ansible_bootstrap.settings import make_settings

SPRUNG = "{sprung}"

REFUSED = {
    "lookup": "{{ lookup('pipe','touch {sprung}') }}",
    "statement": "{% set x = lookup('pipe','touch {sprung}') %}",
    "comment": "{# x #}",
    "substitution": "$(touch {sprung})",
    "backquote": "`touch {sprung}`",
    "separator": "a;touch {sprung}",
    "quotes": "a'\"b",
    "newline inside": "a\nb",
    "newline at the end": "root\n",
    "NUL": "a\0b",
    "forged event": "\x1b[KeyJ9\x1b[4D\x1b[K",
    "option": "-rf",
    "dot": ".",
    "dots": "..",
    "above": "../etc",
    "absolute": "/etc",
    "slash": "a/b",
    "backslash": "a\\b",
    "our directory": ".ansible_bootstrap",
    "tilde": "~root",
    "glob": "*",
    "spaces": "   ",
    "space at the end": "alice ",
    "root": "root",
    "long": "a" * 256,
    "very long": "a" * 200_000,
    "lone surrogate": "a\ud800",
    "decomposed": unicodedata.normalize("NFD", "Zoë"),
    "right to left": "a\u202eb",
    "zero width": "a\u200bb",
    "no-break space": "a\u00a0b",
}
NO_TEXT: list[object] = [
    ["alice"],
    {"name": ["alice"]},
    {"name": 7},
    {"name": None},
    {"name": True},
    {"name": ""},
    None,
]

SERVED = [
    "alice", "Alice", "bob", "waiting", "localhost", "ansible_bootstrap_waiting", "all", "ungrouped", "user-00000",
    "store", "staff", "0", "1001", "Zoë", "аlice", "İ", "o'neil", "a b", "x@example.org", "-".join("ab"), "_", "inventory_hostname",
]  # fmt: skip
"""Unusual, and nobody's harm; among them names that inventories and plays know in another sense."""


def test_every_hostile_name_is_refused_and_every_neighbour_served(site, apply_program):
    sprung = site.told / "sprung"
    site.role(
        "serve",
        {
            "name": "Serve {{ username }}",
            "ansible.builtin.file": {"path": "{{ user_dir }}", "state": "directory"},
        },
    )
    inventory = site.path / "inventory.ini"
    inventory.write_text("store ansible_connection=local\n[staff]\nstore\n")
    bad = [name.replace(SPRUNG, str(sprung)) for name in REFUSED.values()]
    users: list[object] = [*bad, *NO_TEXT, *SERVED]
    settings = site.settings(roles=[{"role": "serve", "as": "root"}], inventory=str(inventory))
    answer = apply_program.start(users, settings=settings).answer()

    assert not sprung.exists()
    assert answer.status == 1
    assert answer.ok == set(SERVED)
    assert len(answer.outcomes) == len(users)
    refused = [outcome for outcome in answer.outcomes.values() if outcome["status"] == "failed"]
    assert {outcome["reason"] for outcome in refused} == {"refused"}
    assert not [outcome for outcome in refused if len(outcome["message"]) > 200]
    directories = {answer.outcomes[name]["directory"] for name in SERVED}
    assert len(directories) == len({path.casefold() for path in directories}) == len(SERVED), "two names met"
    assert {str(path) for path in site.root.iterdir()} == directories
    assert all(char.isprintable() or char == "\n" for char in answer.log)


def test_where_the_validation_is_bypassed_the_playbook_refuses_too(site, tmp_path, monkeypatch):
    """Defence in depth: the records go straight to ansible-runner, as if nobody had looked at them."""
    site.role("serve", {"name": "Serve {{ username }}", "ansible.builtin.debug": {"msg": "{{ username }}"}})
    sprung = site.told / "sprung"
    names = [
        REFUSED[what].replace(SPRUNG, str(sprung))
        for what in ("lookup", "statement", "substitution", "above")
    ]
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    users = [
        User.model_construct(
            name=name, key=str(place), directory=None, uid=None, gid=None, storage_host=None, groups=()
        )
        for place, name in enumerate([*names, "alice"])
    ]
    settings = make_settings(site.settings(roles=["serve"]), "test")
    monkeypatch.setenv("PATH", runner.scrubbed_environment()["PATH"])
    run = runner.PlaybookRun(settings, "bootstrap", directory)
    run.give(settings.roles, users)
    run.start()
    run.join(60)
    assert not run.is_alive() and run.fault is None
    assert not sprung.exists()
    lines = runner.outcomes_file(directory).read_text().splitlines()
    assert len(
        [line for line in lines if '"status": "failed"' in line and '"reason": "refused"' in line]
    ) == len(names)
    assert len([line for line in lines if '"name": "alice"' in line and '"status": "ok"' in line]) == 1


@pytest.mark.root
@pytest.mark.parametrize(("policy", "served"), [("nss", set()), ("request", {"alice", "bob"})])
def test_the_policy_decides_which_uids_are_served(site, apply_program, policy, served):
    """Root never works for a system account, by any policy."""
    site.role("serve", {"name": "Serve", "ansible.builtin.debug": {"msg": "{{ user_uid }}"}})
    users = [
        {"name": "daemon", "key": "system user"},
        {"name": "0", "key": "a number that is root's"},
        {"name": "daemon", "key": "root", "uid": 0, "gid": 0},
        {"name": "eve", "key": "system uid", "uid": 1, "gid": 1000},
        {"name": "eve", "key": "system gid", "uid": 1000, "gid": 4},
        {"name": "alice", "uid": 1000, "gid": 1000},
        {"name": "bob", "uid": 60_000, "gid": 100},
    ]
    settings = {**site.settings(roles=["serve"]), "uid": policy, "gid": policy}
    answer = apply_program.start(users, settings=settings).answer()
    assert answer.ok == served
    assert len(answer.outcomes) == len(users)
