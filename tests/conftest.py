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
import random
import shutil
from collections import Counter
from collections.abc import Callable
from typing import Any

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


ONE_AT_A_TIME = ("hosts", "boundary", "docker", "browser")
"""Suites below ``integration`` that share accounts, network namespaces, a daemon or a browser."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file, or a suite that shares something, on one worker.

    Rejected: ``--dist loadgroup``, whose groups pytest-xdist 3.8 loses with pytest 9.2, without a word.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            suite = file.rpartition("/")[0]
            return suite if suite.rpartition("/")[2] in ONE_AT_A_TIME else file

    config.option.loadscopereorder = False
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest; give the marker ``root`` its meaning."""
    items.sort(key=lambda item: item.path.parent.name not in (*ONE_AT_A_TIME, "storage"))
    if os.geteuid() != 0 and not REQUIRE_ALL:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root"))


def pytest_configure() -> None:
    """Choose the steps at which the kill harness kills, before the workers that are to choose the same are started."""
    os.environ.setdefault("ANSIBLE_BOOTSTRAP_STEPS", str(random.randrange(1_000_000)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the suite ``faults`` has tried, whichever worker did it."""
    counts: Counter[str] = Counter()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if getattr(report, "when", "") == "teardown":
            counts.update(dict(report.user_properties).get("counted", {}))
    if counts["steps"] or counts["cuts"]:
        terminalreporter.write_line(
            f"kill harness: {counts['steps']} steps killed, {counts['partial']} partial homes or tutorials "
            f"ever visible, {counts['lost']} bytes of users lost; {counts['cuts']} power cuts, "
            f"{counts['cut partial']} partial; ANSIBLE_BOOTSTRAP_STEPS={os.environ['ANSIBLE_BOOTSTRAP_STEPS']}"
        )
    if counts["rounds"]:
        terminalreporter.write_line(
            f"flipper: {counts['rounds']} rounds, {counts['flips']} exchanges, {counts['victims']} victims touched"
        )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if REQUIRE_ALL and item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.fail("needs root")
