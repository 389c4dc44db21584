#!/usr/bin/python
# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Remove named paths from the directories of a batch of users."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cleanup
short_description: Remove named paths from the directories of a batch of users
version_added: "0.1.0"
description:
  - Removes what O(paths) matches inside each user's directory, and nothing else, with the user's rights only.
  - A link that is matched is removed, never its target. A link on the way to a match is not followed. Other
    file systems mounted in the directory are left, with a note. So is what the user may not remove.
  - It does not know whether the user has a server. The hub asks for a clean-up only while none is active.
options:
  paths:
    description:
      - What is to go, as paths relative to a user's directory, such as C(.cache/pip) or C(scratch/*.tmp), or
        mappings with C(path) and C(older_than).
      - C(*), C(?) and C([..]) match within one part of a path, and no name that begins with a dot unless the
        part does. The first part must have more than these and dots, so that no slip empties a home.
      - With C(older_than), a number and one of s, m, h, d, w, an entry goes if its last change (mtime) is longer
        ago, and a directory if that is so of all that is inside; otherwise it is left whole.
    type: list
    elements: raw
    default: []
  child_timeout:
    description: Seconds that it may take for one user. What is left then is for the next run.
    type: int
    default: 60
extends_documentation_fragment: ansible_bootstrap.jupyterhub.batch
author: the ansible_bootstrap contributors
attributes:
  check_mode:
    description: Predicts what would be removed by the same walk, and removes nothing.
  diff_mode:
    description: Shows the first paths that are removed, never contents.
"""

EXAMPLES = r"""
- name: Clean up after two users
  ansible_bootstrap.jupyterhub.cleanup:
    root: /volumes/jupyterhub
    paths:
      - .cache/pip
      - {path: "scratch/*", older_than: 7d}
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
    changed: {type: bool, description: "Whether anything was removed, or in check mode would be."}
    failed: {type: bool, description: "Whether the clean-up was refused or did not come to its end."}
    msg: {type: str, description: "Why it failed."}
    notes: {type: list, elements: str, description: "What was left although it matched, and why."}
    silent: {type: bool, description: "Whether the whole storage did not answer."}
    hangs: {type: bool, description: "Whether it took too long, or the storage did not answer."}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.module_utils import _cleanup, _report

ARGUMENT_SPEC = {
    **_report.ARGUMENTS,
    "paths": {"type": "list", "elements": "raw", "default": []},
    "child_timeout": {"type": "int", "default": 60},
}


def work(given: dict[str, Any], check: bool) -> _report.Report:
    """Do the work with validated arguments, or predict it."""
    return _cleanup.clean(
        paths=given["paths"], child_timeout=given["child_timeout"], **_report.common(given, check)
    )


def main() -> None:
    """Read the arguments, do the work, report."""
    # Thousands of users need no line in the system log; no_log hides no result.
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True, no_log=True)
    work(module.params, module.check_mode).end(module)


if __name__ == "__main__":
    main()
