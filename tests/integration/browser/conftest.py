"""Fixtures of the tests that look at the hub's pages in a real browser.

===============  ===============================================================================
``browser``      a headless Chromium, one for a file
``hub``          a hub with the stepped apply program, one for a file; reset before each test
``apply``        that program: ``student.SteppedApply``
``student``      makes somebody at that browser who has logged in; ``student.Student``
===============  ===============================================================================
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

sys.path.insert(0, str(Path(__file__).parents[2] / "unit/hub"))
sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

from student import SteppedApply, Student, StudentHub

QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(needs: Callable[..., None]) -> AsyncIterator[Browser]:
    needs(programs=("chromium",))
    sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()
    async with async_playwright() as driver:
        chromium = await driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=[*QUIET, *sandbox]
        )
        yield chromium
        await chromium.close()


@pytest.fixture(scope="module")
def _shared(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[StudentHub, SteppedApply]]:
    fake = SteppedApply(tmp_path_factory.mktemp("apply"))
    hub = StudentHub(tmp_path_factory.mktemp("hub"), apply_command=fake.command, timeout=60)
    try:
        hub.wait_until_up()
        yield hub, fake
    finally:
        hub.kill()
        fake.clean()


@pytest.fixture
def apply(_shared: tuple[StudentHub, SteppedApply]) -> SteppedApply:
    fake = _shared[1]
    fake.do()
    fake.notes.unlink(missing_ok=True)
    return fake


@pytest.fixture
def hub(_shared: tuple[StudentHub, SteppedApply], apply: SteppedApply) -> StudentHub:
    return _shared[0]


@pytest_asyncio.fixture(loop_scope="module")
async def student(browser: Browser) -> AsyncIterator[Callable[..., Coroutine[Any, Any, Student]]]:
    students: list[Student] = []

    async def arrive(name: str, hub: StudentHub) -> Student:
        students.append(await Student.arrive(name, hub, browser))
        await students[-1].log_in()
        return students[-1]

    yield arrive
    for one in students:
        assert one.scripts == [], "a script ran that nobody wrote"
        await one.leave()
