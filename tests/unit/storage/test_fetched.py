"""What counts as fetched: content that a web server has sent in this run, and nothing else."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.storage import _tutorials
from tests.unit.storage.conftest import MakeUser


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A directory with a tutorial, and the address under which its archives are served, with 304 for known ones."""
    (tmp_path / "course").mkdir()
    (tmp_path / "course/01.ipynb").write_text("{}")
    shutil.make_archive(str(tmp_path / "course"), "zip", tmp_path / "course")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield tmp_path, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def fetched(root: Path, sources: list[dict[str, Any]], *users: Any, check: bool = False) -> int:
    report = _tutorials.place(list(users), str(root), 1000, _tutorials.Options(sources), check=check)
    result = report.as_result()
    assert result.get("fetched", 0) == report.fetched
    return report.fetched


def test_a_download_counts_once_for_a_batch_and_a_304_not_at_all(
    root: Path, make_user: MakeUser, site: tuple[Path, str]
) -> None:
    sources = [{"name": "course", "url": f"{site[1]}/course.zip"}]
    users = [make_user(name, home=True) for name in ("alice", "bob")]
    assert fetched(root, sources, *users, check=True) == 0
    assert fetched(root, sources, *users) == 1
    assert fetched(root, sources, *users) == 0
    assert fetched(root, sources, make_user("carol", home=True)) == 0  # unchanged, says the server


def test_each_source_counts_also_one_that_is_then_refused(
    root: Path, make_user: MakeUser, site: tuple[Path, str]
) -> None:
    good = {"name": "course", "url": f"{site[1]}/course.zip"}
    bad = {"name": "other", "url": f"{site[1]}/course.zip?2", "checksum": f"sha256:{'0' * 64}"}
    assert fetched(root, [good, bad], make_user("alice", home=True)) == 2


def test_what_is_on_the_storage_host_or_cannot_be_had_is_not_fetched(
    root: Path, make_user: MakeUser, site: tuple[Path, str]
) -> None:
    sources = [
        {"name": "directory", "path": str(site[0] / "course")},
        {"name": "archive", "path": str(site[0] / "course.zip")},
        {"name": "missing", "url": f"{site[1]}/missing.zip"},
    ]
    assert fetched(root, sources, make_user("alice", home=True)) == 0
