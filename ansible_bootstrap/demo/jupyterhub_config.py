"""The demo's hub. What is special about it is the last part; the rest keeps it in one directory.

``ansible-bootstrap demo`` gives it its environment. Without that it says where the demo of this directory is, so that
``ansible-bootstrap status --config`` works.
"""

import os
from pathlib import Path

from jupyterhub.spawner import SimpleLocalProcessSpawner

from ansible_bootstrap import setup

here = Path(os.environ.get("ANSIBLE_BOOTSTRAP_DEMO", ".demo")).absolute()
port, hub_port, proxy_port = os.environ.get("ANSIBLE_BOOTSTRAP_DEMO_PORTS", "8000 8081 8001").split()
is_root = os.geteuid() == 0
become = int(os.environ.get("ANSIBLE_BOOTSTRAP_DEMO_UID", "0"))


class DemoSpawner(SimpleLocalProcessSpawner):
    """Servers run under one account, each in a directory of its own."""

    def make_preexec_fn(self, name):
        """Leave root's account behind."""
        theirs = super().make_preexec_fn(name)

        def leave() -> None:
            theirs()
            os.setgroups([])
            os.setgid(100)
            os.setuid(become)

        return leave if become else theirs


c = get_config()  # noqa: F821
c.JupyterHub.bind_url = f"http://127.0.0.1:{port}"
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{hub_port}"
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{proxy_port}"
c.ConfigurableHTTPProxy.command = [os.environ.get("ANSIBLE_BOOTSTRAP_DEMO_PROXY", "configurable-http-proxy")]
c.ConfigurableHTTPProxy.pid_file = str(here / "proxy.pid")
c.JupyterHub.db_url = f"sqlite:///{here}/hub.sqlite"
c.JupyterHub.cookie_secret_file = str(here / "cookie_secret")
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = os.environ.get("ANSIBLE_BOOTSTRAP_DEMO_PASSWORD", "")
c.Authenticator.allow_all = True
c.JupyterHub.tornado_settings = {
    "slow_spawn_timeout": 0
}  # the API answers at once, and progress tells the rest

c.JupyterHub.spawner_class = DemoSpawner
c.SimpleLocalProcessSpawner.home_dir_template = f"{here}/storage/{{username}}"
c.Spawner.cmd = ["jupyterhub-singleuser"]
c.Spawner.args = ["--allow-root"] if is_root and not become else []
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
    c.AnsibleBootstrap.uid = 1000  # as the account of the servers, where it can run them
    c.AnsibleBootstrap.gid = 100
setup(c)
