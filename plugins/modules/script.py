#!/usr/bin/python
# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a program of the admin's for every user of a batch."""

from __future__ import annotations

DOCUMENTATION = r"""
module: script
short_description: Run a program of the admin's for every user of a batch
version_added: "0.1.0"
description:
  - Runs an executable on the storage host for each user, with the username as its only argument, nothing to read, and
    an environment of only C(PATH), C(HOME), C(USER), C(LOGNAME), C(LANG), C(BOOTSTRAP_USER),
    C(BOOTSTRAP_DIRECTORY), C(BOOTSTRAP_UID) and C(BOOTSTRAP_GID).
  - Exit status 0 means done. That is recorded, out of the user's reach, once what was written is on the disk. A
    program that was stopped half-way is run again by the next run.
  - When it ends, or has taken too long, whatever it started is ended too, daemons included.
options:
  path:
    description:
      - Absolute path of the program. Only root, or the user Ansible works as, may be able to write it and every
        directory above it.
    type: str
    required: true
  as:
    description:
      - V(user) runs it with that user's rights, in the user's directory, which must exist. V(root) runs it as root, in
        C(/), with C(HOME=/root) and C(USER=root); the user's directory may be missing.
    type: str
    choices: [user, root]
    default: user
  when:
    description:
      - V(once) runs it until it is done, and again if the user's directory is lost. V(always) runs it each time; as
        nobody knows what it changed, that never counts as a change.
    type: str
    choices: [once, always]
    default: once
  timeout:
    description: Seconds that it may take for one user.
    type: int
    default: 60
extends_documentation_fragment: ansible_bootstrap.jupyterhub.batch
author: the ansible_bootstrap contributors
attributes:
  check_mode:
    description: Runs nothing, and predicts the users for whom it would be run once.
  diff_mode:
    description: Shows the users for whom it is run.
"""

EXAMPLES = r"""
- name: Run a program for two users, each with their own rights
  ansible_bootstrap.jupyterhub.script:
    root: /volumes/jupyterhub
    path: /usr/local/sbin/bootstrap.sh
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
    changed: {type: bool, description: "Whether it was run once, or in check mode would be."}
    failed: {type: bool, description: "Whether it is not done."}
    msg: {type: str, description: "Why it failed, with the last 2,000 characters of the output."}
    notes: {type: list, elements: str, description: "What the admin should know although it did not fail."}
    silent: {type: bool, description: "Whether the whole storage did not answer."}
    hangs: {type: bool, description: "Whether it took too long, or the storage did not answer."}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.module_utils import _report, _scripts

ARGUMENT_SPEC = {
    **_report.ARGUMENTS,
    "path": {"type": "str", "required": True},
    "as": {"type": "str", "choices": ["user", "root"], "default": "user"},
    "when": {"type": "str", "choices": ["once", "always"], "default": "once"},
    "timeout": {"type": "int", "default": 60},
}


def work(given: dict[str, Any], check: bool) -> _report.Report:
    """Do the work with validated arguments, or predict it."""
    options = _scripts.Options(
        given["path"], given["as"] == "root", given["when"] == "always", given["timeout"]
    )
    return _scripts.run(options=options, **_report.common(given, check))


def main() -> None:
    """Read the arguments, do the work, report."""
    # Thousands of users need no line in the system log; no_log hides no result.
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True, no_log=True)
    work(module.params, module.check_mode).end(module)


if __name__ == "__main__":
    main()
