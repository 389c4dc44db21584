"""Whatever answers in place of a hub: what it says is believed only where it is what a hub would say."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ansible_bootstrap.cli import hub_users as hub_api
from ansible_bootstrap.errors import UnreachableError


class _Server(http.server.ThreadingHTTPServer):
    answer: Callable[[], Iterator[bytes]]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            for piece in self.server.answer():
                self.wfile.write(piece)
        except OSError:
            pass  # nobody wants more of it

    def log_message(self, *_: Any) -> None:
        pass


Answer = Callable[[Any], str]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answer]:
    """Answer every request with these pieces, or with this as JSON; return the URL."""
    monkeypatch.setenv(hub_api.TOKEN, "t")
    server = _Server(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def begin(said: Any) -> str:
        server.answer = said if callable(said) else lambda: iter([json.dumps(said).encode()])
        return f"http://127.0.0.1:{server.server_port}/hub/api"

    yield begin
    server.shutdown()
    server.server_close()


def page(*users: Any, following: Any = None) -> dict[str, Any]:
    return {"items": list(users), "_pagination": {"next": following, "total": len(users)}}


def test_a_page_is_read(hub: Answer) -> None:
    assert list(hub_api.hub_users(hub(page({"name": "alice"})))) == [{"name": "alice"}]


@pytest.mark.parametrize(
    "said",
    [
        page({"name": ["alice"]}),
        page({"name": {"first": "alice"}}),
        page({"name": 7}),
        page(*({"name": f"u{number}"} for number in range(hub_api.PAGE + 1))),
        page({"name": "alice"}, following={"offset": "1"}),
        lambda: iter([b'{"_pagination": {"next": null, "total": ' + b"9" * 5000 + b'}, "items": []}']),
        lambda: iter([b"[" * 100_000]),
        lambda: iter([b"\xff\xfe\x00"]),
    ],
    ids=["list", "object", "number", "more than asked for", "offset", "digits", "depth", "bytes"],
)
def test_what_is_no_page_of_a_hub_is_refused(hub: Answer, said: Any) -> None:
    with pytest.raises(UnreachableError, match="is no API of a JupyterHub"):
        list(hub_api.hub_users(hub(said)))


def test_an_answer_without_end_is_not_read_to_its_end(hub: Answer) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b" " * (1 << 20)

    with pytest.raises(UnreachableError, match="more than"):
        list(hub_api.hub_users(hub(endless)))


def test_pages_without_end_come_to_one(hub: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_api, "MAX_PAGES", 5)
    with pytest.raises(UnreachableError, match="does not come to an end after 5 pages"):
        list(hub_api.hub_users(hub(page({"name": "alice"}, following={"offset": 0}))))
