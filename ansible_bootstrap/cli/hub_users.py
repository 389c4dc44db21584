"""Ask a running hub who its users are: ``GET {api}/users``, page by page.

ref: https://jupyterhub.readthedocs.io/en/stable/reference/rest-api.html

``requests`` comes with JupyterHub and is imported on use only. The token comes from the environment and never from the
command line, which every account of the machine can read.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError

from ansible_bootstrap.cli.roster import Record
from ansible_bootstrap.errors import SettingsError, UnreachableError

if TYPE_CHECKING:
    import requests

TOKEN: Final = "JUPYTERHUB_API_TOKEN"  # noqa: S105 - a name
URL: Final = "JUPYTERHUB_API_URL"

PAGE: Final = 200
"""Users of a page: the hub's own ``api_page_max_limit``; a hub that allows fewer sends fewer."""

MAX_PAGES: Final = 10_000
MAX_BYTES: Final = 32 * 1024 * 1024
"""Of a page, unpacked; a hub's is a hundredth of it."""

TIMEOUT: Final = (5.0, 60.0)
"""Seconds to connect, and between two pieces of an answer."""

RETRIES: Final = 5
BACKOFF: Final = 0.5
"""Seconds before the second retry, doubled for each: 7.5 in all."""

DEFAULT_PORT: Final = 8081

HOW: Final = f"""in jupyterhub_config.py:
    c.JupyterHub.services = [{{"name": "bootstrap", "api_token": "…"}}]    # openssl rand -hex 32
    c.JupyterHub.load_roles = [
        {{"name": "bootstrap", "services": ["bootstrap"], "scopes": ["list:users", "read:users:groups"]}}
    ]
and the same token in the environment variable {TOKEN}; read:users:groups only if the place of a user's storage, or a
role, depends on groups"""

OnPage = Callable[[int, int], None]
"""Called with the number of users read so far, and of all."""


class _User(BaseModel, strict=True):
    name: Annotated[str, Field(min_length=1)]
    groups: list[str] | None = None
    """None where the token may not read them."""


class _Next(BaseModel, strict=True):
    offset: int


class _Pagination(BaseModel, strict=True):
    total: int
    next: _Next | None


class _Page(BaseModel, strict=True):
    items: Annotated[list[_User], Field(max_length=PAGE)]
    pagination: Annotated[_Pagination, Field(alias="_pagination")]


def hub_users(url: str, on_page: OnPage = lambda read, total: None) -> Iterator[Record]:
    """Yield a record for each user of the hub; nothing is kept here but their names.

    Args:
        url: of the API, as :func:`api_url` returns it.
        on_page: called after each page.

    Raises:
        SettingsError: there is no token, or it may not list users; the details say which scope to grant.
        UnreachableError: there is no hub at that URL, or none that answers.
    """
    token = os.environ.get(TOKEN, "")
    if not token:
        raise SettingsError(f"--hub needs a token of the hub's API: {HOW}")
    try:
        import requests  # noqa: PLC0415 - may be missing
    except ImportError:
        raise SettingsError("--hub needs JupyterHub's own requests: pip install requests") from None
    with requests.Session() as session:
        _prepare(session, url, token)
        offset, before = 0, 0
        seen: set[str] = set()
        for _ in range(MAX_PAGES):
            page = _page(session, url, offset)
            for user in page.items:
                if user.name not in seen:
                    seen.add(user.name)
                    yield user.model_dump(exclude_none=True)
            total, following = page.pagination.total, page.pagination.next
            on_page(len(seen), total)
            gone, before = before - total, total
            if (
                gone > 0
            ):  # The users behind the deleted ones have moved forward, some into a page that has been read.
                offset = max(0, offset - gone)
            elif following is not None:
                offset = following.offset
            else:
                return
        raise UnreachableError(f"{url} does not come to an end after {MAX_PAGES} pages")


def api_url(given: str | None, hub: Mapping[str, Any]) -> str:
    """Return the URL of the hub's API.

    Args:
        given: on the command line.
        hub: what the configuration says of ``c.JupyterHub``.

    Raises:
        SettingsError: it is no URL.
    """
    url = (given or os.environ.get(URL) or _configured(hub)).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(
            f"{url!r} is not the URL of a hub's API; it is like http://127.0.0.1:8081/hub/api"
        )
    return url


def _configured(hub: Mapping[str, Any]) -> str:
    """As ``JupyterHub.init_hub`` makes it of its settings."""
    base = str(hub.get("base_url") or urlsplit(str(hub.get("bind_url") or "")).path or "/")
    path = "/".join(["", *base.strip("/").split("/"), "hub/api"]).replace("//", "/")
    if hub.get("hub_bind_url"):
        parts = urlsplit(str(hub["hub_bind_url"]))
        host, port, scheme = parts.hostname or "", parts.port or DEFAULT_PORT, parts.scheme
    else:
        host, port, scheme = str(hub.get("hub_ip") or ""), hub.get("hub_port") or DEFAULT_PORT, "http"
    if host in ("", "*", "0.0.0.0", "::"):  # noqa: S104 - listens everywhere, so also here
        host = "127.0.0.1"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{path}"


def _prepare(session: requests.Session, url: str, token: str) -> None:
    from requests.adapters import HTTPAdapter  # noqa: PLC0415
    from urllib3.util import Retry  # noqa: PLC0415

    retry = Retry(
        total=RETRIES,
        backoff_factor=BACKOFF,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=("GET",),
        raise_on_status=False,
        respect_retry_after_header=False,  # It may be hours.
    )
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    session.headers["Accept"] = "application/jupyterhub-pagination+json"

    def authorize(request: Any) -> Any:
        request.headers["Authorization"] = f"token {token}"
        return request

    session.auth = authorize  # Not only a header: a password of ~/.netrc would replace that.
    session.trust_env = not _is_loopback(url)  # A proxy has no business between us and this machine.


def _page(session: requests.Session, url: str, offset: int) -> _Page:
    import requests  # noqa: PLC0415

    try:
        answer = session.get(
            f"{url}/users",
            params={"limit": PAGE, "offset": offset},
            timeout=TIMEOUT,
            allow_redirects=False,  # To the login page, or to where the token has no business.
            stream=True,
        )
        with answer:
            body = _body(answer, url)
    except requests.RequestException as error:
        raise UnreachableError(
            f"no hub answers at {url} ({type(error).__name__}): is it running? Give its API's URL with "
            f"--hub-url or in {URL}"
        ) from None
    if answer.status_code in (401, 403):
        what = "does not know the token" if answer.status_code == 401 else "does not let it list users"
        raise SettingsError(
            f"the hub at {url} {what} ({answer.status_code}); it needs the scope list:users, {HOW}"
        )
    if answer.status_code == 200:
        with contextlib.suppress(ValidationError):
            return _Page.model_validate_json(body)
    raise UnreachableError(
        f"{url} is no API of a JupyterHub (status {answer.status_code}); its URL is like "
        "http://127.0.0.1:8081/hub/api: give it with --hub-url"
    )


def _body(answer: requests.Response, url: str) -> bytes:
    body = bytearray()
    for piece in answer.iter_content(1 << 16):
        body += piece
        if len(body) > MAX_BYTES:
            raise UnreachableError(f"{url} answers with more than {MAX_BYTES} bytes, as no hub does")
    return bytes(body)


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
