"""The role tutorials: check, converge, converge again, be killed half-way."""

from __future__ import annotations

import http.server
import io
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.roles.conftest import Playbook, Storage

Book = Callable[..., Playbook]


class WebServer(http.server.ThreadingHTTPServer):
    """Serves one archive, and counts."""

    requested = 0
    content = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/PythonDataScienceHandbook/archive/master.zip"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: WebServer

    def do_GET(self) -> None:
        self.server.requested += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def web() -> Iterator[WebServer]:
    server = WebServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _zip(files: dict[str, str]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return packed.getvalue()


def _make_homes(storage: Storage) -> None:
    for user in storage.users:
        os.mkdir(user["directory"], 0o755)
        os.chown(user["directory"], user["uid"], user["gid"])


def _variables(storage: Storage, source: dict[str, Any]) -> dict[str, Any]:
    return {
        "bootstrap_users": storage.users,
        "bootstrap_root": str(storage.root),
        "tutorials_sources": [source],
    }


def test_one_zip_from_a_web_server_for_a_whole_batch(
    storage: Storage, playbook: Book, web: WebServer
) -> None:
    web.content = _zip({"master/notebooks/01.ipynb": '{"cells": []}', "master/README.md": "# Handbook"})
    _make_homes(storage)
    source = {"name": "handbook", "url": web.url, "dest": "tutorials", "strip_components": 1}
    book = playbook("tutorials", **_variables(storage, source))
    before = storage.tree()

    predicted = book.run("--check", "--diff")
    assert predicted.status == 0, predicted.output
    assert predicted.user("alice")["changed"]
    assert f"{storage.root}/bob/tutorials" in predicted.output
    assert storage.tree() == before
    assert not (storage.root / ".ansible_bootstrap").exists()
    assert web.requested == 0

    applied = book.run()
    assert applied.status == 0, applied.output
    for user in storage.users:
        notebook = Path(user["directory"], "tutorials/notebooks/01.ipynb")
        assert notebook.read_text() == '{"cells": []}'
        assert notebook.stat().st_uid == user["uid"]
    assert web.requested == 1

    again = book.run()
    assert "changed=0" in again.output
    assert web.requested == 1

    # What users do with it is theirs, and a later user gets it although the server is gone.
    (storage.root / "alice/tutorials/README.md").unlink()
    (storage.root / "bob/tutorials").rename(storage.root / "bob/old")
    storage.add("carol")
    _make_homes(Storage(storage.root, storage.users[2:]))
    web.shutdown()
    web.server_close()
    later = playbook("tutorials", **_variables(storage, source)).run()
    assert later.status == 0, later.output
    assert [user["changed"] for user in later.result["users"]] == [False, False, True]
    assert "cannot be reached" in later.user("carol")["notes"][0]
    assert (storage.root / "carol/tutorials/README.md").exists()
    assert not (storage.root / "alice/tutorials/README.md").exists()
    assert not (storage.root / "bob/tutorials").exists()


def test_killed_half_way_the_next_run_completes(storage: Storage, playbook: Book, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(4000):
        (tree / f"{number}.txt").write_text("x")
    _make_homes(storage)
    book = playbook("tutorials", **_variables(storage, {"name": "course", "path": str(tree)}))

    book.kill_module_when(lambda: any(storage.root.glob("*/.ansible_bootstrap-*/*.txt")), storage.root)
    assert not any(storage.root.glob("*/course"))

    run = book.run()
    assert run.status == 0, run.output
    for user in storage.users:
        assert os.listdir(user["directory"]) == ["course"]
        assert len(os.listdir(f"{user['directory']}/course")) == 4000
