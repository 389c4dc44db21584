from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_bootstrap.storage import _cleaning, _cleanup
from tests.faults import killing
from tests.faults.conftest import Flipper
from tests.unit.storage.conftest import MakeUser

DAY = 86400.0

Home = tuple[dict[str, Any], Path]


@pytest.fixture
def home(make_user: MakeUser) -> Home:
    alice = make_user("alice", home=True)
    return alice, Path(alice["directory"])


def snapshot(place: Path) -> list[tuple[str, int, int, int]]:
    def each() -> Iterator[tuple[str, int, int, int]]:
        for directory, inner, files in os.walk(place):
            for name in [".", *inner, *files]:
                path = os.path.join(directory, name)
                with contextlib.suppress(PermissionError):
                    status = os.lstat(path)
                    yield path, status.st_ino, status.st_mode, status.st_mtime_ns

    return sorted(each())


def clean(
    user: dict[str, Any], *paths: Any, check: bool = False, timeout: float = 30, both: bool = True
) -> dict[str, Any]:
    """Clean up; before that let check mode say what will come, and compare."""
    root = str(Path(user["directory"]).parent)
    predicted: dict[str, Any] = {}
    if both or check:
        before = snapshot(Path(root))
        report = _cleanup.clean([user], root, 1000, list(paths), timeout, check=True)
        predicted = {**report.users[0], "diff": report.diff}
        assert snapshot(Path(root)) == before, "check mode writes nothing"
        if check:
            return predicted
    report = _cleanup.clean([user], root, 1000, list(paths), timeout, check=False)
    result = {**report.users[0], "diff": report.diff}
    assert not both or predicted == result, "the prediction is true"
    return result


def own(user: dict[str, Any], place: Path) -> None:
    """Make everything there the user's."""
    for directory, inner, files in os.walk(place):
        for name in [".", *inner, *files]:
            path = os.path.join(directory, name)
            os.chown(path, user["uid"], user["gid"], follow_symlinks=False)


def fill(home: Home, *names: str) -> None:
    user, place = home
    for name in names:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    own(user, place)


def age(place: Path, days: float) -> None:
    """Let everything there be unchanged for days."""
    then = time.time() - days * DAY
    for path in [place, *place.rglob("*")]:
        os.utime(path, (then, then), follow_symlinks=False)


def names(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


def test_what_is_named_goes_and_nothing_else(home: Home) -> None:
    user, place = home
    fill(home, ".cache/pip/a/b", ".cache/other", "scratch/a.tmp", "scratch/.b.tmp", "scratch/c.txt", "a.tmp")
    (place / "scratch/deep.tmp").mkdir()
    own(user, place)

    result = clean(user, ".cache/pip", "scratch/*.tmp", "absent/*", "no/such/thing")

    assert result["changed"]
    assert not result["failed"]
    assert result["notes"] == []
    assert [(entry["before"]["path"], entry["before"]["state"]) for entry in result["diff"]] == [
        (f"{place}/.cache/pip", "a directory"),
        (f"{place}/scratch/a.tmp", "a file"),
        (f"{place}/scratch/deep.tmp", "a directory"),
    ]
    assert names(place) == [".cache", ".cache/other", "a.tmp", "scratch", "scratch/.b.tmp", "scratch/c.txt"]
    assert not clean(user, ".cache/pip", "scratch/*.tmp")["changed"]


@pytest.mark.parametrize(
    ("pattern", "goes"),
    [
        ("d/*", ["a1", "b", "x[y"]),
        ("d/.*", [".hidden"]),
        ("d/?", ["b"]),
        ("d/[ab]*", ["a1", "b"]),
        ("d/[!a]", ["b"]),
        ("d/[.]hidden", []),
        ("d/x[[]y", ["x[y"]),
        ("d/x[y", ["x[y"]),
        ("d/A1", []),
        ("[d]d*/*", []),
        ("?d", []),
    ],
)
def test_patterns_are_those_of_the_shell(home: Home, pattern: str, goes: list[str]) -> None:
    user, place = home
    fill(home, "d/a1", "d/b", "d/x[y", "d/.hidden")
    assert clean(user, pattern)["changed"] == bool(goes)
    assert sorted({"a1", "b", "x[y", ".hidden"} - set(os.listdir(place / "d"))) == goes


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("", "empty part"),
        (".", "'.'"),
        ("..", "'..'"),
        ("a/../b", "'..'"),
        ("./a", "'.'"),
        ("a//b", "empty part"),
        ("a/", "no slash at the end"),
        ("/etc", "absolute"),
        ("a\0b", "control characters"),
        ("a\nb", "control characters"),
        ("\udcff", "no UTF-8"),
        ("x" * 256, "too long"),
        ("/".join("x" * 33), "too long"),
        ("*", "name what is to go"),
        ("*/x", "name what is to go"),
        ("**", "'**'"),
        ("a/**/b", "'**'"),
        (".*", "name what is to go"),
        (".?*", "name what is to go"),
        ("?", "name what is to go"),
        ("[!a]*", "name what is to go"),
        ("*.*", "name what is to go"),
        ("[]a]*", "name what is to go"),
        (5, "a string, or a mapping"),
        (None, "a string, or a mapping"),
        ({"path": "a", "age": "7d"}, '"path" and, if wanted'),
        ({"older_than": "7d"}, '"path" and, if wanted'),
        ({"path": ["a"]}, "a string, or a mapping"),
        *(
            ({"path": "a", "older_than": older}, "such as")
            for older in (7, "7", "d", "0d", "-1d", "1y", "1.5d", "1d ", "٣d", "", True)
        ),
    ],
)
def test_a_slip_is_everybodys_error_and_nothing_goes(home: Home, given: Any, says: str) -> None:
    user, place = home
    fill(home, "a/b", ".x", "x")
    before = names(place)
    for check in (True, False):
        result = clean(user, "a", given, check=check, both=False)
        assert result["failed"]
        assert says in result["msg"]
        assert result["msg"].isprintable()
    assert names(place) == before


@pytest.mark.parametrize("given", ["a", {"path": "a"}, None])
def test_the_paths_are_a_list(home: Home, root: Path, given: Any) -> None:
    (result,) = _cleanup.clean([home[0]], str(root), 1000, given, 5, check=False).users
    assert "is a list" in result["msg"]


def test_nothing_named_is_nothing_done(home: Home) -> None:
    fill(home, "a")
    result = clean(home[0])
    assert not result["failed"]
    assert not result["changed"]


@pytest.mark.root
def test_a_home_that_is_absent_or_a_leftover_is_fine_and_anothers_is_an_error(
    root: Path, make_user: MakeUser
) -> None:
    (root / "bob").mkdir()
    make_user("carol", home=True)
    os.chown(root / "carol", 20077, 20077)
    (root / "carol/a").write_text("x")
    (root / "dave").symlink_to("carol")
    make_user("erin", home=True)
    (root / "erin/a").write_text("x")
    users = [make_user(name) for name in ("alice", "bob", "carol", "dave", "erin")]
    for check in (True, False):
        results = _cleanup.clean(users, str(root), 1000, ["a"], 5, check=check).users
        assert [result["failed"] for result in results] == [False, False, True, True, False]
        assert [result["changed"] for result in results] == [False, False, False, False, True]
    assert os.listdir(root / "carol") == ["a"]
    assert os.listdir(root / "erin") == []


def test_links_are_removed_and_never_followed(home: Home, victim: Path) -> None:
    user, place = home
    fill(home, "t/real/file", "kept/inner/file", "t/real/loop.d/x")
    (place / "t/to_file").symlink_to(victim / "secret")
    (place / "t/to_directory").symlink_to(victim)
    (place / "t/dangling").symlink_to("nowhere")
    (place / "t/self").symlink_to("self")
    (place / "t/real/up").symlink_to("../..")
    (place / "t/real/kept").symlink_to(place / "kept")
    (place / "way").symlink_to(victim)
    (place / "way_in").symlink_to("kept")
    own(user, place)

    result = clean(user, "t/*", "way/secret", "way*/inner", "way/*", "t/self/x")

    assert not result["failed"]
    assert result["changed"]
    assert result["notes"] == [
        "way is a symbolic link, and not followed",
        "way_in is a symbolic link, and not followed",
    ]
    assert names(place) == ["kept", "kept/inner", "kept/inner/file", "t", "way", "way_in"]
    assert clean(user, "way")["changed"]
    assert "way" not in os.listdir(place)


@pytest.mark.root
def test_of_a_hard_link_only_this_name_goes(home: Home, root: Path) -> None:
    user, place = home
    fill(home, "t/mine")
    os.link(place / "t/mine", place / "other_name")
    (root / "roots").write_text("root's")
    os.link(root / "roots", place / "t/roots")
    assert clean(user, "t")["changed"]
    assert (place / "other_name").read_text() == "x"
    assert (root / "roots").read_text() == "root's"
    assert (root / "roots").stat().st_uid == 0


@pytest.mark.parametrize("inside", [False, True])
def test_special_files_and_names_are_removed_without_waiting(home: Home, inside: bool) -> None:
    user, place = home
    fill(home, "t/x")
    os.mkfifo(place / "t/fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place / "t/socket"))
    for name in (b"new\nline", b"esc\x1b[2J", b"not\xffutf8", "ünï".encode(), b"-rf", b"{{ x }}"):
        (place / "t" / os.fsdecode(name)).mkdir()
        (place / "t" / os.fsdecode(name) / os.fsdecode(name)).write_text("x")
    own(user, place)
    result = clean(user, "t" if inside else "t/*")
    assert result["changed"]
    assert result["notes"] == []
    assert result["diff"] and all(entry["before"]["path"].isprintable() for entry in result["diff"])
    assert names(place) == ([] if inside else ["t"])


def test_read_only_directories_of_the_users_own_go_too(home: Home) -> None:
    user, place = home
    fill(home, "cache/a/b/c", "cache/d/e", "cache/shut/f", "cache/writeonly/g")
    for name, mode in (("a/b", 0o500), ("a", 0o555), ("d", 0o500), ("shut", 0), ("writeonly", 0o300)):
        (place / "cache" / name).chmod(mode)
    (place / "cache").chmod(0o500)
    assert clean(user, "cache")["changed"]
    assert names(place) == []


@pytest.mark.root
def test_a_match_in_a_directory_the_user_closed_is_left_with_a_note(home: Home) -> None:
    user, place = home
    fill(home, "closed/a", "closed/d/b", "open/a")
    (place / "closed").chmod(0o500)
    result = clean(user, "closed/a", "open/a")
    assert not result["failed"]
    assert result["notes"] == ["closed/a was left: permission denied"]
    assert names(place) == ["closed", "closed/a", "closed/d", "closed/d/b", "open"]
    assert stat.S_IMODE((place / "closed").stat().st_mode) == 0o500


@pytest.mark.root
def test_in_a_directory_that_is_not_sticky_a_user_who_may_write_may_remove(home: Home) -> None:
    user, place = home
    fill(home, "shared/mine")
    (place / "shared/roots").write_text("x")
    os.chown(place / "shared", 0, 0)
    (place / "shared").chmod(0o777)
    result = clean(user, "shared/*")
    assert (result["changed"], result["notes"], names(place)) == (True, [], ["shared"])


@pytest.mark.root
def test_what_is_not_the_users_to_remove_is_left_with_a_note(home: Home) -> None:
    user, place = home
    fill(home, "t/mine", "t/ro/mine", "sticky/mine")
    (place / "t/roots").mkdir()
    (place / "t/roots/file").write_text("root's")
    (place / "t/empty").mkdir()
    (place / "t/file").write_text("root's, in a directory of the user's")
    (place / "t/ro/roots").mkdir()
    (place / "t/ro/roots/file").write_text("root's")
    (place / "t/ro").chmod(0o500)
    (place / "sticky/roots").write_text("x")
    os.chown(place / "sticky", 0, 0)
    (place / "sticky").chmod(0o1777)

    result = clean(user, "t", "sticky/*")

    assert result["changed"]
    assert not result["failed"]
    assert [entry["after"]["state"] for entry in result["diff"]] == ["partly removed", "absent"]
    assert sorted(note.split(" ")[0] for note in result["notes"]) == [
        "sticky/roots",
        "t/ro/roots/file",
        "t/roots/file",
    ]
    assert names(place) == [
        *("sticky", "sticky/roots", "t", "t/ro", "t/ro/roots", "t/ro/roots/file", "t/roots", "t/roots/file")
    ]
    assert stat.S_IMODE((place / "t/ro").stat().st_mode) == 0o500
    assert not clean(user, "t", "sticky/*")["changed"]


@pytest.mark.root
@pytest.mark.parametrize("kind", ["tmpfs", "tmpfs on an old kernel", "bind"])
def test_mounts_are_not_entered(home: Home, root: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "old" in kind:
        monkeypatch.setattr(_cleaning, "_libc", SimpleNamespace(name_to_handle_at=lambda *_: -1))
    user, place = home
    fill(home, "t/a", "t/mnt/under", "u/mnt/under")
    shared = root.parent / "shared"
    shared.mkdir()
    arguments = ["-t", "tmpfs", "tmpfs"] if "tmpfs" in kind else ["--bind", str(shared)]
    mounts = [place / "t/mnt", place / "u/mnt"]
    try:
        for mount in mounts:
            subprocess.run(["mount", *arguments, str(mount)], check=True)
            (mount / "precious").write_text("x")
            own(user, mount)
        age(place, 30)
        result = clean(user, "t", "u/mnt/*", {"path": "u", "older_than": "1d"})
        assert not result["failed"]
        assert {note.split(" is ")[0] for note in result["notes"]} == {"t/mnt", "u/mnt"}
        assert "another file system" in result["notes"][0]
        assert all(os.listdir(mount) == ["precious"] for mount in mounts)
        assert names(place) == ["t", "t/mnt", "t/mnt/precious", "u", "u/mnt", "u/mnt/precious"]
    finally:
        for mount in mounts:
            subprocess.run(["umount", str(mount)], check=False)


def test_age_is_that_of_the_entry_itself(home: Home) -> None:
    user, place = home
    fill(home, "s/old", "s/young", "s/future", "target")
    age(place / "s", 8)
    os.utime(place / "s/young", None)
    os.utime(place / "s/future", (time.time() + DAY,) * 2)
    (place / "s/new_link").symlink_to("old")
    (place / "s/old_link").symlink_to("young")
    os.utime(place / "s/old_link", (0, 0), follow_symlinks=False)
    own(user, place)
    rule = {"path": "s/*", "older_than": "7d"}
    assert clean(user, rule)["changed"]
    assert sorted(os.listdir(place / "s")) == ["future", "new_link", "young"]
    assert not clean(user, rule)["changed"]
    assert clean(user, {"path": "s/*", "older_than": None})["changed"]
    assert os.listdir(place / "s") == []


@pytest.mark.parametrize("young", ["file", "directory", "link", "itself"])
def test_a_directory_with_something_young_inside_is_left_whole(home: Home, young: str) -> None:
    user, place = home
    fill(home, "s/a/b/c/file", "s/a/b/old", "s/a/older", "s/gone/x/y")
    (place / "s/a/b/c/link").symlink_to("/etc")
    (place / "s/a/b/directory").mkdir()
    age(place / "s", 30)
    path = (
        place
        / "s/a"
        / {"file": "b/c/file", "directory": "b/directory", "link": "b/c/link", "itself": "."}[young]
    )
    os.utime(path, None, follow_symlinks=False)
    before = names(place / "s/a")
    assert clean(user, {"path": "s/*", "older_than": "2w"})["changed"]
    assert names(place / "s/a") == before
    assert not (place / "s/gone").exists()
    age(place / "s", 30)
    assert clean(user, {"path": "s/*", "older_than": "2w"})["changed"]
    assert names(place) == ["s"]


@pytest.mark.root
def test_what_cannot_be_looked_into_may_be_young(home: Home) -> None:
    user, place = home
    fill(home, "s/shut/x", "s/list/x")
    age(place / "s", 30)
    (place / "s/shut").chmod(0)
    (place / "s/list").chmod(0o600)
    result = clean(user, {"path": "s/*", "older_than": "1d"})
    assert not result["changed"]
    assert len(result["notes"]) == 2
    assert sorted(os.listdir(place / "s")) == ["list", "shut"]


def test_what_rules_do_to_each_other_is_predicted(home: Home) -> None:
    user, place = home
    fill(home, "a/b/c", "a/d", "old/x/y.tmp", "old/z", "twice.tmp")
    age(place, 30)
    old = {"path": "old", "older_than": "7d"}
    first = clean(user, "a/b", "a/b/c", "a/d", "a", "a/*", "old/x/*.tmp", old, "twice*", "t*.tmp")
    assert names(place) == ["old", "old/x", "old/z"], "what we took from it made it young"
    assert len(first["diff"]) == 5


def test_written_to_between_the_look_and_the_removal(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    user, place = home
    fill(home, "s/a/file", "s/a/other", "s/b")
    age(place / "s", 30)
    looked = _cleaning._Walk._old

    def old(self: Any, entry: Any, cutoff: float) -> bool:
        answer = looked(self, entry, cutoff)
        if entry.name in ("file", "b"):
            os.utime(entry.name, None, dir_fd=entry.parent)
        return answer

    monkeypatch.setattr(_cleaning._Walk, "_old", old)
    result = clean(user, {"path": "s/*", "older_than": "7d"}, both=False)
    assert sorted(result["notes"]) == [
        "s/a/file changed at this moment: left",
        "s/b changed at this moment: left",
    ]
    assert names(place) == ["s", "s/a", "s/a/file", "s/b"]


def test_time_that_is_up_is_said_and_the_next_run_goes_on(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, place = home
    fill(home, *(f"t/{number}" for number in range(50)))
    unlink = os.unlink

    def slow(*arguments: Any, **named: Any) -> None:
        time.sleep(0.1)
        unlink(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", slow)
        result = clean(user, "t/*", timeout=1, both=False)
    left = len(os.listdir(place / "t"))
    assert result["failed"]
    assert result["changed"]
    assert f"did not finish in time: {50 - left} removed so far" in result["msg"]
    assert 0 < left < 50
    assert not clean(user, "t/*")["failed"]
    assert os.listdir(place / "t") == []


def test_killed_half_way_the_next_run_goes_on(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    user, place = home
    fill(home, *(f"t/{number}/x" for number in range(20)), "kept/x")
    rmdir = os.rmdir
    with monkeypatch.context() as patched:

        def dies(name: str, **named: Any) -> None:
            if name == "t" or len(os.listdir(named["dir_fd"])) == 10:
                os.kill(os.getpid(), signal.SIGKILL)
            rmdir(name, **named)

        patched.setattr(os, "rmdir", dies)
        result = clean(user, "t", both=False)
    assert "killed" in result["msg"]
    assert "the next clean-up goes on" in result["msg"]
    assert len(os.listdir(place / "t")) == 10
    assert clean(user, "t")["changed"]
    assert names(place) == ["kept", "kept/x"]


def test_many_paths_and_notes_make_a_short_report(home: Home) -> None:
    user, place = home
    fill(home, *(f"t/{number}{'x' * 240}" for number in range(500)))
    (place / "links").mkdir()
    for number in range(500):
        (place / f"links/{number}").symlink_to("/etc")
    own(user, place)
    result = clean(user, "t/*", "links/*/passwd")
    assert len(result["notes"]) == 21
    assert result["notes"][-1] == "and more was left"
    assert len(result["diff"]) == 21
    assert result["diff"][-1]["before"]["more"] == 480
    assert len(str(result)) < 40_000
    assert os.listdir(place / "t") == []


def test_a_directory_too_full_to_be_listed_costs_its_user_alone(
    root: Path, make_user: MakeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = make_user("alice", home=True), make_user("bob", home=True)
    for user in (alice, bob):
        place = Path(user["directory"], "scratch")
        place.mkdir()
        for number in range(2 if user is alice else 1):
            (place / str(number)).touch()
        os.chown(place, user["uid"], user["gid"])
    real = os.listdir

    def listdir(place: Any) -> list[str]:
        """To make ten million files would take too long."""
        names = real(place)
        return names * 5_000_000 if len(names) == 2 else names

    monkeypatch.setattr(_cleanup, "_MEMORY", 16 << 20)
    monkeypatch.setattr(os, "listdir", listdir)
    results = _cleanup.clean([alice, bob], str(root), 1000, ["scratch/*"], 60, check=False).users
    assert "needs more memory than it may have" in results[0]["msg"]
    assert not results[1]["failed"] and results[1]["changed"]
    monkeypatch.undo()
    (result,) = _cleanup.clean([alice], str(root), 1000, ["scratch/*"], 60, check=False).users
    assert not result["failed"]
    assert list((root / "alice/scratch").iterdir()) == []


def test_too_deep_is_an_error(home: Home) -> None:
    user, place = home
    fill(home, "t/x", "t/deep/x")
    inner = os.open(place / "t/deep", os.O_RDONLY)
    for _ in range(_cleaning.MAX_DEPTH + 50):
        os.mkdir("d", dir_fd=inner)
        os.chown("d", user["uid"], user["gid"], dir_fd=inner)
        deeper = os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(inner)
        inner = deeper
    os.close(inner)
    result = clean(user, "t")
    assert result["failed"] and result["changed"]
    assert "directories deep: remove it by hand" in result["msg"]
    assert os.listdir(place / "t") == ["deep"]
    assert not clean(user, "t")["changed"]


@pytest.mark.root
def test_an_immutable_directory_does_not_end_the_walk(home: Home) -> None:
    user, place = home
    fill(home, "cache/a/x", "cache/z")
    (place / "cache/a").chmod(0o500)
    subprocess.run(["chattr", "+i", str(place / "cache/a")], check=True)
    try:
        result = clean(user, "cache", both=False)  # check mode does not ask for such attributes
        assert not result["failed"], result
        assert not (place / "cache/z").exists() and (place / "cache/a/x").exists()
    finally:
        subprocess.run(["chattr", "-i", str(place / "cache/a")], check=True)


@pytest.mark.root
def test_a_read_only_disk_is_an_error(small_disk: Path, make_user: MakeUser) -> None:
    alice = make_user("alice", home=True)
    (small_disk / "alice/a").write_text("x")
    clean(alice)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "read-only" in clean(alice, "a", both=False)["msg"]


@pytest.fixture
def flip() -> Iterator[Callable[..., Flipper]]:
    running: list[Flipper] = []

    def start(user: dict[str, Any], one: str, two: str) -> Flipper:
        running.append(Flipper(user["uid"], Path(user["directory"]), one, two))
        return running[-1]

    yield start
    for each in running:
        each.end()


@pytest.mark.root
@pytest.mark.parametrize("whose", ["root", "bob", "alice"])
@pytest.mark.parametrize(
    "paths", [["work/d*/*"], ["work/deep", "work/file"], [{"path": "work/*", "older_than": "1d"}]]
)
def test_names_exchanged_meanwhile_cost_nobody_else(
    home: Home, make_user: MakeUser, root: Path, flip: Callable[..., Flipper], paths: list[Any], whose: str
) -> None:
    user, place = home
    victims = root.parent / "victims"
    (victims / "deep").mkdir(parents=True)
    (victims / "deep/secret").write_text("x")
    (victims / "file").write_text("x")
    if whose != "root":
        own(make_user(whose), victims)  # alice's own are not named either, and no right of hers forbids it
    age(victims, 30)
    before = snapshot(victims)
    (place / "trap").symlink_to(victims)
    fill(home, "work/file")
    hostile = flip(user, "work", "trap")
    rounds = 60 if whose == "alice" else killing.rounds(20, 60)
    for _ in range(rounds):
        with hostile.paused():
            real = place / ("trap" if (place / "work").is_symlink() else "work")
            for name in ("deep/1", "deep/2", "file"):
                (real / name).parent.mkdir(exist_ok=True)
                (real / name).write_text("x")
            own(user, place)
            age(real, 30)
        hostile.wait_for_flips()
        result = clean(user, *paths, both=False)
        assert not result["failed"], result
    assert hostile.flips > rounds
    assert snapshot(victims) == before
