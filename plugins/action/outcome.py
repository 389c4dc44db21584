# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the account of a batch: who goes on, who failed in which role, who is done."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.module_utils import _plan, _users

State = dict[str, Any]


class ActionModule(ActionBase):
    """See the module's documentation."""

    _requires_connection = False
    _supports_check_mode = True
    _supports_diff = False

    def run(self, tmp: object = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the new state of the batch; the callback ``outcomes`` reads it from there."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        args = self._task.args
        match args.get("state"):
            case "failed" if "bootstrap_user" in task_vars:
                result.update(_user_failed(args, task_vars["bootstrap_user"]))
            case "failed":
                result.update(_batch_failed(args, task_vars["bootstrap_state"]))
            case "done":
                completed = [task_vars["bootstrap_user"]["key"]] if args.get("final") else []
                result.update(done=True, completed=completed)
            case "collected":
                result.update(_collected(task_vars))
            case "reported":
                result.update(_reported(task_vars["bootstrap_state"]))
            case state:
                raise AnsibleActionFail(f"state {state!r} is not failed, done, collected or reported")
        result["changed"] = False
        return result


def _batch_failed(args: dict[str, Any], state: State) -> State:
    """Sort the batch after a role that takes all of it failed, for some or for all."""
    role, outcome = args["role"], args.get("result") or {}
    users = state["users"]
    messages = {user["key"]: "" for user in users}
    why: dict[str, str] = {}
    if role["name"].startswith(_plan.COLLECTION + ".") and isinstance(outcome.get("users"), list):
        messages = {user["key"]: user["msg"] for user in outcome["users"] if user["failed"]}
        why = {
            user["key"]: "unreachable" if user["silent"] else "timeout"
            for user in outcome["users"]
            if user["hangs"]
        }
    failed = [
        _failure(user, args, messages[user["key"]], why.get(user["key"], "role_failed"))
        for user in users
        if user["key"] in messages
    ]
    if role["on_failure"] == "continue":
        return {**_only_state(state), "continued": state["continued"] + failed}
    return {
        **_only_state(state),
        "users": [user for user in users if user["key"] not in messages],
        "failures": state["failures"] + failed,
    }


def _user_failed(args: dict[str, Any], user: dict[str, Any]) -> State:
    """End this user's part of the play, unless the admin lets them work without the role."""
    failed = [_failure(user, args, "")]
    if args["role"]["on_failure"] == "continue":
        return {"continued": failed}
    return {"failures": failed, "failed": True, "msg": f"{args['role']['role']} failed for this user"}


def _collected(task_vars: dict[str, Any]) -> State:
    """Leave out the users whose own part of the play did not reach its end."""
    state = task_vars["bootstrap_state"]
    if not state["plan"]["each"]:
        return _only_state(state)
    hostvars = task_vars["hostvars"]
    done = set()
    known: dict[str, dict[str, Any]] = {}
    for host in task_vars["groups"].get("ansible_bootstrap_waiting", []):
        variables = hostvars.raw_get(host)
        if (variables.get("bootstrap_done") or {}).get("done"):
            done.add(variables["bootstrap_user"]["key"])
        for failed in (variables.get("bootstrap_failure") or {}).get("failures") or []:
            known[failed["key"]] = failed
    lost = [
        known.get(user["key"]) or _users.failure(user, "", "role_failed")
        for user in state["users"]
        if user["key"] not in done
    ]
    return {
        **_only_state(state),
        "users": [user for user in state["users"] if user["key"] in done],
        "failures": state["failures"] + lost,
    }


def _reported(state: State) -> State:
    """Call the rest of the batch done; fail if a user failed, for ``ansible-playbook``'s exit status."""
    report: State = {"completed": [user["key"] for user in state["users"]]}
    failures = state["failures"]
    if failures:
        total = len(failures) + len(state["users"])
        said = [f"{user['name']}: {user['msg'] or user.get('role', 'a site role')}" for user in failures[:10]]
        more = f" and {len(failures) - 10} more" if len(failures) > 10 else ""
        report.update(failed=True, msg=f"{len(failures)} of {total} users failed: {', '.join(said)}{more}")
    return report


def _failure(
    user: dict[str, Any], args: dict[str, Any], msg: str, reason: str = "role_failed"
) -> dict[str, Any]:
    return _users.failure(user, msg, reason, role=args["role"]["role"], task=args.get("task", ""))


def _only_state(state: State) -> State:
    return {field: state[field] for field in ("users", "failures", "continued", "plan", "reach")}
