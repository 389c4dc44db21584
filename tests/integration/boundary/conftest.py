"""Fixtures of the tests across the privilege boundary.

===============  ===============================================================================
``machine``      a :class:`machine.Machine`, once for all these tests; its settings and the users'
                 directories are as new in each
``sudo``         calls the apply program as the hub's account, by the shipped sudoers line
===============  ===============================================================================
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from machine import Answer, Machine, interpreter, request, shipped_command


@pytest.fixture(scope="session")
def _machine(needs: Callable[..., None]) -> Iterator[Machine]:
    needs(root=True, programs=("sudo", "visudo", "unshare", "nsenter", "setpriv", "useradd"))
    python = interpreter()
    if python is None:
        needs(programs=("a Python >= 3.11 outside of /root",))
    machine = Machine(str(python))
    yield machine
    machine.remove()


@pytest.fixture
def machine(_machine: Machine) -> Iterator[Machine]:
    _machine.settings()
    yield _machine
    _machine.end_calls()
    for path in _machine.path(_machine.volumes).iterdir():
        shutil.rmtree(path)


@pytest.fixture
def sudo(machine: Machine) -> Callable[..., Answer]:
    """Call it once and wait for the answer; what is not a request goes to :meth:`Machine.start`."""

    def call(
        *users: Any,
        data: bytes | None = None,
        prefix: tuple[str, ...] = (),
        more: tuple[str, ...] = (),
        **options: Any,
    ) -> Answer:
        running = machine.start(*prefix, *shipped_command("behind-sudo"), *more, **options)
        if options.get("stdin", subprocess.PIPE) == subprocess.PIPE:
            running.send(request(*users) if data is None else data)
        return running.answer()

    return call
