# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run one of our modules in a fork of Ansible's worker, where nothing else stands between the two.

For a module on this machine Ansible builds an archive of the module and all that it imports, starts a shell, which
starts an interpreter, which unpacks, compiles and imports what the worker has in memory already. For one user that
is half of a run. Here the worker forks instead, and the child is given what the interpreter would have been given:
its arguments on stdin, its result to be read from stdout, no other descriptor, no signal handler of the worker's.
It ends with the module, so no limit, umask or descriptor that the module sets outlives it.

Arguments, check mode, diff, ``no_log`` and the parsing of the result stay Ansible's: of ``_execute_module`` two steps
are replaced, building the module and starting it. Everything that is not exactly this case goes Ansible's way; so does
everything in a release of Ansible where what is replaced has another name, for none of these names is promised.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
import io
import json
import os
import signal
import sys
import threading
import traceback
from typing import Any

from ansible.executor import module_common
from ansible.module_utils.common import json as module_json
from ansible.plugins.action.normal import ActionModule as NormalAction
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.module_utils._priority import keep_back

_PROFILE = "legacy"
_REPLACED = ("_compute_environment_string", "_configure_module", "_is_pipelining_enabled")
_STANDARD = (0, 1, 2)


class InWorkerAction(NormalAction):
    """The ``normal`` action, without a new interpreter where none is needed."""

    _in_worker = False
    _payload: bytes | None = None

    def run(self, tmp: object = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module and return its result."""
        keep_back()  # A worker has a session of its own.
        self._in_worker = _is_known() and self._is_here(task_vars or {})
        result: dict[str, Any] = super().run(tmp, task_vars)
        return result

    def _is_here(self, task_vars: dict[str, Any]) -> bool:
        """Tell whether the module would run as this user, on this machine, with this interpreter."""
        users = self._task.args.get("users")
        return (
            # Not its ``transport``, which a site's own connection that builds on it would inherit.
            self._connection.ansible_name == "ansible.builtin.local"
            and self._connection.become is None
            and not self._task.delegate_to
            and not self._task.async_val
            and not self._compute_environment_string()
            and isinstance(users, list)
            and self._templar.template(task_vars.get("ansible_python_interpreter")) == sys.executable
            # A lock that another thread holds now would be held in the child for ever.
            and threading.active_count() == 1
        )

    def _is_pipelining_enabled(self, module_style: str, wrap_async: bool = False) -> bool:
        return self._in_worker or bool(super()._is_pipelining_enabled(module_style, wrap_async))

    def _configure_module(self, module_name: str, module_args: Any, task_vars: Any) -> tuple[Any, str]:
        """Return the arguments in place of the module that they are for."""
        if not self._in_worker:
            configured: tuple[Any, str] = super()._configure_module(module_name, module_args, task_vars)
            return configured
        encoder = module_json.get_module_encoder(_PROFILE, module_json.Direction.CONTROLLER_TO_MODULE)
        arguments = json.dumps({"ANSIBLE_MODULE_ARGS": module_args}, cls=encoder)
        self._payload = arguments.encode("utf-8", "surrogateescape")
        return _built(self._payload), module_name

    def _low_level_execute_command(self, *args: Any, **options: Any) -> Any:
        """Run the module on these arguments, in place of the command that would start it."""
        in_data = options.get("in_data")
        if in_data is None or in_data is not self._payload:  # some other command of Ansible's
            return super()._low_level_execute_command(*args, **options)
        module = type(self).__module__.replace(".plugins.action.", ".plugins.modules.")
        status, out, err = _run(module, in_data, self._loader.get_basedir())
        return {
            "rc": status,
            "stdout": out,
            "stdout_lines": out.splitlines(),
            "stderr": err,
            "stderr_lines": err.splitlines(),
        }


def _is_known() -> bool:
    """Tell whether Ansible's action has all that is replaced here, and its builder all that is taken from it."""
    try:
        execute = inspect.signature(NormalAction._low_level_execute_command)
        named = [getattr(NormalAction, name) for name in _REPLACED]
        module_json.get_module_encoder(_PROFILE, module_json.Direction.CONTROLLER_TO_MODULE)
        return bool(named) and "in_data" in execute.parameters and bool(_built(b""))
    except Exception:  # whatever another release does not know, and however it says so
        return False


def _built(payload: bytes) -> Any:
    """Return what ``_configure_module`` returns of a module."""
    return module_common._BuiltModule(
        b_module_data=payload,
        module_style="new",
        shebang=f"#!{sys.executable}",
        serialization_profile=_PROFILE,
    )


def _run(module: str, arguments: bytes, directory: str) -> tuple[int, str, str]:
    """Run the module of this Python name in a child, in this directory; return exit status, stdout and stderr."""
    with contextlib.ExitStack() as opened:
        # Files in memory and not pipes: nobody has to read while the module runs, and what it may leave
        # behind holds nothing open that is waited for.
        files = [
            opened.enter_context(open(os.memfd_create(name), "w+b", buffering=0))
            for name in ("in", "out", "err")
        ]
        files[0].write(arguments)
        files[0].seek(0)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = _child(module, [file.fileno() for file in files], directory)
            finally:
                os._exit(status)
        try:
            _, ended = os.waitpid(pid, 0)
        except BaseException:  # the task's time is up
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        texts = []
        for file in files[1:]:
            file.seek(0)
            texts.append(file.read().decode("utf-8", "surrogateescape"))
    return os.waitstatus_to_exitcode(ended), texts[0], texts[1]


def _child(module: str, standard: list[int], directory: str) -> int:
    """Be what a new interpreter would be; return the exit status."""
    gc.freeze()  # no collection may find an object of the worker's and close a descriptor of the module's
    _as_after_exec(standard)
    os.chdir(directory)
    sys.argv = [module]
    try:
        importlib.import_module(module).main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 1


def _as_after_exec(standard: list[int]) -> None:
    """Leave behind what execve(2) would: handlers of signals, and all descriptors but these three.

    The others become ``/dev/null`` and are not closed: their numbers stay taken, so whatever object of the
    worker's closes one some time, it is none that the module has opened.
    """
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    for wanted, given in zip(_STANDARD, standard, strict=True):
        os.dup2(given, wanted)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor not in (*_STANDARD, null):
            with contextlib.suppress(OSError):  # the one with which the list was read
                os.fstat(descriptor)
                os.dup2(null, descriptor, inheritable=False)
    sys.stdin, sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, mode, closefd=False), "utf-8", errors, write_through=True)
        for number, mode, errors in (
            (0, "r", "strict"),
            (1, "w", "surrogateescape"),
            (2, "w", "backslashreplace"),
        )
    )
