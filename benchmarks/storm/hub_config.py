"""The hub of one variant; what differs is in the JSON file named by STORM. Everything else is JupyterHub's default,
but for the limit of spawns at once."""

import json
import os
from pathlib import Path

from benchmarks.storm.no_proxy import NoProxy
from benchmarks.storm.spawner import SharedServerSpawner
from benchmarks.storm.variants import VARIANTS

storm = json.loads(Path(os.environ["STORM"]).read_text())
path = Path(storm["path"])

c = get_config()  # noqa: F821
if storm["proxy"]:
    c.JupyterHub.bind_url = f"http://127.0.0.1:{storm['port']}"
    c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{storm['proxy_port']}"
    c.ConfigurableHTTPProxy.command = [storm["proxy"]]
    c.ConfigurableHTTPProxy.pid_file = str(path / "proxy.pid")
else:
    c.JupyterHub.proxy_class = NoProxy
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{storm['hub_port']}"
c.JupyterHub.db_url = f"sqlite:///{path}/hub.sqlite"
c.JupyterHub.cookie_secret_file = str(path / "cookie_secret")
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = storm["password"]
c.Authenticator.allow_all = True
c.JupyterHub.services = [{"name": "storm", "api_token": storm["token"]}]
c.JupyterHub.load_roles = [
    {"name": "storm", "scopes": ["admin:users", "admin:servers", "list:users"], "services": ["storm"]}
]
c.JupyterHub.concurrent_spawn_limit = storm["spawn_limit"]
c.JupyterHub.spawner_class = SharedServerSpawner
c.SharedServerSpawner.port = storm["server_port"]
c.SharedServerSpawner.notes = str(path / "hooks.txt")

VARIANTS[storm["variant"]](c, Path(storm["storage"]), Path(storm["archive"]))
c.AnsibleBootstrap.state_dir = str(path / "state")
for name, value in storm["settings"].items():
    c.AnsibleBootstrap[name] = value
