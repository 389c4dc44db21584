"""Caches and old scratch files go after a user's last server stopped.

Try it without a hub:  ansible-playbook ansible_bootstrap.jupyterhub.cleanup --check --diff (see README.md)
"""

from ansible_bootstrap import setup

c = get_config()

# Where the spawner mounts from. With DockerSpawner the hook reads it here, so it is said once:
#   c.DockerSpawner.volumes = {"/volumes/jupyterhub/{username}": "/home/jovyan/work"}
c.AnsibleBootstrap.storage_root = "/volumes/jupyterhub"

# The container's user. Without these, users are the system's own (uid = "nss").
c.AnsibleBootstrap.uid = 1000
c.AnsibleBootstrap.gid = 100

c.AnsibleBootstrap.roles = ["user_dir"]
c.AnsibleBootstrap.cleanup_roles = ["cleanup"]
c.AnsibleBootstrap.extra_vars = {
    "cleanup_paths": [
        ".cache/pip",
        ".local/share/Trash",
        {"path": "scratch/*", "older_than": "7d"},
    ],
}

# Last, so that it finds and keeps the hooks that are there already.
setup(c)
