"""Two roles of the site's own, beside the built-in one."""

from ansible_bootstrap import setup

c = get_config()
c.AnsibleBootstrap.storage_root = "/volumes/jupyterhub"
c.AnsibleBootstrap.uid = 1000
c.AnsibleBootstrap.gid = 100
c.AnsibleBootstrap.roles_path = ["/etc/jupyterhub/roles"]
c.AnsibleBootstrap.roles = [
    "user_dir",
    "my_datasets",  # once for each user, as that user
    {"role": "class_list", "per": "batch"},  # once for all of them, as root
]
setup(c)
