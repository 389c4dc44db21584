"""A hub that is not root: what needs root is done by the apply program, through sudo.

What is done stands in /etc/ansible-bootstrap/settings.yml; storage_root, roles, uid and their like, set here,
would be an error.
"""

from ansible_bootstrap import setup

c = get_config()
c.AnsibleBootstrap.apply_command = [
    "/usr/bin/sudo",
    "-n",  # never ask for a password
    "/usr/bin/env",  # the rest to the letter as in ansible-bootstrap.sudoers, which says why
    "-i",
    "/opt/ansible-bootstrap/bin/python",
    "-I",
    "-m",
    "ansible_bootstrap.apply",
]
setup(c)
