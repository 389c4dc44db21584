"""Write a commented configuration to begin with: what ``ansible-bootstrap init`` does.

What the command line does not say is asked at a terminal; elsewhere it has its default, or the message says what is
missing. No file is overwritten without ``--force``, and if one is there, none is written.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Collection
from importlib.metadata import distributions
from pathlib import Path
from typing import Final, NamedTuple

from ansible_bootstrap.errors import RefusedError
from ansible_bootstrap.settings import make_settings
from ansible_bootstrap.storage._plan import BUILT_IN_ROLES


class Spawner(NamedTuple):
    """What is written for one spawner, the package that it is in, the defaults of ``--storage-root`` and ``--uid``."""

    lines: str
    package: str = "jupyterhub"
    root: str = "/home"
    uid: str = "nss"


SPAWNERS: Final = {
    "docker": Spawner(
        """\
c.JupyterHub.spawner_class = "docker"
c.DockerSpawner.volumes = {{"{root}/{{username}}": "/home/jovyan/work"}}
c.DockerSpawner.notebook_dir = "/home/jovyan/work"
""",
        "dockerspawner",
        "/volumes/jupyterhub",
        "1000",
    ),
    "kube": Spawner(
        """\
c.JupyterHub.spawner_class = "kubespawner.KubeSpawner"
# The storage host is the NFS server, or a machine that mounts the export at the same path.
c.KubeSpawner.volumes = [{{"name": "home", "nfs": {{"server": "nfs.example.org", "path": "{root}"}}}}]
c.KubeSpawner.volume_mounts = [{{"name": "home", "mountPath": "/home/jovyan", "subPath": "{{username}}"}}]
""",
        "jupyterhub-kubespawner",
        "/export/home",
        "1000",
    ),
    "simple": Spawner(
        """\
c.JupyterHub.spawner_class = "simple"  # all servers run under the hub's own account: to try it out
c.SimpleLocalProcessSpawner.home_dir_template = "{root}/{{username}}"
""",
        "jupyterhub",
        "/volumes/jupyterhub",
        str(os.geteuid() or 1000),
    ),
    "local": Spawner('c.JupyterHub.spawner_class = "jupyterhub.spawner.LocalProcessSpawner"\n'),
    "sudo": Spawner('c.JupyterHub.spawner_class = "sudospawner.SudoSpawner"\n', "sudospawner"),
    "systemd": Spawner('c.JupyterHub.spawner_class = "systemd"\n', "jupyterhub-systemdspawner"),
    "slurm": Spawner('c.JupyterHub.spawner_class = "batchspawner.SlurmSpawner"\n', "batchspawner"),
}
"""By value of ``--spawner``. ``docs/places.md`` leads to more."""

BOUNDARIES: Final = ("embedded", "sudo")

CONFIGURATION: Final = '''\
"""The configuration of a hub that prepares its users' storage. Is it right? `ansible-bootstrap doctor` says so."""

from ansible_bootstrap import setup

c = get_config()

c.JupyterHub.authenticator_class = {auth!r}
# Nobody may log in until one of these is set:
# c.Authenticator.allow_all = True  # everybody whom the authenticator knows
# c.Authenticator.allowed_users = {{"alice", "bob"}}

{spawner}
{bootstrap}
setup(c)
'''

EMBEDDED: Final = """\
# The hub's own account prepares the storage: it is root, or the owner of all directories.
# The storage root must exist: install -d -m 755 {root}
c.AnsibleBootstrap.storage_root = {root!r}
# Whose the directories are: one account's, or (nss) the system user's of that name.
c.AnsibleBootstrap.uid = {uid!r}
c.AnsibleBootstrap.gid = {gid!r}
# In this order. A role that may fail holds nobody up: {{"role": "tutorials", "on_failure": "continue"}}
c.AnsibleBootstrap.roles = {roles!r}
# c.AnsibleBootstrap.extra_vars = {{
#     "tutorials_sources": [{{"name": "course", "path": "/srv/course", "dest": "tutorials"}}],
# }}
"""

SUDO: Final = """\
# The hub is not root. The apply program is, through sudo, and reads /etc/ansible-bootstrap/settings.yml, which
# has storage_root, roles and owners. settings.yml and ansible-bootstrap.sudoers say where they are installed.
c.AnsibleBootstrap.apply_command = [
    "/usr/bin/sudo", "-n", "/usr/bin/env", "-i",
    "/opt/ansible-bootstrap/bin/python", "-I", "-m", "ansible_bootstrap.apply",
]
"""

SETTINGS: Final = """\
---
# /etc/ansible-bootstrap/settings.yml: root's, mode 0600. The hub can change none of it.
storage_root: {root}
uid: {uid}
gid: {gid}
roles: [{roles}]
"""

SUDOERS: Final = """\
# /etc/sudoers.d/ansible-bootstrap: root's, mode 0440. To the letter: examples/behind-sudo says why.
Cmnd_Alias ANSIBLE_BOOTSTRAP = /usr/bin/env -i /opt/ansible-bootstrap/bin/python -I -m ansible_bootstrap.apply
Defaults!ANSIBLE_BOOTSTRAP env_reset, !setenv, !env_keep, !use_pty, !log_input, !log_output, !requiretty, closefrom=3
jupyterhub ALL=(root) NOPASSWD: NOSETENV: ANSIBLE_BOOTSTRAP
"""

INSTALL: Final = """\
  # python3 -m venv /opt/ansible-bootstrap && /opt/ansible-bootstrap/bin/pip install ansible-bootstrap
  # install -D -m 600 {directory}/settings.yml /etc/ansible-bootstrap/settings.yml
  # visudo -cf {directory}/ansible-bootstrap.sudoers && \\
    install -m 440 {directory}/ansible-bootstrap.sudoers /etc/sudoers.d/ansible-bootstrap
and then as the hub's account:"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; all may be left out at a terminal."""
    add = parser.add_argument
    add("--spawner", choices=SPAWNERS, help="what starts the servers")
    add("--authenticator", metavar="CLASS", help="as c.JupyterHub.authenticator_class (default: pam)")
    add("--storage-root", metavar="DIR", help="the directory below which users' directories lie")
    add("--uid", metavar="N", help="owner of all directories; nss: the system user of that name")
    add("--gid", metavar="N", help="group of all directories (default: 100; with nss the users' own)")
    add("--roles", metavar="ROLE,…", help=f"any of {', '.join(BUILT_IN_ROLES[:-1])} (default: user_dir)")
    add(
        "--boundary",
        choices=BOUNDARIES,
        help="who does the work: the hub's own account, or root through sudo",
    )
    add("--directory", metavar="DIR", type=Path, default=Path(), help="where the files are written")
    add("--force", action="store_true", help="overwrite files that are there")


def init(args: argparse.Namespace) -> int:
    """Write the files and say what comes next; RefusedError if something is missing, no good, or there already."""
    spawner = SPAWNERS[_asked(args.spawner, "spawner", "", SPAWNERS)]
    authenticator = _asked(args.authenticator, "authenticator", "pam")
    root = _asked(args.storage_root, "storage-root", spawner.root)
    uid = _asked(args.uid, "uid", spawner.uid)
    own = str(os.getegid()) if uid == str(os.geteuid()) else "100"
    gid = _asked(args.gid, "gid", "nss" if uid == "nss" else own)
    roles = [role.strip() for role in _asked(args.roles, "roles", "user_dir").split(",")]
    boundary = _asked(args.boundary, "boundary", "embedded", BOUNDARIES)
    if spawner is SPAWNERS["simple"] and boundary == "sudo":
        raise RefusedError(
            "--spawner simple: all servers run under the hub's own account, so --boundary embedded"
        )
    if not re.fullmatch(r"(/[\w.@+-]+)+", root):
        raise RefusedError(f"storage-root {root!a} is not an absolute path of letters, digits and . _ @ + -")
    if unknown := sorted({*roles} - {*BUILT_IN_ROLES}):
        raise RefusedError(
            f"{', '.join(unknown)}: add your own roles later, with c.AnsibleBootstrap.roles_path"
        )
    said = make_settings({"storage_root": root, "roles": roles, "uid": uid, "gid": gid}, "init")
    given = {"root": root, "uid": said.uid, "gid": said.gid, "roles": roles}
    bootstrap = SUDO if boundary == "sudo" else EMBEDDED.format(**given)
    lines = spawner.lines.format(root=root)
    files = {
        "jupyterhub_config.py": CONFIGURATION.format(auth=authenticator, spawner=lines, bootstrap=bootstrap)
    }
    if boundary == "sudo":
        files["settings.yml"] = SETTINGS.format(**given | {"roles": ", ".join(roles)})
        files["ansible-bootstrap.sudoers"] = SUDOERS
    _write(args.directory, files, force=args.force)
    print(f"Wrote {', '.join(str(args.directory / name) for name in files)}. Next:")
    if not any(distributions(name=spawner.package)):
        print(f"  {sys.executable} -m pip install {spawner.package}")
    if not os.path.isdir(root):
        print(f"  # install -d -m 755 {root}")
    if boundary == "sudo":
        print(INSTALL.format(directory=args.directory))
    print(f"  ansible-bootstrap doctor --config {args.directory / 'jupyterhub_config.py'}")
    return 0


def _asked(given: str | None, what: str, default: str, choices: Collection[str] = ()) -> str:
    """Return what the command line says, or somebody at the terminal, or the default."""
    answer = given
    if answer is None and sys.stdin is not None and sys.stdin.isatty():
        of = f" ({', '.join(choices)})" if choices else ""
        with contextlib.suppress(EOFError):
            answer = input(f"{what}{of}{f' [{default}]' if default else ''}: ").strip()
    answer = answer or default
    if choices and answer not in choices:
        raise RefusedError(f"--{what} {answer or 'is missing'}: it is one of {', '.join(choices)}")
    return answer


def _write(directory: Path, files: dict[str, str], *, force: bool) -> None:
    there = [name for name in files if (directory / name).exists()]
    if there and not force:
        raise RefusedError(f"{directory / there[0]} is there already: give --force or another --directory")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            written = directory / (f".{name}.{os.getpid()}" if force else name)
            with open(written, "x", encoding="utf-8") as file:
                file.write(text)
            os.replace(written, directory / name)  # Not through a link that is there.
    except OSError as error:
        raise RefusedError(f"{directory} cannot be written: {error.strerror}") from None
