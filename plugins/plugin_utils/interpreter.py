# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say it where a module failed because the Python of the storage host is too old, which then says anything but that."""

from __future__ import annotations

import os
import re
import shlex
import stat
from typing import Any

from ansible.plugins.action import ActionBase

OLDEST = (3, 9)
"""The oldest Python on storage hosts that our modules run on."""

SYSTEM_PYTHON = "/usr/bin/python3"

_ASK = "import sys; print('.'.join(map(str, sys.version_info[:3])))"


def explain_failure(action: ActionBase, result: dict[str, Any], task_vars: dict[str, Any]) -> None:
    """Put the Python that was found into the message of a module that failed, if that is too old."""
    if not result.get("failed") or result.get("unreachable") or "users" in result:  # then it has run
        return
    path = _interpreter(action, task_vars)
    version = _version(action, path)
    if version and version < OLDEST:
        found, needed = (".".join(map(str, numbers)) for numbers in (version, OLDEST))
        result["msg"] = (
            f"Python {found} was found ({path}), and >= {needed} is needed: set ansible_python_interpreter of the "
            "storage host in the inventory"
        )


def _interpreter(action: ActionBase, task_vars: dict[str, Any]) -> str:
    """Return the interpreter that the inventory names, or that Ansible has found."""
    given = str(action._templar.template(task_vars.get("ansible_python_interpreter") or ""))
    if given.startswith("/"):
        return given
    facts = task_vars.get("ansible_facts") or {}
    return str(action._discovered_interpreter or facts.get("discovered_interpreter_python") or SYSTEM_PYTHON)


def _version(action: ActionBase, path: str) -> tuple[int, ...] | None:
    said = action._low_level_execute_command(shlex.join([path, "-c", _ASK]))
    found = re.search(r"^(\d+)\.(\d+)\.(\d+)\s*$", said.get("stdout") or "", re.MULTILINE)
    return tuple(map(int, found.groups())) if found else None


def for_users(action: ActionBase, task_vars: dict[str, Any]) -> str:
    """Return the Python with which users' tasks are done: the storage host's, or on this machine one they can start."""
    python = _interpreter(action, task_vars)
    here = action._connection.ansible_name == "ansible.builtin.local"
    return SYSTEM_PYTHON if here and not _is_for_all(python) and _is_for_all(SYSTEM_PYTHON) else python


def _is_for_all(python: str) -> bool:
    """Whether any account can start this interpreter (one below /root, say, it cannot)."""
    path = os.path.realpath(python)
    try:
        while path != "/":
            if not os.stat(path).st_mode & stat.S_IXOTH:
                return False
            path = os.path.dirname(path)
    except OSError:
        return False
    return True
