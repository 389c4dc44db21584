"""A directory for every user, and a shell script that is run for each, once, with the user's own rights.

Try it without a hub:  ansible-bootstrap run alice --check
"""

from ansible_bootstrap import setup

c = get_config()

c.AnsibleBootstrap.storage_root = "/volumes/jupyterhub"

# The container's user. Without these, users are the system's own (uid = "nss").
c.AnsibleBootstrap.uid = 1000
c.AnsibleBootstrap.gid = 100

c.AnsibleBootstrap.roles = ["user_dir", "script"]
c.AnsibleBootstrap.extra_vars = {
    # Not beside this file: every user must be able to read it, and only root to write it.
    "script_path": "/srv/bootstrap/bootstrap.sh",
    "script_timeout": 300,
}

# The script of JupyterHub's documentation, unchanged, makes the directory itself, and so has to be root:
#   c.AnsibleBootstrap.roles = ["script"]
#   c.AnsibleBootstrap.extra_vars = {"script_path": "/srv/bootstrap/page-bootstrap.sh", "script_as": "root"}

# Last, so that it finds and keeps the hooks that are there already.
setup(c)
