"""A hub whose metrics Prometheus may read, and nobody else.

# openssl rand -hex 32 | install -m 640 -g prometheus /dev/stdin /etc/jupyterhub/prometheus.token
"""

from pathlib import Path

from ansible_bootstrap import setup

c = get_config()

c.JupyterHub.services = [
    {"name": "prometheus", "api_token": Path("/etc/jupyterhub/prometheus.token").read_text().strip()},
]
c.JupyterHub.load_roles = [
    {"name": "prometheus", "scopes": ["read:metrics"], "services": ["prometheus"]},
]

c.AnsibleBootstrap.storage_root = "/volumes/jupyterhub"
c.AnsibleBootstrap.uid = 1000
c.AnsibleBootstrap.gid = 100

# Last, so that it finds and keeps the hooks that are there already.
setup(c)
