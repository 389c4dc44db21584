"""What a test adds to the example's jupyterhub_config.py: where the parts of this machine are.

There is no proxy: the tests speak to the hub itself and, with the address that the proxy would be
given, to the servers.
"""

import json
import os
import sys
from pathlib import Path

from dockerspawner import DockerSpawner
from jupyterhub.proxy import Proxy
from jupyterhub.utils import random_port

test = json.loads(Path(os.environ["HUB_TEST"]).read_text())


class NoProxy(Proxy):
    """Notes routes and serves none."""

    should_start = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.routes = {}

    async def add_route(self, routespec, target, data):
        self.routes[routespec] = {"routespec": routespec, "target": target, "data": data}
        self.note()

    async def delete_route(self, routespec):
        self.routes.pop(routespec, None)
        self.note()

    async def get_all_routes(self):
        return self.routes

    def note(self):
        new = Path(test["routes"] + ".new")
        new.write_text(json.dumps({spec: route["target"] for spec, route in self.routes.items()}))
        new.rename(test["routes"])


class OnTheHostsNetwork(DockerSpawner):
    """A bridge would need the machine's firewall; so every server has a port of its own instead."""

    async def start(self):
        self.port = random_port()
        self.environment["JUPYTERHUB_SERVICE_URL"] = f"http://127.0.0.1:{self.port}/user/{self.user.name}/"
        return await super().start()

    async def get_ip_and_port(self):
        return "127.0.0.1", self.port


c = get_config()  # noqa: F821
c.JupyterHub.proxy_class = NoProxy
c.JupyterHub.hub_ip = "127.0.0.1"
c.JupyterHub.hub_connect_ip = "127.0.0.1"
c.JupyterHub.hub_port = test["port"]
c.JupyterHub.db_url = "sqlite://"
c.JupyterHub.spawner_class = OnTheHostsNetwork
c.LDAPAuthenticator.server_address = "127.0.0.1"
c.LDAPAuthenticator.server_port = test["ldap_port"]
c.LDAPAuthenticator.tls_strategy = "insecure"  # on loopback
c.DockerSpawner.client_kwargs = {"base_url": test["docker"], "version": "1.40"}
c.DockerSpawner.image = test["image"]
c.DockerSpawner.pull_policy = "never"
c.DockerSpawner.network_name = "host"
c.DockerSpawner.use_internal_ip = True  # no port is published
c.DockerSpawner.extra_create_kwargs = {"user": test["user"]}
c.DockerSpawner.extra_host_config = {"init": True}
c.DockerSpawner.read_only_volumes = {path: path for path in test["read_only"]}
c.DockerSpawner.environment = {
    "HOME": "/home/jovyan",
    "JUPYTERHUB_SINGLEUSER_APP": "jupyter_server.serverapp.ServerApp",  # starts faster than the lab
    **test["environment"],
}
c.DockerSpawner.cmd = [sys.executable, "-m", "jupyterhub.singleuser"]
c.Spawner.http_timeout = 90
c.Spawner.start_timeout = 90
c.AnsibleBootstrap.state_dir = test["state"]
c.AnsibleBootstrap.cleanup_delay = 0.2
