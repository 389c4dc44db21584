"""``run --hub``: all users of a real hub; and what command line and hub know of each other's work."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hub_fakes import FakeApply
from hub_process import HERE, RunningHub

from ansible_bootstrap.cli.hub_users import api_url, hub_users
from ansible_bootstrap.errors import SettingsError, UnreachableError

CONFIG = HERE / "everybody_config.py"
NAMES = [f"student{number:03}" for number in range(260)]


class Hub(RunningHub):
    """With the configuration beside this file."""

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(CONFIG)],
                cwd=self.path,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "HUB_TEST": str(self.path / "test.json")}

    def command(self, *args: str, token: str = "groups", status: int = 0) -> str:
        """What an admin types on the hub's machine."""
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ansible-bootstrap"), *args, "--config", str(CONFIG)],
            cwd=self.path,
            env={**self.environment, "JUPYTERHUB_API_TOKEN": f"{token}-" * 8},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout if status != 2 else done.stderr


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeApply]:
    fake = FakeApply(tmp_path_factory.mktemp("apply"))
    fake.do(fingerprints=[{"role": "user_dir", "fingerprint": "1", "revised": True}])
    yield fake
    fake.clean()


@pytest.fixture(scope="module")
def everybody(fake: FakeApply, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with 260 users, every second user in a group."""
    path = tmp_path_factory.mktemp("hub")
    path.chmod(0o755)
    hub = Hub(path, apply_command=fake.command, timeout=60, at_login=False)
    hub.wait_until_up()

    async def create() -> None:
        async with hub.api() as api:
            await api.create(*NAMES)
            answer = await api.client.post("/groups/winter", json={"users": NAMES[::2]})
            assert answer.status_code == 201, answer.text

    asyncio.run(create())
    yield hub
    hub.kill()


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda name: monkeypatch.setenv("JUPYTERHUB_API_TOKEN", f"{name}-" * 8)


def test_all_users_come_page_by_page_with_nothing_but_names_if_that_is_all_the_token_may_see(
    everybody: Hub, token: Any
) -> None:
    token("names")
    pages: list[tuple[int, int | None]] = []
    users = list(hub_users(f"{everybody.url}/api", lambda done, total: pages.append((done, total))))
    assert [user for user in users if user["name"] in NAMES] == [{"name": name} for name in NAMES]
    assert [done for done, _ in pages] == [60, 120, 180, 240, len(users)]
    assert {total for _, total in pages} == {len(users)}


def test_groups_come_along_with_the_scope_for_them(everybody: Hub, token: Any) -> None:
    token("groups")
    groups = {user["name"]: user["groups"] for user in hub_users(f"{everybody.url}/api")}
    assert groups["student000"] == ["winter"]
    assert groups["student001"] == []


@pytest.mark.parametrize("name", ["nothing", "unknown"])
def test_a_token_that_may_not_is_told_which_scope_it_needs_and_how_to_grant_it(
    everybody: Hub, token: Any, name: str
) -> None:
    token(name)
    with pytest.raises(SettingsError) as caught:
        list(hub_users(f"{everybody.url}/api"))
    assert "the scope list:users" in caught.value.details
    assert "c.JupyterHub.load_roles" in caught.value.details
    assert f"{name}-" not in caught.value.details, "the token is nobody's business"


def test_a_user_deleted_between_two_pages_hides_no_other_user(everybody: Hub, token: Any) -> None:
    token("names")

    async def with_api(what: str) -> None:
        async with everybody.api() as api:
            if what == "create":
                await api.create("first1", "first2")
            else:
                await api.client.delete("/users/first1")
                await api.client.delete("/users/student005")

    asyncio.run(with_api("create"))
    users = hub_users(f"{everybody.url}/api")
    names = [next(users)["name"] for _ in range(60)]
    asyncio.run(with_api("delete"))
    names += [user["name"] for user in users]
    assert set(NAMES) <= set(names)
    assert len(set(names)) == len(names)


def test_the_command_bootstraps_all_users_and_the_hub_then_knows_them(
    everybody: Hub, fake: FakeApply
) -> None:
    async def spawn(name: str) -> None:
        async with everybody.api() as api:
            await api.create(name)
            answer = await api.spawn(name)
            assert answer.status_code in {201, 202}, everybody.log
            await api.until(name, lambda servers: servers and servers[""]["ready"], seconds=30)
            await api.stop(name)

    for name in (
        "early.bird",
        "student007",
    ):  # The fake program makes none, and one that appears later is doubted.
        (everybody.path / "storage" / name).mkdir()
    asyncio.run(spawn("early.bird"))
    assert [run["users"] for run in fake.runs] == [["early.bird"]]
    said = everybody.command("run", "--hub", "--hub-url", f"{everybody.url}/api", "--json")
    names = {outcome["name"] for outcome in json.loads(said) if outcome["status"] == "ok"}
    assert {"early.bird", "student000", "student259"} <= names
    assert len(fake.runs) == 2
    assert "early.bird" not in fake.runs[1]["users"], "the hub's spawn was known to the command"
    asyncio.run(spawn("student007"))
    assert len(fake.runs) == 2, "the command's work was known to the hub"
    assert "1 directory had a record" in everybody.command("forget", "student007")
    asyncio.run(spawn("student007"))
    assert fake.runs[2]["users"] == ["student007"]


def test_without_a_token_or_a_hub_the_command_says_what_is_missing(everybody: Hub) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ansible_bootstrap.cli.hub_users.RETRIES", 1)
        patch.setenv("JUPYTERHUB_API_TOKEN", "x")
        with pytest.raises(UnreachableError, match=r"no hub answers at http://127\.0\.0\.1:9/hub/api"):
            list(hub_users("http://127.0.0.1:9/hub/api"))
        with pytest.raises(UnreachableError, match="is no API of a JupyterHub"):
            list(hub_users(everybody.url))
        patch.delenv("JUPYTERHUB_API_TOKEN")
        with pytest.raises(SettingsError, match="JUPYTERHUB_API_TOKEN"):
            list(hub_users(f"{everybody.url}/api"))
    assert "the scope list:users" in everybody.command(
        "run", "--hub", "--hub-url", f"{everybody.url}/api", token="nothing", status=2
    )


def test_a_hub_that_is_just_starting_is_asked_again() -> None:
    answers = [503, 502, 200]

    class Starting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers.pop(0))
            self.end_headers()
            page = {"items": [{"name": "alice"}], "_pagination": {"total": 1, "next": None}}
            self.wfile.write(json.dumps(page).encode())

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Starting)
    Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ansible_bootstrap.cli.hub_users.BACKOFF", 0.01)
        patch.setenv("JUPYTERHUB_API_TOKEN", "x")
        assert list(hub_users(f"http://127.0.0.1:{server.server_port}/hub/api")) == [{"name": "alice"}]
    server.shutdown()


@pytest.mark.parametrize(
    ("hub", "url"),
    [
        ({}, "http://127.0.0.1:8081/hub/api"),
        ({"hub_ip": "0.0.0.0", "hub_port": 9000}, "http://127.0.0.1:9000/hub/api"),
        ({"hub_ip": "10.0.0.1", "base_url": "/jupyter/"}, "http://10.0.0.1:8081/jupyter/hub/api"),
        ({"bind_url": "https://:443/lab"}, "http://127.0.0.1:8081/lab/hub/api"),
        ({"hub_bind_url": "http://[::]:9001"}, "http://127.0.0.1:9001/hub/api"),
        ({"hub_bind_url": "https://[fd00::1]"}, "https://[fd00::1]:8081/hub/api"),
    ],
)
def test_without_a_url_the_configuration_says_it(hub: dict[str, Any], url: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("JUPYTERHUB_API_URL", raising=False)
        assert api_url(None, hub) == url
        patch.setenv("JUPYTERHUB_API_URL", "http://elsewhere:1/hub/api/")
        assert api_url(None, hub) == "http://elsewhere:1/hub/api"
        assert api_url("https://given/hub/api", hub) == "https://given/hub/api"
        with pytest.raises(SettingsError, match="is not the URL"):
            api_url("127.0.0.1:8081", hub)
