from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.storage import _homes, _report, _scripts
from ansible_bootstrap.storage._scripts import Options
from ansible_bootstrap.storage._state import identity
from ansible_bootstrap.storage._ways import find_program
from tests.unit.storage.conftest import MakeUser

Put = Callable[..., str]


@pytest.fixture
def put(root: Path) -> Put:
    """Write the admin's program, beside the storage root; return its path."""

    def put(text: str, *, name: str = "script", first: str = "#!/bin/sh\n") -> str:
        path = root.parent / name
        path.write_text(first + text)
        path.chmod(0o755)
        return str(path)

    return put


def run(root: Path, *users: Any, check: bool = False, **options: Any) -> list[dict[str, Any]]:
    return _scripts.run(list(users), str(root), 1000, Options(**options), check=check).users


def one(root: Path, user: Any, path: str, **options: Any) -> dict[str, Any]:
    (result,) = run(root, user, path=path, **options)
    return result


def record(root: Path, name: str = "alice") -> Any:
    path = root / f".ansible_bootstrap/records/{identity([name])}.json"
    return json.loads(path.read_text()).get("script") if path.exists() else None


def processes(marker: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_it_runs_once_as_the_user_with_a_clean_environment(
    root: Path, make_user: MakeUser, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the admin's")
    path = put('echo ran >>runs; pwd >where; env -u _ >env; echo "$0 $# $1" >args; id -u >uid; cat >stdin\n')
    alice = make_user("alice", home=True)

    assert one(root, alice, path, check=True)["changed"]
    assert os.listdir(root) == ["alice"]
    assert one(root, alice, path) == _report.result("alice", None, changed=True)

    home = root / "alice"
    assert record(root) == {path: {"done": True, "directory": True}}
    assert (home / "args").read_text() == f"{path} 1 alice\n"
    assert (home / "uid").read_text() == f"{alice['uid']}\n"
    assert (home / "where").read_text() == f"{home}\n"
    assert (home / "stdin").read_text() == ""
    assert sorted((home / "env").read_text().splitlines()) == sorted(
        [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            *(f"HOME={home}", "USER=alice", "LOGNAME=alice", "LANG=C.UTF-8", f"PWD={home}"),
            *("BOOTSTRAP_USER=alice", f"BOOTSTRAP_DIRECTORY={home}"),
            *(f"BOOTSTRAP_UID={alice['uid']}", f"BOOTSTRAP_GID={alice['gid']}"),
        ]
    )
    assert (home / "env").stat().st_uid == alice["uid"]
    assert stat.S_IMODE((home / "env").stat().st_mode) == 0o644

    for check in (True, False):
        assert not one(root, alice, path, check=check)["changed"]
    assert (home / "runs").read_text() == "ran\n"
    assert one(root, alice, put("echo other >>runs\n", name="other"))["changed"]
    assert len(record(root)) == 2


def test_always_runs_each_time_and_counts_as_no_change(root: Path, make_user: MakeUser, put: Put) -> None:
    path = put("echo ran >>runs\n")
    alice = make_user("alice", home=True)
    assert not one(root, alice, path, always=True, check=True)["changed"]
    assert not (root / "alice/runs").exists()
    for _ in range(2):
        assert not one(root, alice, path, always=True)["changed"]
    assert (root / "alice/runs").read_text() == "ran\nran\n"


def test_a_failure_is_said_with_the_last_lines_made_printable_and_tried_again(
    root: Path, make_user: MakeUser, put: Put
) -> None:
    path = put(
        "echo ran >>runs; [ -e mended ] && exit 0; printf 'one\\n\\033[2Jtwo\\r\\n\\377' >&2; exit 3\n"
    )
    alice = make_user("alice", home=True)
    for _ in range(2):
        result = one(root, alice, path)
        assert result["failed"] and not result["changed"]
        assert result["msg"] == rf"script {path} exited with status 3: one | \x1b[2Jtwo | " + "\ufffd"
        assert record(root) is None
    (root / "alice/mended").touch()
    assert one(root, alice, path)["changed"]
    assert (root / "alice/runs").read_text() == "ran\n" * 3


@pytest.mark.parametrize(
    ("text", "first", "says"),
    [
        ("exit 3\n", "#!/bin/sh\n", "exited with status 3, and said nothing"),
        ("kill -SEGV $$\n", "#!/bin/sh\n", "was killed by SIGSEGV"),
        ("true\n", "", "has no first line such as #!/bin/sh"),
        ("true\n", "#!/nowhere/sh\n", "the interpreter in its first line does not exist"),
        ("true\n", "#!/etc\n", "permission denied; let everybody read and execute it"),
    ],
)
def test_whatever_ends_it_is_named(
    root: Path, make_user: MakeUser, put: Put, text: str, first: str, says: str
) -> None:
    path = put(text, first=first)
    said = one(root, make_user("alice", home=True), path)["msg"]
    assert said.startswith(f"script {path} ") and says in said


def test_one_that_hangs_is_ended_and_delays_nobody(root: Path, make_user: MakeUser, put: Put) -> None:
    path = put('case "$1" in slow*) echo waiting; sleep 98765 & sleep 98765;; esac; date +%s.%N >done\n')
    slow = [make_user(f"slow{number}", home=True) for number in range(4)]
    quick = [make_user(f"user{number}", home=True) for number in range(6)]
    started = time.time()
    results = run(root, *slow, *quick, path=path, timeout=12)
    assert time.time() - started < 12 + 12  # one after the other would take 48
    for result in results[:4]:
        assert "did not finish within 12 s and was ended with all its processes: waiting" in result["msg"]
    assert [result["changed"] for result in results[4:]] == [True] * 6
    assert all(float(Path(user["directory"], "done").read_text()) < started + 12 for user in quick)
    assert processes("98765") == []


_DAEMON = """
import os, sys, time
for _ in range(2):
    if os.fork():
        os._exit(0)
    os.setsid()
open("daemon", "w").write(str(os.getpid()))
time.sleep(87654)
"""


@pytest.mark.parametrize("hangs", [False, True])
def test_a_daemon_does_not_outlive_it_nor_hold_the_lock(
    root: Path, make_user: MakeUser, put: Put, hangs: bool
) -> None:
    text = f"{sys.executable} -c '{_DAEMON}'\nwhile [ ! -s daemon ]; do sleep 0.01; done\n"
    path = put(text + ("sleep 87654\n" if hangs else ""))
    alice = make_user("alice", home=True)
    if os.geteuid() == 0:
        path = put(text.replace(sys.executable, "/usr/bin/python3") + ("sleep 87654\n" if hangs else ""))
    result = one(root, alice, path, timeout=2 if hangs else 20)
    if hangs:
        assert "did not finish" in result["msg"]
    else:
        assert result["changed"]
        assert "had left processes behind, which were ended (1)" in result["notes"][0]
    pid = int((root / "alice/daemon").read_text())
    assert not os.path.exists(f"/proc/{pid}")
    assert processes("87654") == []
    with (root / f".ansible_bootstrap/locks/{identity(['alice'])}").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_it_gets_no_descriptor_of_ours(root: Path, make_user: MakeUser, put: Put) -> None:
    path = put("readlink /proc/$$/fd/* >fds; true\n")
    assert one(root, make_user("alice", home=True), path)["changed"]
    opened = (root / "alice/fds").read_text().splitlines()
    ours = {"/dev/null", path, f"{root}/alice/fds"}  # the shell keeps its text, and a copy of its output
    assert {name for name in opened if not name.startswith("pipe:")} <= ours
    assert len({name for name in opened if name.startswith("pipe:")}) == 1


def test_a_flood_of_output_costs_no_memory(root: Path, make_user: MakeUser, put: Put) -> None:
    path = put("yes 0123456789 | head -c 300000000; echo; echo last words; exit 4\n")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    result = one(root, make_user("alice", home=True), path)
    assert "exited with status 4: …" in result["msg"]
    assert result["msg"].endswith("| last words")
    assert "Broken pipe" not in result["msg"]  # SIGPIPE is as a program expects it
    assert len(result["msg"]) < 2200
    used = max(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < used + 50_000  # KiB


def test_closed_output_does_not_end_it(root: Path, make_user: MakeUser, put: Put) -> None:
    path = put("exec >&- 2>&-; sleep 0.3; : >done\n")
    assert one(root, make_user("alice", home=True), path)["changed"]
    assert (root / "alice/done").exists()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.unlink(), "does not exist on this host"),
        (lambda path: path.chmod(0o644), "is not executable: `chmod a+rx"),
        (lambda path: path.chmod(0o775), "is writable by group 0: `chmod go-w"),
        (lambda path: (path.unlink(), path.mkdir()), "is a directory, not a file"),
        (lambda path: (path.unlink(), path.symlink_to("nowhere")), "does not exist on this host"),
        (lambda path: (path.unlink(), path.symlink_to(path)), "too many symbolic links"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_a_bad_program_is_everybodys_error(
    root: Path, make_user: MakeUser, put: Put, spoil: Callable[[Path], Any], says: str, check: bool
) -> None:
    path = put("true\n")
    spoil(Path(path))
    results = run(root, make_user("alice", home=True), make_user("bob", home=True), path=path, check=check)
    for result in results:
        assert result["failed"]
        assert says in result["msg"]
        assert path in result["msg"]


@pytest.mark.root
def test_a_program_that_another_could_replace_is_refused(root: Path, make_user: MakeUser, put: Put) -> None:
    path = put("true\n")
    alice = make_user("alice", home=True)
    link = root / "alice/link"
    link.symlink_to(path)
    assert "belongs to uid 20001, who could change it" in one(root, alice, str(link))["msg"]
    os.chown(path, 20001, 0)
    assert "belongs to uid 20001" in one(root, alice, path)["msg"]


def test_links_of_the_admins_are_followed(root: Path, put: Put) -> None:
    path = put("true\n")
    (root.parent / "link").symlink_to("storage/../script")
    assert find_program(str(root.parent / "link"), "script", missing="") == path
    with pytest.raises(Exception, match="absolute path"):
        find_program("script", "script", missing="")


@pytest.mark.root
@pytest.mark.parametrize("as_root", [False, True])
def test_what_is_in_the_homes_place_is_not_entered(
    root: Path, make_user: MakeUser, put: Put, victim: Path, as_root: bool
) -> None:
    path = put('cd "$BOOTSTRAP_DIRECTORY" && touch here\n')
    (root / "mallory").symlink_to(victim)
    (root / "eve").mkdir()
    os.chown(root / "eve", 20099, 0)
    users = [make_user("mallory"), make_user("eve"), make_user("bob", home=True)]
    for check in (True, False):
        linked, other, good = run(root, *users, path=path, as_root=as_root, check=check)
        assert "is a symbolic link, not a directory: left as it is" in linked["msg"]
        assert "belongs to uid 20099" in other["msg"]
        assert good["changed"]


def test_without_a_directory_the_user_fails_alone(root: Path, make_user: MakeUser, put: Put) -> None:
    path = put(": >here\n")
    alice, bob = make_user("alice"), make_user("bob", home=True)
    assert [result["changed"] for result in run(root, alice, bob, path=path, check=True)] == [True, True]
    bad, good = run(root, alice, bob, path=path)
    assert "the role user_dir comes before script" in bad["msg"]
    assert good["changed"]


def test_a_new_home_gets_it_again(root: Path, make_user: MakeUser, put: Put) -> None:
    path, alice = put(": >here\n"), make_user("alice")

    def homes() -> None:
        _homes.ensure([alice], str(root), 1000, _homes.Options(), check=False)

    homes()
    assert one(root, alice, path)["changed"]
    (root / "alice/here").unlink()
    (root / "alice").rmdir()
    assert one(root, alice, path, check=True)["changed"]
    homes()
    assert one(root, alice, path)["changed"]
    assert (root / "alice/here").exists()


@pytest.mark.root
def test_as_root_it_may_make_the_directory_and_does_so_again_if_it_is_lost(
    root: Path, make_user: MakeUser, put: Put
) -> None:
    path = put('pwd; id -u; echo "$HOME $USER"; mkdir "$BOOTSTRAP_DIRECTORY" || exit 1\n')
    alice = make_user("alice")
    assert one(root, alice, path, as_root=True, check=True)["changed"]
    result = one(root, alice, path, as_root=True)
    assert result["changed"]
    assert "belongs to root, so the user cannot write there" in result["notes"][0]
    assert record(root) == {path: {"done": True, "directory": True}}
    assert not one(root, alice, path, as_root=True)["changed"]
    (root / "alice").rmdir()
    assert one(root, alice, path, as_root=True, check=True)["changed"]
    assert one(root, alice, path, as_root=True)["changed"]
    assert (root / "alice").is_dir()
    assert "/ | 0 | /root root" in one(root, alice, path, as_root=True, always=True)["msg"]


@pytest.mark.root
def test_as_root_without_a_directory_it_is_done_once(root: Path, make_user: MakeUser, put: Put) -> None:
    path = put(f"echo $1 >>{root}/list\n")
    for _ in range(2):
        one(root, make_user("alice"), path, as_root=True)
    assert (root / "list").read_text() == "alice\n"


@pytest.mark.root
def test_as_the_user_it_can_do_nothing_to_others(
    root: Path, make_user: MakeUser, put: Put, victim: Path
) -> None:
    path = put(
        f"touch {root}/x; touch {victim}/x; cat {victim}/secret; kill -9 $PPID; grep -E '^(Groups|NoNewPrivs)' /proc/$$/status;"
        "exit 5\n"
    )
    said = one(root, make_user("alice", home=True), path)["msg"]
    assert said.count("ermission denied") == 3
    assert "not permitted" in said
    assert r"Groups: | NoNewPrivs:\t1" in said
    assert sorted(os.listdir(root)) == [".ansible_bootstrap", "alice"]


@pytest.mark.root
def test_without_root_it_is_the_same_for_oneself(
    root: Path, make_user: MakeUser, put: Put, as_user: Callable[..., Any]
) -> None:
    alice, path = make_user("alice", home=True), put("id -u >uid\n")
    os.chown(root, alice["uid"], alice["gid"])
    assert as_user(alice["uid"], lambda: one(root, alice, path))["changed"]
    assert (root / "alice/uid").read_text() == f"{alice['uid']}\n"
    refused = as_user(alice["uid"], lambda: one(root, alice, path, as_root=True))
    assert "script_as root needs root" in refused["msg"]


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])  # the last is an exception
@pytest.mark.parametrize("as_root", [False, pytest.param(True, marks=pytest.mark.root)])
def test_killed_half_way_it_ends_with_all_it_started_and_runs_again(
    root: Path, make_user: MakeUser, put: Put, as_root: bool, by: signal.Signals
) -> None:
    home = root / "alice"
    path = put(
        f"cd {home}; [ -e half ] && exit 0; (setsid sleep 76543 & echo $! >pid; mv pid half); sleep 76543\n"
    )
    alice = make_user("alice", home=True)
    module = os.fork()
    if module == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(BaseException):
            one(root, alice, path, as_root=as_root)
        os._exit(0)
    wait_until((home / "half").exists)
    wait_until(lambda: len(processes("76543")) >= 2)
    os.kill(module, by)
    os.waitpid(module, 0)
    wait_until(lambda: not processes("76543"))
    assert record(root) is None
    assert one(root, alice, path, as_root=as_root)["changed"]


def test_a_module_that_ends_just_as_the_program_does_leaves_no_daemon(
    root: Path, make_user: MakeUser, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put("(setsid sleep 65432 & echo $! >pid); while [ ! -s pid ]; do sleep 0.01; done\n")
    real, told = signal.signal, []

    def at_the_last_moment(number: int, handler: Any) -> Any:
        if (number, handler) == (signal.SIGTERM, signal.SIG_IGN) and not told:
            told.append(True)
            signal.raise_signal(signal.SIGTERM)
        return real(number, handler)

    monkeypatch.setattr(signal, "signal", at_the_last_moment)
    assert one(root, make_user("alice", home=True), path)["failed"]
    assert processes("65432") == []


def test_nothing_counts_that_is_not_on_the_disk(
    root: Path, make_user: MakeUser, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(_scripts, "sync", broken)
    result = one(root, make_user("alice", home=True), put("true\n"))
    assert "input/output error" in result["msg"]
    assert not result["changed"]
    assert record(root) is None


@pytest.mark.usefixtures("in_process")
@pytest.mark.root
def test_a_home_on_its_own_file_system_is_synced_too(
    root: Path, make_user: MakeUser, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = make_user("alice", home=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"uid={alice['uid']}", "tmpfs", root / "alice"], check=True)
    synced: list[int] = []
    monkeypatch.setattr(_scripts, "sync", lambda directory: synced.append(os.fstat(directory).st_dev))
    try:
        assert one(root, alice, put("true\n"))["changed"]
        assert set(synced) == {root.stat().st_dev, (root / "alice").stat().st_dev}
    finally:
        subprocess.run(["umount", root / "alice"], check=True)
