"""What a test adds to an example's jupyterhub_config.py: a hub without proxy, and servers that only answer."""

import json
import os
import sys
from pathlib import Path

from jupyterhub.proxy import Proxy
from jupyterhub.spawner import SimpleLocalProcessSpawner

test = json.loads(Path(os.environ["HUB_TEST"]).read_text())


class NoProxy(Proxy):
    should_start = False

    async def add_route(self, routespec, target, data):
        pass

    async def delete_route(self, routespec):
        pass

    async def get_all_routes(self):
        return {}


class LikeAContainer(SimpleLocalProcessSpawner):
    """Does not go to the user's directory, which is not the hub's to enter."""

    def make_preexec_fn(self, name):
        return None


c = get_config()  # noqa: F821
c.JupyterHub.proxy_class = NoProxy
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{test['port']}"
c.JupyterHub.db_url = "sqlite://"
c.JupyterHub.spawner_class = LikeAContainer
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.services = [{"name": "tester", "api_token": test["token"]}]
c.JupyterHub.load_roles = [
    {"name": "tester", "scopes": ["admin:users", "admin:servers"], "services": ["tester"]}
]
c.Spawner.cmd = [sys.executable, test["server"]]
c.AnsibleBootstrap.state_dir = test["state"]
c.AnsibleBootstrap.place = test["place"]
