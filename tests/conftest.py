"""Fixtures and rules for the whole suite.

Rules
    A test that needs root or a real part of the system (sshd, network namespaces, …) asks for it
    with the marker ``root`` or the fixture ``needs``. On a laptop it is then skipped with the reason; where the environment
    variable ``ANSIBLE_BOOTSTRAP_REQUIRE_ALL`` is set, as in CI, the skip is a failure.

Fixtures
    ``needs``: call it with what the test needs. The others are in the ``conftest.py`` of each suite.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest

REQUIRE_ALL = bool(os.environ.get("ANSIBLE_BOOTSTRAP_REQUIRE_ALL"))


def needs(*, root: bool = False, programs: tuple[str, ...] = ()) -> None:
    """Skip the test that calls this unless the real parts are here; fail it where all are required."""
    missing = ["root"] if root and os.geteuid() != 0 else []
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing += [program for program in programs if not shutil.which(program, path=path)]
    if missing:
        reason = f"needs {', '.join(missing)}"
        if REQUIRE_ALL:
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session", name="needs")
def _needs() -> Callable[..., None]:
    return needs


ONE_AT_A_TIME = ("boundary", "browser", "docker", "hosts")
"""Suites below ``integration`` that share accounts, network namespaces, a daemon or a browser."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file, or a suite that shares something, on one worker; give the marker ``root`` its meaning."""
    for item in items:
        suite = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group(suite if suite in ONE_AT_A_TIME else str(item.path)))
    if os.geteuid() != 0 and not REQUIRE_ALL:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if REQUIRE_ALL and item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.fail("needs root")
