"""Fixtures of the chain LDAP, hub, hook, Docker, notebook: nothing in it is a stand-in, but for the proxy's absence.

===============  ===============================================================================
``engine``       a Docker engine of the tests' own; :class:`docker_engine.Engine`
``ldap``         a directory service with the users' passwords; :class:`ldap_server.LdapServer`
``start_hub``    starts a hub with the example's configuration; :class:`chain.Hub`
``hub``          one such hub, as the example is
``docker_made``  a user's directory as Docker leaves it where there is no hook; :class:`DockerMade`
``pages_hook``   another's, with the hook that JupyterHub's page shows
===============  ===============================================================================
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ldap_users import DOTTED, EARLY, USERS


@pytest.fixture(scope="session")
def engine(needs: Callable[..., None]) -> Iterator[Any]:
    needs(root=True, programs=("dockerd", "setpriv"))
    from docker_engine import CannotRunHereError, Engine

    engine = Engine()
    try:
        try:
            engine.start()
        except CannotRunHereError as refusal:
            needs(programs=(f"a machine that lets Docker run ({refusal})",))
        yield engine
    finally:
        engine.remove()


@pytest.fixture(scope="session")
def ldap(needs: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    needs(root=True, programs=("slapd", "slapadd", "setpriv"))
    from ldap_server import LdapServer

    for name in (*USERS, EARLY, DOTTED):
        with contextlib.suppress(KeyError):
            pytest.fail(f"there is a local account {pwd.getpwnam(name)}")
    server = LdapServer(tmp_path_factory.mktemp("ldap"), (*USERS, EARLY, DOTTED))
    server.wait_until_up()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def start_hub(engine: Any, ldap: Any) -> Iterator[Callable[..., Any]]:
    from chain import Hub

    site = Path(tempfile.mkdtemp(prefix="ldap-docker-", dir="/tmp"))
    site.chmod(0o755)
    (site / "volumes").mkdir(mode=0o755)
    hubs: list[Hub] = []

    def start(name: str, **options: Any) -> Hub:
        (site / name).mkdir()
        hubs.append(Hub(site / name, engine, ldap, **options))
        hubs[-1].wait_until_up()
        return hubs[-1]

    yield start
    for hub in hubs:
        hub.stop()
    for container in engine.client.containers.list(all=True):
        container.remove(force=True)
    shutil.rmtree(site)


@pytest.fixture(scope="session")
def hub(start_hub: Callable[..., Any]) -> Any:
    return start_hub("hub")


@dataclasses.dataclass
class DockerMade:
    """What became of a user for whom Docker has made the directory."""

    directory: os.stat_result
    saved: httpx.Response
    touched: tuple[int, str]
    content: list[str]
    beside: list[str]
    """The directories of the storage."""


def started(hub: Any, name: str) -> DockerMade:
    """Have the user log in, start a server, and try to save something."""
    from chain import Student

    student = Student(hub, name)
    assert not student.directory.exists()
    assert student.log_in() == 302
    student.start()
    made = DockerMade(
        student.directory.stat(),
        student.save("notes.txt", "mine"),
        hub.engine.inside(student.slug, "touch", "/home/jovyan/notes.txt"),
        os.listdir(student.directory),
        os.listdir(hub.storage),
    )
    student.stop()
    student.leave()
    hub.stop()
    return made


@pytest.fixture(scope="session")
def docker_made(start_hub: Callable[..., Any]) -> DockerMade:
    # Elsewhere than at home, or the notebook would not even start.
    return started(start_hub("without", hook="none", JUPYTER_RUNTIME_DIR="/tmp/runtime"), EARLY)


@pytest.fixture(scope="session")
def pages_hook(start_hub: Callable[..., Any]) -> DockerMade:
    return started(start_hub("pages", hook="page", JUPYTER_RUNTIME_DIR="/tmp/runtime"), DOTTED)
