"""How to reach the network is a setting; what the caller's environment says of it is not passed on."""

from __future__ import annotations

import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest


class Proxy(http.server.BaseHTTPRequestHandler):
    """Answers for any host, with a zip."""

    def do_GET(self) -> None:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("01.ipynb", "{}")
        self.send_response(200 if self.path == "http://course.invalid/course.zip" else 404)
        self.end_headers()
        self.wfile.write(packed.getvalue())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[str]:
    """The address of a proxy."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("way", ["setting", "caller"])
def test_a_proxy_is_a_setting(site, apply_program, proxy, monkeypatch, way):
    environment = {"http_proxy": proxy} if way == "setting" else {}
    if way == "caller":
        monkeypatch.setenv("http_proxy", proxy)
    program = type(apply_program)(site)
    settings = site.settings(
        roles=["user_dir", "tutorials"],
        environment=environment,
        extra_vars={"tutorials_sources": [{"name": "course", "url": "http://course.invalid/course.zip"}]},
    )
    argv = ("--settings", str(program.settings_file(settings)))
    answer = program.start(["alice"], argv=argv).answer()
    assert answer.ok == ({"alice"} if way == "setting" else set()), answer
    assert answer.events[-1]["way"] == "cold+worker"


def test_a_site_role_finds_it_too(site, apply_program):
    told = site.told / "told"
    site.role("tell", {"name": "T", "ansible.builtin.shell": f'echo "$https_proxy" > {told}'})
    settings = site.settings(roles=["tell"], environment={"https_proxy": "http://proxy:3128"})
    assert apply_program(["alice"], "tell", settings=settings).ok == {"alice"}
    assert told.read_text() == "http://proxy:3128\n"
