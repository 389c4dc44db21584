"""What mends a boundary that lets no request through, told by what sudo, ssh or the apply program says."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from typing import Final

from ansible_bootstrap import __version__
from ansible_bootstrap.settings import SYSTEM_FILE

MENDS: Final = (
    (r"refused: .*`([^`]+)`", r"\1"),
    (
        r"settings\.yml does not exist",
        "as root, in examples/behind-sudo: install -D -m 600 settings.yml " + str(SYSTEM_FILE),
    ),
    (
        r"env: \W?(/\S+?)/bin/python\W?: No such file",
        r"as root: python3 -m venv \1 && \1/bin/pip install ansible-bootstrap=={version}",
    ),
    (
        r"(/\S+?)/bin/python: .*No module named",
        r"as root: \1/bin/pip install ansible-bootstrap=={version}",
    ),
    (
        r"no new privileges",
        "systemctl edit jupyterhub: NoNewPrivileges=no; in a pod: allowPrivilegeEscalation: true",
    ),
    (
        r"sudo: (?!unable to resolve)",
        "as root, in examples/behind-sudo: visudo -cf ansible-bootstrap.sudoers && "
        "install -m 440 ansible-bootstrap.sudoers /etc/sudoers.d/ansible-bootstrap",
    ),
    (
        r"host key is known for \[(.+?)\]:(\d+)",
        r"ssh-keyscan -p \2 \1 >> {known}; compare the key before you trust it",
    ),
    (r"host key is known for (\S+)", r"ssh-keyscan \1 >> {known}; compare the key before you trust it"),
    (
        r"remove with: \|\s+(ssh-keygen .+?) \|",
        r"if it is the same host with a new key: \1; then ssh-keyscan",
    ),
    (
        r"Identity file (\S+) not accessible: No such",
        r"ssh-keygen -t ed25519 -f \1, as examples/behind-ssh says",
    ),
    (r'Load key "(\S+)": (?:Permission denied|bad permissions)', r"chown {account} \1 && chmod 600 \1"),
    (
        r"Permission denied \(",
        "on the storage host: cat authorized_keys >> /root/.ssh/authorized_keys, "
        "that of examples/behind-ssh with the hub's public key in it",
    ),
)
"""What is said, and what an admin does about it: the first that matches. ``{…}`` is a fact of this side."""


def what_mends(said: str, command: Sequence[str]) -> str:
    """Return what an admin does about it: a command, or how to try it by hand.

    Args:
        said: why the apply program has not answered.
        command: ``c.AnsibleBootstrap.apply_command``.
    """
    known = [word.partition("=")[2] for word in command if word.startswith("UserKnownHostsFile=")]
    facts = {
        "{known}": known[0] if known else "~/.ssh/known_hosts",
        "{account}": str(os.geteuid()),
        "{version}": __version__,
    }
    for sign, mend in MENDS:
        if found := re.search(sign, said):
            text = found.expand(mend)
            for name, value in facts.items():
                text = text.replace(name, value)
            return text
    return f"as the hub's account, `{shlex.join(command)} </dev/null`; docs/boundary.md"
