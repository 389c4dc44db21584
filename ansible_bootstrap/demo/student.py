"""What a student does in a browser, over HTTP: log in, start the server, open the notebook."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

import requests

SPAWN_TIMEOUT: Final = 180.0
"""Seconds for the server to be ready."""


class NotAsPromisedError(Exception):
    """A step did not show what it should; the text says what it showed."""


class Student:
    """One student with a browser of their own.

    Args:
        hub: the hub's address, without a trailing slash.
        name: the username.
        password: the password.
    """

    def __init__(self, hub: str, name: str, password: str) -> None:
        self.hub = hub
        self.name = name
        self._password = password
        self._browser = requests.Session()

    def log_in(self) -> str:
        """Fill in the login form."""
        self._browser.get(f"{self.hub}/hub/login", timeout=10)
        form = {"username": self.name, "password": self._password, "_xsrf": self._cookie("_xsrf")}
        page = self._browser.post(
            f"{self.hub}/hub/login?next=%2Fhub%2Fhome", data=form, timeout=20, allow_redirects=False
        )
        if page.status_code != requests.codes.found:
            raise NotAsPromisedError(f"the login form answered {page.status_code}")
        return "logged in"

    def start_server(self) -> str:
        """Press "Start", and read the page's progress until the server is ready."""
        api = f"{self.hub}/hub/api/users/{self.name}/server"
        headers = {"X-XSRFToken": self._xsrf(), "Referer": f"{self.hub}/hub/home"}
        asked = self._browser.post(api, headers=headers, timeout=SPAWN_TIMEOUT)
        if asked.status_code not in (requests.codes.created, requests.codes.accepted):
            raise NotAsPromisedError(f"the hub answered {asked.status_code}: {asked.text[:300]}")
        begin = time.monotonic()
        told = []
        with self._browser.get(
            f"{api}/progress", headers=headers, stream=True, timeout=SPAWN_TIMEOUT
        ) as stream:
            for event in _events(stream):
                told.append(f"{str(event.get('message', '')).rstrip('.')} ({time.monotonic() - begin:.1f} s)")
                if event.get("failed"):
                    raise NotAsPromisedError(told[-1])
                if event.get("ready"):
                    return "; ".join(told)
        raise NotAsPromisedError(f"the progress ended with {told[-1:]}")

    def read_back(self, folder: str, original: Path) -> str:
        """Read every file of ``original`` through the user's own server and compare."""
        count = 0
        for path in sorted(original.iterdir()):
            url = f"{self.hub}/user/{self.name}/files/{folder}/{path.name}"
            answer = self._browser.get(url, timeout=30)
            if answer.status_code != requests.codes.ok:
                raise NotAsPromisedError(f"{folder}/{path.name} answered {answer.status_code}")
            if answer.content != path.read_bytes():
                raise NotAsPromisedError(f"{folder}/{path.name} is not as shipped")
            count += 1
        return f"{count} files in {folder}, as shipped"

    def _cookie(self, name: str) -> str:
        # The user's own server sets cookies of the same names for its own paths.
        cookies = [item for item in self._browser.cookies if item.path.startswith("/hub")]
        values = [cookie.value or "" for cookie in cookies if cookie.name == name]
        return values[-1] if values else ""

    def _xsrf(self) -> str:
        """Return the token that a logged-in page carries."""
        self._browser.get(f"{self.hub}/hub/home", timeout=10)
        return self._cookie("_xsrf")


def _events(stream: requests.Response) -> Any:
    """Parse server-sent events."""
    for line in stream.iter_lines():
        if line.startswith(b"data:"):
            yield json.loads(line[5:])
