"""What a role fetched comes out of the apply program as an event, whatever became of the users."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.protocol import Fetched, parse_event


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Says nothing about requests."""

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[str]:
    """The address of a zip."""
    (tmp_path / "web/course").mkdir(parents=True)
    (tmp_path / "web/course/01.ipynb").write_text("{}")
    shutil.make_archive(str(tmp_path / "web/course"), "zip", tmp_path / "web/course")
    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/course.zip"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_is_reported_once_and_not_again_for_later_users(site, apply_program, archive):
    program = type(apply_program)(site)
    sources = [{"name": "course", "url": archive}, {"name": "gone", "url": f"{archive}.gone"}]
    settings = site.settings(roles=["user_dir", "tutorials"], extra_vars={"tutorials_sources": sources})
    argv = ("--settings", str(program.settings_file(settings)))
    first = program.start(["alice", "bob"], argv=argv).answer()
    told = [event for event in first.events if event["event"] == "fetched"]
    assert told == [{"event": "fetched", "role": "tutorials", "count": 1}], first
    assert first.ok == set()  # one of the two sources is not there
    second = program.start(["carol"], argv=argv).answer()
    assert [event for event in second.events if event["event"] == "fetched"] == [], second


def test_the_hub_understands_it():
    assert parse_event(b'{"event": "fetched", "role": "tutorials", "count": 2}') == Fetched(
        role="tutorials", count=2
    )
    with pytest.raises(ValueError, match="count"):
        parse_event(b'{"event": "fetched", "role": "tutorials", "count": -1}')
