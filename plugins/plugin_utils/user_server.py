# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run modules and shell commands as users, each in a fork of one process that has imported what modules import.

For a module on this machine Ansible starts a shell and an interpreter, which unpacks an archive and compiles all that
the module imports: a third of a second of CPU. This process has it imported. A child becomes the user and runs, as it
is, the text that Ansible would have piped into the interpreter. What that text imports comes from its archive, or from
memory where the archive has the same.

Rejected: to fork Ansible's worker. A module in there takes itself for a part of the control node (its results go other
ways), and a worker knows all secrets.

One server belongs to one ``ansible-playbook``, and ends with it. It listens in that playbook's temporary directory
(0700). A request is a datagram with four descriptors: a file of JSON (:class:`Request`), stdin, stdout and stderr. The
answer is the exit status, as text. If the client hangs up, the child is killed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.machinery
import json
import os
import selectors
import signal
import socket
import sys
import types
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ansible
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.module_utils._as_user import close_others
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.module_utils._priority import keep_back
from ansible_collections.ansible_bootstrap.jupyterhub.plugins.module_utils._rights import begin_as_user

_PRELOADED = ("ansible.module_utils.basic", "ansible.module_utils._internal._ansiballz._loader")
"""What every module imports. Where a release lacks one, only speed is lost."""

_IN_ARCHIVES = ("ansible.", "ansible_collections.")


@dataclass(frozen=True)
class Request:
    """What is to be done, and as which user.

    Attributes:
        uid, gid, groups: the rights it gets, and no others.
        directory: where it begins; an absolute path.
        environment: all of its environment.
        command: for ``/bin/sh -c``. None: stdin is the text of a module.
    """

    uid: int
    gid: int
    groups: Sequence[int]
    directory: str
    environment: dict[str, str]
    command: str | None


@dataclass(frozen=True, eq=False)
class _Job:
    pid: int
    pidfd: int
    client: socket.socket


def serve(listening: int, playbook: int) -> None:
    """Serve a listening socket until the playbook, a pidfd, has ended; it returns in the children, which end then."""
    keep_back()
    archived, server = _Archived(), os.getpid()
    gc.freeze()
    _live(_next_request(listening, playbook), archived, server)


def _next_request(listening: int, playbook: int) -> list[int]:
    """Fork for each request, and return its descriptors in the child."""
    waiting = selectors.DefaultSelector()
    listener = socket.socket(fileno=listening)
    waiting.register(listener, selectors.EVENT_READ)
    waiting.register(playbook, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.fd == playbook:
                for job in {each.data for each in waiting.get_map().values() if each.data}:
                    _kill(job)
                os._exit(0)
            elif key.fileobj is listener:
                client, _address = listener.accept()
                files = socket.recv_fds(client, 1, 4)[1]
                try:
                    pid = os.fork() if len(files) == 4 else -1
                except OSError:
                    pid = -1
                if pid == 0:
                    gc.freeze()  # Or a collection closes descriptors of the child's by objects of ours.
                    return files
                for number in files:
                    os.close(number)
                if pid > 0:
                    job = _Job(pid, os.pidfd_open(pid), client)
                    waiting.register(job.pidfd, selectors.EVENT_READ, job)
                    waiting.register(job.client, selectors.EVENT_READ, job)
                else:  # No descriptor or no process is to be had: the client is told by that.
                    client.close()
            elif key.fileobj == key.data.pidfd:
                _end(key.data, waiting)
            elif key.data.client.fileno() >= 0:  # Nobody waits for it any more; it may yet sleep on a disk.
                _kill(key.data)
                waiting.unregister(key.data.client)
                key.data.client.close()


def _end(job: _Job, waiting: selectors.BaseSelector) -> None:
    """Reap a child that has ended, and say how."""
    waiting.unregister(job.pidfd)
    os.close(job.pidfd)
    status = os.waitstatus_to_exitcode(os.waitpid(job.pid, 0)[1])
    if job.client.fileno() >= 0:
        with contextlib.suppress(OSError):
            job.client.send(str(status).encode())
        waiting.unregister(job.client)
        job.client.close()


def _kill(job: _Job) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(job.pidfd, signal.SIGKILL)
        os.killpg(job.pid, signal.SIGKILL)


def _live(files: Sequence[int], archived: _Archived, server: int) -> None:
    """Become the user and do what is asked; the child's whole life."""
    os.setsid()
    request = Request(**json.load(os.fdopen(files[0], closefd=False)))
    for number, target in zip(files[1:], (0, 1, 2)):  # noqa: B905
        os.dup2(number, target)
    close_others({0, 1, 2})
    begin_as_user(request.uid, request.gid, request.groups, request.directory)
    if os.getppid() != server:
        os._exit(1)
    if request.command is not None:
        os.execve("/bin/sh", ["/bin/sh", "-c", request.command], request.environment)  # noqa: S606
    os.environ.clear()
    os.environ.update(request.environment)
    text = os.fdopen(0, "rb", closefd=False).read()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = [""]
    sys.meta_path.insert(0, archived)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(text, "<module>", "exec"), main.__dict__)  # noqa: S102 - what the interpreter would do


class _Archived:
    """Finds what the text of a module imports in the archive that it has put first in ``sys.path``."""

    def __init__(self) -> None:
        for name in _PRELOADED:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        self.installed = os.path.dirname(os.path.dirname(str(ansible.__file__)))
        self.sums = {}
        for name, module in list(sys.modules.items()):
            path = getattr(module, "__file__", None)
            if path and name.startswith("ansible.module_utils."):
                with open(path, "rb") as file:
                    self.sums[os.path.relpath(path, self.installed)] = zlib.crc32(file.read())
        self.checked = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if not name.startswith(_IN_ARCHIVES):
            return None
        archive, parents = sys.path[0], name.split(".")[:-1]
        if not self.checked:
            self.checked = True
            self._forget_what_differs(archive)
        spec = importlib.machinery.PathFinder.find_spec(name, [os.path.join(archive, *parents)])
        ours = importlib.machinery.PathFinder.find_spec(name, [os.path.join(self.installed, *parents)])
        return ours if spec and ours and _text(ours) == _text(spec) else spec  # That one is compiled.

    def _forget_what_differs(self, archive: str) -> None:
        """Drop what is in memory, if a site's own module_utils are in its place."""
        with zipfile.ZipFile(archive) as file:
            same = all(self.sums.get(info.filename, info.CRC) == info.CRC for info in file.infolist())
        for name in list(sys.modules):
            if name.startswith("ansible_collections.") or (
                not same and name.startswith("ansible.module_utils")
            ):
                del sys.modules[name]


def _text(spec: Any) -> bytes | None:
    with contextlib.suppress(OSError, AttributeError):
        return bytes(spec.loader.get_data(spec.origin))
    return None
