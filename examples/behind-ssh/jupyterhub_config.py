"""A hub without any rights on the storage: the apply program runs on the storage's side of an ssh connection."""

from ansible_bootstrap import setup

c = get_config()
c.AnsibleBootstrap.apply_command = [
    "/usr/bin/ssh",
    "-T",
    "-F",
    "none",  # no configuration but this
    "-i",
    "/etc/jupyterhub/ansible-bootstrap.key",
    "-o",
    "BatchMode=yes",
    "-o",
    "IdentitiesOnly=yes",
    "-o",
    "StrictHostKeyChecking=yes",
    "-o",
    "UserKnownHostsFile=/etc/jupyterhub/ansible-bootstrap.known_hosts",
    "-o",
    "ConnectTimeout=10",
    "-o",
    "ServerAliveInterval=5",  # without it, a frozen storage host would hold every spawn until its timeout
    "-o",
    "ServerAliveCountMax=3",
    "root@storage.example.org",
]
setup(c)
