# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The other end of ``user_server.py``: one request and its answer, from a worker of Ansible's."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import ansible
from ansible import constants
from ansible.errors import AnsibleConnectionFailure

_SERVE = (
    "import sys; sys.path += sys.argv[3:]; "
    "from ansible_collections.ansible_bootstrap.jupyterhub.plugins.plugin_utils.user_server import serve; "
    "serve(int(sys.argv[1]), int(sys.argv[2]))"
)


def ask(python: str, request: dict[str, Any], stdin: bytes) -> tuple[int, bytes, bytes]:
    """Have this playbook's server do it; the first who asks starts it."""
    with contextlib.ExitStack() as opened:
        files = []
        for name, text in (
            ("request", json.dumps(request).encode()),
            ("in", stdin),
            ("out", b""),
            ("err", b""),
        ):
            file = opened.enter_context(os.fdopen(os.memfd_create(name), "w+b"))
            file.write(text)
            file.seek(0)
            files.append(file)
        client = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        try:
            _connect(client, os.path.join(constants.DEFAULT_LOCAL_TMP, "as_user"), python)
            socket.send_fds(client, [b"?"], [file.fileno() for file in files])
            status = client.recv(64)
        except OSError as error:
            raise AnsibleConnectionFailure(
                f"nothing answers that works as a user: {error.strerror}"
            ) from error
        if not status:
            raise AnsibleConnectionFailure(
                "the process that works as users has ended, or can start no other process"
            )
        for file in files[2:]:  # The child has moved their common position.
            file.seek(0)
        return int(status), files[2].read(), files[3].read()


def _connect(client: socket.socket, path: str, python: str) -> None:
    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
        client.connect(path)
        return
    with open(path + ".lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            client.connect(path)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        _start_server(path, python)
        client.connect(path)


def _start_server(path: str, python: str) -> None:
    roots = [str(Path(ansible.__file__).parents[1]), str(Path(__file__).parents[5])]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(128)
        playbook = os.pidfd_open(os.getppid())  # It is the parent of all that run tasks.
        subprocess.Popen(
            [python, "-I", "-c", _SERVE, str(listener.fileno()), str(playbook), *roots],
            pass_fds=(listener.fileno(), playbook),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(playbook)
