# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""What the module of every built-in role takes and gives; ``plugins/doc_fragments/batch.py`` documents it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ._storage import Roots

ARGUMENTS: dict[str, dict[str, Any]] = {
    "users": {"type": "list", "elements": "raw", "required": True},
    "root": {"type": "path", "required": True},
    "roots": {"type": "list", "elements": "path", "default": []},
    "records_dir": {"type": "path", "default": ""},
    "work_as": {"type": "int"},
    "uid_min": {"type": "int", "default": 1000},
    "patience": {"type": "float", "default": 0},
}
"""The part of the argument_spec that all have."""


def common(given: dict[str, Any], check: bool) -> dict[str, Any]:
    """Return what the work of every role takes: the arguments of :data:`ARGUMENTS`, and ``check``."""
    return {
        "check": check,
        "root": Roots(given["root"], tuple(given["roots"]), given["records_dir"], given["work_as"]),
        **{name: given[name] for name in ("users", "uid_min", "patience")},
    }


@dataclass
class Report:
    """The results of a batch, in the order of its users, and how many downloads they cost."""

    users: list[dict[str, Any]]
    diff: list[dict[str, Any]]
    fetched: int = 0

    def as_result(self, *, diff: bool = False) -> dict[str, Any]:
        """Return what the module returns; it is ``failed`` if anybody has failed.

        Its arguments are not repeated (``invocation``): they are long, and a url may hold a token.
        """
        result: dict[str, Any] = {
            "changed": any(user["changed"] for user in self.users),
            "users": self.users,
            "invocation": {},
        }
        if diff:
            result["diff"] = self.diff
        if self.fetched:
            result["fetched"] = self.fetched
        failed = [user for user in self.users if user["failed"]]
        if failed:
            result["failed"] = True
            first = "; ".join(f"{user['key']}: {user['msg']}" for user in failed[:3])
            more = "; …" if len(failed) > 3 else ""
            result.update(msg=f"{len(failed)} of {len(self.users)} users failed: {first}{more}")
        return result

    def end(self, module: Any) -> None:
        """End an ``AnsibleModule`` (which nothing here imports) with these results: it fails if anybody has failed."""
        said = self.as_result(diff=module._diff)
        leave = module.fail_json if said.pop("failed", False) else module.exit_json
        leave(**said)


def result(
    key: str,
    error: str | None,
    changed: bool = False,
    notes: list[str] | None = None,
    *,
    hangs: bool = False,
    silent: bool = False,
) -> dict[str, Any]:
    """Return what a module says about one user; ``error`` is None, or why it failed."""
    return {
        "key": key,
        "changed": changed,
        "failed": error is not None,
        "msg": error or "",
        "notes": list(notes or ()),
        "hangs": hangs,
        "silent": silent,
    }
