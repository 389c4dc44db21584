"""Everybody's single-user server: answers 200 to whatever it is asked, and says the hub's version.

python -m benchmarks.storm.shared_server PORT
"""

from __future__ import annotations

import sys
from typing import Final

import jupyterhub
from aiohttp import web

KEEPALIVE_SECONDS: Final = 3600
"""As a real single-user server's. aiohttp's 75 s are about the time between two storms of one hub, and a request that
the proxy sends on a connection just being closed is answered with a 503."""


async def answer(request: web.Request) -> web.Response:
    return web.Response(text="ready\n", headers={"X-JupyterHub-Version": jupyterhub.__version__})


if __name__ == "__main__":
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        print=None,
        access_log=None,
        keepalive_timeout=KEEPALIVE_SECONDS,
    )
