"""A known user whose storage would now be at another place: nobody gets an empty directory unasked."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dockerspawner import DockerSpawner
from hub_fakes import SeeingLedger
from spawner_fakes import random_names, settings, spawner
from traitlets.config import Config

from ansible_bootstrap.cli.run import bootstrap_all
from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.errors import RefusedError
from ansible_bootstrap.hub.core import Core
from ansible_bootstrap.place import Place
from ansible_bootstrap.places.resolve import resolve
from ansible_bootstrap.protocol import Outcome, RoleFingerprint
from ansible_bootstrap.state.bookkeeper import Bookkeeper
from ansible_bootstrap.state.ledger import Ledger, completed, probed
from ansible_bootstrap.state.moves import check_move

ROLE = RoleFingerprint(role="user_dir", fingerprint="1", revised=True)


def _move(old: Place, new: Place) -> None:
    ledger = Ledger("/nowhere")
    check_move(old, new, seen=ledger.sees(old) and ledger.sees(new))


def test_behind_ssh_this_machine_sees_no_directory_of_localhost(tmp_path: Path) -> None:
    for command, here in (
        (["/usr/bin/sudo", "-n", "apply"], True),
        (["ssh", "nas1"], False),
        (["env", "/usr/bin/ssh", "nas1"], False),
    ):
        config = settings(apply_command=command)
        assert config.here == here
        assert (
            Ledger(tmp_path, here=config.here).sees(Place("alice", "/v/a", storage_host="localhost")) == here
        )


def prepared(name: str, directory: Path, *, files: bool = True) -> Place:
    directory.mkdir(parents=True)
    if files:
        (directory / "thesis.ipynb").touch()
    return Place(name, str(directory), uid=1000, storage_host="localhost")


def test_an_old_directory_with_files_keeps_a_new_one_from_being_made(tmp_path: Path) -> None:
    old = prepared("jane.doe", tmp_path / "jane-2edoe")
    new = replace(old, directory=str(tmp_path / "jane-doe---1"))
    with pytest.raises(RefusedError) as caught:
        _move(old, new)
    for said in (old.directory, new.directory, "still has files", "accept 'jane.doe'", 'on_move = "warn"'):
        assert said and said in caught.value.details
    (tmp_path / "jane-doe---1").symlink_to("nowhere")
    _move(old, new)  # It is not made anew.


async def test_a_place_that_was_accepted_meanwhile_is_noted_anew(tmp_path: Path) -> None:
    """`ansible-bootstrap accept` is another process than the hub."""
    ledger = Ledger(tmp_path / "state")
    books = Bookkeeper(ledger, logging.getLogger("test"), "now")
    old = prepared("alice", tmp_path / "old")
    for _ in range(2):
        books.note_place(old)
        await books.written()
        assert ledger.places("alice") == [old]
        assert Ledger(tmp_path / "state").accept(["alice"]) == 1


async def test_a_place_where_a_user_once_was_is_no_excuse_when_it_is_gone(tmp_path: Path) -> None:
    """Settings that are set back after everything was moved."""
    ledger = Ledger(tmp_path / "state")
    books = Bookkeeper(ledger, logging.getLogger("test"), "now")
    first, second = prepared("alice", tmp_path / "first"), prepared("alice", tmp_path / "second")
    ledger.note([probed(completed(first, str(first.directory), (ROLE,)))])
    ledger.note_places([second], "now")
    await books.check_move(first, refuse=True)  # As with profiles: both are there.
    (tmp_path / "first/thesis.ipynb").unlink()
    (tmp_path / "first").rmdir()
    with pytest.raises(RefusedError, match="still has files"):
        await books.check_move(first, refuse=True)


@pytest.mark.parametrize("change", ["emptied", "removed"])
def test_nothing_is_lost_where_nothing_is_left(tmp_path: Path, change: str) -> None:
    old = prepared("alice", tmp_path / "old", files=False)
    if change == "removed":
        (tmp_path / "old").rmdir()
    _move(old, replace(old, directory=str(tmp_path / "new")))


@pytest.mark.parametrize(
    "change", ["another host", "was on another host", "root not mounted here", "not readable"]
)
def test_what_cannot_be_seen_may_have_files(tmp_path: Path, change: str) -> None:
    old = new = Place("alice", str(tmp_path / "root/alice"), storage_host="localhost")
    match change:
        case "another host":
            new = replace(old, storage_host="nas2")
        case "was on another host":
            old = replace(old, storage_host="nas2")
        case "root not mounted here":
            new = replace(old, directory=str(tmp_path / "new/alice"))
        case "not readable":
            old = replace(old, directory=str(tmp_path / ("x" * 300)))
            new = replace(old, directory=str(tmp_path / "new"))
    with pytest.raises(RefusedError, match="cannot be seen from here"):
        _move(old, new)


def test_only_the_apply_side_may_know_the_path() -> None:
    _move(Place("alice"), Place("alice", "/volumes/alice"))
    _move(Place("alice", "/volumes/alice"), Place("alice"))


def test_the_ledger_knows_where_a_server_was_whatever_the_settings_were(tmp_path: Path) -> None:
    ledger = SeeingLedger(tmp_path / "state")
    old, new = Place("alice", "/a/alice"), Place("alice", "/b/alice")
    assert ledger.elsewhere(new, "now") is None, "a new user"
    ledger.note_places([old, replace(old, server_name="gpu", directory="/g/alice")], under="old settings")
    assert ledger.elsewhere(new, "now") == old
    assert ledger.elsewhere(old, "now") is None
    assert ledger.elsewhere(replace(new, server_name="cpu"), "now") is None, "a server that never was"
    assert ledger.elsewhere(replace(new, server_name="gpu"), "now") == Place("alice", "/g/alice")
    assert ledger.elsewhere(replace(old, storage_host="nas2"), "now") == old
    assert ledger.elsewhere(replace(old, also=("/a/work",)), "now") is None, "the home is where it was"
    assert ledger.elsewhere(Place("bob", "/b/bob"), "now") is None
    ledger.complete([completed(new, "/b/alice", [ROLE])])
    assert ledger.elsewhere(new, "now") is None, "with profiles a user goes to and fro"
    ledger.forget(["alice"])
    assert ledger.elsewhere(new, "now") == old
    assert ledger.accept(["alice", "bob"]) == 1
    assert ledger.elsewhere(new, "now") is None


def test_a_further_directory_that_moves_with_the_settings_is_noticed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "state")
    old = replace(prepared("alice", tmp_path / "home"), also=(f"{tmp_path}/work", f"{tmp_path}/data"))
    for each in old.also:
        prepared("alice", Path(each))
    new = replace(old, also=(f"{tmp_path}/new/work", f"{tmp_path}/data"))
    ledger.note_places([old], under="older settings")
    assert ledger.elsewhere(new, "older settings") is None, "a profile may mount another"
    assert ledger.elsewhere(new, "new settings") == old
    with pytest.raises(RefusedError, match="still has files"):
        _move(old, new)
    for also in (old.also[:1], (*old.also, f"{tmp_path}/more"), ()):
        assert ledger.elsewhere(replace(old, also=also), "new settings") is None, "nothing is left and made"
    (tmp_path / "work/thesis.ipynb").unlink()
    _move(old, new)
    (tmp_path / "work/thesis.ipynb").touch()
    Path(new.also[1]).mkdir(parents=True)
    with pytest.raises(RefusedError, match="still has files"):
        _move(old, new)  # A leftover, or Docker has made it.
    (Path(new.also[1]) / "moved.ipynb").touch()
    _move(old, new)


def test_the_home_that_was_moved_by_hand_does_not_hide_a_further_directory_that_was_not(
    tmp_path: Path,
) -> None:
    old = replace(prepared("alice", tmp_path / "home"), also=(f"{tmp_path}/work",))
    prepared("alice", tmp_path / "work")
    new = replace(prepared("alice", tmp_path / "new/home"), also=(f"{tmp_path}/new/work",))
    with pytest.raises(RefusedError, match="still has files"):
        _move(old, new)
    swapped = replace(old, directory=old.also[0], also=(str(old.directory),))
    _move(old, swapped)
    with pytest.raises(RefusedError, match="cannot be seen"):
        _move(old, replace(new, storage_host="nas2"))


async def test_an_upgrade_that_escapes_names_in_another_way_gives_no_user_an_empty_home(
    tmp_path: Path,
) -> None:
    volumes = {f"{tmp_path}/{{username}}": "/home/jovyan"}
    config = settings(storage_root=str(tmp_path), gid=100)
    ledger = SeeingLedger(tmp_path / "state")
    names = random_names(seed=7, number=300)
    before: dict[str, Place] = {}
    for name in names:
        place = await resolve(spawner(DockerSpawner, name, volumes=volumes, escape="legacy"), config)
        assert place.directory
        Path(place.directory).mkdir(exist_ok=True)
        (Path(place.directory) / "thesis.ipynb").touch()
        before[name] = place
    ledger.note_places(before.values(), under="before the upgrade")
    same = refused = 0
    for name in names:
        place = await resolve(spawner(DockerSpawner, name, volumes=volumes), config)
        old = ledger.elsewhere(place, "now")
        if old is None:
            assert place == before[name]
            same += 1
        elif not Path(str(place.directory)).exists():
            with pytest.raises(RefusedError, match="still has files"):
                _move(old, place)
            refused += 1
    assert same and refused, "the names tell nothing"
    assert {path.name for path in tmp_path.iterdir()} == {
        "state",
        *(Path(str(p.directory)).name for p in before.values()),
    }


@pytest.mark.parametrize("who", ["hub", "run"])
async def test_behind_ssh_a_move_cannot_be_judged_by_what_this_machine_has(
    tmp_path: Path, apply: Any, who: str
) -> None:
    """The old directory is gone here, and so would be no reason to refuse."""
    (tmp_path / "ssh").symlink_to("/usr/bin/env")
    config = Config()
    config.AnsibleBootstrap = Config(
        state_dir=str(tmp_path / "state"),
        apply_command=[str(tmp_path / "ssh"), *apply.command],
        place={"directory": f"{tmp_path}/new/{{username}}", "uid": 1000, "gid": 1000},
    )
    config.JupyterHub.spawner_class = "simple"
    bulk = AnsibleBootstrap(config=config)
    old = Place("alice", str(tmp_path / "alice"), uid=1000, storage_host="localhost")
    Ledger(bulk.state_dir).note_places([old], under="older settings")
    if who == "hub":
        with pytest.raises(RefusedError, match="cannot be seen from here"):
            await Core(bulk, {}).check_move(replace(old, directory=f"{tmp_path}/new/alice"))
        return
    told: list[Outcome] = []
    await bootstrap_all(bulk, [{"name": "alice"}], lambda outcome, known: told.append(outcome))
    assert "cannot be seen from here" in told[0].message


@pytest.mark.parametrize("on_move", ["refuse", "warn"])
async def test_the_command_gives_no_empty_directories_either(
    tmp_path: Path, apply: Any, caplog: pytest.LogCaptureFixture, on_move: str
) -> None:
    old = prepared("alice", tmp_path / "old/alice")
    (tmp_path / "new").mkdir()
    config = Config()
    config.AnsibleBootstrap = Config(
        state_dir=str(tmp_path / "state"),
        apply_command=apply.command,
        on_move=on_move,
        place={"directory": f"{tmp_path}/new/{{username}}", "uid": 1000, "gid": 1000},
    )
    config.JupyterHub.spawner_class = "simple"
    bulk = AnsibleBootstrap(config=config)
    Ledger(bulk.state_dir).note_places([old], under="older settings")
    told: list[Outcome] = []
    await bootstrap_all(
        bulk, [{"name": "alice"}, {"name": "bob"}], lambda outcome, known: told.append(outcome)
    )
    outcomes = {outcome.name: outcome for outcome in told}
    assert outcomes["bob"].status == "ok"
    if on_move == "warn":
        assert outcomes["alice"].status == "ok"
        assert "still has files" in caplog.text
        return
    assert outcomes["alice"].reason == "refused" and "still has files" in outcomes["alice"].message
    assert [run["users"] for run in apply.runs] == [["bob"]]
    Ledger(bulk.state_dir).accept(["alice"])
    told.clear()
    await bootstrap_all(bulk, [{"name": "alice"}], lambda outcome, known: told.append(outcome))
    assert [outcome.status for outcome in told] == ["ok"]
