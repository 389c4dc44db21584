# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run one of our modules in a fork of Ansible's worker, where nothing else stands between the two.

For a module on this machine Ansible builds an archive of the module and all that it imports, starts a shell, which
starts an interpreter, which unpacks, compiles and imports what the worker has in memory already. For one user that
is half of a run. Here the worker forks instead, and the child is given what the interpreter would have been given:
its arguments on stdin, its result to be read from stdout, no other descriptor, no signal handler of the worker's.
It ends with the module, so no limit, umask or descriptor that the module sets outlives it.

Arguments, check mode, diff, ``no_log`` and the parsing of the result stay Ansible's: of ``_execute_module`` two steps
are replaced, building the module and starting it. Everything that is not exactly this case goes Ansible's way.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import signal
import sys
import traceback
from typing import Any

from ansible.executor.module_common import _BuiltModule
from ansible.module_utils.common.json import Direction, get_module_encoder
from ansible.plugins.action.normal import ActionModule as NormalAction

MOST_USERS = 50
"""In a larger batch the module forks for every user, and an interpreter of its own forks faster than a worker."""

_PROFILE = "legacy"
_STANDARD = (0, 1, 2)


class InWorkerAction(NormalAction):
    """The ``normal`` action, without a new interpreter where none is needed."""

    _in_worker = False

    def run(self, tmp: object = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module and return its result."""
        self._in_worker = self._is_here(task_vars or {})
        result: dict[str, Any] = super().run(tmp, task_vars)
        return result

    def _is_here(self, task_vars: dict[str, Any]) -> bool:
        """Tell whether the module would run as this user, on this machine, with this interpreter."""
        users = self._task.args.get("users")
        return (
            self._connection.transport == "local"
            and self._connection.become is None
            and not self._task.delegate_to
            and not self._task.async_val
            and not self._compute_environment_string()
            and isinstance(users, list)
            and len(users) <= MOST_USERS
            and self._templar.template(task_vars.get("ansible_python_interpreter")) == sys.executable
        )

    def _is_pipelining_enabled(self, module_style: str, wrap_async: bool = False) -> bool:
        return self._in_worker or bool(super()._is_pipelining_enabled(module_style, wrap_async))

    def _configure_module(self, module_name: str, module_args: Any, task_vars: Any) -> tuple[Any, str]:
        """Return the arguments in place of the module that they are for."""
        if not self._in_worker:
            configured: tuple[Any, str] = super()._configure_module(module_name, module_args, task_vars)
            return configured
        encoder = get_module_encoder(_PROFILE, Direction.CONTROLLER_TO_MODULE)
        arguments = json.dumps({"ANSIBLE_MODULE_ARGS": module_args}, cls=encoder)
        built = _BuiltModule(
            b_module_data=arguments.encode("utf-8", "surrogateescape"),
            module_style="new",
            shebang=f"#!{sys.executable}",
            serialization_profile=_PROFILE,
        )
        return built, module_name

    def _low_level_execute_command(self, *args: Any, in_data: bytes | None = None, **options: Any) -> Any:
        """Run the module on these arguments, in place of the command that would start it."""
        if not self._in_worker:
            return super()._low_level_execute_command(*args, in_data=in_data, **options)
        module = type(self).__module__.replace(".plugins.action.", ".plugins.modules.")
        status, out, err = _run(module, in_data or b"", self._loader.get_basedir())
        return {
            "rc": status,
            "stdout": out,
            "stdout_lines": out.splitlines(),
            "stderr": err,
            "stderr_lines": err.splitlines(),
        }


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
