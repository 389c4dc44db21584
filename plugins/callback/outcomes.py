# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write what became of each user to a file that only the apply program reads."""

from __future__ import annotations

DOCUMENTATION = r"""
name: outcomes
type: notification
short_description: Write what became of each user of a batch to a file
version_added: "0.1.0"
description:
  - One JSON object a line, in the private directory of the run. It believes the results of this collection's own
    actions, told by their resolved names, and never anything that a task printed; so no output of a role, a script or
    a user's file can pass for an outcome.
  - Does nothing where the file is not named.
requirements:
  - enable in configuration
options:
  path:
    description: The file, in a directory of mode 0700.
    type: str
    default: ""
    env:
      - name: ANSIBLE_BOOTSTRAP_OUTCOMES
  go:
    description: A FIFO from which one byte comes when the first task may begin. Without it, that is at once.
    type: str
    default: ""
    env:
      - name: ANSIBLE_BOOTSTRAP_GO
author: the ansible_bootstrap contributors
"""

import contextlib
import importlib
import json
from typing import Any

from ansible.plugins.callback import CallbackBase
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.module_utils._errors import printable
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.module_utils._plan import BUILT_IN_ROLES
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.module_utils._priority import keep_back

COLLECTION = "ansible_bootstrap.jupyterhub."
MAX_MESSAGE = 2000

_LOADED_AHEAD = (
    "ansible.template",
    "ansible.module_utils.basic",
    *(
        f"ansible_collections.{COLLECTION}plugins.action.{name}"
        for name in ("batch", "outcome", *BUILT_IN_ROLES)
    ),
    *(f"ansible_collections.{COLLECTION}plugins.modules.{name}" for name in BUILT_IN_ROLES),
)
"""What tasks import. Ansible forks for each task, so what is here already is in all of them."""

_FIRST = ("batch", "probe")
"""Actions that work for no user yet."""

_NO_DIRECTORY = "Failed to create temporary directory"
"""In Ansible's message where the host has answered, and said no."""

_NOTHING_SEEN = {
    "reason": "apply_failed",
    "msg": "the run ended before this user was done",
    "role": "",
    "task": "",
}


class CallbackModule(CallbackBase):
    """Follow the batch through the playbook; every user gets one line, as soon as it is known."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "ansible_bootstrap.jupyterhub.outcomes"
    CALLBACK_NEEDS_ENABLED = True

    def set_options(self, *args: Any, **kwargs: Any) -> None:
        """Open the file, or stand aside."""
        super().set_options(*args, **kwargs)
        path = self.get_option("path")
        self.disabled = not path
        keep_back()  # ansible-runner starts Ansible in a session of its own.
        self._file = open(path, "a", encoding="ascii", buffering=1) if path else None  # noqa: SIM115
        self._users: dict[str, dict[str, Any]] = {}
        self._changed: dict[str, dict[str, None]] = {}
        self._notes: dict[str, list[str]] = {}
        self._continued: dict[str, list[str]] = {}
        self._final: set[str] = set()
        self._items: dict[tuple[str, str], str] = {}
        self._last: dict[str | None, dict[str, str]] = {}
        self._role = ""
        self._go = self.get_option("go")

    # What Ansible tells.

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Wait before the first task, if there is no request yet; tell which role begins."""
        if self._go:
            _wait(self._go)
            self._go = ""
        role = _role_of(task)
        if role and role != self._role and self._users:
            self._role = role
            self._write(type="role", role=role, users=len(self._users) - len(self._final))

    def v2_runner_on_ok(self, result: Any) -> None:
        """Take up our own actions' results, and note who was changed by which role."""
        data, ours = result._result, self._our_action(result)
        if ours == "batch":
            self._begin(data)
        elif ours == "outcome":
            self._account(data)
        elif ours == "probe":
            self._write(type="probed", about=data["about"], findings=data["findings"])
        elif ours:
            self._module(result, data)
        elif data.get("changed"):
            for key in self._keys(result):
                self._note_change(key, _role_of(result._task))

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Remember the failure; whether it ends a user's bootstrap is for the playbook to say."""
        data, ours = result._result, self._our_action(result)
        if ours == "outcome":
            self._account(data)
            return
        if ours and ours not in _FIRST:
            self._module(result, data)
        if not ignore_errors:
            # Where the batch cannot even begin, the admin has to mend something.
            message = self._items.pop((result._host.get_name(), result._task._uuid), None) or _message(data)
            self._remember(result, "settings" if ours in _FIRST else "role_failed", message)

    def v2_runner_item_on_failed(self, result: Any) -> None:
        """Keep what an item of a loop says; the loop's own message says only that one has failed."""
        self._items[result._host.get_name(), result._task._uuid] = _message(result._result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Remember that the storage host did not answer.

        Ansible calls it unreachable, too, where a directory in /tmp cannot be made. A user can cause that, by a quota
        say, and must not make the host count as down for others.
        """
        message = _message(result._result)
        self._remember(result, "role_failed" if _NO_DIRECTORY in message else "unreachable", message)

    def v2_on_file_diff(self, result: Any) -> None:
        """Pass on what a task changed, or in check mode would change."""
        data = result._result
        for item in data.get("results", [data]):
            if item.get("changed") and item.get("diff"):
                self._write(type="diff", text=self._get_diff(item["diff"]))

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Whoever has no outcome yet has failed, for the last reason seen."""
        if not self._users and None in self._last:
            last = self._last[None]
            self._write(type="lost", reason=last["reason"], message=last["msg"])
        for key in self._users:
            if key not in self._final:
                self._fail(key, {})
        self._write(type="over")

    # What we make of it.

    def _begin(self, data: dict[str, Any]) -> None:
        for user in data["users"]:
            self._users[user["key"]] = user
        for failure in data["failures"]:
            self._users[failure["key"]] = {"key": failure["key"], "name": failure["name"], "directory": ""}
            self._fail(failure["key"], failure)

    def _module(self, result: Any, data: dict[str, Any]) -> None:
        role = _role_of(result._task) or self._our_action(result)
        for user in data.get("users") or []:
            if user["changed"]:
                self._note_change(user["key"], role)
            notes = self._notes.setdefault(user["key"], [])
            notes.extend(f"{role}: {note}" for note in user.get("notes") or [])
        self._write(type="module", way="worker" if data.get("in_worker") else "ansible")
        if data.get("fetched"):
            self._write(type="fetched", role=role, count=data["fetched"])

    def _account(self, data: dict[str, Any]) -> None:
        for failure in data.get("continued") or []:
            roles = self._continued.setdefault(failure["key"], [])
            if failure["role"] not in roles:
                roles.append(failure["role"])
                why = failure["msg"] or self._last_seen(failure["key"])["msg"]
                self._notes.setdefault(failure["key"], []).append(f"{failure['role']} failed: {why}")
        for failure in data.get("failures") or []:
            self._fail(failure["key"], failure)
        for key in data.get("completed") or []:
            self._finish(key, status="ok")

    def _fail(self, key: str, failure: dict[str, Any]) -> None:
        last = self._last_seen(key)
        reason = failure.get("reason", last["reason"])
        self._finish(
            key,
            status="failed",
            reason="unreachable" if reason == "role_failed" and last["reason"] == "unreachable" else reason,
            failed_role=failure.get("role") or last["role"] or None,
            failed_task=_printable(failure.get("task") or last["task"]) or None,
            message=_printable(failure.get("msg") or last["msg"]),
        )

    def _finish(self, key: str, **outcome: Any) -> None:
        if key in self._final or key not in self._users:
            return
        self._final.add(key)
        self._write(
            type="outcome",
            key=key,
            name=self._users[key]["name"],
            directory=self._users[key].get("directory") or "",
            changed=list(self._changed.get(key, ())),
            notes=[_printable(note) for note in self._notes.get(key, [])[:20]],
            continued=self._continued.get(key, []),
            **outcome,
        )

    def _remember(self, result: Any, reason: str, message: str) -> None:
        user = result._host.get_vars().get("bootstrap_user")
        if not user:
            self._last.clear()  # what befalls the batch is later than what befell one of it
        self._last[user["key"] if user else None] = {
            "reason": reason,
            "msg": message,
            "role": _role_of(result._task),
            "task": _printable(result._task.get_name().rpartition(" : ")[2]),
        }

    def _last_seen(self, key: str) -> dict[str, str]:
        return self._last.get(key) or self._last.get(None) or _NOTHING_SEEN

    def _keys(self, result: Any) -> list[str]:
        """Return the users a result concerns: one user, or in the storage host's own plays all who are left."""
        user = result._host.get_vars().get("bootstrap_user")
        return [user["key"]] if user else [key for key in self._users if key not in self._final]

    def _note_change(self, key: str, role: str) -> None:
        if role:
            self._changed.setdefault(key, {})[role] = None

    def _our_action(self, result: Any) -> str:
        action = result._task.resolved_action or ""
        return action[len(COLLECTION) :] if action.startswith(COLLECTION) else ""

    def _write(self, **line: Any) -> None:
        if self._file:
            self._file.write(json.dumps(line, default=str) + "\n")


def _wait(pipe: str) -> None:
    for name in _LOADED_AHEAD:
        with contextlib.suppress(Exception):  # the task that needs it will say what is wrong
            importlib.import_module(name)
    with open(pipe, "rb", buffering=0) as go:
        go.read(1)


def _role_of(task: Any) -> str:
    """Return the role as the admin wrote it: ours by short name."""
    name = task._role.get_name() if task._role else ""
    return name[len(COLLECTION) :] if name.startswith(COLLECTION) else name


def _message(data: dict[str, Any]) -> str:
    """Return the result's message, with the end of stderr where a command said why."""
    text = str(data.get("msg") or data.get("reason") or data.get("censored") or "failed without a message")
    said = data.get("stderr") or data.get("module_stderr") or (data.get("stdout") if data.get("rc") else "")
    if isinstance(said, str) and said.strip():
        text = f"{text}: {said.strip()[-500:]}"
    return _printable(text)


def _printable(text: str) -> str:
    """Return the beginning of the text on one line, fit for terminals and logs."""
    return printable(text[:MAX_MESSAGE])
