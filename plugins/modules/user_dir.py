#!/usr/bin/python
# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give every user of a batch a directory of their own."""

from __future__ import annotations

DOCUMENTATION = r"""
module: user_dir
short_description: Give every user of a batch a directory of their own, or several
version_added: "0.1.0"
description:
  - Makes each user's directory whole, with owner, group, mode and skeleton, before it appears in its place.
    A run that is killed leaves nothing, or what the next run completes.
  - Never changes a directory that exists, with two exceptions. The empty directory of root's that Docker
    leaves when it mounts what does not exist is replaced. With O(enforce_mode), group and mode are
    repaired.
  - A user's further directories (C(also)) get the same owner and mode, and no skeleton. One that lies inside another
    directory of the same user's is made with the user's rights.
options:
  mode:
    description:
      - Permissions of a new directory, octal and in quotes.
      - Default ACLs of the directories above are not handed on to it.
    type: str
    default: "0755"
  skeleton:
    description:
      - Directory on the storage host whose content a new directory gets, read with the user's own rights.
    type: str
    default: ""
  enforce_mode:
    description: Repair group and mode of directories that exist, instead of reporting the difference.
    type: bool
    default: false
  adopt_empty:
    description:
      - Which empty directories of root's in the place of a user's are given to the user.
      - V(own) is one at a path that carries the user's name, as Docker makes it for a mount that is missing.
      - A directory with nothing in it but other directories of the same user's counts as empty, and keeps them.
    type: str
    choices: [own, any, never]
    default: own
  child_timeout:
    description: Seconds that copying the skeleton may take for one user.
    type: int
    default: 60
extends_documentation_fragment: ansible_bootstrap.jupyterhub.batch
author: the ansible_bootstrap contributors
"""

EXAMPLES = r"""
- name: Give two users their directories
  ansible_bootstrap.jupyterhub.user_dir:
    root: /volumes/jupyterhub
    skeleton: /etc/skel
    users:
      - {name: alice, directory: /volumes/jupyterhub/alice, uid: 20001, gid: 20001}
      - {name: bob, directory: /volumes/jupyterhub/bob, uid: 20002, gid: 20002}
"""

RETURN = r"""
users:
  description: What became of each user, in the order of O(users).
  returned: always
  type: list
  elements: dict
  contains:
    key: {type: str, description: "The record's C(key), or its C(name)."}
    changed: {type: bool, description: "Whether anything was done, or in check mode would be."}
    failed: {type: bool, description: "Whether the user has no usable directory."}
    msg: {type: str, description: "Why it failed."}
    notes: {type: list, elements: str, description: "What the admin should know although it did not fail."}
    silent: {type: bool, description: "Whether the whole storage did not answer."}
    hangs: {type: bool, description: "Whether it took too long, or the storage did not answer."}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.module_utils import _homes, _report

ARGUMENT_SPEC = {
    **_report.ARGUMENTS,
    "mode": {"type": "str", "default": "0755"},
    "skeleton": {"type": "str", "default": ""},
    "enforce_mode": {"type": "bool", "default": False},
    "adopt_empty": {"type": "str", "choices": ["own", "any", "never"], "default": "own"},
    "child_timeout": {"type": "int", "default": 60},
}


def work(given: dict[str, Any], check: bool) -> _report.Report:
    """Do the work with validated arguments, or predict it."""
    options = _homes.Options(
        given["mode"], given["skeleton"], given["enforce_mode"], given["child_timeout"], given["adopt_empty"]
    )
    return _homes.ensure(options=options, **_report.common(given, check))


def main() -> None:
    """Read the arguments, do the work, report."""
    # Thousands of users need no line in the system log; no_log hides no result.
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True, no_log=True)
    work(module.params, module.check_mode).end(module)


if __name__ == "__main__":
    main()
