#!/usr/bin/python
# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give every user of a batch a directory of their own."""

from __future__ import annotations

DOCUMENTATION = r"""
module: user_dir
short_description: Give every user of a batch a directory of their own
version_added: "0.1.0"
description:
  - Makes each user's directory whole, with owner, group, mode and skeleton, before it appears in its place.
    A run that is killed leaves nothing, or what the next run completes.
  - Never changes a directory that exists, with two exceptions. The empty directory of root's that Docker
    leaves when it mounts what does not exist is replaced. With O(enforce_mode), group and mode are
    repaired.
  - Each user is worked for alone. If any fails the module fails, after all others are done.
options:
  users:
    description:
      - The batch. A record has C(name), C(directory), C(uid) and C(gid), and optionally C(key),
        C(storage_host) and C(groups).
      - A directory may repeat under the same name (several servers of one user); keys may not.
    type: list
    elements: raw
    required: true
  root:
    description:
      - Directory below which all users' directories lie. It must exist, belong to root or to the user
        Ansible works as, and be writable for nobody else.
    type: path
    required: true
  mode:
    description: Permissions of a new directory, octal and in quotes.
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
  uid_min:
    description: Root does not work for a uid below this.
    type: int
    default: 1000
  child_timeout:
    description: Seconds that copying the skeleton may take for one user.
    type: int
    default: 60
author: the ansible_bootstrap contributors
attributes:
  check_mode:
    description: Predicts what would happen to each user and writes nothing.
    support: full
  diff_mode:
    description: Shows states, owners and modes.
    support: full
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
    key:
      description: The record's C(key), or its C(name).
      type: str
    changed:
      description: Whether anything was done, or in check mode would be.
      type: bool
    failed:
      description: Whether the user has no usable directory.
      type: bool
    msg:
      description: Why it failed.
      type: str
    notes:
      description: What the admin should know although it did not fail.
      type: list
      elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.module_utils import _homes


def main() -> None:
    """Read the arguments, do the work, report."""
    module = AnsibleModule(
        argument_spec={
            "users": {"type": "list", "elements": "raw", "required": True},
            "root": {"type": "path", "required": True},
            "mode": {"type": "str", "default": "0755"},
            "skeleton": {"type": "str", "default": ""},
            "enforce_mode": {"type": "bool", "default": False},
            "uid_min": {"type": "int", "default": 1000},
            "child_timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
        no_log=True,  # thousands of users need no line in the system log; it hides no result
    )
    given = module.params
    options = _homes.Options(given["mode"], given["skeleton"], given["enforce_mode"], given["child_timeout"])
    report = _homes.ensure(given["users"], given["root"], given["uid_min"], options, check=module.check_mode)
    result = report.as_result(diff=module._diff)
    if "msg" in result:
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
