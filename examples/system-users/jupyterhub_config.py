"""Home directories for the system's users, made by its own mkhomedir_helper; the page's second example.

Try it without a hub:  ansible-bootstrap run erin --check
"""

from ansible_bootstrap import setup

c = get_config()

# The default: a user is the system user of that name (getent passwd), from files, LDAP or whatever NSS asks.
c.AnsibleBootstrap.uid = "nss"
c.AnsibleBootstrap.storage_root = "/home"

c.AnsibleBootstrap.roles = ["mkhomedir"]
c.AnsibleBootstrap.extra_vars = {
    "mkhomedir_umask": "0077",
    "mkhomedir_skeleton": "/etc/skel",
}

setup(c)
