"""The role cleanup: check, converge, converge again, be killed half-way."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.roles.conftest import Playbook, Storage

Book = Callable[..., Playbook]

PATHS = [".cache/pip", {"path": "scratch/*", "older_than": "7d"}]


def _fill(storage: Storage, *names: str) -> None:
    for user in storage.users:
        for name in names:
            path = storage.root / user["name"] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("do not show me")
        for path in [storage.root / user["name"], *(storage.root / user["name"]).rglob("*")]:
            os.chown(path, user["uid"], user["gid"])


def _variables(storage: Storage, **more: Any) -> dict[str, Any]:
    return {"bootstrap_users": storage.users, "bootstrap_root": str(storage.root), **more}


def test_what_is_named_goes_once(storage: Storage, playbook: Book) -> None:
    _fill(storage, ".cache/pip/http/x", ".cache/kept", "scratch/old", "scratch/young", "work.ipynb")
    for user in storage.users:
        os.utime(storage.root / user["name"] / "scratch/old", (0, 0))
    storage.add("never_came")
    before = storage.tree()
    book = playbook("cleanup", **_variables(storage, cleanup_paths=PATHS))

    predicted = book.run("--check", "--diff")
    assert predicted.status == 0, predicted.output
    assert [user["changed"] for user in predicted.result["users"]] == [True, True, False]
    assert storage.tree() == before
    assert "alice/.cache/pip" in predicted.output
    assert "do not show me" not in predicted.output

    applied = book.run()
    assert applied.status == 0, applied.output
    assert applied.result["users"] == predicted.result["users"]
    left = (".cache", ".cache/kept", "scratch", "scratch/young", "work.ipynb")
    assert storage.tree() == sorted(
        path for name in ("alice", "bob") for path in (name, *(f"{name}/{each}" for each in left))
    )

    again = book.run()
    assert again.status == 0
    assert "changed=0" in again.output


def test_by_default_nothing_is_named(storage: Storage, playbook: Book) -> None:
    _fill(storage, "a", ".cache/pip/x")
    before = storage.tree()
    run = playbook("cleanup", **_variables(storage)).run()
    assert run.status == 0, run.output
    assert "changed=0" in run.output
    assert storage.tree() == before


def test_a_slip_is_refused_before_anything_goes(storage: Storage, playbook: Book) -> None:
    _fill(storage, "a", "b")
    before = storage.tree()
    run = playbook("cleanup", **_variables(storage, cleanup_paths=["a", "*"])).run()
    assert run.status == 2
    assert [user["failed"] for user in run.result["users"]] == [True, True]
    assert "name what is to go" in run.result["msg"]
    assert storage.tree() == before


@pytest.mark.root
def test_one_bad_user_costs_only_itself(storage: Storage, playbook: Book) -> None:
    _fill(storage, "a")
    (storage.root / "mallory").symlink_to("alice")
    storage.add("mallory")
    run = playbook("cleanup", **_variables(storage, cleanup_paths=["a"])).run()
    assert run.status == 2
    assert [user["failed"] for user in run.result["users"]] == [False, False, True]
    assert "symbolic link" in run.user("mallory")["msg"]
    assert storage.tree() == ["alice", "bob", "mallory"]


def test_killed_half_way_the_next_run_goes_on(storage: Storage, playbook: Book) -> None:
    _fill(storage, "kept", *(f"t/{number}" for number in range(6000)))
    book = playbook("cleanup", **_variables(storage, cleanup_paths=["t"]))
    places = [storage.root / name / "t" for name in ("alice", "bob")]

    def half_way() -> bool:
        return any(place.exists() and len(os.listdir(place)) < 6000 for place in places)

    book.kill_module_when(half_way, storage.root)
    assert (storage.root / "alice/kept").exists()

    run = book.run()
    assert run.status == 0, run.output
    assert storage.tree() == ["alice", "alice/kept", "bob", "bob/kept"]
