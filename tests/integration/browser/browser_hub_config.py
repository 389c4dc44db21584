"""As ``hub_config.py``, and the hub's own port also serves what a proxy would: the notebooks below ``/user``."""

import os
import sys
from pathlib import Path

import jupyterhub
from tornado.httpclient import AsyncHTTPClient
from tornado.web import RequestHandler

here = Path(__file__).parent

c = get_config()  # noqa: F821
load_subconfig(os.environ["HUB_CONFIG"])  # noqa: F821


class Notebook(RequestHandler):
    """Passes a page on, as a proxy does."""

    def initialize(self, proxy):
        self.proxy = proxy

    async def get(self, name):
        route = self.proxy.routes.get(f"/user/{name}/")
        if route is None:
            self.redirect(f"/hub/user/{name}/")
            return
        answer = await AsyncHTTPClient().fetch(f"{route['target']}/user/{name}/")
        self.finish(answer.body)


class OnePort(c.JupyterHub.proxy_class):
    async def add_route(self, routespec, target, data):
        await super().add_route(routespec, target, data)
        if routespec == "/":  # The hub's own, at its start.
            self.app.tornado_application.add_handlers(".*", [("/user/([^/]+)/.*", Notebook, {"proxy": self})])


c.JupyterHub.proxy_class = OnePort
c.Spawner.cmd = [sys.executable, "-S", str(here / "held_server.py")]
c.Spawner.environment = {"HUB_VERSION": jupyterhub.__version__}
