# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do everything that Ansible does for a user's role with that user's rights."""

from __future__ import annotations

DOCUMENTATION = r"""
name: as_user
short_description: Work on the storage host with no rights but those of the user whose role it is
version_added: "0.1.0"
description:
  - Every module, every shell command and every transferred file of a task is the user's own doing. The uid needs no
    account. C(become) gains nothing, for the processes cannot get new privileges.
  - On this machine a module runs in a fork of a process that has imported what modules import.
  - On other hosts each command is wrapped, and goes over the storage host's own connection.
  - The playbooks of this collection set it for the roles of a user. It is not meant to be set elsewhere.
options:
  user:
    description: The user, as the playbook knows them.
    type: dict
    required: true
    vars:
      - name: bootstrap_user
  role:
    description: The entry of C(bootstrap_roles) at work, with the further C(groups) that it may have.
    type: dict
    default: {}
    vars:
      - name: bootstrap_role
  reach:
    description: How the storage host is reached, as the module C(batch) returns it.
    type: dict
    required: true
    vars:
      - name: bootstrap_reach
  pipelining:
    description: Modules are piped into the interpreter, whatever the configuration says.
    type: bool
    default: true
  reach_options:
    description: The values of the variables that the storage host's own plugins read.
    type: dict
    default: {}
    vars:
      - name: bootstrap_reach_options
author: the ansible_bootstrap contributors
"""

import json
import os
import re
import shlex
from functools import cached_property
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.connection import ConnectionBase
from ansible.plugins.loader import become_loader, connection_loader
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.module_utils import _rights
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.plugin_utils.user_client import ask

_PATH = "/usr/local/bin:/usr/bin:/bin"
_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


class Connection(ConnectionBase):  # type: ignore[misc, unused-ignore]
    """See above."""

    transport = "ansible_bootstrap.jupyterhub.as_user"
    has_pipelining = True
    allow_executable = False

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def close(self) -> None:
        """Forget the way; the storage host's own connection outlives a task by itself."""
        self._connected = False

    def exec_command(
        self, cmd: str, in_data: bytes | None = None, sudoable: bool = True
    ) -> tuple[int, bytes, bytes]:
        """Run a command, or a module that it would read from ``in_data``, as the user."""
        variables, program = _split(cmd)
        module = bool(in_data) and program == [self._reach["python"]]
        request = {
            **self._rights,
            "environment": {**self._environment, **variables} if module else self._environment,
            "command": None if module and self._is_served else cmd,
        }
        if module:
            _note_way("server" if self._is_served else "ansible")
        if self._is_served:
            return ask(self._reach["python"], request, in_data or b"")
        return self._send(request, in_data)

    def put_file(self, in_path: str, out_path: str) -> None:
        """Write a file as the user."""
        status, _out, said = self.exec_command(f"cat > {shlex.quote(out_path)}", Path(in_path).read_bytes())
        if status != 0:
            raise AnsibleError(f"{out_path} cannot be written: {said.decode(errors='replace')}")

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Read a file as the user."""
        status, content, said = self.exec_command(f"cat {shlex.quote(in_path)}")
        if status != 0:
            raise AnsibleError(f"{in_path} cannot be read: {said.decode(errors='replace')}")
        Path(out_path).write_bytes(content)

    @cached_property
    def _rights(self) -> dict[str, Any]:
        user = self.get_option("user")
        return {
            "uid": int(user["uid"]),
            "gid": int(user["gid"]),
            "groups": [int(group) for group in self.get_option("role").get("groups") or []],
            "directory": str(user["directory"]),
        }

    @cached_property
    def _environment(self) -> dict[str, str]:
        user = self.get_option("user")
        return {
            "HOME": str(user["directory"]),
            "LANG": "C.UTF-8",
            "LOGNAME": str(user["name"]),
            "PATH": _PATH,
            "SHELL": "/bin/sh",
            "USER": str(user["name"]),
        }

    @cached_property
    def _reach(self) -> dict[str, str]:
        return dict(self.get_option("reach"))

    @cached_property
    def _is_served(self) -> bool:
        """Whether the storage host is this machine, and nothing stands between."""
        here = self._reach["connection"].rpartition(".")[2] == "local"
        return here and not self._reach["become"]

    def _send(self, request: dict[str, Any], stdin: bytes | None) -> tuple[int, bytes, bytes]:
        """Run the command on the storage host, by its own connection."""
        program = Path(_rights.__file__).read_text("utf-8")
        line = shlex.join([self._reach["python"], "-I", "-c", program, json.dumps(request)])
        options = dict(self.get_option("reach_options"))
        inner = connection_loader.get(self._reach["connection"], self._play_context)
        inner.set_options(var_options=options)
        become = None
        if self._reach["become"]:
            become = become_loader.get(self._reach["become"])
            become.set_options(var_options=options)
            inner.set_become_plugin(become)
            line = become.build_become_command(line, self._shell)
        status, out, err = inner.exec_command(f"/bin/sh -c {shlex.quote(line)}", stdin, become is not None)
        return status, become.strip_become_success(out) if become else out, err


def _split(cmd: str) -> tuple[dict[str, str], list[str]]:
    """Return the variables that a command line sets, and the program with its arguments."""
    try:
        words = shlex.split(cmd)
    except ValueError:
        return {}, []
    variables = {}
    while words and (found := _VARIABLE.fullmatch(words[0])):
        variables[found[1]] = found[2]
        del words[0]
    return variables, words


def _note_way(way: str) -> None:
    """Say for the record which way a module took."""
    if path := os.environ.get("ANSIBLE_BOOTSTRAP_OUTCOMES"):
        with open(path, "a", encoding="ascii") as file:
            file.write(json.dumps({"type": "module", "way": way}) + "\n")
