"""The chain of the example, from a student's browser to the file in their storage."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from docker_engine import IMAGE, USER, Engine, read_only
from ldap_server import LdapServer, password

CHECKOUT = Path(__file__).resolve().parents[3]
EXAMPLE = CHECKOUT / "examples/ldap-docker"

# As it is on the page, but for its comments. ref: JupyterHub, "Bootstrapping your users", example #1
PAGES_HOOK = """
import os
def create_dir_hook(spawner):
    username = spawner.user.name
    volume_path = os.path.join('/volumes/jupyterhub', username)
    if not os.path.exists(volume_path):
        os.mkdir(volume_path, 0o755)

c.Spawner.pre_spawn_hook = create_dir_hook
"""


class Hub:
    """A hub with the example's configuration; what this machine has elsewhere is said after it.

    Instead of the example's ``setup(c)`` there can be no hook ("none"), or that of JupyterHub's page ("page").
    """

    def __init__(
        self, path: Path, engine: Engine, ldap: LdapServer, *, hook: str = "setup(c)", **environment: str
    ) -> None:
        path.chmod(0o755)
        self.path = path
        self.engine = engine
        self.storage = path.parent / "volumes"
        self._log = path / "hub.log"
        self._routes = path / "routes.json"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/hub"
        course = path / "course"
        shutil.copytree(CHECKOUT / "ansible_bootstrap/demo/tutorial", course)
        shipped = (EXAMPLE / "jupyterhub_config.py").read_text()
        hooks = {"none": "", "page": PAGES_HOOK}
        changes = {
            "\nsetup(c)\n": f"\n{hooks.get(hook, hook)}\n",
            "/volumes/jupyterhub": str(self.storage),
            "/srv/course": str(course),
        }
        for there, here in changes.items():
            assert there in shipped
            shipped = shipped.replace(there, here)
        config = path / "jupyterhub_config.py"
        config.write_text(shipped + Path(__file__).with_name("ldap_docker_hub.py").read_text())
        test = path / "test.json"
        test.write_text(
            json.dumps(
                {
                    "port": port,
                    "ldap_port": ldap.port,
                    "docker": engine.url,
                    "image": IMAGE,
                    "user": USER,
                    "read_only": read_only(),
                    "environment": environment,
                    "routes": str(self._routes),
                    "state": str(path / "state"),
                }
            )
        )
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(config)],
                cwd=path,
                env={**os.environ, "HUB_TEST": str(test)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        """Wait until the condition holds while the hub lives; return its value."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert self._process.poll() is None, self.log
            assert time.monotonic() < end, f"waited {seconds} s for {what}:\n{self.log}"
            time.sleep(0.1)  # Oftener would slow down the hub that is waited for.
        return value

    def wait_until_up(self) -> None:
        def up() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(f"{self.url}/health", timeout=2).is_success
            return False

        self.wait_for(up, "the hub")

    def address(self, name: str) -> str:
        """Where the proxy would send the user's requests."""
        target: str = json.loads(self._routes.read_text())[f"/user/{name}/"]
        return target

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()


class Student:
    """Somebody at a browser: logs in at the hub's form, starts their server, and works in it."""

    def __init__(self, hub: Hub, name: str) -> None:
        self.hub = hub
        self.name = name
        self.slug = name.replace(".", "-2e")
        """What DockerSpawner makes of the name, for the container and for the volume alike."""
        self.directory = hub.storage / self.slug
        self._browser = httpx.Client(base_url=hub.url, timeout=100)
        self._token = ""

    def log_in(self, with_password: str = "") -> int:
        """Fill in the form; return the status of what the browser shows then."""
        self._browser.get("/login")
        form = {"username": self.name, "password": with_password or password(self.name)}
        answer = self._browser.post("/login", data={**form, "_xsrf": self._browser.cookies["_xsrf"]})
        if answer.status_code == 302:
            self._browser.get("/home")  # The form's guard is renewed with the session.
        return answer.status_code

    def _api(self, method: str, path: str, **body: Any) -> httpx.Response:
        headers = {"X-XSRFToken": self._browser.cookies["_xsrf"]}
        return self._browser.request(method, f"/api/users/{self.name}{path}", headers=headers, json=body)

    def _server(self) -> dict[str, Any]:
        servers = self._api("GET", "").json()["servers"]
        server: dict[str, Any] = servers.get("", {})
        return server

    def start(self) -> None:
        """Press Start, and wait until the server is there."""
        answer = self._api("POST", "/server")
        assert answer.status_code in {201, 202}, answer.text + self.hub.log
        self.hub.wait_for(lambda: self._server().get("ready"), f"the server of {self.name}", 90)
        self._token = self._api("POST", "/tokens", note="the notebook's page").json()["token"]

    def stop(self) -> None:
        """Press Stop, and wait until the server and its container are gone."""
        answer = self._api("DELETE", "/server")
        assert answer.status_code in {202, 204}, answer.text
        self.hub.wait_for(
            lambda: not self._server() and not self.hub.engine.container(self.slug),
            f"the end of the server of {self.name}",
        )

    def _contents(self, method: str, file: str, **body: Any) -> httpx.Response:
        url = f"{self.hub.address(self.name)}/user/{self.name}/api/contents/{file}"
        headers = {"Authorization": f"token {self._token}"}
        return httpx.request(method, url, headers=headers, json=body or None, timeout=60)

    def save(self, file: str, text: str) -> httpx.Response:
        """Save a file as the notebook's page does."""
        return self._contents("PUT", file, type="file", format="text", content=text)

    def make_directory(self, name: str) -> None:
        answer = self._contents("PUT", name, type="directory")
        assert answer.status_code == 201, answer.text

    def opened(self, file: str) -> str:
        """The text of a file as the notebook's page shows it."""
        answer = self._contents("GET", file)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["content"])

    def leave(self) -> None:
        self._browser.close()
