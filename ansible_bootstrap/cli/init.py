"""Write a commented configuration to begin with: what ``ansible-bootstrap init`` does.

What the command line does not say is asked at a terminal; elsewhere it has its default, or the message says what is
missing. No file is overwritten without ``--force``, and if one is there, none is written.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ansible_bootstrap.errors import RefusedError
from ansible_bootstrap.settings import make_settings
from ansible_bootstrap.storage._plan import BUILT_IN_ROLES


@dataclass(frozen=True)
class Spawner:
    """What is written for one spawner."""

    lines: str
    root: str
    """The default of ``--storage-root``."""
    owner: tuple[int, int] | None = None
    """uid and gid of all users, by default; None where users have accounts."""


SPAWNERS: Final = {
    "docker": Spawner(
        """\
c.JupyterHub.spawner_class = "docker"
c.DockerSpawner.volumes = {{"{root}/{{username}}": "/home/jovyan/work"}}
c.DockerSpawner.notebook_dir = "/home/jovyan/work"
""",
        "/volumes/jupyterhub",
        (1000, 100),
    ),
    "kube": Spawner(
        """\
c.JupyterHub.spawner_class = "kubespawner.KubeSpawner"
# The storage host is the NFS server, or a machine that mounts the export at the same path.
c.KubeSpawner.volumes = [{{"name": "home", "nfs": {{"server": "nfs.example.org", "path": "{root}"}}}}]
c.KubeSpawner.volume_mounts = [{{"name": "home", "mountPath": "/home/jovyan", "subPath": "{{username}}"}}]
""",
        "/export/home",
        (1000, 100),
    ),
    "simple": Spawner(
        """\
c.JupyterHub.spawner_class = "simple"  # all servers run under the hub's own account: to try it out
c.SimpleLocalProcessSpawner.home_dir_template = "{root}/{{username}}"
""",
        "/volumes/jupyterhub",
        (1000, 100),
    ),
    "local": Spawner('c.JupyterHub.spawner_class = "jupyterhub.spawner.LocalProcessSpawner"\n', "/home"),
    "sudo": Spawner('c.JupyterHub.spawner_class = "sudospawner.SudoSpawner"\n', "/home"),
    "systemd": Spawner('c.JupyterHub.spawner_class = "systemd"\n', "/home"),
    "slurm": Spawner('c.JupyterHub.spawner_class = "batchspawner.SlurmSpawner"\n', "/home"),
}
"""By what ``--spawner`` may be. ``docs/places.md`` has more."""

CONFIGURATION: Final = '''\
"""The configuration of a hub that prepares its users' storage. Is it right? `ansible-bootstrap doctor` says so."""

from ansible_bootstrap import setup

c = get_config()

c.JupyterHub.authenticator_class = {authenticator!r}
# Who may log in: everybody who can, or those in c.Authenticator.allowed_users.
# c.Authenticator.allow_all = True

{spawner}
{bootstrap}
setup(c)
'''

EMBEDDED: Final = """\
# The hub's own account prepares the storage: it is root, or the owner of all directories.
# The storage root must exist: install -d -m 755 {root}
c.AnsibleBootstrap.storage_root = {root!r}
{owner}
# In this order. A role that may fail holds nobody up: {{"role": "tutorials", "on_failure": "continue"}}
c.AnsibleBootstrap.roles = {roles!r}
# c.AnsibleBootstrap.extra_vars = {{
#     "tutorials_sources": [{{"name": "course", "path": "/srv/course", "dest": "tutorials"}}],
# }}
"""

OWNER: Final = """\
# Whose the directories are: the account of all servers.
c.AnsibleBootstrap.uid = {uid}
c.AnsibleBootstrap.gid = {gid}
"""

NSS: Final = '# Whose the directories are: the system user of that name (c.AnsibleBootstrap.uid = "nss").\n'

SUDO: Final = """\
# The hub is not root. The apply program is, through sudo, and reads /etc/ansible-bootstrap/settings.yml: install
# settings.yml and ansible-bootstrap.sudoers as examples/behind-sudo says.
c.AnsibleBootstrap.apply_command = [
    "/usr/bin/sudo", "-n", "/usr/bin/env", "-i",
    "/opt/ansible-bootstrap/bin/python", "-I", "-m", "ansible_bootstrap.apply",
]
"""

SETTINGS: Final = """\
---
# /etc/ansible-bootstrap/settings.yml: root's, mode 0600. The hub can change none of it.
storage_root: {root}
{owner}roles: [{roles}]
"""

SUDOERS: Final = """\
# /etc/sudoers.d/ansible-bootstrap: root's, mode 0440. To the letter: examples/behind-sudo says why.
Cmnd_Alias ANSIBLE_BOOTSTRAP = /usr/bin/env -i /opt/ansible-bootstrap/bin/python -I -m ansible_bootstrap.apply
Defaults!ANSIBLE_BOOTSTRAP env_reset, !setenv, !env_keep, !use_pty, !log_input, !log_output, !requiretty, closefrom=3
jupyterhub ALL=(root) NOPASSWD: NOSETENV: ANSIBLE_BOOTSTRAP
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; all may be left out at a terminal."""
    parser.add_argument("--spawner", choices=SPAWNERS, help="what starts the servers")
    parser.add_argument(
        "--authenticator", metavar="CLASS", help="as c.JupyterHub.authenticator_class (default: pam)"
    )
    parser.add_argument(
        "--storage-root", metavar="DIR", help="the directory below which users' directories lie"
    )
    parser.add_argument("--uid", type=int, help="owner of all directories; left out with system users")
    parser.add_argument("--gid", type=int, help="group of all directories (default: 100)")
    parser.add_argument(
        "--roles", metavar="ROLE,…", help=f"any of {', '.join(BUILT_IN_ROLES[:-1])} (default: user_dir)"
    )
    parser.add_argument(
        "--boundary",
        choices=("embedded", "sudo"),
        help="who prepares the storage: the hub's own account (default), or root through sudo",
    )
    parser.add_argument(
        "--directory", metavar="DIR", type=Path, default=Path(), help="where the files are written"
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that are there")


def init(args: argparse.Namespace) -> int:
    """Write the files, and say what comes next.

    Raises:
        RefusedError: something is missing, cannot be used, or is there already.
    """
    name = _asked(args.spawner, f"spawner ({', '.join(SPAWNERS)})", "", "--spawner")
    if name not in SPAWNERS:
        raise RefusedError(f"{name!r} is none of {', '.join(SPAWNERS)}; docs/places.md has other spawners")
    spawner = SPAWNERS[name]
    root = _asked(args.storage_root, "storage root", spawner.root)
    if not re.fullmatch(r"(/[\w.@+-]+)+", root):
        raise RefusedError(f"storage root {root!a} is not an absolute path of letters, digits and . _ @ + -")
    authenticator = _asked(args.authenticator, "authenticator", "pam")
    roles = [role.strip() for role in _asked(args.roles, "roles", "user_dir").split(",")]
    behind_sudo = _asked(args.boundary, "boundary (embedded, sudo)", "embedded") == "sudo"
    uid = args.uid if args.uid is not None else spawner.owner and spawner.owner[0]
    gid = (args.gid or (spawner.owner or (0, 100))[1]) if uid is not None else None
    given = {"storage_root": root, "roles": roles} | ({"uid": uid, "gid": gid} if uid is not None else {})
    make_settings(given, "init")
    if unknown := sorted({*roles} - {*BUILT_IN_ROLES}):
        raise RefusedError(
            f"{', '.join(unknown)}: add roles of your own later, with c.AnsibleBootstrap.roles_path"
        )
    owner = NSS if uid is None else OWNER.format(uid=uid, gid=gid)
    bootstrap = SUDO if behind_sudo else EMBEDDED.format(root=root, owner=owner, roles=roles)
    files = {
        "jupyterhub_config.py": CONFIGURATION.format(
            authenticator=authenticator, spawner=spawner.lines.format(root=root), bootstrap=bootstrap
        )
    }
    if behind_sudo:
        ids = "" if uid is None else f"uid: {uid}\ngid: {gid}\n"
        files["settings.yml"] = SETTINGS.format(root=root, owner=ids, roles=", ".join(roles))
        files["ansible-bootstrap.sudoers"] = SUDOERS
    _write(args.directory, files, force=args.force)
    print(f"Wrote {', '.join(str(args.directory / name) for name in files)}.")
    print(
        f"Next: install -d -m 755 {root}; ansible-bootstrap doctor --config {args.directory / 'jupyterhub_config.py'}"
    )
    return 0


def _asked(given: str | None, question: str, default: str, option: str = "") -> str:
    """Return what the command line says, or somebody at the terminal, or the default."""
    if given is not None:
        return given
    if sys.stdin is not None and sys.stdin.isatty():
        with contextlib.suppress(EOFError):
            return input(f"{question}{f' [{default}]' if default else ''}: ").strip() or default
    if not default:
        raise RefusedError(f"{option} is missing: {question}")
    return default


def _write(directory: Path, files: dict[str, str], *, force: bool) -> None:
    there = [name for name in files if (directory / name).exists()]
    if there and not force:
        raise RefusedError(
            f"{directory / there[0]} is there already: move it away, or give --force or --directory"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with open(directory / name, "w" if force else "x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise RefusedError(f"{directory} cannot be written: {error.strerror}") from None
