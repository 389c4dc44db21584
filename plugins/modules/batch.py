#!/usr/bin/python
# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fill in a batch of users on the storage host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: batch
short_description: Begin a bootstrap by saying who is in the batch and which roles they get
version_added: "0.1.0"
description:
  - Validates the users, fills in their directory, uid and gid as the storage host's name service knows them,
    and orders the roles. One bad user never costs another.
  - Its result, registered as C(bootstrap_state), is what the playbooks of this collection go by.
options:
  users:
    description:
      - The batch. A record has C(name), and optionally C(key), C(directory), C(also), C(uid), C(gid), C(storage_host)
        and C(groups). By default it is the one user of the variable C(username), which is not templated.
    type: list
    elements: raw
  roles:
    description:
      - Roles in order. An entry is a name, or a mapping of C(role), C(on_failure) (C(block) or C(continue)),
        C(per) (C(user) or C(batch)), C(as) (C(user) or C(root)) and C(groups) (further gids of a role that works as
        the user). The short name of a role of this collection means that role.
    type: list
    elements: raw
    default: []
  root:
    description: Directory below which users' directories lie.
    type: str
    required: true
  roots:
    description: Further storage roots beside it, of which none lies in another.
    type: list
    elements: str
    default: []
  uid:
    description: A uid, C(nss) for the system user of that name, or C(request) for what the record says.
    type: raw
    default: nss
  gid:
    description: A gid, C(nss) or C(request). By default as O(uid) says.
    type: raw
  uid_min:
    description: Lowest uid for which root may act.
    type: int
    default: 1000
  uid_max:
    description: Highest uid for which root may act.
    type: int
    default: 4294967294
  gid_min:
    description: With O(gid=request), the smallest gid a record may name.
    type: int
    default: 100
  storage_host:
    description: The one host whose storage is meant.
    type: str
    default: localhost
  request:
    description:
      - A JSON file on the control node with C(users) and C(roles), which are used in place of O(users) and O(roles).
        The apply program writes it.
    type: path
author: the ansible_bootstrap contributors
attributes:
  check_mode:
    description: Writes nothing in either mode.
    support: full
  diff_mode:
    description: There is nothing to differ.
    support: none
"""

EXAMPLES = r"""
- name: Work out who is in the batch and which roles they get
  ansible_bootstrap.jupyterhub.batch:
    users:
      - name: alice
        uid: 20001
        gid: 100
    roles:
      - user_dir
    root: /volumes/jupyterhub
    uid: request
  register: bootstrap_state
"""

RETURN = r"""
users:
  description: The users who can be worked for, whole.
  type: list
  elements: dict
  returned: always
failures:
  description: The users who cannot, each with C(key), C(reason) and C(msg).
  type: list
  elements: dict
  returned: always
plan:
  description: The roles, as C(before) (whole batch), C(each) (user by user) and C(after) (whole batch again).
  type: dict
  returned: always
reach:
  description:
    - How the storage host is reached for roles that work as the user, as C(connection) and C(become) (plugins),
      C(python), and C(variables) (the names of those that the two plugins read).
  type: dict
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.module_utils import _users


def main() -> None:
    """Resolve the users; the action plugin of the same name does the rest on the control node."""
    module = AnsibleModule(
        argument_spec={
            "users": {"type": "list", "elements": "raw", "default": []},
            "roles": {"type": "list", "elements": "raw", "default": []},
            "root": {"type": "str", "required": True},
            "roots": {"type": "list", "elements": "str", "default": []},
            "uid": {"type": "raw", "default": "nss"},
            "gid": {"type": "raw"},
            "uid_min": {"type": "int", "default": 1000},
            "uid_max": {"type": "int", "default": 2**32 - 2},
            "gid_min": {"type": "int", "default": 100},
            "storage_host": {"type": "str", "default": "localhost"},
            "request": {"type": "path"},
        },
        supports_check_mode=True,
    )
    policy = _users.Policy(
        **{field: module.params[field] for field in ("root", "uid", "gid", "uid_min", "uid_max", "gid_min")},
        roots=tuple(module.params["roots"]),
    )
    users, failures = _users.resolve_users(module.params["users"], policy)
    module.exit_json(changed=False, users=users, failures=failures)


if __name__ == "__main__":
    main()
