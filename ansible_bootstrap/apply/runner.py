"""Run a playbook of the collection with ansible-runner. Nothing else imports ansible_runner.

ansible-runner gives the run its process, terminal and artifacts. It is trusted with nothing else:
its events are parsed out of what tasks print, and printed text can forge them, so the users' outcomes
are read from the file of the ``outcomes`` callback instead.

A run may be started before there is a request. Half of a small run is Ansible's start: the interpreter, the imports,
the configuration, the playbook. A run that *waits* has all of that behind it when the request comes. It stops before
its first task, in the ``outcomes`` callback, and reads from a pipe; nothing polls meanwhile. Which users and roles the
request names, the action ``batch`` reads from a file, in every run.

Rejected: to fork a process that has imported Ansible already. It starts faster, and needs private names of ansible-core
and ansible-runner for that. To wait in the action ``batch``: Ansible looks 200 times a second whether a task has ended.
"""

from __future__ import annotations

import json
import os
import pwd
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ansible_bootstrap import __path__ as _package_path
from ansible_bootstrap.protocol import Operation, User
from ansible_bootstrap.settings import ApplySettings, RoleSetting

PLAYBOOKS: Final[dict[Operation, str]] = {
    "bootstrap": "ansible_bootstrap.jupyterhub.bootstrap",
    "cleanup": "ansible_bootstrap.jupyterhub.cleanup",
    "probe": "ansible_bootstrap.jupyterhub.probe",
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
"""Seconds that a batch waits for a user who takes much longer than all others; the caller then runs that user alone."""

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


class PlaybookRun:
    """One run of ``ansible-playbook``, in a thread of this process.

    Args:
        settings: the admin's.
        operation: ``bootstrap``, ``cleanup`` or ``probe``.
        directory: the run's own, mode 0700; holds everything that Ansible writes here.
        storage_host: a host of the inventory.
        check: predict only.
        diff: have differences written to the outcomes file.
        waits: start before there is a request, and wait for it.

    Raises:
        OSError: the directory cannot be written (a full disk, say).
    """

    def __init__(
        self,
        settings: ApplySettings,
        operation: Operation,
        directory: Path,
        *,
        storage_host: str = "localhost",
        check: bool = False,
        diff: bool = False,
        waits: bool = False,
    ) -> None:
        self.directory = directory
        self.waits = waits
        self.fault: BaseException | None = None
        """Why Ansible could not be started, if so."""
        self.has_process = False
        """Whether Ansible has been started, or is about to be within a moment."""
        self._request = directory / "request.json"
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._go: int | None = None
        pipe = directory / "go"
        if waits:
            os.mkfifo(pipe, 0o600)
            # Both ends: nobody waits for the other to open it, and our death is its end.
            self._go = os.open(pipe, os.O_RDWR | os.O_CLOEXEC)
        self._arguments: dict[str, Any] = {
            **_arguments(settings, operation, directory, pipe if waits else None),
            "extravars": _extra_vars(settings, storage_host, self._request),
            "cmdline": " ".join([*(["--check"] if check else []), *(["--diff"] if diff else [])]) or None,
            "forks": settings.forks if storage_host == "localhost" else min(settings.forks, _MAX_SSH_FORKS),
            # Given, runner leaves this process's signal handlers alone.
            "cancel_callback": self._cancelled.is_set,
            "status_handler": self._note_status,
        }

    def start(self) -> None:
        """Start it; returns at once.

        Raises:
            RuntimeError: this account or machine has no thread to spare.
        """
        self._thread.start()

    def give(self, roles: Sequence[RoleSetting], users: Sequence[User]) -> None:
        """Give it its request.

        Args:
            roles: of the settings' roles for the operation, those to apply.
            users: the batch, validated.

        Raises:
            OSError: the directory cannot be written.
        """
        request = {
            "roles": [role.model_dump(exclude_unset=True) for role in roles],
            "users": [user.model_dump(mode="json") for user in users],
        }
        self._request.write_text(json.dumps(request))
        if self._go is not None:
            os.write(self._go, b"\n")

    def cancel(self) -> None:
        """Have it start nothing any more; its processes are the caller's to end."""
        self._cancelled.set()

    def is_alive(self) -> bool:
        """Whether Ansible is at work, or about to start."""
        return self._thread.is_alive()

    def join(self, seconds: float) -> None:
        """Wait for its end, up to so long; returns at once if it was never started."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _note_status(self, status: dict[str, Any], **_: Any) -> None:
        self.has_process = self.has_process or status["status"] == "running"

    def _run(self) -> None:
        try:
            import ansible_runner  # noqa: PLC0415 - 0.1 s that a refused request need not pay

            if not self._cancelled.is_set():
                ansible_runner.run(**self._arguments)
        except BaseException as error:
            self.fault = error


def _arguments(
    settings: ApplySettings, operation: Operation, directory: Path, pipe: Path | None
) -> dict[str, Any]:
    """Return what ansible-runner gets that does not depend on the request."""
    (directory / "ansible.cfg").write_text(_CONFIGURATION)
    inventory = directory / "localhost.json"
    inventory.write_text(json.dumps(_LOCALHOST))
    return {
        "private_data_dir": str(directory),
        "ident": "run",
        "playbook": PLAYBOOKS[operation],
        "inventory": [str(inventory), *([settings.inventory] if settings.inventory else [])],
        "envvars": _ansible_environment(settings, directory, pipe),
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


def _extra_vars(settings: ApplySettings, storage_host: str, request: Path) -> dict[str, Any]:
    optional = {"bootstrap_gid": settings.gid, "bootstrap_work_as": settings.work_as}
    return {
        **settings.extra_vars,
        **{name: value for name, value in optional.items() if value is not None},
        "bootstrap_environment": settings.environment,
        "bootstrap_patience": _PATIENCE,
        "bootstrap_request": str(request),
        "bootstrap_records_dir": settings.records_dir or "",
        "bootstrap_root": settings.storage_root,
        "bootstrap_roots": list(settings.storage_roots),
        "bootstrap_storage_host": storage_host,
        "bootstrap_task_timeout": settings.task_timeout,
        "bootstrap_uid": settings.uid,
        "bootstrap_uid_min": settings.uid_min,
        "bootstrap_uid_max": settings.uid_max,
        "bootstrap_gid_min": settings.gid_min,
    }


def _ansible_environment(settings: ApplySettings, directory: Path, pipe: Path | None) -> dict[str, str]:
    ours = Path(next(iter(_package_path))).parent
    return {
        **settings.environment,
        **({"ANSIBLE_BOOTSTRAP_GO": str(pipe)} if pipe is not None else {}),
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
