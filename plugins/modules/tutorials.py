#!/usr/bin/python
# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give every user of a batch their tutorials."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tutorials
short_description: Give every user of a batch their tutorials
version_added: "0.1.0"
description:
  - Puts the content of directories and archives into the users' directories, once for each user. A tutorial
    appears whole or not at all; a run that is killed is completed by the next.
  - Never touches what is there already. What a user changed or deleted stays so.
  - An archive is fetched once for a batch, and unpacked once for each revision, into a cache below O(root).
    If the server is down, the cache serves.
  - An archive with anything but regular files, directories and links that stay inside is refused.
options:
  sources:
    description:
      - The tutorials. Each has a C(name), by which is recorded who has it, and exactly one of C(url) (an
        archive on a web server) and C(path) (a directory or archive on the storage host, which nobody but root can
        write to or replace).
      - Optionally C(dest), a relative path in the user's directory (default C(name)); C(checksum),
        C(sha256:) and the archive's checksum; C(strip_components), how many leading directories of the
        archive to leave out (default 0).
      - Archives are zip, or tar with any compression that Python knows.
    type: list
    elements: dict
    required: true
  child_timeout:
    description: Seconds that copying may take for one user.
    type: int
    default: 60
  fetch_timeout:
    description: Seconds that one download may take.
    type: int
    default: 60
  max_bytes:
    description: Bytes that one archive may have, packed and unpacked.
    type: int
    default: 2147483648
extends_documentation_fragment: ansible_bootstrap.jupyterhub.batch
author: the ansible_bootstrap contributors
attributes:
  check_mode:
    description: Predicts what would happen to each user, fetches and writes nothing.
"""

EXAMPLES = r"""
- name: Give two users the course
  ansible_bootstrap.jupyterhub.tutorials:
    root: /volumes/jupyterhub
    sources:
      - name: course
        url: https://example.org/course/archive/master.zip
        dest: tutorials
        strip_components: 1
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
    failed: {type: bool, description: "Whether a tutorial is missing that could not be placed."}
    msg: {type: str, description: "Why it failed."}
    notes: {type: list, elements: str, description: "What the admin should know although it did not fail."}
    silent: {type: bool, description: "Whether the whole storage did not answer."}
    hangs: {type: bool, description: "Whether it took too long, or the storage did not answer."}
fetched:
  description:
    - How many archives were downloaded for the batch, also those that were then refused. What the cache had and what
      the server called unchanged does not count.
  returned: when there were any
  type: int
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.module_utils import _report, _tutorials

ARGUMENT_SPEC = {
    **_report.ARGUMENTS,
    "sources": {"type": "list", "elements": "dict", "required": True},
    "child_timeout": {"type": "int", "default": 60},
    "fetch_timeout": {"type": "int", "default": 60},
    "max_bytes": {"type": "int", "default": 2147483648},
}


def work(given: dict[str, Any], check: bool) -> _report.Report:
    """Do the work with validated arguments, or predict it."""
    options = _tutorials.Options(
        given["sources"], given["child_timeout"], given["fetch_timeout"], given["max_bytes"]
    )
    return _tutorials.place(options=options, **_report.common(given, check))


def main() -> None:
    """Read the arguments, do the work, report."""
    # Thousands of users need no line in the system log; no_log hides no result.
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True, no_log=True)
    work(module.params, module.check_mode).end(module)


if __name__ == "__main__":
    main()
