# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do the work of a built-in role's module in a fork of Ansible's worker, where nothing else stands between the two.

For a module on this machine Ansible builds an archive of the module and all that it imports, starts a shell, which
starts an interpreter, which unpacks, compiles and imports what the worker has in memory already. For one user that is
half of a run. Here the action validates the arguments, as ``AnsibleModule`` would, and a child of the worker does the
work. The child ends with the work, so no limit, umask or descriptor that it sets outlives it. On another host, as
another account or with another interpreter the module runs as any other.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from typing import Any

from ansible.plugins.action.normal import ActionModule as NormalAction
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.module_utils._priority import keep_back
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.plugin_utils.interpreter import explain_failure


class RoleAction(NormalAction):
    """The ``normal`` action, without a new interpreter where none is needed."""

    def run(self, tmp: object = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        keep_back()  # A worker has a session of its own.
        result: dict[str, Any] = super(NormalAction, self).run(tmp, task_vars)
        if not self._is_here(task_vars or {}):
            result = dict(super().run(tmp, task_vars))
            explain_failure(self, result, task_vars or {})
            return result
        module = importlib.import_module(
            type(self).__module__.replace(".plugins.action.", ".plugins.modules.")
        )
        _, arguments = self.validate_argument_spec(module.ARGUMENT_SPEC)
        arguments = json.loads(json.dumps(arguments))  # plain text, without the marks of Ansible's templates
        result.update(_in_a_child(module, arguments, check=self._task.check_mode, diff=self._task.diff))
        result["in_worker"] = True
        return result

    def _is_here(self, task_vars: dict[str, Any]) -> bool:
        """Tell whether the module would run as this account, on this machine, with this interpreter."""
        return (
            # Not its ``transport``, which a site's own connection that builds on it would inherit.
            self._connection.ansible_name == "ansible.builtin.local"
            and self._connection.become is None
            and not self._task.delegate_to
            and not self._task.async_val
            and all(map(self._is_ours, self._task.environment or ()))
            and self._templar.template(task_vars.get("ansible_python_interpreter")) == sys.executable
            # A lock that another thread holds now would be held in the child for ever.
            and threading.active_count() == 1
        )

    def _is_ours(self, environment: Any) -> bool:
        """Tell whether this process has these variables already."""
        wanted = self._templar.template(environment) or {}
        return isinstance(wanted, dict) and all(os.environ.get(k) == v for k, v in wanted.items())


def _in_a_child(module: Any, arguments: dict[str, Any], *, check: bool, diff: bool) -> dict[str, Any]:
    # A file in memory and not a pipe: nobody has to read while the child works, and what it may leave behind holds
    # nothing open that is waited for.
    with open(os.memfd_create("result"), "w+b", buffering=0) as file:
        pid = os.fork()
        if pid == 0:
            try:
                gc.freeze()  # no collection may find an object of the worker's and close a descriptor of the child's
                _leave_the_worker(keep=file.fileno())
                result = module.work(arguments, check).as_result(diff=diff)
            except BaseException:
                result = {"failed": True, "msg": traceback.format_exc()}
            file.write(json.dumps(result).encode())
            os._exit(0)
        try:
            status = os.waitpid(pid, 0)[1]
        except BaseException:  # the task's time is up
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        file.seek(0)
        said = file.read()
    return dict(json.loads(said)) if said else {"failed": True, "msg": f"its process was killed ({status})"}


def _leave_the_worker(keep: int) -> None:
    """Leave handlers of signals and descriptors behind, as execve(2) would.

    Descriptors become ``/dev/null`` and are not closed: their numbers stay taken, so whatever object of the worker's
    closes one some time, it is none that the work has opened.
    """
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor not in (keep, null):
            with contextlib.suppress(OSError):  # the one with which the list was read
                os.fstat(descriptor)
                os.dup2(null, descriptor, inheritable=False)
