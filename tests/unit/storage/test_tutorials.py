from __future__ import annotations

import errno
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.storage import _as_user, _download, _files, _homes, _tutorials
from ansible_bootstrap.storage._errors import ArchiveError
from ansible_bootstrap.storage._state import identity
from ansible_bootstrap.storage._storage import Storage
from ansible_bootstrap.storage._tutorials import Options
from tests.unit.storage.conftest import MakeUser


def place(
    root: Path, sources: list[dict[str, Any]], *users: Any, check: bool = False, **options: Any
) -> list[dict[str, Any]]:
    return _tutorials.place(list(users), str(root), 1000, Options(sources, **options), check=check).users


def entry(root: Path, user: str, source: str = "course") -> dict[str, Any]:
    record = json.loads((root / f".ansible_bootstrap/records/{identity([user])}.json").read_text())
    return dict(record["tutorials"][source])


def set_entry(root: Path, user: str, **fields: Any) -> None:
    path = root / f".ansible_bootstrap/records/{identity([user])}.json"
    record = json.loads(path.read_text())
    record["tutorials"] = {"course": fields}
    path.write_text(json.dumps(record))


@pytest.fixture
def course(tmp_path: Path) -> dict[str, Any]:
    tree = tmp_path / "course"
    (tree / "data").mkdir(parents=True)
    (tree / "01.ipynb").write_text("{}")
    (tree / "data" / "a.csv").write_text("1,2\n")
    return {"name": "course", "path": str(tree), "dest": "tutorials"}


def test_a_tutorial_is_placed_once_and_then_the_users(
    root: Path, make_user: MakeUser, course: dict[str, Any]
) -> None:
    alice = make_user("alice", home=True)
    (predicted,) = place(root, [course], alice, check=True)
    assert predicted["changed"]
    assert os.listdir(root) == ["alice"]
    assert os.listdir(root / "alice") == []

    assert place(root, [course], alice)[0]["changed"]
    made = root / "alice/tutorials"
    assert (made / "data/a.csv").read_text() == "1,2\n"
    assert {path.stat().st_uid for path in (made, made / "data", made / "data/a.csv")} == {alice["uid"]}
    assert made.stat().st_mode & 0o777 == 0o755
    assert os.listdir(root / "alice") == ["tutorials"]

    (made / "01.ipynb").write_text("my own work")
    assert not place(root, [course], alice)[0]["changed"]
    shutil.rmtree(made)
    assert not place(root, [course], alice)[0]["changed"]
    assert not place(root, [course], alice, check=True)[0]["changed"]
    assert not made.exists()


def test_what_a_user_has_in_that_shownis_theirs(
    root: Path, make_user: MakeUser, course: dict[str, Any]
) -> None:
    alice = make_user("alice", home=True)
    own = root / "alice/tutorials"
    own.mkdir()
    (own / "mine").write_text("mine")
    for check in (True, False, False):
        (result,) = place(root, [course], alice, check=check)
        assert (result["changed"], result["failed"]) == (False, False)
        assert "is the user's own: left as it is" in result["notes"][0]
    assert os.listdir(root / "alice") == ["tutorials"]
    assert os.listdir(own) == ["mine"]

    own.rename(root / "alice/old")
    assert place(root, [course], alice)[0]["changed"]


@pytest.mark.usefixtures("in_process")
def test_a_new_home_has_no_tutorials_even_if_the_run_is_killed_as_it_appears(
    root: Path, make_user: MakeUser, course: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = make_user("alice", home=True)
    assert place(root, [course], alice)[0]["changed"]
    shutil.rmtree(root / "alice")
    real = _homes.rename_directory

    def rename(*names: Any) -> None:
        real(*names)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_homes, "rename_directory", rename)
        _homes.ensure([alice], str(root), 1000, _homes.Options(), check=False)
    assert place(root, [course], alice)[0]["changed"]
    assert (root / "alice/tutorials/data/a.csv").exists()


def test_without_a_home_there_is_nothing_to_do_but_to_say_so(
    root: Path, make_user: MakeUser, course: dict[str, Any]
) -> None:
    (result,) = place(root, [course], make_user("alice"))
    assert "user_dir comes before tutorials" in result["msg"]
    assert place(root, [course], make_user("alice"), check=True)[0]["changed"]  # user_dir would have made it


@pytest.mark.root
@pytest.mark.parametrize("trap", ["dest", "parent", "dangling", "loop"])
def test_links_in_the_way_lead_nowhere(
    root: Path, make_user: MakeUser, course: dict[str, Any], victim: Path, trap: str
) -> None:
    alice, bob = make_user("alice", home=True), make_user("bob", home=True)
    target = {"dest": victim, "parent": victim, "dangling": root / "alice/none", "loop": root / "alice/work"}[
        trap
    ]
    (root / "alice/work").symlink_to(target)
    course["dest"] = "work" if trap in ("dest", "dangling") else "work/tutorials"
    bad, good = place(root, [course], alice, bob)
    assert not bad["changed"]
    assert ("links are not followed" in bad["msg"]) == (trap in ("parent", "loop"))
    assert good["changed"]
    assert os.listdir(root / "alice") == ["work"]


@pytest.mark.root
def test_a_user_who_swaps_directories_and_links_catches_nothing(
    root: Path, make_user: MakeUser, course: dict[str, Any], victim: Path
) -> None:
    alice = make_user("alice", home=True)
    work, trap = root / "alice/work", root / "alice/trap"
    work.mkdir()
    trap.symlink_to(victim)
    for path in (work, trap):
        os.chown(path, alice["uid"], alice["gid"], follow_symlinks=False)
    course["dest"] = "work/deep/tutorials"

    flipper = os.fork()
    if flipper == 0:
        os.setresuid(alice["uid"], alice["uid"], alice["uid"])
        while True:
            _files._libc.renameat2(-100, bytes(work), -100, bytes(trap), 2)
    try:
        for number in range(10):
            place(root, [{**course, "name": f"course{number}"}], alice)
    finally:
        os.kill(flipper, signal.SIGKILL)
        os.waitpid(flipper, 0)
    # The fixture `victim` checks that nothing came to it.


@pytest.mark.root
def test_a_user_whose_copy_hangs_fails_alone(
    root: Path, make_user: MakeUser, course: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = make_user("alice", home=True), make_user("bob", home=True)
    original = _tutorials.stage

    def stage(home: int, placings: Any) -> Any:
        if os.getuid() == alice["uid"]:
            time.sleep(60)
        return original(home, placings)

    monkeypatch.setattr(_tutorials, "stage", stage)
    bad, good = place(root, [course], alice, bob, child_timeout=0.5)
    assert "did not finish within 0.5 s" in bad["msg"]
    assert good["changed"]


def test_a_file_that_cannot_be_read_is_named(root: Path, make_user: MakeUser, course: dict[str, Any]) -> None:
    os.mkfifo(f"{course['path']}/pipe")
    (result,) = place(root, [course], make_user("alice", home=True))
    assert result["msg"] == f"course: {course['path']}/pipe is a FIFO, which is not copied"
    assert os.listdir(root / "alice") == []


class _Killed(BaseException):
    pass


@pytest.mark.usefixtures("in_process")
def test_a_stage_that_could_not_be_put_in_its_place_stays_until_that_is_recorded(
    root: Path, make_user: MakeUser, course: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = make_user("alice", home=True)
    course["dest"] = "work/tutorials"
    reveal, record = _tutorials.reveal, _tutorials._record

    def in_the_way(home: int, placings: Any) -> Any:
        (root / "alice/work").touch()
        return reveal(home, placings)

    def killed(storage: Storage, news: Any) -> None:
        if (root / "alice/work").exists():
            raise _Killed
        record(storage, news)

    with monkeypatch.context() as patch, pytest.raises(_Killed):
        patch.setattr(_tutorials, "reveal", in_the_way)
        patch.setattr(_tutorials, "_record", killed)
        place(root, [course], alice)
    (root / "alice/work").unlink()
    assert place(root, [course], alice)[0]["changed"]
    assert (root / "alice/work/tutorials/data/a.csv").exists()


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("step", ["before copy", "during copy", "before reveal", "after reveal"])
def test_a_run_killed_at_any_point_is_completed_by_the_next(
    root: Path, make_user: MakeUser, course: dict[str, Any], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = make_user("alice", home=True)
    run_all = Storage.run_all
    calls = []

    def killed(storage: Storage, tasks: Any, timeout: float) -> Any:
        calls.append(1)
        dies_at = 1 if "copy" in step else 2
        if len(calls) == dies_at and step.startswith("before"):
            raise _Killed
        answers = run_all(storage, tasks, timeout)
        if len(calls) == dies_at:
            raise _Killed
        return answers

    monkeypatch.setattr(Storage, "run_all", killed)
    with pytest.raises(_Killed):
        place(root, [course], alice)
    monkeypatch.undo()
    assert (root / "alice/tutorials").exists() == (step == "after reveal")
    if step == "during copy":
        (stage,) = (root / "alice").glob(".ansible_bootstrap-*")
        (stage / "01.ipynb").unlink()  # only half of it

    (result,) = place(root, [course], alice)
    assert not result["failed"]
    assert result["notes"] == []
    assert os.listdir(root / "alice") == ["tutorials"]
    assert sorted(os.listdir(root / "alice/tutorials")) == ["01.ipynb", "data"]
    assert entry(root, "alice")["state"] == "placed"


def test_only_the_stage_on_record_is_removed(root: Path, make_user: MakeUser, course: dict[str, Any]) -> None:
    alice = make_user("alice", home=True)
    _homes.ensure([alice], str(root), 1000, _homes.Options(), check=False)
    for name in ("on_record", "not_on_record"):
        (root / f"alice/.ansible_bootstrap-{name}").mkdir()
        os.chown(root / f"alice/.ansible_bootstrap-{name}", alice["uid"], alice["gid"])
    set_entry(root, "alice", state="copying", stage=".ansible_bootstrap-on_record", dest="tutorials")
    assert place(root, [course], alice)[0]["changed"]
    assert sorted(os.listdir(root / "alice")) == [".ansible_bootstrap-not_on_record", "tutorials"]


@pytest.mark.usefixtures("in_process")
def test_the_whole_batch_is_synced_before_anything_shows(
    root: Path, make_user: MakeUser, course: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [make_user(name, home=True) for name in ("alice", "bob")]
    seen = []
    monkeypatch.setattr(_tutorials, "sync", lambda _: seen.append((root / "alice/tutorials").exists()))
    place(root, [course], *users)
    assert seen == [False, False, True], "the stages' names; the stages; that all are in their places"

    def broken(_: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(_tutorials, "sync", broken)
    (result,) = place(root, [course], make_user("carol", home=True))
    assert result["msg"] == "the disk quota is used up"
    assert not (root / "carol/tutorials").exists()
    monkeypatch.undo()
    assert place(root, [course], make_user("carol"))[0]["changed"]
    assert os.listdir(root / "carol") == ["tutorials"]


@pytest.mark.root
@pytest.mark.usefixtures("in_process")
def test_a_home_on_its_own_file_system_is_synced_before_and_after(
    root: Path, make_user: MakeUser, course: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = make_user("alice", home=True)
    shown = root / "alice/tutorials"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"uid={alice['uid']}", "tmpfs", root / "alice"], check=True)
    try:
        ours, hers = root.stat().st_dev, (root / "alice").stat().st_dev
        seen: list[tuple[int, bool]] = []
        monkeypatch.setattr(_tutorials, "sync", lambda fd: seen.append((os.fstat(fd).st_dev, shown.exists())))
        assert place(root, [course], alice)[0]["changed"]
        assert seen == [(ours, False), (ours, False), (hers, False), (hers, True), (ours, True)]
    finally:
        subprocess.run(["umount", root / "alice"], check=True)


@pytest.mark.root
def test_a_full_disk_is_named_and_leaves_no_stage(
    small_disk: Path, make_user: MakeUser, course: dict[str, Any]
) -> None:
    Path(course["path"], "big").write_bytes(b"x" * 512 * 1024)
    (result,) = place(small_disk, [course], make_user("alice", home=True))
    assert "no space is left" in result["msg"]
    assert os.listdir(small_disk / "alice") == []


# From a web server


class WebServer(http.server.ThreadingHTTPServer):
    """Serves one archive in the manner of ``behave``, and remembers the requests' headers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = b""
        self.behave = "well"
        self.seen: list[dict[str, str]] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/course.zip"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: WebServer

    def do_GET(self) -> None:
        server = self.server
        server.seen.append(dict(self.headers))
        tag = f'"{hashlib.sha256(server.content).hexdigest()[:8]}"'
        if server.behave == "hang":
            server.over.wait(20)
            return
        if server.behave == "fail":
            self.send_error(503)
            return
        if self.headers.get("If-None-Match") == tag:
            self.send_response(304)
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", tag)
        length = len(server.content) + (10 if server.behave == "truncate" else 0)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if server.behave == "drip":
            while not server.over.wait(0.05):
                try:
                    self.wfile.write(b"x")
                except OSError:
                    return
        else:
            self.wfile.write(server.content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[WebServer]:
    server = WebServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def zipped(**files: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"course/{name}", text)
    return packed.getvalue()


def from_web(web: WebServer, **more: Any) -> list[dict[str, Any]]:
    return [{"name": "course", "url": web.url, "strip_components": 1, **more}]


def cached(root: Path) -> list[str]:
    cache = root / ".ansible_bootstrap/cache"
    return sorted(os.listdir(cache / "trees")) + sorted(os.listdir(cache / "work"))


def test_an_archive_is_fetched_once_for_a_batch_and_revalidated_for_the_next(
    root: Path, make_user: MakeUser, web: WebServer
) -> None:
    web.content = zipped(readme="one")
    users = [make_user(name, home=True) for name in ("alice", "bob", "carol")]
    assert [result["changed"] for result in place(root, from_web(web), *users)] == [True] * 3
    assert len(web.seen) == 1
    place(root, from_web(web), *users)
    assert len(web.seen) == 1

    place(root, from_web(web), make_user("dave", home=True))
    assert "If-None-Match" in web.seen[1]
    assert (root / "dave/course/readme").read_text() == "one"

    web.content = zipped(readme="two")
    place(root, from_web(web), make_user("erin", home=True), *users)
    assert (root / "erin/course/readme").read_text() == "two"
    assert (root / "alice/course/readme").read_text() == "one"
    place(root, from_web(web), make_user("frank", home=True))
    assert len(cached(root)) == 1, "the revision nobody gets any more is gone"


def test_unchanged_is_no_answer_for_a_revision_that_is_gone(
    root: Path, make_user: MakeUser, web: WebServer
) -> None:
    web.content = zipped(readme="one")
    assert place(root, from_web(web), make_user("alice", home=True))[0]["changed"]
    shutil.rmtree(root / f".ansible_bootstrap/cache/trees/{cached(root)[0]}")
    (result,) = place(root, from_web(web), make_user("bob", home=True))
    assert result["changed"] and not result["failed"], result
    assert (root / "bob/course/readme").read_text() == "one"
    assert "If-None-Match" not in web.seen[1]


def test_a_known_checksum_needs_no_server(root: Path, make_user: MakeUser, web: WebServer) -> None:
    web.content = zipped(readme="one")
    sources = from_web(web, checksum=f"sha256:{hashlib.sha256(web.content).hexdigest()}")
    place(root, sources, make_user("alice", home=True))
    place(root, sources, make_user("bob", home=True))
    assert (root / "bob/course/readme").exists()
    assert len(web.seen) == 1


@pytest.mark.parametrize(
    ("behave", "says"),
    [
        ("fail", "the server answered 503"),
        ("truncate", "the download broke off"),
        ("hang", "did not finish within 0.5 s"),
        ("drip", "did not finish within 0.5 s"),
        ("nonsense", "damaged or cut short"),
        ("refuse", "has '..' in its name"),
        ("large", "larger than 5000 bytes"),
    ],
)
def test_what_cannot_be_had_is_said_and_the_cache_serves_if_it_can(
    root: Path, make_user: MakeUser, web: WebServer, behave: str, says: str
) -> None:
    web.behave = behave
    web.content = {
        "nonsense": b"<html>",
        "refuse": zipped(**{"../../evil": ""}),
        "large": zipped(data="x" * 6000),
    }.get(behave, zipped(readme="one"))
    alice, bob = make_user("alice", home=True), make_user("bob", home=True)
    options = {"fetch_timeout": 0.5 if behave in ("hang", "drip") else 10, "max_bytes": 5000}
    (result,) = place(root, from_web(web), alice, **options)
    assert says in result["msg"]
    assert os.listdir(root / "alice") == []
    assert cached(root) == []

    bad, web.content, web.behave = web.content, zipped(readme="one"), "well"
    assert place(root, from_web(web), alice)[0]["changed"]
    web.behave = behave
    web.content = bad if behave in ("nonsense", "refuse", "large") else zipped(readme="two")
    (result,) = place(root, from_web(web), bob, **options)
    assert not result["failed"]
    assert says in result["notes"][0]
    assert (root / "bob/course/readme").read_text() == "one"


def test_the_wrong_checksum_is_refused_and_nothing_kept(
    root: Path, make_user: MakeUser, web: WebServer
) -> None:
    web.content = zipped(readme="one")
    (result,) = place(root, from_web(web, checksum=f"sha256:{'0' * 64}"), make_user("alice", home=True))
    assert "wrong checksum" in result["msg"]
    assert cached(root) == []


def test_one_source_that_fails_does_not_cost_the_other(
    root: Path, make_user: MakeUser, web: WebServer, course: dict[str, Any]
) -> None:
    web.behave = "fail"
    (result,) = place(root, [*from_web(web), {**course, "name": "local"}], make_user("alice", home=True))
    assert result["failed"]
    assert result["changed"]
    assert (root / "alice/tutorials/01.ipynb").exists()


def test_an_archive_on_the_storage_host(root: Path, make_user: MakeUser, tmp_path: Path) -> None:
    (tmp_path / "course.zip").write_bytes(zipped(readme="one"))
    source = [{"name": "course", "path": str(tmp_path / "course.zip")}]
    place(root, source, make_user("alice", home=True))
    assert (root / "alice/course/course/readme").read_text() == "one"
    (result,) = place(root, [{"name": "x", "path": str(tmp_path / "none")}], make_user("alice"), check=True)
    assert "does not exist on this host" in result["msg"]


@pytest.mark.usefixtures("in_process")
@pytest.mark.root
def test_network_and_archive_are_read_by_nobody(
    root: Path, make_user: MakeUser, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.content = zipped(readme="one")
    uids: list[int] = []
    run = _as_user.run
    monkeypatch.setattr(_as_user, "run", lambda task, timeout: (uids.append(task.uid), run(task, timeout))[1])
    place(root, from_web(web), make_user("alice", home=True))
    assert uids == [_as_user.NOBODY, _as_user.NOBODY]


_WITHOUT_IMPORTS = """
import sys
from ansible_bootstrap.storage import _as_user, _homes, _tutorials

class Nothing:
    def find_spec(self, name, path=None, target=None):
        raise LookupError(f"import of {name} after the rights were given up")

def become(*arguments, become=_as_user._become):
    sys.meta_path[:] = [Nothing()]
    become(*arguments)

_as_user._become = become
root, user, sources = eval(sys.argv[1])
print(_homes.ensure([user], root, 1000, _homes.Options(skeleton="/etc/skel"), check=False).users)
print(_tutorials.place([user], root, 1000, _tutorials.Options(sources), check=False).users)
"""


def test_a_child_imports_nothing(root: Path, make_user: MakeUser, web: WebServer, tmp_path: Path) -> None:
    """Another user may not be able to read Python's own files, as with a Python below a 0700 home."""
    web.content = zipped(readme="one")
    sources = [{"name": "web", "url": web.url.replace("127.0.0.1", "localhost")}]
    for kind in ("gz", "bz2", "xz"):
        with tarfile.open(tmp_path / kind, f"w:{kind}") as tar:
            tar.add("/etc/passwd", "passwd")
        sources.append({"name": kind, "path": str(tmp_path / kind)})
    arguments = repr((str(root), make_user("alice"), sources))
    done = subprocess.run(
        [sys.executable, "-I", "-c", _WITHOUT_IMPORTS, arguments], capture_output=True, text=True, check=True
    )
    assert "'failed': True" not in done.stdout, done.stdout
    assert {"web", "gz", "bz2", "xz"} < set(os.listdir(root / "alice"))


def test_a_redirect_never_leaves_https() -> None:
    request = _download.urllib.request.Request("https://example.org/a")
    with pytest.raises(Exception, match="less safe"):
        _download._Redirects().redirect_request(request, None, 302, "Found", {}, "http://example.org/a")


def test_a_redirect_to_another_scheme_quotes_nothing() -> None:
    request = _download.urllib.request.Request("http://example.org/a")
    with pytest.raises(ArchiveError) as caught:
        _download._Redirects().redirect_request(request, None, 302, "Found", {}, "gopher://x/?token=secret")
    assert "secret" not in str(caught.value)


def test_a_tutorial_that_was_thrown_away_before_it_was_noted_stays_away(
    root: Path, make_user: MakeUser, tmp_path: Path
) -> None:
    alice, source = make_user("alice", home=True), tmp_path / "course"
    source.mkdir()
    (source / "readme").write_text("one")
    source.chmod(0o755)
    wanted = [{"name": "course", "path": str(source)}]
    assert place(root, wanted, alice)[0]["changed"]
    file = root / f".ansible_bootstrap/records/{identity(['alice'])}.json"
    record = json.loads(file.read_text())
    record["tutorials"]["course"].update(state="revealing", stage=".ansible_bootstrap-0123456789abcdef")
    file.write_text(json.dumps(record))
    shutil.rmtree(root / "alice/course")
    for _ in range(2):
        assert not place(root, wanted, alice)[0]["changed"]
        assert not (root / "alice/course").exists()


@pytest.mark.root
def test_a_revision_that_is_half_removed_is_never_served(
    root: Path, make_user: MakeUser, tmp_path: Path
) -> None:
    source = tmp_path / "course.zip"
    revisions = [zipped(**{f"f{number}": text for number in range(6)}) for text in ("one", "two")]
    wanted = [{"name": "course", "path": str(source), "strip_components": 1}]
    for number, name in enumerate(("alice", "bob", "carol", "dave")):
        source.write_bytes(revisions[number % 2])
        (result,) = place(root, wanted, make_user(name, home=True))
        assert result["changed"], result
        assert len(os.listdir(root / name / "course")) == 6
        for tree in (root / ".ansible_bootstrap/cache").glob("[tw]*/*/f0"):
            subprocess.run(["chattr", "+i", str(tree)], check=True)
    subprocess.run(["chattr", "-R", "-i", str(root / ".ansible_bootstrap/cache")], check=True)


def test_a_run_that_copies_keeps_nobody_from_fetching_and_its_revision_stays(
    root: Path, make_user: MakeUser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one user whose copy hangs would deny tutorials to all, or an update empty the tree that is copied from."""
    source = tmp_path / "course.zip"
    revisions = [zipped(**{f"f{number}": text for number in range(6)}) for text in ("one", "two")]
    wanted = [{"name": "course", "path": str(source), "strip_components": 1}]
    source.write_bytes(revisions[0])
    copying, stage = threading.Event(), _tutorials._stage
    bob, carol = make_user("bob", home=True), make_user("carol", home=True)

    def while_others_come(*given: Any) -> None:
        if not copying.is_set():
            copying.set()
            source.write_bytes(revisions[1])
            for user in (bob, carol):  # the second one's run would remove the first revision
                (result,) = place(root, wanted, user)
                assert not result["failed"], result
        stage(*given)

    monkeypatch.setattr(_tutorials, "_stage", while_others_come)
    (result,) = place(root, wanted, make_user("alice", home=True))
    assert result["changed"], result
    for name, text in (("alice", "one"), ("bob", "two"), ("carol", "two")):
        course = root / name / "course"
        assert [path.read_text() for path in sorted(course.iterdir())] == [text] * 6
    place(root, wanted, make_user("dave", home=True))
    assert len(cached(root)) == 1, "the revision that nobody copies from any more is gone"


def test_what_cannot_be_removed_from_the_cache_is_nobodys_trouble(
    root: Path, make_user: MakeUser, tmp_path: Path
) -> None:
    source = tmp_path / "course.zip"
    source.write_bytes(zipped(readme="one"))
    assert place(root, [{"name": "course", "path": str(source)}], make_user("alice", home=True))[0]["changed"]
    cache = root / ".ansible_bootstrap/cache"
    (cache / "index/directory.json").mkdir()
    (cache / "work/old").mkdir()
    (cache / "index/deep.json").write_text("[" * 100_000)
    result = place(root, [{"name": "course", "path": str(source)}], make_user("bob", home=True))[0]
    assert result["changed"], result


@pytest.mark.root
def test_without_root_it_is_the_same(
    root: Path, make_user: MakeUser, web: WebServer, as_user: Callable[..., Any]
) -> None:
    alice = make_user("alice", home=True)
    os.chown(root, alice["uid"], alice["gid"])
    web.content = zipped(readme="one")
    (result,) = as_user(alice["uid"], lambda: place(root, from_web(web), alice))
    assert result["changed"], result
    assert (root / "alice/course/readme").read_text() == "one"
