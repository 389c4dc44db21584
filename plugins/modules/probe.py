#!/usr/bin/python
# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Try on a storage root what a run will need."""

from __future__ import annotations

DOCUMENTATION = r"""
module: probe
short_description: Try on a storage root what a run will need
version_added: "0.1.0"
description:
  - Makes a directory of its own in the storage root, moves it, gives it to a uid, enters it with that uid's rights and
    removes it. So it finds out where root is not almighty (a squashed export, a file system without owners, an autofs
    map) and says what can be done.
  - Never fails because of what it finds.
options:
  root:
    description: Directory below which users' directories lie.
    type: str
    required: true
  roots:
    description: Further storage roots beside it.
    type: list
    elements: str
    default: []
  records_dir:
    description: Directory in which records and locks are kept, if that is not the storage root.
    type: str
    default: ""
  work_as:
    description: The uid that all is done as, if it is not the one that Ansible works as.
    type: int
  uid:
    description: The uid of all users, if it is one. Anything else means a uid that is nobody's.
    type: raw
  gid:
    description: The gid of all users, if it is one.
    type: raw
  storage_host:
    description: The one host whose storage is meant.
    type: str
    default: localhost
author: the ansible_bootstrap contributors
attributes:
  check_mode:
    description: It looks and tries nothing.
    support: full
  diff_mode:
    description: There is nothing to differ.
    support: none
"""

EXAMPLES = r"""
- name: Try what a run will need
  ansible_bootstrap.jupyterhub.probe:
    root: /volumes/jupyterhub
    uid: 1000
    gid: 100
"""

RETURN = r"""
about:
  description:
    - What was seen, as C(python), C(account), C(kind), C(filesystem), C(owner) and C(mode); and by the path of each
      further root all of this in one line.
  type: dict
  returned: always
findings:
  description: What is wrong, each with C(level), C(what) and C(mend).
  type: list
  elements: dict
  returned: always
"""

from functools import partial
from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.module_utils import _probe


def main() -> None:
    """Probe; the action plugin of the same name sees to the interpreter."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "str", "required": True},
            "roots": {"type": "list", "elements": "str", "default": []},
            "records_dir": {"type": "str", "default": ""},
            "work_as": {"type": "int"},
            "uid": {"type": "raw"},
            "gid": {"type": "raw"},
            "storage_host": {"type": "str", "default": "localhost"},
        },
        supports_check_mode=True,
    )
    given = module.params
    roots = (given["root"], *given["roots"])
    look = partial(
        _probe.probe,
        uid=_number(given["uid"]),
        gid=_number(given["gid"]),
        check=module.check_mode,
        records_dir=given["records_dir"],
        work_as=given["work_as"],
    )
    module.exit_json(changed=False, **_probe.probe_all(roots, look))


def _number(value: Any) -> Optional[int]:
    return int(value) if str(value).isascii() and str(value).isdigit() else None


if __name__ == "__main__":
    main()
