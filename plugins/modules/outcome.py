#!/usr/bin/python
# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action ``outcome``, which runs on the control node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: outcome
short_description: Keep the account of a batch of users
version_added: "0.1.0"
description:
  - Used by the playbooks of this collection only. Decides nothing by what tasks printed.
  - Runs on the control node, without a connection to any host.
options:
  state:
    description:
      - C(failed) sorts the batch after a role failed (in a user's own part of the play it ends that part, unless the
        role says C(on_failure=continue)).
      - C(done) marks the end of a user's own part.
      - C(collected) leaves out the users whose own part did not reach its end.
      - C(reported) ends the batch, and fails if anybody failed.
    type: str
    choices: [failed, done, collected, reported]
    required: true
  role:
    description: The role as the plan has it.
    type: dict
  task:
    description: The name of the task that failed.
    type: str
  result:
    description: The failed task's result, of which only the users of this collection's own modules are read.
    type: dict
  final:
    description: Whether nothing comes after the user's own part.
    type: bool
    default: false
author: the ansible_bootstrap contributors
attributes:
  check_mode:
    description: The same in either mode.
    support: full
  diff_mode:
    description: There is nothing to differ.
    support: none
"""

EXAMPLES = r"""
- name: Report
  ansible_bootstrap.jupyterhub.outcome:
    state: reported
"""

RETURN = r"""
users:
  description: The users who go on.
  type: list
  elements: dict
  returned: when O(state) is C(failed) or C(collected)
failures:
  description: The users who failed so far, each with C(key), C(name), C(reason), C(msg), C(role) and C(task).
  type: list
  elements: dict
  returned: when O(state) is C(failed) or C(collected)
completed:
  description: The keys of the users who are done.
  type: list
  elements: str
  returned: when O(state) is C(done) or C(reported)
"""
