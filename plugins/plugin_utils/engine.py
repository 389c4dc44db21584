# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An ``ansible-playbook`` that has begun already: everything is imported, and only the command line is missing.

The apply program starts it, in the terminal, environment and directory of the run to come, as

    python -P engine.py PLAYBOOK GO READY

``PLAYBOOK`` is the path of the ``ansible-playbook`` that this stands for. It imports what a run imports, writes a line
to the descriptor ``READY``, and waits for the end of ``GO``, from which comes the command line as JSON; nothing means
that it is not wanted. It serves one run, and to everything in that run it is ``ansible-playbook``.
"""

from __future__ import annotations

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


def main() -> None:
    """Be ready, wait, and be ``ansible-playbook``."""
    playbook, go, ready = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sys.argv = [playbook]  # Ansible looks at its name as soon as it is imported
    sys.path.insert(0, os.path.dirname(playbook))  # where a script's own directory is
    import_what_a_run_imports()
    os.write(ready, b"\n")
    os.close(ready)
    with open(go, "rb") as file:
        line = file.read()
    if not line:
        os._exit(0)  # what Ansible would clear up at the exit lies in the run's directory
    sys.argv = json.loads(line)
    from ansible.cli.playbook import main as ansible_playbook  # noqa: PLC0415

    sys.exit(ansible_playbook())


def import_what_a_run_imports() -> None:
    """Load what depends on nothing but the configuration and the installed files."""
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
        (loader.callback_loader, ("awx_display", f"{COLLECTION}.outcomes")),
    ):
        for name in names:
            if plugins is loader.module_loader:
                plugins.find_plugin(name)
            else:
                plugins.get(name, class_only=True)


if __name__ == "__main__":
    main()
