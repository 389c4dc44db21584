"""A directory for every user, on this machine; the page's first example.

Try it without a hub:  ansible-bootstrap run alice --check
"""

from ansible_bootstrap import setup

c = get_config()

c.AnsibleBootstrap.storage_root = "/volumes/jupyterhub"
c.AnsibleBootstrap.roles = ["user_dir"]

# Whose the directories are: the user inside the container, not the hub's.
c.AnsibleBootstrap.uid = 1000
c.AnsibleBootstrap.gid = 100

# 0755 as on the page lets every other account of the machine read along.
c.AnsibleBootstrap.extra_vars = {"user_dir_mode": "0750"}

setup(c)
