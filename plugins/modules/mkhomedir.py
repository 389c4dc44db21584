#!/usr/bin/python
# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have mkhomedir_helper make the homes of a batch's system users."""

from __future__ import annotations

DOCUMENTATION = r"""
module: mkhomedir
short_description: Have mkhomedir_helper make the homes of a batch's system users
version_added: "0.1.0"
description:
  - Runs PAM's C(mkhomedir_helper) for each user who has no home yet, as a login with C(pam_mkhomedir) would.
  - Each user must be known to the name service of the storage host, with this directory as home and with this
    uid and gid.
  - A home that its user owns is never changed. A helper that is killed half-way leaves a partial home of
    root's, and takes it for whole when asked again. Such a home is recognised. If it holds nothing but a
    beginning of the skeleton it is made anew, else it is left as it is and reported.
options:
  umask:
    description:
      - What is taken from the permissions of a new home and of all in it, octal and in quotes.
      - It must leave the owner's rights alone, and take the right to write from others.
      - Where a directory above has a default ACL, a umask that gives the group more than others is refused, as the ACL
        would give it to more than the group.
    type: str
    default: "0077"
  skeleton:
    description:
      - Directory on the storage host whose content a new home gets.
      - Root hands copies of it to users. So it and all in it must belong to root, be writable for nobody else,
        and be readable for everybody.
    type: str
    default: /etc/skel
  helper:
    description: Path of the helper. Empty for C(/sbin/mkhomedir_helper) or C(/usr/sbin/mkhomedir_helper).
    type: str
    default: ""
  timeout:
    description: Seconds that making one home may take.
    type: int
    default: 60
extends_documentation_fragment: ansible_bootstrap.jupyterhub.batch
author: the ansible_bootstrap contributors
"""

EXAMPLES = r"""
- name: Give two system users their homes
  ansible_bootstrap.jupyterhub.mkhomedir:
    root: /home
    users:
      - {name: alice, directory: /home/alice, uid: 20001, gid: 20001}
      - {name: bob, directory: /home/bob, uid: 20002, gid: 20002}
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
    failed: {type: bool, description: "Whether the user has no usable home."}
    msg: {type: str, description: "Why it failed."}
    notes: {type: list, elements: str, description: "What the admin should know although it did not fail."}
    silent: {type: bool, description: "Whether the whole storage did not answer."}
    hangs: {type: bool, description: "Whether it took too long, or the storage did not answer."}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.module_utils import _report, _system_homes
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.module_utils._mkhomedir_helper import Options

ARGUMENT_SPEC = {
    **_report.ARGUMENTS,
    "umask": {"type": "str", "default": "0077"},
    "skeleton": {"type": "str", "default": "/etc/skel"},
    "helper": {"type": "str", "default": ""},
    "timeout": {"type": "int", "default": 60},
}


def work(given: dict[str, Any], check: bool) -> _report.Report:
    """Do the work with validated arguments, or predict it."""
    options = Options(given["umask"], given["skeleton"], given["helper"], given["timeout"])
    return _system_homes.ensure(options=options, **_report.common(given, check))


def main() -> None:
    """Read the arguments, do the work, report."""
    # Thousands of users need no line in the system log; no_log hides no result.
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True, no_log=True)
    work(module.params, module.check_mode).end(module)


if __name__ == "__main__":
    main()
