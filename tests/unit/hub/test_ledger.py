"""A user counts as complete only while everything that the record depends on is as it was."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_fakes import SeeingLedger as Ledger

from ansible_bootstrap.config import digest
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import RoleFingerprint
from ansible_bootstrap.state.ledger import FILE, MAX_PLACES, completed


def fingerprints(**roles: str) -> tuple[RoleFingerprint, ...]:
    return tuple(RoleFingerprint(role=role, fingerprint=value, revised=True) for role, value in roles.items())


FINGERPRINTS = fingerprints(user_dir="u1", tutorials="t1")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state", trust_for=3600)


@pytest.fixture
def alice(tmp_path: Path) -> Place:
    """A user whose directory is there."""
    (tmp_path / "alice").mkdir(mode=0o755)
    return Place("alice", directory=str(tmp_path / "alice"), uid=1000, gid=100, storage_host="localhost")


def test_nobody_is_known_at_first(ledger: Ledger, alice: Place) -> None:
    assert ledger.look(alice) is None


def test_a_complete_user_has_every_role_at_its_fingerprint(ledger: Ledger, alice: Place) -> None:
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    entry = ledger.look(alice)
    assert entry is not None and entry.has(FINGERPRINTS)
    assert not entry.has(fingerprints(user_dir="u1", tutorials="t2"))
    assert not entry.has(fingerprints(user_dir="u1", tutorials="t1", script="s1"))
    assert entry.has(fingerprints(tutorials="t1"))  # A role that was taken out of the settings.


def test_a_role_that_must_look_each_time_is_never_had(ledger: Ledger, alice: Place) -> None:
    always = (*FINGERPRINTS, RoleFingerprint(role="script", fingerprint="s", revised=False))
    ledger.complete([completed(alice, "", always)])
    entry = ledger.look(alice)
    assert entry is not None and not entry.has(always) and "script" not in entry.roles


def test_a_role_that_failed_and_was_let_go_on_without_is_not_had(ledger: Ledger, alice: Place) -> None:
    ledger.complete([completed(alice, "", FINGERPRINTS, missing=["tutorials"])])
    entry = ledger.look(alice)
    assert entry is not None and dict(entry.roles) == {"user_dir": "u1"}


@pytest.mark.parametrize(
    "change",
    [{"uid": 1001}, {"gid": 101}, {"name": "alicia"}, {"storage_host": "nas2"}],
    ids=lambda change: next(iter(change)),
)
def test_another_place_is_unknown(ledger: Ledger, alice: Place, change: dict[str, object]) -> None:
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    assert ledger.look(replace(alice, **change)) is None  # type: ignore[arg-type]


def test_another_directory_is_unknown(ledger: Ledger, alice: Place, tmp_path: Path) -> None:
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    (tmp_path / "alice-2").mkdir()
    assert ledger.look(replace(alice, directory=str(tmp_path / "alice-2"))) is None


def test_groups_count_where_a_site_role_could_have_seen_them(ledger: Ledger, alice: Place) -> None:
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    assert ledger.look(replace(alice, groups=("physics",)))
    ledger.complete([completed(alice, "", fingerprints(user_dir="u1", my_datasets="m1"))])
    assert ledger.look(replace(alice, groups=("physics",))) is None


def emptied(directory: Path) -> None:
    directory.rmdir()


def replaced(directory: Path) -> None:
    old = directory.with_name("old")
    directory.rename(old)  # Kept, or the new one might get its inode.
    directory.mkdir(mode=0o755)


def made_anew(directory: Path) -> None:
    """Some file systems (ext4) give the new one the number of the old one."""
    directory.rmdir()
    directory.mkdir(mode=0o755)


def linked(directory: Path) -> None:
    directory.rmdir()
    directory.symlink_to("/")


def opened(directory: Path) -> None:
    directory.chmod(0o777)


@pytest.mark.parametrize("which", ["alice", "work"])
def test_a_user_is_unknown_if_any_of_the_directories_is_gone_or_another(
    ledger: Ledger, alice: Place, tmp_path: Path, which: str
) -> None:
    (tmp_path / "work").mkdir()
    both = replace(alice, also=(str(tmp_path / "work"),))
    ledger.complete([completed(both, "", FINGERPRINTS)])
    assert ledger.look(both) is not None
    assert ledger.look(alice) is None  # The home alone is another piece of work.
    replaced(tmp_path / which)
    assert ledger.look(both) is None
    (tmp_path / which).rmdir()
    assert ledger.look(both) is None


def test_a_second_directory_that_this_machine_does_not_see_leaves_the_user_known(
    ledger: Ledger, alice: Place
) -> None:
    both = replace(alice, also=("/nowhere/alice",))
    ledger.complete([completed(both, "", FINGERPRINTS)])
    assert ledger.look(both) is not None


@pytest.mark.parametrize("change", [emptied, replaced, made_anew, linked, opened])
def test_a_directory_that_is_not_as_it_was_makes_its_user_unknown(
    ledger: Ledger, alice: Place, change: Callable[[Path], None]
) -> None:
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    change(Path(alice.directory or ""))
    assert ledger.look(alice) is None


@pytest.mark.root
def test_so_does_another_file_system_in_its_place(
    ledger: Ledger, tmp_path: Path, needs: Callable[..., None]
) -> None:
    """The top of each has the same number."""
    needs(root=True, programs=("mount", "umount"))
    home = tmp_path / "bob"
    home.mkdir()
    bob = Place("bob", directory=str(home), uid=1000, gid=100, storage_host="localhost")
    mount = ["mount", "-t", "tmpfs", "-o", "mode=0755", "none", str(home)]
    for known in (True, False):
        subprocess.run(mount, check=True)
        try:
            if known:
                ledger.complete([completed(bob, "", FINGERPRINTS)])
            assert (ledger.look(bob) is not None) == known
        finally:
            subprocess.run(["umount", str(home)], check=True)


@pytest.mark.root
def test_so_does_another_owner(ledger: Ledger, alice: Place) -> None:
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    os.chown(alice.directory or "", 20001, -1)
    assert ledger.look(alice) is None


def test_what_lies_in_the_directory_does_not(ledger: Ledger, alice: Place) -> None:
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    Path(alice.directory or "", "essay.txt").write_text("mine")
    assert ledger.look(alice)


def test_the_directory_that_only_the_apply_side_knows_is_looked_at_too(
    ledger: Ledger, alice: Place, tmp_path: Path
) -> None:
    plain = replace(alice, directory=None)
    ledger.complete([completed(plain, str(tmp_path / "alice"), FINGERPRINTS)])
    assert ledger.look(plain)
    (tmp_path / "alice").rmdir()
    assert ledger.look(plain) is None


def at(
    monkeypatch: pytest.MonkeyPatch, seconds: float, set_by: float = 0.0, began: float | None = None
) -> float:
    """So many seconds later, as ``time.monotonic``, which is returned; and then the clock is set."""
    now, ticks = time.time(), time.monotonic() if began is None else began
    clock = SimpleNamespace(time=lambda: now + seconds + set_by, monotonic=lambda: ticks + seconds)
    monkeypatch.setattr("ansible_bootstrap.state.ledger.time", clock)
    return ticks + seconds


def test_what_this_machine_sees_is_good_for_ever(
    ledger: Ledger, alice: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    at(monkeypatch, 10**8)
    assert ledger.look(alice)


@pytest.mark.parametrize("host", ["localhost", "nas1"])
def test_what_it_does_not_see_is_trusted_for_a_time(
    ledger: Ledger, alice: Place, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    far = replace(alice, directory="/nowhere/alice", storage_host=host)
    ledger.complete([completed(far, "", FINGERPRINTS)])
    at(monkeypatch, 3500)
    assert ledger.look(far)
    at(monkeypatch, 3700)
    assert ledger.look(far) is None


def test_a_path_here_is_no_proof_of_one_on_another_host(
    ledger: Ledger, alice: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = replace(alice, storage_host="nas1")
    ledger.complete([completed(far, "", FINGERPRINTS)])
    assert ledger.look(far)
    at(monkeypatch, 4000)
    assert ledger.look(far) is None


@pytest.mark.parametrize(("seconds", "known"), [(-7200, False), (-61, False), (-60, True), (3600, True)])
def test_a_clock_that_was_set_back_by_more_than_a_minute_trusts_nothing(
    ledger: Ledger, alice: Place, monkeypatch: pytest.MonkeyPatch, seconds: int, known: bool
) -> None:
    far = replace(alice, directory="/nowhere/alice", storage_host="nas1")
    entry = replace(completed(far, "", FINGERPRINTS), at=float(int(time.time())))
    ledger.complete([entry])
    monkeypatch.setattr(
        "ansible_bootstrap.state.ledger.time",
        SimpleNamespace(time=lambda: entry.at + seconds, monotonic=time.monotonic),
    )
    assert bool(ledger.look(far)) == known


def test_a_forgotten_user_is_unknown_at_every_place(ledger: Ledger, alice: Place) -> None:
    second = replace(alice, directory="/nowhere/alice-2", storage_host="nas1", server_name="two")
    bob = replace(alice, name="bob", directory="/nowhere/bob")
    ledger.complete([completed(place, "", FINGERPRINTS) for place in (alice, second, bob)])
    assert ledger.forget(["alice", "nobody"]) == 2
    assert ledger.look(alice) is None and ledger.look(second) is None and ledger.look(bob)
    assert ledger.forget_all() == 1 and ledger.look(bob) is None


ALICE = [("localhost", "alice")]


def test_a_user_left_unchanged_by_a_clean_up_is_known_again(ledger: Ledger, alice: Place) -> None:
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    token = ledger.doubt([alice, replace(alice, name="bob")], 60)
    assert ledger.look(alice) is None
    ledger.cleaned(token, [("localhost", "alice"), ("localhost", "bob")], [], time.monotonic())
    assert ledger.look(alice)


def test_a_clean_up_doubts_the_user_under_all_names_of_the_directory(ledger: Ledger, alice: Place) -> None:
    by_name = replace(alice, directory=None)  # As before the place was set.
    elsewhere = replace(alice, directory="/nowhere/alice", storage_host="nas2")
    ledger.complete([completed(place, alice.directory or "", FINGERPRINTS) for place in (alice, by_name)])
    ledger.complete([completed(elsewhere, "", FINGERPRINTS)])
    ledger.doubt([by_name], 60)
    assert ledger.look(alice) is None is ledger.look(by_name)
    assert ledger.look(elsewhere)


@pytest.mark.parametrize("meanwhile", ["forgotten", "all forgotten", "cleaned up again"])
def test_a_user_made_unknown_during_a_clean_up_stays_unknown_after_it(
    ledger: Ledger, alice: Place, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    token = ledger.doubt([alice], 60)
    if meanwhile == "forgotten":
        assert ledger.forget(["alice"]) == 0
    elif meanwhile == "all forgotten":
        assert ledger.forget_all() == 0
    else:
        ledger.doubt([alice], 60)
    ledger.cleaned(token, ALICE, [], time.monotonic())
    assert ledger.look(alice) is None
    at(monkeypatch, 61)  # The second clean-up counts as ended, and nobody knows what it has changed.
    assert ledger.look(alice) is None


@pytest.mark.parametrize("how", ["forget", "forget_all", "cleaned"])
def test_a_run_that_was_in_the_air_when_its_user_was_made_unknown_notes_nothing(
    ledger: Ledger, alice: Place, how: str
) -> None:
    bob = replace(alice, name="bob")
    ledger.complete([completed(bob, "", FINGERPRINTS)])
    before = time.monotonic()
    time.sleep(0.002)
    match how:
        case "forget":
            ledger.forget(["alice"])
        case "forget_all":
            ledger.forget_all()
        case "cleaned":
            ledger.cleaned(ledger.doubt([alice], 60), [], ALICE, time.monotonic())
    ledger.complete([completed(alice, "", FINGERPRINTS, since=before)])
    assert ledger.look(alice) is None
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    assert ledger.look(alice)
    assert bool(ledger.look(bob)) == (how != "forget_all")


@pytest.mark.parametrize(("seconds", "known"), [(-0.001, False), (0.0, True)], ids=["before", "then"])
@pytest.mark.parametrize("how", ["forget", "cleaned, then noted", "noted, then cleaned"])
def test_a_run_that_begins_at_the_moment_of_forgetting_is_noted_and_an_older_one_is_not(
    ledger: Ledger, alice: Place, monkeypatch: pytest.MonkeyPatch, how: str, seconds: float, known: bool
) -> None:
    now = at(monkeypatch, 0.0)
    entry = completed(alice, "", FINGERPRINTS, since=now + seconds)
    match how:
        case "forget":
            ledger.forget(["alice"])
            ledger.complete([entry])
        case "cleaned, then noted":
            ledger.cleaned(ledger.doubt([alice], 60), [], ALICE, now)
            ledger.complete([entry])
        case "noted, then cleaned":
            ledger.complete([entry])
            ledger.cleaned("token", [], ALICE, now)
    assert bool(ledger.look(alice)) == known


def test_nothing_is_noted_of_a_user_whose_clean_up_is_under_way(
    ledger: Ledger, alice: Place, tmp_path: Path
) -> None:
    """The clean-up may take away what a command line beside the hub gives, whichever of the two ends first."""
    elsewhere = replace(alice, storage_host="nas2")
    token = ledger.doubt([alice], 60)
    beside = Ledger(tmp_path / "state")
    beside.complete([completed(place, "", FINGERPRINTS) for place in (alice, elsewhere)])
    assert ledger.look(alice) is None and ledger.look(elsewhere)
    ended = time.monotonic()
    ledger.cleaned(token, [], ALICE, ended)
    assert ledger.look(alice) is None
    beside.complete([completed(alice, "", FINGERPRINTS, since=ended - 1)])
    assert ledger.look(alice) is None
    beside.complete([completed(alice, "", FINGERPRINTS)])  # What began afterwards.
    assert ledger.look(alice)


def test_two_clean_ups_of_a_user_both_have_to_end(ledger: Ledger, alice: Place) -> None:
    first, second = ledger.doubt([alice], 60), ledger.doubt([alice], 60)
    for token in (first, second):
        ledger.complete([completed(alice, "", FINGERPRINTS)])
        assert ledger.look(alice) is None
        ledger.cleaned(token, ALICE, [], time.monotonic())
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    assert ledger.look(alice)


@pytest.mark.parametrize(
    ("seconds", "later", "known"),
    [(60, 59, False), (60, 60, True), (10**9, 86_399, False), (10**9, 86_400, True)],
)
def test_a_clean_up_whose_hub_was_killed_ends_by_itself(
    ledger: Ledger, alice: Place, monkeypatch: pytest.MonkeyPatch, seconds: float, later: float, known: bool
) -> None:
    with monkeypatch.context() as context:
        began = at(context, 0.0)
        ledger.doubt([alice], seconds)
    at(monkeypatch, later, began=began)
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    assert bool(ledger.look(alice)) == known


@pytest.mark.parametrize("set_by", [-2 * 86400.0, -30.0, 30.0, 365 * 86400.0])
@pytest.mark.parametrize("how", ["forget", "cleaned", "under way"])
def test_a_clock_that_is_set_makes_nobody_known_and_keeps_nobody_unknown(
    ledger: Ledger, alice: Place, monkeypatch: pytest.MonkeyPatch, how: str, set_by: float
) -> None:
    before = time.monotonic()
    time.sleep(0.002)
    token = ledger.doubt([alice], 60)
    at(monkeypatch, 0.0, set_by)
    if how == "forget":
        ledger.forget(["alice"])
    if how != "under way":
        ledger.cleaned(token, [], ALICE, time.monotonic())
    ledger.complete([completed(alice, "", FINGERPRINTS, since=before)])
    assert ledger.look(alice) is None
    at(monkeypatch, 61.0)
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    assert ledger.look(alice)


def test_what_was_before_the_machine_was_booted_holds_nobody_up_and_outlives_no_change(
    ledger: Ledger, alice: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setattr("ansible_bootstrap.state.ledger._boot", lambda: "earlier")
        at(context, 1e6)
        ledger.forget(["alice"])
        ledger.doubt([replace(alice, name="bob")], 60)
        ledger.complete([completed(alice, "", FINGERPRINTS)])
    bob = replace(alice, name="bob", directory="/nowhere/bob")
    ledger.complete([completed(place, "", FINGERPRINTS) for place in (alice, bob)])
    assert ledger.look(alice) and ledger.look(bob)
    with monkeypatch.context() as context:
        context.setattr("ansible_bootstrap.state.ledger._boot", lambda: "later")
        ledger.cleaned(ledger.doubt([alice], 60), [], ALICE, 1.0)
        assert ledger.look(alice) is None and ledger.look(bob)


def test_no_time_of_forgetting_is_moved_back(ledger: Ledger, alice: Place) -> None:
    token = ledger.doubt([alice], 60)
    ended = time.monotonic()
    time.sleep(0.002)
    between = time.monotonic()
    time.sleep(0.002)
    ledger.forget(["alice"])
    ledger.cleaned(token, [], ALICE, ended)  # Noted late.
    ledger.complete([completed(alice, "", FINGERPRINTS, since=between)])
    assert ledger.look(alice) is None


def test_what_was_noted_before_a_clean_up_is_not_found_while_it_is_under_way(
    ledger: Ledger, alice: Place, tmp_path: Path
) -> None:
    """Also if an earlier clean-up of the same user ends meanwhile, and has changed nothing."""
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    first = ledger.doubt([alice], 60)
    with contextlib.closing(sqlite3.connect(tmp_path / "state" / FILE)) as database, database:
        database.execute(
            "INSERT INTO cleaning SELECT 'another', storage_host, name, until, boot FROM cleaning"
        )
    ledger.cleaned(first, ALICE, [], time.monotonic())
    assert ledger.look(alice) is None


def test_a_note_that_waited_too_long_for_the_file_is_dropped(
    ledger: Ledger, alice: Place, tmp_path: Path
) -> None:
    """The caller has given up waiting for it, and may have made the user unknown since."""
    ledger.complete([])
    with contextlib.closing(sqlite3.connect(tmp_path / "state" / FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        until = time.monotonic() + 0.2
        writer = threading.Thread(
            target=ledger.complete, args=([completed(alice, "", FINGERPRINTS)],), kwargs={"until": until}
        )
        writer.start()
        while time.monotonic() < until:
            time.sleep(0.01)
        other.execute("COMMIT")
        writer.join(10)
    assert ledger.look(alice) is None


def test_a_directory_that_comes_into_sight_makes_its_user_unknown(
    ledger: Ledger, alice: Place, tmp_path: Path
) -> None:
    """It was away when the run was noted, deleted or not answering; what was seen then proves nothing now."""
    (tmp_path / "alice").rename(tmp_path / "away")
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    (tmp_path / "away").rename(tmp_path / "alice")
    assert ledger.look(alice) is None


def test_a_user_who_names_many_servers_does_not_fill_the_file(ledger: Ledger, alice: Place) -> None:
    ledger.note_places([alice], "d1")
    for start in range(0, 1000, 50):
        ledger.note_places(
            [replace(alice, server_name=f"s{number:04}") for number in range(start, start + 50)], "d1"
        )
    ledger.note_places([replace(alice, name="bob")], "d1")
    kept = [place.server_name for place in ledger.places("alice", "d1")]
    assert len(kept) == MAX_PLACES + 1 and kept[0] == "" and kept[-1] == "s0999"
    assert ledger.places("bob", "d1")


def test_nothing_is_noted_once_a_probe_has_taken_too_long(
    ledger: Ledger, alice: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = at(monkeypatch, 0.0)
    ledger.complete([completed(alice, "", FINGERPRINTS)], until=now)
    assert ledger.look(alice) is None
    ledger.complete([completed(alice, "", FINGERPRINTS, since=now)], until=now + 0.001)
    assert ledger.look(alice)


def test_where_a_user_was_is_remembered_for_each_server(ledger: Ledger, alice: Place) -> None:
    two = replace(alice, directory="/nowhere/alice-two", server_name="two")
    ledger.note_places([two, alice], "d1")
    assert ledger.places("alice", "d1") == [alice, two]
    assert ledger.places("alice", "other settings") == [] == ledger.places("bob", "d1")
    ledger.note_places([replace(alice, uid=7)], "d1")
    assert [place.uid for place in ledger.places("alice", "d1")] == [7, 1000]


def test_a_digest_is_the_same_in_every_process_whatever_is_in_the_settings() -> None:
    settings = {
        "DockerSpawner": {"volumes": {"/x/{username}": "/home"}, "hook": test_nobody_is_known_at_first}
    }
    assert (
        digest(settings)
        == digest(dict(settings))
        == digest({"DockerSpawner": dict(settings["DockerSpawner"])})
    )
    assert digest(settings) != digest({"DockerSpawner": {}})
    assert digest({"x": object()}) == digest({"x": object()})


@pytest.mark.parametrize("what", ["text", "another version", "cut"])
def test_a_broken_file_knows_nobody_and_is_made_anew(
    ledger: Ledger, alice: Place, tmp_path: Path, what: str
) -> None:
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    file = tmp_path / "state" / FILE
    if what == "text":
        file.write_bytes(b"this is no database " * 400)
    elif what == "cut":
        file.write_bytes(file.read_bytes()[:3000])
    else:
        with sqlite3.connect(file) as database:
            database.execute("PRAGMA user_version = 99")
    assert ledger.look(alice) is None
    ledger.complete([])  # The file is made anew.
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    assert ledger.look(alice)


@pytest.mark.parametrize("finds", ["a reader", "a writer"])
def test_a_run_older_than_a_ledger_made_anew_is_not_noted(
    ledger: Ledger, alice: Place, tmp_path: Path, finds: str
) -> None:
    """Its user may have been forgotten during the run, and the damaged file alone held that."""
    before = time.monotonic()
    time.sleep(0.002)
    ledger.forget(["alice"])
    (tmp_path / "state" / FILE).write_bytes(b"this is no database " * 400)
    ledger = Ledger(tmp_path / "state")
    if finds == "a reader":
        assert ledger.look(alice) is None
    ledger.complete([completed(alice, "", FINGERPRINTS, since=before)])
    assert ledger.look(alice) is None
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    assert ledger.look(alice)


def test_the_file_is_private_and_removing_it_forgets_everybody(
    ledger: Ledger, alice: Place, tmp_path: Path
) -> None:
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    for file in (tmp_path / "state").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        file.unlink()
    assert ledger.look(alice) is None


def test_removing_the_file_alone_forgets_everybody_too(ledger: Ledger, alice: Place, tmp_path: Path) -> None:
    """Whatever SQLite has beside it, and while somebody reads."""
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    assert ledger.look(alice) is not None
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    (tmp_path / "state" / FILE).unlink()
    assert ledger.look(alice) is None
    bob = replace(alice, name="bob")
    ledger.complete([completed(bob, "", FINGERPRINTS)])
    assert ledger.look(alice) is None
    assert Ledger(tmp_path / "state").look(alice) is None
    assert ledger.look(bob) is not None


def test_another_file_in_its_place_is_what_counts(ledger: Ledger, alice: Place, tmp_path: Path) -> None:
    """A backup, say, while a hub is up that has written since."""
    file = tmp_path / "state" / FILE
    bob, carol = replace(alice, name="bob"), replace(alice, name="carol")
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    assert ledger.look(alice) is not None
    backup = file.read_bytes()
    ledger.complete([completed(bob, "", FINGERPRINTS)])
    file.with_name("backup").write_bytes(backup)
    file.with_name("backup").replace(file)
    assert ledger.look(bob) is None and ledger.look(alice) is not None
    ledger.complete([completed(carol, "", FINGERPRINTS)])
    assert Ledger(tmp_path / "state").look(bob) is None
    with contextlib.closing(sqlite3.connect(file)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_looking_makes_and_removes_no_files(ledger: Ledger, alice: Place, tmp_path: Path) -> None:
    """A hub's own database on the same file system would wait for them."""
    ledger.complete([completed(alice, "", FINGERPRINTS)])
    assert ledger.look(alice) is not None
    before = os.stat(tmp_path / "state")
    for _ in range(3):
        assert ledger.look(alice) is not None
    assert os.stat(tmp_path / "state").st_mtime_ns == before.st_mtime_ns


def _write(directory: Path, number: int) -> None:
    ledger = Ledger(directory)
    for count in range(20):
        place = Place(f"user{number}-{count}", directory="/nowhere", storage_host="h")
        ledger.complete([completed(place, "", FINGERPRINTS)])


def test_several_processes_and_threads_write_at_once(ledger: Ledger, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers: list[threading.Thread | multiprocessing.process.BaseProcess] = [
        context.Process(target=_write, args=(tmp_path / "state", 1)),
        *(threading.Thread(target=_write, args=(tmp_path / "state", number)) for number in (2, 3)),
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert ledger.forget_all() == 60


def _look_and_write(directory: Path, number: int) -> None:
    ledger = Ledger(directory)
    for count in range(40):
        place = Place(f"user{number}-{count}", directory="/nowhere", storage_host="h")
        ledger.complete([completed(place, "", FINGERPRINTS)])
        assert ledger.look(place) is not None


def test_processes_that_read_and_write_see_each_other_and_break_nothing(
    ledger: Ledger, tmp_path: Path
) -> None:
    """A descriptor of the file that is opened and closed beside SQLite would drop its locks."""
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_look_and_write, args=(tmp_path / "state", number)) for number in (1, 2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    with contextlib.closing(sqlite3.connect(tmp_path / "state" / FILE)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert ledger.forget_all() == 80


def _forget(directory: Path) -> None:
    assert Ledger(directory).forget(["alice"]) == 1


def test_what_another_process_forgets_is_forgotten_here_at_once(
    ledger: Ledger, alice: Place, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    for _ in range(3):
        ledger.complete([completed(alice, "", FINGERPRINTS, since=time.monotonic() + 60)])
        assert ledger.look(alice) is not None
        other = context.Process(target=_forget, args=(tmp_path / "state",))
        other.start()
        other.join(30)
        assert ledger.look(alice) is None


def test_of_several_processes_the_first_makes_the_file_and_none_fails(tmp_path: Path) -> None:
    """SQLite does not wait for others when it begins to write ahead, whatever the timeout."""
    for number in range(40):
        ledger = Ledger(tmp_path / str(number))
        together = threading.Barrier(8)

        def write(ledger: Ledger = ledger, together: threading.Barrier = together) -> int:
            together.wait()
            return ledger.forget(["alice"])

        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            futures = [threads.submit(write) for _ in range(8)]
        assert [future.result() for future in futures] == [0] * 8
        with contextlib.closing(sqlite3.connect(tmp_path / str(number) / FILE)) as database:
            assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_of_a_whole_class_only_those_made_unknown_meanwhile_are_not_noted(
    ledger: Ledger, alice: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limited(database: sqlite3.Connection) -> sqlite3.Connection:
        """As the oldest SQLite."""
        database.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)
        return database

    places = [replace(alice, name=f"u{number}", directory=f"/homes/u{number}") for number in range(300)]
    entries = [completed(place, "", FINGERPRINTS) for place in places]
    ledger.forget(["u7"])
    ledger.doubt([places[250]], 3600)
    with monkeypatch.context() as patch:
        connect = sqlite3.connect
        patch.setattr(sqlite3, "connect", lambda *args, **kwargs: limited(connect(*args, **kwargs)))
        ledger.note(entries)
    unknown = [place.name for place in places if ledger.recorded(place) is None]
    assert unknown == ["u7", "u250"]
    ledger.forget_all()
    ledger.note(entries)
    assert not any(ledger.recorded(place) for place in places)


def test_a_path_that_is_no_text_costs_nobody_else_the_note(
    ledger: Ledger, alice: Place, tmp_path: Path
) -> None:
    odd = completed(replace(alice, name="mallory"), "/homes/\udcff", FINGERPRINTS)
    ledger.note([odd, completed(alice, "", FINGERPRINTS)])
    assert ledger.recorded(alice) is not None
    ledger.note([completed(alice, "/homes/\udcff", FINGERPRINTS)])
    with contextlib.closing(sqlite3.connect(tmp_path / "state" / FILE)) as database:
        assert database.execute("SELECT count(*) FROM complete").fetchone() == (1,)


def test_a_name_goes_to_another_person_only_instead_of_the_person_noted(ledger: Ledger) -> None:
    assert ledger.person("alice") is None
    ledger.note_persons({"alice": ("first", ""), "bob": ("b", "")})
    ledger.note_persons({"alice": ("second", "")})
    assert (ledger.person("alice"), ledger.person("bob")) == ("first", "b")
    ledger.note_persons({"alice": ("second", "first")})
    assert ledger.person("alice") == "second"
    assert ledger.accept(["alice", "carol"]) == 1
    assert (ledger.person("alice"), ledger.person("bob")) == (None, "b")
