# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Fetch one archive over http or https.

Runs in a child process that is ended when the download takes too long, however slowly the server drips.
"""

from __future__ import annotations

import codecs
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from typing import Any, Optional

from ._errors import ArchiveError, explain, printable

codecs.lookup("idna")  # for host names; the process that fetches may not be able to read Python's own files

READ_TIMEOUT = 10.0
"""Seconds without a byte."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to something less safe."""

    def redirect_request(self, req: urllib.request.Request, *rest: Any) -> Optional[urllib.request.Request]:
        """See the base class; the last argument is the new url."""
        scheme = rest[-1].partition(":")[0]
        if req.full_url.startswith("https:") and scheme != "https":
            raise ArchiveError("the server redirects from https to something less safe")
        if scheme not in ("http", "https"):  # the base class would quote it, with what may be a token
            raise ArchiveError("the server redirects to what is neither http nor https")
        return super().redirect_request(req, *rest)


def download(url: str, known: dict[str, Any], file: int, most: int) -> Optional[dict[str, Any]]:
    """Fetch ``url`` into ``file``; return its sha256 and validators, None if it is as ``known`` says."""
    headers = {"User-Agent": "ansible_bootstrap", "Accept-Encoding": "identity"}
    if known.get("etag"):
        headers["If-None-Match"] = known["etag"]
    if known.get("last_modified"):
        headers["If-Modified-Since"] = known["last_modified"]
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirects,
    ):
        opener.add_handler(handler())
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - http and https only: no other handler
        with opener.open(request, timeout=READ_TIMEOUT) as response:
            return _receive(response, file, most)
    except urllib.error.HTTPError as error:
        if error.code == 304:
            return None
        raise ArchiveError(f"the server answered {error.code} {printable(str(error.reason))[:100]}") from None
    except urllib.error.URLError as error:
        reason = error.reason
        said = explain(reason, "") if isinstance(reason, OSError) else printable(str(reason))
        raise ArchiveError(f"the server cannot be reached: {said[:200]}") from None
    except TimeoutError:
        raise ArchiveError(f"the server did not answer within {READ_TIMEOUT:g} s") from None
    except (http.client.HTTPException, ValueError) as error:
        raise ArchiveError(f"the download broke off: {type(error).__name__}") from None


def _receive(response: http.client.HTTPResponse, file: int, most: int) -> dict[str, Any]:
    digest = hashlib.sha256()
    received = 0
    while chunk := response.read1(1 << 18):
        received += len(chunk)
        if received > most:
            raise ArchiveError(f"the download is larger than {most} bytes")
        digest.update(chunk)
        while chunk:
            chunk = chunk[os.write(file, chunk) :]
    length = response.headers.get("Content-Length")
    if length is not None and length.strip() != str(received):
        raise ArchiveError(f"the download broke off: {received} of {printable(length)[:20]} bytes came")
    if not received:
        raise ArchiveError("the download is empty")
    return {
        "sha256": digest.hexdigest(),
        "etag": response.headers.get("ETag"),
        "last_modified": response.headers.get("Last-Modified"),
    }
