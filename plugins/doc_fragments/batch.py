# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules of all built-in roles say about the batch they take, and how they treat it."""

from __future__ import annotations


class ModuleDocFragment:
    """The options of ``plugins/module_utils/_report.py``. A module adds its own, and may describe an attribute."""

    DOCUMENTATION = r"""
options:
  users:
    description:
      - The batch. A record has C(name), C(directory), C(uid) and C(gid), and optionally C(key), C(also) (a list of at
        most eight further directories, for the module C(user_dir)), C(storage_host) and C(groups).
      - A directory may repeat under the same name (several servers of one user); keys may not.
    type: list
    elements: raw
    required: true
  root:
    description:
      - Directory below which users' directories lie. It must exist, belong to root or to the user
        Ansible works as, and be writable for nobody else.
    type: path
    required: true
  roots:
    description:
      - Further storage roots, each like O(root). A user's directories may lie below any of them all. None lies in
        another.
      - Each has records of its own. One that is not mounted or does not answer fails only the users who have a
        directory there.
    type: list
    elements: path
    default: []
  records_dir:
    description:
      - Directory in which records and locks are kept, in one directory for each storage root, instead of in
        C(.ansible_bootstrap) in the root. It must exist, outside of all roots, and belong to the user Ansible works as.
      - A new home is made there, and moved to its place in one step. On another mount than the root none is made, and
        homes that exist are served.
    type: path
    default: ""
  work_as:
    description:
      - The uid that a file server gives to whatever is made there (C(all_squash) with C(anonuid)). The storage is
        opened and worked in by a process with that uid, the users' gid, no other group and no privilege. Each user must
        have that uid.
    type: int
  uid_min:
    description: Lowest uid for which root may act.
    type: int
    default: 1000
  patience:
    description:
      - In a batch of several users, a user who takes longer than this many seconds, and than twice as long as the
        slowest of the others, is stopped once all others are done. C(0) is never.
    type: float
    default: 0
notes:
  - Each user is worked for alone. If any fails the module fails, after all others are done.
attributes:
  check_mode:
    description: Predicts what would happen to each user and writes nothing.
    support: full
  diff_mode:
    description: Shows states, owners and modes.
    support: full
"""
