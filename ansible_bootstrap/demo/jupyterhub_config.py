"""The demo's hub. What is special about it is the last part; the rest keeps it in one directory."""

import os
from pathlib import Path

from ansible_bootstrap import setup

here = Path(os.environ["ANSIBLE_BOOTSTRAP_DEMO"])
port, hub_port, proxy_port = os.environ["ANSIBLE_BOOTSTRAP_DEMO_PORTS"].split()
is_root = os.geteuid() == 0

c = get_config()  # noqa: F821
c.JupyterHub.bind_url = f"http://127.0.0.1:{port}"
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{hub_port}"
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{proxy_port}"
c.ConfigurableHTTPProxy.command = [os.environ["ANSIBLE_BOOTSTRAP_DEMO_PROXY"]]
c.ConfigurableHTTPProxy.pid_file = str(here / "proxy.pid")
c.JupyterHub.db_url = f"sqlite:///{here}/hub.sqlite"
c.JupyterHub.cookie_secret_file = str(here / "cookie_secret")
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = os.environ["ANSIBLE_BOOTSTRAP_DEMO_PASSWORD"]
c.Authenticator.allow_all = True
c.JupyterHub.tornado_settings = {
    "slow_spawn_timeout": 0
}  # the API answers at once, and progress tells the rest

# Everybody's server runs under the hub's account, in a directory of their own.
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = f"{here}/storage/{{username}}"
c.Spawner.cmd = ["jupyterhub-singleuser"]
c.Spawner.args = ["--allow-root"] if is_root else []
c.Spawner.default_url = "/lab/tree/tutorials/welcome.ipynb"
c.Spawner.start_timeout = 120

# And this is the bootstrap.
c.AnsibleBootstrap.storage_root = f"{here}/storage"
c.AnsibleBootstrap.state_dir = f"{here}/state"
c.AnsibleBootstrap.roles = ["user_dir", {"role": "tutorials", "on_failure": "continue"}]
c.AnsibleBootstrap.extra_vars = {
    "tutorials_sources": [
        {"name": "welcome", "path": str(Path(__file__).parent / "tutorial"), "dest": "tutorials"}
    ]
}
if is_root:
    c.AnsibleBootstrap.uid = 1000
    c.AnsibleBootstrap.gid = 100
setup(c)
