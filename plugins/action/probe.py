# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control node's half of the module ``probe``: is it the right host, and is its Python one that can be used."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.plugin_utils.interpreter import explain_failure


class ActionModule(ActionBase):
    """See the module's documentation."""

    _supports_check_mode = True
    _supports_diff = False

    def run(self, tmp: object = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what the module says, on the way that all modules take, not on a shorter one of ours."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        host = self._task.args.get("storage_host", "localhost")
        if task_vars.get("inventory_hostname") != host:
            raise AnsibleActionFail(f"bootstrap_storage_host: the inventory has no host called {host}")
        said = self._execute_module(task_vars=task_vars)
        explain_failure(self, said, task_vars)
        result.update(said)
        return result
