# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control node's half of the module ``batch``: parse, order the roles, resolve where the users are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.module_utils import _names, _plan, _users
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.plugin_utils.interpreter import (
    explain_failure,
    for_users,
)

_USAGE = (
    "Give the storage root (-e bootstrap_root=/volumes/jupyterhub) and either one user (-e username=alice) "
    'or a batch (-e \'{"bootstrap_batch": [{"name": "alice"}, {"name": "bob"}]}\'); bootstrap_users is what roles '
    "find, and cannot be given"
)

_LISTS = tuple(f"{role}_users" for role in _plan.BUILT_IN_ROLES)
"""Given to a role of ours in place of the batch, such a list would have the others pass for done."""

_POLICY = ("uid", "gid", "uid_min", "uid_max", "gid_min")


class ActionModule(ActionBase):
    """See the module's documentation."""

    _supports_check_mode = True
    _supports_diff = False

    def run(self, tmp: object = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return users, failures and plan; fail only where nobody could be worked for."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        args = dict(self._task.args)
        if path := args.pop("request", None):
            # What is read is no template to Ansible, which knows whose text it may trust.
            args.update(json.loads(Path(path).read_text("utf-8")))
        self._refuse_confusion(task_vars, args)
        try:
            host = _names.check_host(args.get("storage_host", "localhost"))
            root, *roots = _names.check_roots([args.get("root"), *_listed(args.get("roots"))])
            plan = _plan.make_plan(args.get("roles") or [])
        except ValueError as error:
            raise AnsibleActionFail(str(error)) from None
        self._refuse_ambiguity(task_vars, host)
        self._refuse_shadows(plan)

        if not isinstance(args.get("users", []), list):  # -e 'bootstrap_batch=[…]' is text to Ansible
            raise AnsibleActionFail(_USAGE)
        users, failures = _users.parse_users(args.get("users", [{"name": task_vars.get("username")}]), host)
        policy = {field: args[field] for field in _POLICY if field in args}
        resolved = self._resolve(users, {"root": root, **policy}, roots, task_vars)
        if resolved.get("failed") or resolved.get("unreachable"):
            return resolved
        result.update(
            changed=False,
            users=resolved["users"],
            failures=failures + resolved["failures"],
            continued=[],
            plan=plan,
            reach=self._reach(task_vars),
        )
        return result

    def _resolve(
        self, users: list[dict[str, Any]], policy: dict[str, Any], roots: list[str], task_vars: dict[str, Any]
    ) -> dict[str, Any]:
        """Ask the storage host's name service; without a module call where that is this process's own."""
        if self._connection.transport == "local" and not self._task.become:
            whole, failures = _users.resolve_users(
                users, _users.Policy(**_as_policy(policy), roots=tuple(roots))
            )
            return {"users": whole, "failures": failures}
        said = self._execute_module(
            module_args={"users": users, "roots": roots, **_as_policy(policy)},
            task_vars=task_vars,
        )
        explain_failure(self, said, task_vars)
        return said

    def _reach(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Return how users' roles reach the storage host; of variables only the names, for a value may be secret."""
        plugins = {"connection": self._connection, "become": self._connection.become}
        used = {kind: plugin._load_name if plugin else "" for kind, plugin in plugins.items()}
        names = {"inventory_hostname"}.union(
            *(constants.config.get_plugin_vars(kind, name) for kind, name in used.items() if name)
        )
        known = task_vars["hostvars"].raw_get(task_vars["inventory_hostname"])
        return {**used, "python": for_users(self, task_vars), "variables": sorted(names & set(known))}

    def _refuse_confusion(self, task_vars: dict[str, Any], args: dict[str, Any]) -> None:
        """Refuse to begin without a storage root or with users given twice, or not at all."""
        # Extra vars win over everything: were the list given, roles would go on to see the users who have failed.
        given = self._templar.template(trust_as_template("{{ bootstrap_users is defined }}"))
        if given or "root" not in args or ("username" in task_vars) == ("users" in args):
            raise AnsibleActionFail(_USAGE)
        if lists := [name for name in _LISTS if name in task_vars]:
            raise AnsibleActionFail(
                f"{', '.join(lists)}: here a role works for the whole batch; say in bootstrap_batch who that is"
            )

    def _refuse_ambiguity(self, task_vars: dict[str, Any], host: str) -> None:
        """Bootstrap one host, and only with roles that see the list this action returns."""
        if len(task_vars.get("ansible_play_hosts_all", [host])) != 1:
            raise AnsibleActionFail(
                "bootstrap_storage_host names more than one host: give one host, no group"
            )
        if task_vars.get("inventory_hostname") != host:
            raise AnsibleActionFail(f"bootstrap_storage_host: the inventory has no host called {host}")

    def _refuse_shadows(self, plan: _plan.Plan) -> None:
        """Refuse a site role that has the short name of one of ours: somebody would mean the other."""
        for path in constants.DEFAULT_ROLES_PATH:
            for name in _plan.BUILT_IN_ROLES:
                if os.path.isdir(os.path.join(path, name)):
                    raise AnsibleActionFail(
                        f"the roles path has a role called {name}, as this collection has: rename the site's"
                    )


def _listed(roots: Any) -> list[Any]:
    """Turn an extra var's text (``-e bootstrap_roots=/opt/data,/srv/data``) into a list, as a module's argument is."""
    return [root.strip() for root in roots.split(",")] if isinstance(roots, str) else list(roots or ())


def _as_policy(policy: dict[str, Any]) -> dict[str, Any]:
    """Turn extra vars' text (``-e bootstrap_uid=1000``) into integers."""
    whole = {}
    for field, value in policy.items():
        text = str(value)
        if value is None or value == "":
            continue
        if text.isascii() and text.isdigit():
            whole[field] = int(text)
        elif field in ("uid", "gid") and text not in ("nss", "request"):
            raise AnsibleActionFail(f"bootstrap_{field} is a number, nss or request")
        elif field in ("uid_min", "uid_max", "gid_min"):
            raise AnsibleActionFail(f"bootstrap_{field} is a number")
        else:
            whole[field] = text
    return whole
