"""Whether tutorials can be had, for ``ansible-bootstrap doctor``: a path is looked at, a URL is asked for."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Final, Literal

from ansible_bootstrap.fingerprints import short_name
from ansible_bootstrap.protocol import Finding
from ansible_bootstrap.settings import ApplySettings
from ansible_bootstrap.storage._errors import StorageError
from ansible_bootstrap.storage._sources import Source, check_path, parse_sources
from ansible_bootstrap.threads import in_thread

URL_SECONDS: Final = 10.0
_NOT_BY_HEAD: Final = (403, 405, 501)
"""Servers say so to HEAD, and may answer GET all the same."""


async def find_missing(settings: ApplySettings) -> AsyncIterator[Finding]:
    """Yield what is wrong with ``tutorials_sources``, seen from this machine.

    A list that has templates is Ansible's to fill in, and is left alone.
    """
    role = next((role for role in settings.roles if short_name(role) == "tutorials"), None)
    given = settings.extra_vars.get("tutorials_sources")
    if role is None or not given or "{{" in json.dumps(given, default=str):
        return
    level: Literal["error", "warning"] = "warning" if role.on_failure == "continue" else "error"
    mend = 'c.AnsibleBootstrap.extra_vars["tutorials_sources"]'
    try:
        sources = parse_sources(given)
    except StorageError as error:
        yield Finding(level=level, what=f"tutorials_sources: {error}", mend=mend)
        return
    for source in sources:
        look = partial(check_path, source) if source.path else partial(_ask, source, settings.environment)
        try:
            await in_thread(look, timeout=2 * URL_SECONDS)
        except (StorageError, OSError, TimeoutError) as error:
            said = str(error) if source.path else f"source {source.name}: {source.where}: {error}"
            yield Finding(level=level, what=said, mend=mend)


def _ask(source: Source, environment: Mapping[str, str]) -> None:
    """Ask for a URL as the storage host would; OSError if it cannot be had."""
    proxies = {scheme: url for scheme in ("http", "https") if (url := _proxy(environment, scheme))}
    context = ssl.create_default_context(
        cafile=environment.get("SSL_CERT_FILE"), capath=environment.get("SSL_CERT_DIR")
    )
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=context)
    )
    try:
        opener.open(urllib.request.Request(source.url, method="HEAD"), timeout=URL_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code not in _NOT_BY_HEAD:
            raise


def _proxy(environment: Mapping[str, str], scheme: str) -> str:
    names = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY")
    return next((environment[name] for name in names if environment.get(name)), "")
