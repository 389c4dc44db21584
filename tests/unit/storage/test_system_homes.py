"""The role mkhomedir's logic, with the real helper.

The helper and we ask the name service, so each call runs in a forked process with a mount namespace of its own,
where /etc/passwd also knows the test's users. The machine's own is never touched.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.storage import _system_homes
from ansible_bootstrap.storage._errors import StorageError
from ansible_bootstrap.storage._mkhomedir_helper import Options, parse_umask
from ansible_bootstrap.storage._report import result
from ansible_bootstrap.storage._state import identity
from tests.conftest import needs
from tests.faults import killing
from tests.unit.storage.conftest import MakeUser

HELPER = "mkhomedir_helper"
PLAIN = Options()

Ensure = Callable[..., list[dict[str, Any]]]


def enter_namespace(passwd: Path) -> None:
    """Let this process, and no other, see another /etc/passwd."""
    assert ctypes.CDLL(None).unshare(0x00020000) == 0  # CLONE_NEWNS
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "--bind", str(passwd), "/etc/passwd"], check=True)


def in_namespace(passwd: Path, work: Callable[[], Any]) -> Any:
    """Run ``work`` where /etc/passwd is another, in a process that may be killed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            enter_namespace(passwd)
            os.write(writer, json.dumps(work()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0
    return json.loads(said)


@pytest.fixture
def ensure(root: Path, tmp_path: Path) -> Ensure:
    needs(root=True, programs=(HELPER, "mount"))

    def run(
        *users: Any, check: bool = False, options: Options = PLAIN, known: list[Any] | None = None
    ) -> list[dict[str, Any]]:
        passwd = tmp_path / "passwd"
        lines = [
            f"{user['name']}:x:{user['uid']}:{user['gid']}::{user['directory']}:/bin/sh\n"
            for user in (users if known is None else known)
        ]
        passwd.write_text(Path("/etc/passwd").read_text() + "".join(lines))
        passwd.chmod(0o644)

        def work() -> list[dict[str, Any]]:
            return _system_homes.ensure(list(users), str(root), 1000, options, check=check).users

        return list(in_namespace(passwd, work))

    return run


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    made = tmp_path / "skel"
    (made / "sub" / "deep").mkdir(parents=True)
    (made / ".bashrc").write_text("set -o vi\n" * 2000)
    (made / "sub" / "run").write_text("#!/bin/sh\n")
    (made / "sub" / "run").chmod(0o755)
    (made / "sub" / "deep" / "empty").write_text("")
    (made / "link").symlink_to("sub/run")
    return made


def listing(directory: Path) -> dict[str, Any]:
    """What is in a directory: links' targets, files' contents."""
    found: dict[str, Any] = {}
    for path in directory.rglob("*"):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def snapshot(place: Path) -> list[Any]:
    paths = [place, *sorted(place.rglob("*"))] if not place.is_symlink() else [place]
    return [
        (str(path), *(lambda s: (s.st_ino, s.st_mode, s.st_uid, s.st_gid, s.st_size))(path.lstat()))
        for path in paths
    ]


def is_whole(root: Path, user: dict[str, Any], skeleton: Path, mode: int = 0o700) -> None:
    home = Path(user["directory"])
    status = home.lstat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (user["uid"], user["gid"], mode)
    assert listing(home) == listing(skeleton)
    assert {path.lstat().st_uid for path in home.rglob("*")} <= {user["uid"]}
    assert {path.lstat().st_gid for path in home.rglob("*")} <= {user["gid"]}
    assert os.listdir(root / ".ansible_bootstrap" / "stage") == []


def record(root: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((root / f".ansible_bootstrap/records/{identity([name])}.json").read_text()))


def wrapper(tmp_path: Path, text: str) -> str:
    """A program in the helper's place."""
    path = tmp_path / "helper"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a partial home count as given up at once."""
    monkeypatch.setattr(_system_homes, "SETTLED", 0.0)


def test_a_home_is_made_once(root: Path, make_user: MakeUser, ensure: Ensure, skeleton: Path) -> None:
    alice, bob = make_user("alice"), make_user("bob")
    options = Options(skeleton=str(skeleton))
    assert {user["changed"] for user in ensure(alice, bob, check=True, options=options)} == {True}
    assert os.listdir(root) == []

    results = ensure(alice, bob, options=options)
    assert results[0] == result("alice", None, changed=True)
    is_whole(root, alice, skeleton)
    is_whole(root, bob, skeleton)
    assert record(root, "alice") == {"name": "alice", "directory": "alice", "mkhomedir": {"made": True}}

    before = snapshot(root)
    for check in (True, False):
        again = ensure(alice, bob, check=check, options=options)
        assert [(user["changed"], user["failed"]) for user in again] == [(False, False)] * 2
    assert snapshot(root) == before


def test_the_umask_and_the_directories_above(
    root: Path, make_user: MakeUser, ensure: Ensure, skeleton: Path
) -> None:
    alice = make_user("alice", directory=str(root / "students" / "alice"))
    assert ensure(alice, options=Options("0022", str(skeleton)))[0]["changed"]
    is_whole(root, alice, skeleton, 0o755)
    above = (root / "students").stat()
    assert (above.st_uid, above.st_mode & 0o777) == (0, 0o755)


def test_a_home_of_the_users_is_left_alone_and_other_records_are_kept(
    root: Path, make_user: MakeUser, ensure: Ensure
) -> None:
    alice = make_user("alice", home=True)
    os.chown(root / "alice", alice["uid"], 20077)
    (root / "alice" / "mine").write_text("mine")
    before = snapshot(root / "alice")
    (result,) = ensure(alice)
    assert not result["changed"]
    assert not result["failed"]
    assert result["notes"] == ["group is 20077, not 20001: left as it is"]
    assert snapshot(root / "alice") == before
    assert record(root, "alice")["mkhomedir"] == {"made": False}


def test_a_user_the_system_does_not_know_so_is_refused(
    root: Path, make_user: MakeUser, ensure: Ensure
) -> None:
    alice = make_user("alice")
    cases = [
        ([], "is not a system user"),
        ([{**alice, "directory": "/home/alice"}], "home of this user is /home/alice"),
        ([{**alice, "uid": 20050}], "uid and gid of this user are 20050 and 20001"),
        ([{**alice, "gid": 20050}], "uid and gid of this user are 20001 and 20050"),
    ]
    for known, text in cases:
        for check in (True, False):
            bad, good = ensure(alice, make_user("bob"), check=check, known=[*known, make_user("bob")])
            assert text in bad["msg"]
            assert not good["failed"]
        assert not (root / "alice").exists()


def test_a_record_that_cannot_be_written_costs_its_user_alone(
    root: Path, make_user: MakeUser, ensure: Ensure
) -> None:
    assert ensure(make_user("carol"))[0]["changed"]
    (root / f".ansible_bootstrap/records/.{identity(['alice'])}.json.new").mkdir()
    bad, good = ensure(make_user("alice"), make_user("bob"))
    assert (bad["failed"], good["failed"], good["changed"]) == (True, False, True)
    assert not (root / "alice").exists() and (root / "bob").exists()


@pytest.mark.parametrize("name", ["AliceW", "jane.doe@uni.example", "Zoë"])
def test_any_name_that_the_system_knows_gets_a_home(make_user: MakeUser, ensure: Ensure, name: str) -> None:
    (bad,) = ensure(make_user(name), known=[])
    assert "is not a system user" in bad["msg"]
    (good,) = ensure(make_user(name))
    assert good["changed"] and not good["failed"]


@pytest.mark.parametrize(
    "in_the_way",
    [
        "link",
        "dangling",
        "file",
        "other",
        "foreign",
        "edited",
        "open",
        "fifo",
        "shut link",
        "stranger's",
        "open whole",
    ],
)
def test_what_is_in_the_way_is_left_as_it_is(
    root: Path,
    make_user: MakeUser,
    ensure: Ensure,
    skeleton: Path,
    victim: Path,
    in_the_way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settle(monkeypatch)
    place = root / "alice"
    if in_the_way == "link":
        place.symlink_to(victim)
    elif in_the_way == "dangling":
        place.symlink_to("nowhere")
    elif in_the_way == "file":
        place.write_text("mine")
    else:
        place.mkdir(mode=0o755 if in_the_way == "open" else 0o700)
        (place / ".bashrc").write_text("set -o vi\n")  # a beginning of the skeleton's
        if in_the_way == "other":
            os.chown(place, 20009, 0)
        elif in_the_way == "foreign":
            (place / "sub").mkdir()
            (place / "sub" / "data").write_text("mine")
        elif in_the_way == "edited":
            (place / ".bashrc").write_text("set -o emacs\n")
        elif in_the_way == "fifo":
            os.mkfifo(place / "link")
        elif in_the_way == "stranger's":
            os.chown(place / ".bashrc", 20009, 0)
        elif in_the_way == "open whole":  # and nobody had begun: an admin may want it so
            shutil.rmtree(place)
            shutil.copytree(skeleton, place, symlinks=True)
            place.chmod(0o755)
            for path in place.iterdir():
                os.chown(path, 20001, 20001, follow_symlinks=False)
        elif in_the_way == "shut link":
            (place / "link").symlink_to(victim)
    before = snapshot(place)
    for check in (True, False):
        options = Options("0022", str(skeleton))
        bad, good = ensure(make_user("alice"), make_user("bob"), check=check, options=options)
        assert "left as it is" in bad["msg"]
        assert not bad["changed"]
        assert not good["failed"]
    assert snapshot(place) == before
    is_whole(root, make_user("bob"), skeleton, 0o755)


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_an_empty_directory_of_roots_is_replaced(
    root: Path,
    make_user: MakeUser,
    ensure: Ensure,
    skeleton: Path,
    mode: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settle(monkeypatch)
    (root / "alice").mkdir(mode=mode)
    options = Options(skeleton=str(skeleton))
    assert ensure(make_user("alice"), check=True, options=options)[0]["changed"]
    assert (root / "alice").stat().st_uid == 0
    assert ensure(make_user("alice"), options=options)[0]["changed"]
    is_whole(root, make_user("alice"), skeleton)


def test_a_partial_home_that_others_left_is_made_whole_once_it_is_silent(
    root: Path, make_user: MakeUser, ensure: Ensure, skeleton: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, options = make_user("alice"), Options(skeleton=str(skeleton))
    home = root / "alice"
    (home / "sub").mkdir(mode=0o700, parents=True)
    home.chmod(0o700)
    (home / ".bashrc").write_text("set -o vi\nset")
    os.chown(home / ".bashrc", alice["uid"], alice["gid"])
    before = snapshot(home)
    for check in (True, False):
        assert "is being made at this moment" in ensure(alice, check=check, options=options)[0]["msg"]
    assert snapshot(home) == before

    settle(monkeypatch)
    assert ensure(alice, check=True, options=options)[0]["changed"]
    assert snapshot(home) == before
    assert ensure(alice, options=options)[0]["changed"]
    is_whole(root, alice, skeleton)


def test_a_partial_home_is_old_if_only_a_clock_that_was_set_back_says_otherwise(
    root: Path, make_user: MakeUser, ensure: Ensure, skeleton: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, options = make_user("alice"), Options(skeleton=str(skeleton))
    home = root / "alice"
    home.mkdir(mode=0o700)
    (home / ".bashrc").write_text("set -o vi\n")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 5)
    assert ensure(alice, check=True, options=options)[0]["changed"]
    monkeypatch.setattr(time, "time", lambda: real() + _system_homes.SETTLED - 30)
    assert "is being made at this moment" in ensure(alice, options=options)[0]["msg"]
    monkeypatch.setattr(time, "time", lambda: real() - 86400)
    assert ensure(alice, options=options)[0]["changed"]
    is_whole(root, alice, skeleton)


def can(as_user: Callable[..., Any], uid: int, place: Path) -> bool:
    """Say whether this user gets at what is there."""
    return bool(as_user(uid, lambda: os.access(place, os.R_OK)))


@pytest.mark.parametrize("umask", ["0077", "0027", "0022"])
@pytest.mark.parametrize("above", [[], ["students"], ["students", "2026"]])
def test_default_acls_do_not_widen_a_home_of_the_helpers(
    root: Path,
    make_user: MakeUser,
    ensure: Ensure,
    skeleton: Path,
    default_acl: Callable[[Path], int],
    as_user: Callable[..., Any],
    umask: str,
    above: list[str],
) -> None:
    if above:
        (root / "students").mkdir()
    bearing = root.joinpath(*above[:1])
    stranger = default_acl(bearing)
    home = root.joinpath(*above, "alice")
    alice, options = make_user("alice", directory=str(home)), Options(umask, str(skeleton))
    if umask == "0027":  # the group gets in and others do not: so would a user whom the ACL names
        for check in (True, False):
            said = ensure(alice, check=check, options=options)[0]["msg"]
            assert f"{bearing} has a default ACL" in said
            assert f"`setfacl -k {bearing}`" in said
        assert not home.exists()
        os.removexattr(bearing, "system.posix_acl_default")
    assert ensure(alice, options=options)[0]["changed"]
    is_whole(root, alice, skeleton, 0o777 & ~int(umask, 8))
    for path in (home, home / ".bashrc", home / "sub" / "run"):
        assert can(as_user, stranger, path) == can(as_user, stranger + 1, path) == (umask == "0022")


# Killed


def tried(request: pytest.FixtureRequest) -> list[int]:
    """Steps at which to kill: the first three, a third of the others unless all are asked for, and one that none has."""
    return sorted({1, 2, 3, *killing.chosen(60, request.node.name), 60})


CALLS = ("mkdir", "openat", "fchmod", "fchown", "write", "symlink", "lchown", "chmod", "chown")


@pytest.mark.parametrize("whole_module", [False, True], ids=["helper", "module"])
@pytest.mark.parametrize("umask", ["0077", "0022"])
@pytest.mark.parametrize("call", CALLS)
def test_killed_at_any_call_the_next_run_makes_it_whole(
    root: Path,
    make_user: MakeUser,
    ensure: Ensure,
    skeleton: Path,
    tmp_path: Path,
    call: str,
    umask: str,
    whole_module: bool,
    request: pytest.FixtureRequest,
) -> None:
    needs(programs=("strace",))
    alice = make_user("alice")
    real = shutil.which(HELPER, path="/sbin:/usr/sbin")
    options = Options(umask, str(skeleton))
    mode = 0o777 & ~int(umask, 8)
    kills = 0
    opened = 0
    for number in tried(request):
        shutil.rmtree(root / "alice", ignore_errors=True)
        inject = f"?{call}:signal=KILL:when={number}"
        text = f'strace -f -o /dev/null -e trace="?{call}" -e inject="{inject}" {real} "$@" 2>/dev/null; status=$?'
        text += "\n[ $status = 0 ] || kill -9 $PPID" if whole_module else "\nexit $status"
        killed = Options(umask, str(skeleton), wrapper(tmp_path, text))
        (result,) = ensure(alice, options=killed)
        if not result["failed"]:
            break
        assert ("does the work was killed" if whole_module else "mkhomedir_helper") in result["msg"]
        kills += 1
        home = root / "alice"
        written = ""
        if home.exists():
            status = home.stat()
            assert status.st_uid == 0 or call == "chmod"
            if status.st_uid == 0 and status.st_mode & 0o077:  # the user can get at the files already
                opened += 1
                written = "the user's own\n"
                (home / ".bashrc").write_text(written)
                (home / "sub" / "new").write_text(written)
        (again,) = ensure(alice, options=options)
        assert not again["failed"], again
        if written:
            assert (home / ".bashrc").read_text() == (home / "sub" / "new").read_text() == written
            (home / "sub" / "new").unlink()
            (home / ".bashrc").write_bytes((skeleton / ".bashrc").read_bytes())
        is_whole(root, alice, skeleton, mode)
        assert record(root, "alice")["mkhomedir"] == {"made": True}
        assert not ensure(alice, options=options)[0]["changed"]
    else:
        pytest.fail("it never came to its end")
    assert kills >= 1
    assert opened == (1 if (call, umask) == ("chown", "0022") else opened)
    is_whole(root, alice, skeleton, mode)


@pytest.mark.parametrize("before", ["absent", "partial", "given", "worked", "lacks only the owner"])
def test_the_module_killed_at_each_of_its_own_steps(
    root: Path,
    make_user: MakeUser,
    ensure: Ensure,
    skeleton: Path,
    tmp_path: Path,
    before: str,
    request: pytest.FixtureRequest,
) -> None:
    needs(programs=("strace",))
    alice, home = make_user("alice"), root / "alice"
    options = Options("0022", str(skeleton))
    real = shutil.which(HELPER, path="/sbin:/usr/sbin")
    last = 3 if before == "lacks only the owner" else 1
    text = f'exec strace -f -o /dev/null -e trace=chown -e inject=chown:signal=KILL:when={last} {real} "$@"'
    halfway = Options("0022", str(skeleton), wrapper(tmp_path, text))

    def work() -> None:
        enter_namespace(tmp_path / "passwd")
        _system_homes.ensure([alice], str(root), 1000, options, check=False)

    for step in tried(request):
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(root / ".ansible_bootstrap", ignore_errors=True)
        ensure(alice, check=True)
        if before != "absent":
            assert "killed" in ensure(alice, options=halfway)[0]["msg"]
            assert home.stat().st_mode & 0o777 == (0o755 if last == 3 else 0o700)
        if before == "given":  # as the helper leaves it when no space is left
            home.chmod(0o755)
            os.chown(home, alice["uid"], alice["gid"])
        elif before == "worked":
            (home / "mine").write_text("mine")
            os.chown(home / "mine", alice["uid"], alice["gid"])
        done = killing.run(work, step)
        (result,) = ensure(alice, options=options)
        assert not result["failed"], (step, result)
        if before == "worked":
            assert (home.stat().st_uid, (home / "mine").read_text()) == (alice["uid"], "mine")
        else:
            is_whole(root, alice, skeleton, 0o755)
        assert record(root, "alice")["mkhomedir"] == {"made": True}
        if not done.killed:
            break
    else:
        pytest.fail("it never came to its end")
    assert step > 5


@pytest.mark.parametrize("spoil", ["more", "less", "another's", "mode"])
def test_begun_and_open_but_not_as_the_helper_leaves_it(
    root: Path, make_user: MakeUser, ensure: Ensure, skeleton: Path, tmp_path: Path, spoil: str
) -> None:
    needs(programs=("strace",))
    real = shutil.which(HELPER, path="/sbin:/usr/sbin")
    text = f'exec strace -f -o /dev/null -e trace=chown -e inject=chown:signal=KILL:when=3 {real} "$@"'
    killed = Options("0022", str(skeleton), wrapper(tmp_path, text))
    assert "killed" in ensure(make_user("alice"), options=killed)[0]["msg"]
    home, options = root / "alice", Options("0022", str(skeleton))
    assert ensure(make_user("alice"), check=True, options=options)[0]["changed"]
    if spoil == "more":
        (home / "data").write_text("")
        os.chown(home / "data", 20001, 20001)
    elif spoil == "less":
        (home / "link").unlink()
    elif spoil == "another's":
        os.chown(home / ".bashrc", 20009, 20009)
    else:
        home.chmod(0o777)
    before = snapshot(home)
    for check in (True, False):
        assert "left as it is" in ensure(make_user("alice"), check=check, options=options)[0]["msg"]
    assert snapshot(home) == before


def test_the_helper_alone_never_repairs(root: Path, skeleton: Path, tmp_path: Path) -> None:
    """The reason for this role: without it a partial home would stay as it is, and count as made."""
    needs(root=True, programs=(HELPER, "mount"))
    real = shutil.which(HELPER, path="/sbin:/usr/sbin")
    (root / "alice").mkdir(mode=0o700)
    (tmp_path / "passwd").write_text(f"alice:x:20001:20001::{root}/alice:/bin/sh\n")
    done = in_namespace(
        tmp_path / "passwd", lambda: subprocess.run([str(real), "alice", "0077", str(skeleton)]).returncode
    )
    assert done == 0
    assert os.listdir(root / "alice") == []
    assert (root / "alice").stat().st_uid == 0


def test_a_helper_that_hangs_is_stopped_with_all_it_started(
    root: Path, make_user: MakeUser, ensure: Ensure, skeleton: Path, tmp_path: Path
) -> None:
    hanging = wrapper(tmp_path, f"sleep 987 & echo $! > {tmp_path}/pid; wait")
    started = time.monotonic()
    (result,) = ensure(make_user("alice"), options=Options(skeleton=str(skeleton), helper=hanging, timeout=1))
    assert "did not finish within 1 s" in result["msg"]
    assert time.monotonic() - started < 10
    child = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 5
    while Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes():
        assert time.monotonic() < until
    assert ensure(make_user("alice"), options=Options(skeleton=str(skeleton)))[0]["changed"]


def test_what_the_helper_gets(
    root: Path, make_user: MakeUser, ensure: Ensure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD_NOT", "x")
    text = f'echo "$@" > {tmp_path}/said; tr "\\0" "\\n" < /proc/$$/environ >> {tmp_path}/said; readlink /proc/$$/fd/0 /proc/$$/fd/1 >> {tmp_path}/said; ls -l /proc/$$/fd >> {tmp_path}/said; echo oops >&2; exit 6'
    (result,) = ensure(make_user("alice"), options=Options(helper=wrapper(tmp_path, text)))
    assert "failed with status 6: oops" in result["msg"]
    said = (tmp_path / "said").read_text()
    assert said.startswith("alice 0077 /etc/skel\n")
    assert "LD_PRELOAD_NOT" not in said
    assert said.count("/dev/null\n") >= 2
    assert "/.ansible_bootstrap/locks/" in said
    assert "records" not in said


def test_a_helper_that_says_success_is_not_believed(
    root: Path, make_user: MakeUser, ensure: Ensure, tmp_path: Path
) -> None:
    (result,) = ensure(make_user("alice"), options=Options(helper=wrapper(tmp_path, "exit 0")))
    assert "does not exist" in result["msg"]


def test_a_login_that_is_making_the_home_meanwhile_is_not_disturbed(
    root: Path, make_user: MakeUser, ensure: Ensure, skeleton: Path, tmp_path: Path
) -> None:
    other = wrapper(tmp_path, f"mkdir -m 700 {root}/alice")
    (result,) = ensure(make_user("alice"), options=Options(skeleton=str(skeleton), helper=other))
    assert "somebody else" in result["msg"]
    (result,) = ensure(make_user("alice"), options=Options(skeleton=str(skeleton)))
    assert "is being made at this moment" in result["msg"]
    assert (root / "alice").exists()


# The admin's mistakes


def test_a_missing_helper_names_the_package(
    root: Path, make_user: MakeUser, ensure: Ensure, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ansible_bootstrap.storage import _mkhomedir_helper

    monkeypatch.setattr(_mkhomedir_helper, "_PLACES", ("/nonexistent/mkhomedir_helper",))
    assert "libpam-modules" in ensure(make_user("alice"))[0]["msg"]


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda skel: skel.chmod(0o777), "writable"),
        (lambda skel: os.chown(skel, 20009, 0), "belongs to uid 20009"),
        (lambda skel: (skel / "sub").chmod(0o775), "writable"),
        (lambda skel: (skel / ".bashrc").chmod(0o600), "is not readable for everybody"),
        (lambda skel: os.chown(skel / "sub" / "run", 20009, 0), "belongs to uid 20009"),
        (lambda skel: skel.parent.chmod(0o777), "is writable by everybody"),
        (lambda skel: shutil.rmtree(skel), "does not exist"),
    ],
)
def test_a_skeleton_that_is_not_roots_own_and_public_is_refused(
    root: Path, make_user: MakeUser, ensure: Ensure, skeleton: Path, spoil: Callable[[Path], None], text: str
) -> None:
    spoil(skeleton)
    try:
        for check in (True, False):
            assert (
                text
                in ensure(make_user("alice"), check=check, options=Options(skeleton=str(skeleton)))[0]["msg"]
            )
    finally:
        skeleton.parent.chmod(0o700)
    assert not (root / "alice").exists()


def test_a_helper_that_others_could_replace_is_refused(
    root: Path, make_user: MakeUser, ensure: Ensure, tmp_path: Path
) -> None:
    path = wrapper(tmp_path, f"touch {tmp_path}/ran")
    Path(path).chmod(0o777)
    assert "is writable by everybody" in ensure(make_user("alice"), options=Options(helper=path))[0]["msg"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("umask", ["77", "0o77", "0088", "0777", "0000", "0020", "00077", ""])
def test_a_umask_that_is_none_is_refused(umask: str) -> None:
    with pytest.raises(StorageError, match="umask"):
        parse_umask(umask)


def test_without_root_it_says_so(root: Path, as_user: Callable[..., Any]) -> None:
    needs(root=True, programs=(HELPER,))
    os.chown(root, 20001, 20001)
    user = {"name": "alice", "directory": str(root / "alice"), "uid": 20001, "gid": 20001}
    (result,) = as_user(20001, lambda: _system_homes.ensure([user], str(root), 1000, PLAIN, check=True).users)
    assert "needs root" in result["msg"]


def test_the_helper_ends_with_the_module(
    root: Path, make_user: MakeUser, ensure: Ensure, tmp_path: Path
) -> None:
    lonely = wrapper(tmp_path, f"echo $$ > {tmp_path}/pid; (sleep 0.3; kill -9 $PPID) & exec sleep 987")
    (result,) = ensure(make_user("alice"), options=Options(helper=lonely))
    assert "does the work was killed" in result["msg"]
    state = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    until = time.monotonic() + 5
    while state.exists() and " Z " not in state.read_text():
        assert time.monotonic() < until
    assert ensure(make_user("alice"))[0]["changed"]


@pytest.mark.root
def test_a_home_inside_another_directory_of_the_users_is_not_for_the_helper(
    root: Path, make_user: MakeUser, ensure: Ensure
) -> None:
    make_user("alice", home=True)
    for check in (True, False):
        (said,) = ensure(make_user("alice", directory=str(root / "alice/home")), check=check)
        assert "alice/home lies inside a directory of the user's own" in said["msg"]
    assert os.listdir(root / "alice") == []
