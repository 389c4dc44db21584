# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An ``ansible-playbook`` that has begun already: everything is imported, and only the command line is missing.

The zygote of the apply program imports what runs share (:func:`import_what_runs_share`); an engine is forked from it,
in the terminal, environment and directory of the run to come, and goes on as ``ansible-playbook``
(:func:`be_ansible_playbook`). It serves one run, and to everything in that run it is ``ansible-playbook``.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import importlib
import json
import os
import sys

COLLECTION = "ansible_bootstrap.jupyterhub"
ROLES = ("cleanup", "mkhomedir", "script", "tutorials", "user_dir")

_IMPORTED = (
    "ansible.module_utils.basic",
    "ansible.plugins.action.normal",
    "ansible.plugins.filter.core",
    "ansible.plugins.test.core",
    "ansible.template",
    *(f"ansible_collections.{COLLECTION}.plugins.modules.{role}" for role in ROLES),
)


def be_ansible_playbook(playbook: str, before: str, directory: str, go: int, ready: int) -> int:
    """Make ready, wait, and be ``ansible-playbook``; return its exit status.

    Args:
        playbook: path of the ``ansible-playbook`` that this stands for.
        before: directory of the run for which Ansible was imported.
        directory: that of this run.
        go: descriptor, from which comes the command line as JSON, and then its end; nothing: it is not wanted.
        ready: descriptor, to which goes a line when it can be given.
    """
    sys.argv[:] = [playbook]
    sys.path[:] = _path(playbook)
    _renew_configuration(before, directory)
    _import_what_each_run_imports()
    _lend_streams_to_display()
    os.write(ready, b"\n")
    os.close(ready)
    with open(go, "rb") as file:
        line = file.read()
    if not line:
        return 0  # what Ansible would clear up at the exit lies in the run's directory
    sys.argv[:] = json.loads(line)
    from ansible.cli.playbook import main as ansible_playbook  # noqa: PLC0415

    try:
        status = ansible_playbook()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) or end.code is None else 1
    finally:
        # There is no interpreter to be left: above us are the frames of the program that forked us.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    return status or 0


def _lend_streams_to_display() -> None:
    """Do to our terminal what ``Display.__init__`` did to the streams that there were when it was imported."""
    from ansible.utils import display  # noqa: PLC0415

    synchronize = getattr(display, "_synchronize_textiowrapper", None)
    for stream in (sys.stdout, sys.stderr):
        if synchronize is not None:
            synchronize(stream, display.Display()._lock)
        with contextlib.suppress(LookupError):  # a release that has no such handler
            codecs.lookup_error("_replacing_warning_handler")
            stream.reconfigure(errors="_replacing_warning_handler")


def _path(playbook: str) -> list[str]:
    """Return ``sys.path`` as a script has it: first where it lies."""
    first = os.path.dirname(playbook)
    return [first, *(each for each in sys.path if each != first)]


def _renew_configuration(before: str, directory: str) -> None:
    """Read again what of Ansible's configuration depends on the directory of the run.

    Lists are changed in place, for the plugin loaders have taken some of them.
    """
    from ansible import constants  # noqa: PLC0415
    from ansible.utils.path import cleanup_tmp_file  # noqa: PLC0415

    atexit.unregister(cleanup_tmp_file)  # of a directory that is gone
    config = constants.config
    config._config_file = config._config_file.replace(before, directory)
    for name in config.get_configuration_definitions():
        # As at the end of ansible/constants.py.
        value = config.get_config_value(name, variables=vars(constants))
        old = getattr(constants, name)
        if isinstance(old, list) and isinstance(value, list):
            old[:] = value
        else:
            setattr(constants, name, value)


def import_what_runs_share(playbook: str) -> None:
    """Load what depends on nothing but the installed files, and that of the configuration which no run has for itself.

    Args:
        playbook: path of the ``ansible-playbook`` that is to be.
    """
    sys.path[:] = _path(playbook)
    from ansible import cli  # noqa: PLC0415 - first: it sets the locale

    importlib.import_module("ansible.cli.playbook")
    from ansible.plugins import loader  # noqa: PLC0415

    # As CLI.run will do it, which has to find it not done.
    loader.init_plugin_loader([])
    cli.init_plugin_loader = lambda paths: None
    for module in _IMPORTED:
        importlib.import_module(module)
    for every in (loader.connection_loader, loader.shell_loader, loader.become_loader):
        list(every.all(class_only=True))  # as PlaybookExecutor.run does
    for plugins, names in (
        (loader.strategy_loader, ("linear", "free")),
        (loader.inventory_loader, ("host_list", "script", "auto", "yaml", "ini", "toml")),
        (loader.cache_loader, ("jsonfile", "memory")),
        (loader.action_loader, (f"{COLLECTION}.{name}" for name in ("batch", "outcome", *ROLES))),
        (loader.action_loader, ("add_host", "validate_argument_spec")),
        (loader.module_loader, (f"{COLLECTION}.{name}" for name in ("batch", "outcome", *ROLES))),
    ):
        for name in names:
            if plugins is loader.module_loader:
                plugins.find_plugin(name)
            else:
                plugins.get(name, class_only=True)


def _import_what_each_run_imports() -> None:
    """Load what looks at the environment of the run while it is imported."""
    from ansible.plugins.loader import callback_loader  # noqa: PLC0415

    for name in ("awx_display", f"{COLLECTION}.outcomes"):
        callback_loader.get(name, class_only=True)
