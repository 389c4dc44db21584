# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Order the roles of a bootstrap.

A role is applied to the whole batch (ours always, a site role that says ``per: batch``) or once for
each user. Ansible cannot go back and forth between the two inside one play, so a plan has three
parts, and a list that would need a fourth is refused rather than reordered::

    before    whole batch: user_dir, tutorials, …
    each      user by user: my_datasets, …
    after     whole batch again: site_quota, …
"""

from __future__ import annotations

import re
from typing import Any

COLLECTION = "ansible_bootstrap.jupyterhub"
BUILT_IN_ROLES = ("user_dir", "mkhomedir", "tutorials", "script", "cleanup")
"""Always applied by FQCN, so that no role of the same short name can take their place as root."""

Plan = dict[str, list[dict[str, Any]]]

_ROLE = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_]*){0,3}\Z")


class PlanRefusedError(ValueError):
    """The list of roles cannot be carried out as written."""


def make_plan(roles: object) -> Plan:
    """Return the plan for a list of roles, as written in settings or ``bootstrap_roles``.

    Raises:
        PlanRefusedError: an entry is malformed, or the order cannot be kept.
    """
    if not isinstance(roles, (list, tuple)):
        raise PlanRefusedError("roles is a list")
    plan: Plan = {"before": [], "each": [], "after": []}
    for item in roles:
        role = _parse_role(item)
        if role["per"] == "batch":
            part = "after" if plan["each"] else "before"
        elif plan["after"]:
            raise PlanRefusedError(
                f"{role['role']} is applied user by user but comes after {plan['after'][0]['role']}, which takes "
                f"the whole batch and itself comes after {plan['each'][0]['role']}: move one of them"
            )
        else:
            part = "each"
        plan[part].append(role)
    return plan


def _parse_role(item: object) -> dict[str, Any]:
    entry = {"role": item} if isinstance(item, str) else item
    if not isinstance(entry, dict) or not set(entry) <= {"role", "on_failure", "per", "as", "groups"}:
        raise PlanRefusedError("a role is a name, or a mapping of role, on_failure, per, as and groups")
    name = entry.get("role")
    if not isinstance(name, str) or not _ROLE.match(name):
        raise PlanRefusedError("a role has a name: of ours, of a site role, or a role's FQCN")
    on_failure = entry.get("on_failure", "block")
    if on_failure not in ("block", "continue"):
        raise PlanRefusedError(f"on_failure of {name} is block or continue")
    short = name[len(COLLECTION) + 1 :] if name.startswith(COLLECTION + ".") else name
    built_in = short in BUILT_IN_ROLES
    if built_in and entry.get("per") == "user":
        raise PlanRefusedError(f"{name} always takes the whole batch: leave out per")
    per = entry.get("per", "batch" if built_in else "user")
    if per not in ("user", "batch"):
        raise PlanRefusedError(f"per of {name} is user or batch")
    if built_in:
        if "as" in entry or "groups" in entry:
            raise PlanRefusedError(
                f"{name} works as the user wherever it can by itself: leave out as and groups"
            )
        return {"role": short, "name": f"{COLLECTION}.{short}", "on_failure": on_failure, "per": "batch"}
    return {"role": name, "name": name, "on_failure": on_failure, "per": per, **_rights(name, per, entry)}


def _rights(name: str, per: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Return as which account a site role works, and with which further groups."""
    who = entry.get("as", "user" if per == "user" else "root")
    if who not in ("user", "root"):
        raise PlanRefusedError(f"as of {name} is user or root")
    if per == "batch" and who == "user":
        raise PlanRefusedError(f"{name} takes the whole batch, and a batch has many users: leave out as")
    groups = entry.get("groups", [])
    if not isinstance(groups, (list, tuple)) or not all(
        type(gid) is int and 0 < gid < 2**32 - 1 for gid in groups
    ):
        raise PlanRefusedError(f"groups of {name} is a list of gids, as numbers")
    if groups and who == "root":
        raise PlanRefusedError(f"groups of {name} are for a role that works as the user")
    return {"as": who, "groups": list(groups)}
