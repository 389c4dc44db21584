"""One student with a browser of their own: logs in, starts the server, follows the page, opens the server."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import aiohttp

AGAIN_SECONDS: Final = 2.0
"""Until somebody tries again after an error that names no time."""

_MOST_REDIRECTS: Final = 10
_EVENT_SOURCE: Final = re.compile(r'new EventSource\("([^"]+)"\)')


@dataclass
class Record:
    """What became of one student; times are ``time.monotonic``."""

    name: str
    arrived: float = 0.0
    logged_in: float = 0.0
    ready: float = 0.0
    """When the progress said so, or the hub sent them on to the server."""
    served: float = 0.0
    """When the server answered; 0 if it never did."""
    troubles: Counter[str] = field(default_factory=Counter)
    """By kind: an HTTP status, ``failed`` (said the page), ``connection``, ``timeout``."""
    messages: list[str] = field(default_factory=list)
    """What the page said."""


class _AgainError(Exception):
    """That did not work; try again after so many seconds."""

    def __init__(self, kind: str, seconds: float = AGAIN_SECONDS) -> None:
        super().__init__(kind)
        self.kind = kind
        self.seconds = seconds


class Student:
    """One student.

    Args:
        name: the username.
        password: the password.
        hub: address of the hub, through its proxy if it has one.
        servers: address below which the servers are.
        connector: shared by all students; the cookies are each student's own.
    """

    def __init__(
        self, name: str, password: str, hub: str, servers: str, connector: aiohttp.BaseConnector
    ) -> None:
        self.record = Record(name)
        self._password = password
        self._hub = hub
        self._servers = servers
        self._connector = connector

    async def attend(self, arrival: float, until: float) -> Record:
        """Arrive at that time, and try until the server answers or that time has come."""
        await asyncio.sleep(max(0.0, arrival - time.monotonic()))
        self.record.arrived = arrival
        async with aiohttp.ClientSession(
            connector=self._connector,
            connector_owner=False,
            cookie_jar=aiohttp.CookieJar(unsafe=True),  # The hub's address is a number.
            timeout=aiohttp.ClientTimeout(total=None, sock_read=120),
        ) as browser:
            while not self.record.served and time.monotonic() < until:
                try:
                    async with asyncio.timeout(until - time.monotonic()):
                        await self._try(browser)
                except _AgainError as error:
                    await self._trouble(error.kind, min(error.seconds, until - time.monotonic()))
                except TimeoutError:
                    await self._trouble("timeout", 0)
                except (aiohttp.ClientError, ConnectionError):
                    await self._trouble("connection", AGAIN_SECONDS)
        return self.record

    async def _trouble(self, kind: str, seconds: float) -> None:
        self.record.troubles[kind] += 1
        await asyncio.sleep(max(0.0, seconds))

    async def _try(self, browser: aiohttp.ClientSession) -> None:
        if not self.record.logged_in:
            await self._log_in(browser)
            self.record.logged_in = time.monotonic()
        if (source := await self._ask_for_server(browser)) is not None:
            await self._follow(browser, f"{self._hub}{source}")
        self.record.ready = time.monotonic()
        async with browser.get(f"{self._servers}/user/{self.record.name}/") as page:
            _expect(page)
            if page.url.path != f"/user/{self.record.name}/":
                raise _AgainError("elsewhere")  # The hub answered, not the server.
        self.record.served = time.monotonic()

    async def _log_in(self, browser: aiohttp.ClientSession) -> None:
        async with browser.get(f"{self._hub}/hub/login") as page:
            _expect(page)
        form = {"username": self.record.name, "password": self._password, "_xsrf": self._xsrf(browser)}
        async with browser.post(
            f"{self._hub}/hub/login?next=%2Fhub%2Fspawn", data=form, allow_redirects=False
        ) as answer:
            _expect(answer)

    async def _ask_for_server(self, browser: aiohttp.ClientSession) -> str | None:
        """Return where the page reads its progress; None if the server is there already."""
        url = f"{self._hub}/hub/spawn"
        for _ in range(_MOST_REDIRECTS):
            async with browser.get(url, allow_redirects=False) as page:
                _expect(page)
                text = await page.text()
                url = urljoin(url, page.headers.get("Location", ""))
            path = urlsplit(url).path
            if path.startswith("/user/"):
                return None
            if path.startswith("/hub/login"):
                self.record.logged_in = 0.0
                raise _AgainError("logged out", 0.1)
            if page.status < 300:
                if source := _EVENT_SOURCE.search(text):
                    return str(json.loads(f'"{source[1]}"')).replace("&amp;", "&")
                raise _AgainError("strange page")
        raise _AgainError("redirects")

    async def _follow(self, browser: aiohttp.ClientSession, url: str) -> None:
        """Read the page's progress until the server is ready."""
        async with browser.get(url, headers={"Accept": "text/event-stream"}) as stream:
            _expect(stream)
            async for line in stream.content:
                if not line.startswith(b"data:"):
                    continue
                event: dict[str, Any] = json.loads(line[5:])
                self.record.messages.append(str(event.get("message", "")))
                if event.get("ready"):
                    return
                if event.get("failed"):
                    raise _AgainError("failed")
        raise _AgainError("stream ended", 0.1)  # As an EventSource, which connects anew.

    def _xsrf(self, browser: aiohttp.ClientSession) -> str:
        return next((cookie.value for cookie in browser.cookie_jar if cookie.key == "_xsrf"), "")


def _expect(answer: aiohttp.ClientResponse) -> None:
    if answer.status >= 400:
        raise _AgainError(str(answer.status), float(answer.headers.get("Retry-After", AGAIN_SECONDS)))
