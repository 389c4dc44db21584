"""A directory and a tutorial for every user, on this machine, for containers that run as uid 1000.

Try it without a hub:  ansible-bootstrap run alice --check
"""

from ansible_bootstrap import setup

c = get_config()

# Where the spawner mounts from. With DockerSpawner the hook reads it here, so it is said once:
#   c.DockerSpawner.volumes = {"/volumes/jupyterhub/{username}": "/home/jovyan/work"}
c.AnsibleBootstrap.storage_root = "/volumes/jupyterhub"

# The container's user. Without these, users are the system's own (uid = "nss").
c.AnsibleBootstrap.uid = 1000
c.AnsibleBootstrap.gid = 100

c.AnsibleBootstrap.roles = [
    "user_dir",
    # A course without its tutorial can still work; the student is told what is missing.
    {"role": "tutorials", "on_failure": "continue"},
]
c.AnsibleBootstrap.extra_vars = {
    "user_dir_mode": "0750",
    "tutorials_sources": [
        # Or "url": "https://…/master.zip".
        {"name": "course", "path": "/srv/course", "dest": "tutorials"},
    ],
}

# Last, so that it finds and keeps the hooks that are there already.
setup(c)
