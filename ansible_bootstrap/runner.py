"""Run a playbook of the collection with ansible-runner. Nothing else imports ansible_runner.

ansible-runner gives the run its process, terminal and artifacts. It is trusted with nothing else:
its events are parsed out of what tasks print, and printed text can forge them, so who converged is
read from the file of the ``outcomes`` callback instead.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from . import __path__ as _package_path
from .protocol import Operation, User
from .settings import ApplySettings, RoleSetting

if TYPE_CHECKING:
    from .warm import Engine

PLAYBOOKS: Final[dict[Operation, str]] = {
    "bootstrap": "ansible_bootstrap.jupyterhub.bootstrap",
    "cleanup": "ansible_bootstrap.jupyterhub.cleanup",
}

_LOCALHOST: Final = {
    "all": {
        "hosts": {
            "localhost": {
                "ansible_connection": "local",
                "ansible_python_interpreter": "{{ ansible_playbook_python }}",
            }
        }
    }
}

_SSH_ARGS: Final = (
    "-C -o ControlMaster=auto -o ControlPersist=60s -o BatchMode=yes -o StrictHostKeyChecking=yes "
    "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"
)
"""Without ServerAlive a frozen storage host would hang a run for ever."""

_CONFIGURATION: Final = "[defaults]\ninternal_poll_interval = 0.005\n"
"""What Ansible takes from no environment variable. It looks every 5 ms, not every 1 ms, whether a task has ended: a
tenth less for the processors to do, which a hub in a storm needs itself."""

_PATIENCE: Final = 2
"""Seconds that a batch waits for one who takes much longer than all others; the caller does that user alone then."""

_MAX_SSH_FORKS: Final = 8
"""More sessions over one connection are refused by sshd (MaxSessions is 10)."""


def scrubbed_environment() -> dict[str, str]:
    """Return the environment of everything this program starts: nothing of the caller's."""
    try:
        home = pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:  # a container's arbitrary uid
        home = "/"
    return {
        "HOME": home,
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONUTF8": "1",
    }


def run_playbook(
    settings: ApplySettings,
    operation: Operation,
    roles: Sequence[RoleSetting],
    users: list[User],
    directory: Path,
    *,
    storage_host: str,
    check: bool,
    diff: bool,
    cancelled: Callable[[], bool] = lambda: False,
    engine: Engine | None = None,
) -> int:
    """Run the playbook of ``operation`` for a batch and return ansible-playbook's exit status.

    Args:
        settings: the admin's.
        operation: ``bootstrap`` or ``cleanup``.
        roles: of the settings' roles for it, those to apply.
        users: the batch, validated.
        directory: the run's own, mode 0700; holds everything that Ansible writes here.
        storage_host: a host of the inventory.
        check: predict only.
        diff: have differences written to the outcomes file.
        cancelled: asked before Ansible starts, and then now and again whether to end it.
        engine: an ``ansible-playbook`` that waits in this directory.

    Raises:
        OSError: the directory cannot be written (a full disk, say).
    """
    import ansible_runner  # noqa: PLC0415 - 0.1 s that a refused request need not pay

    if cancelled():
        return 1
    if engine is not None:
        _start_with(engine)
    forks = settings.forks if storage_host == "localhost" else min(settings.forks, _MAX_SSH_FORKS)
    result = ansible_runner.run(
        **_arguments(settings, operation, directory),
        extravars=_extra_vars(settings, roles, users, storage_host),
        cmdline=" ".join([*(["--check"] if check else []), *(["--diff"] if diff else [])]) or None,
        forks=forks,
        # Given, runner leaves this process's signal handlers alone.
        cancel_callback=cancelled,
    )
    return int(result.rc)


def surroundings(settings: ApplySettings, directory: Path) -> tuple[dict[str, str], str]:
    """Return the environment and the working directory that ``ansible-playbook`` gets in runs in this directory."""
    import ansible_runner  # noqa: PLC0415

    arguments = _arguments(settings, "bootstrap", directory)
    config = ansible_runner.interface.init_runner(**arguments, cancel_callback=lambda: False).config
    shutil.rmtree(directory / "env")  # where it would read this run's arguments in the next
    return dict(config.env), str(config.cwd)


def _start_with(engine: Engine) -> None:
    """Have ansible-runner take the engine for its process; it starts no other before this program ends."""
    import pexpect  # type: ignore[import-untyped]  # noqa: PLC0415

    class Spawn(pexpect.spawn):  # type: ignore[misc]
        def _spawnpty(self, args: list[bytes], **how: Any) -> Any:
            return engine.take(args, **how) or super()._spawnpty(args, **how)

    pexpect.spawn = Spawn


def _arguments(settings: ApplySettings, operation: Operation, directory: Path) -> dict[str, Any]:
    """Return what ansible-runner gets that does not depend on the request's users."""
    (directory / "ansible.cfg").write_text(_CONFIGURATION)
    inventory = directory / "localhost.json"
    inventory.write_text(json.dumps(_LOCALHOST))
    return {
        "private_data_dir": str(directory),
        "ident": "run",
        "playbook": PLAYBOOKS[operation],
        "inventory": [str(inventory), *([settings.inventory] if settings.inventory else [])],
        "envvars": _ansible_environment(settings, directory),
        "settings": {
            "pexpect_timeout": 1,
            "idle_timeout": 0,
            "job_timeout": 0,
            "suppress_ansible_output": True,
        },
        "quiet": True,
        # Nobody reads its events, so they are neither filled nor kept.
        "omit_event_data": True,
        "event_handler": lambda event: False,
    }


def outcomes_file(directory: Path) -> Path:
    """Return where the ``outcomes`` callback of a run writes."""
    return directory / "outcomes"


def _extra_vars(
    settings: ApplySettings, roles: Sequence[RoleSetting], users: list[User], storage_host: str
) -> dict[str, Any]:
    optional: dict[str, Any] = {"bootstrap_gid": settings.gid} if settings.gid is not None else {}
    if len(users) > 1:
        optional["bootstrap_patience"] = _PATIENCE
    return {
        **settings.extra_vars,
        **optional,
        "bootstrap_batch": [_unsafe(user.model_dump()) for user in users],
        "bootstrap_roles": [role.model_dump(exclude_unset=True) for role in roles],
        "bootstrap_root": settings.storage_root,
        "bootstrap_storage_host": storage_host,
        "bootstrap_task_timeout": settings.task_timeout,
        "bootstrap_uid": settings.uid,
        "bootstrap_uid_min": settings.uid_min,
        "bootstrap_uid_max": settings.uid_max,
        "bootstrap_gid_min": settings.gid_min,
    }


def _unsafe(value: Any) -> Any:
    """Mark every string leaf as text that is never a template (around a dict the mark does not hold)."""
    if isinstance(value, str):
        return {"__ansible_unsafe": value}
    if isinstance(value, dict):
        return {key: _unsafe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_unsafe(item) for item in value]
    return value


def _ansible_environment(settings: ApplySettings, directory: Path) -> dict[str, str]:
    ours = Path(next(iter(_package_path))).parent
    return {
        "ANSIBLE_BOOTSTRAP_OUTCOMES": str(outcomes_file(directory)),
        "ANSIBLE_CALLBACKS_ENABLED": "ansible_bootstrap.jupyterhub.outcomes",
        "ANSIBLE_COLLECTIONS_PATH": ":".join([str(ours), *settings.collections_path]),
        "ANSIBLE_CONFIG": str(directory / "ansible.cfg"),
        "ANSIBLE_DEPRECATION_WARNINGS": "False",
        "ANSIBLE_GATHERING": "explicit",
        "ANSIBLE_HOME": str(directory / "ansible"),
        "ANSIBLE_HOST_KEY_CHECKING": "True",
        "ANSIBLE_LOCAL_TEMP": str(directory / "tmp"),
        "ANSIBLE_NOCOLOR": "True",
        "ANSIBLE_PIPELINING": "True",
        "ANSIBLE_RETRY_FILES_ENABLED": "False",
        "ANSIBLE_ROLES_PATH": ":".join(settings.roles_path) or str(directory / "roles"),
        "ANSIBLE_SSH_ARGS": _SSH_ARGS,
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(directory / "cp"),
        "ANSIBLE_TIMEOUT": "10",
    }
