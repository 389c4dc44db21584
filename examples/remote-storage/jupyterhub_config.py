"""Users' directories on storage hosts; the hub itself has none of them."""

from ansible_bootstrap import setup

c = get_config()
c.AnsibleBootstrap.storage_root = "/volumes/jupyterhub"
c.AnsibleBootstrap.inventory = "/etc/jupyterhub/storage.yml"
c.AnsibleBootstrap.uid = 1000
c.AnsibleBootstrap.gid = 100


def storage_host(spawner):
    """Spread users over two hosts by their name's first letter."""
    return "storage1" if spawner.user.name[0].lower() < "n" else "storage2"


c.AnsibleBootstrap.storage_host = storage_host
setup(c)
