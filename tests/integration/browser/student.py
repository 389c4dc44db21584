"""A student at a browser, the hub they log in to, and the work that they wait for."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hub_fakes import FakeApply
from hub_process import HERE as HUB
from hub_process import Api, RunningHub
from playwright.async_api import Browser, BrowserContext, FloatRect, Page, ViewportSize, expect

HERE = Path(__file__).parent
PICTURES = os.environ.get("ANSIBLE_BOOTSTRAP_PICTURES")
"""Where pictures are to be kept, if they are; see docs/screenshots/make.py."""

SIZE = ViewportSize(width=1000, height=500)

MARGIN = 24
"""Pixels below the last button on a picture."""

OBSERVER = """
addEventListener("DOMContentLoaded", () => {
  const bar = document.getElementById("progress-bar"), text = document.getElementById("progress-message");
  if (!bar) return;
  new MutationObserver(() => window.seen(text.textContent, Number(bar.getAttribute("aria-valuenow")))).observe(
    document.body, {subtree: true, childList: true, characterData: true, attributeFilter: ["aria-valuenow"]});
});
"""
"""Tells what the page shows, also just before it is left."""


class StudentHub(RunningHub):
    """A hub whose pages and notebooks are on one port."""

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(HERE / "browser_hub_config.py")],
                cwd=self.path,
                env={
                    **os.environ,
                    "HUB_TEST": str(self.path / "test.json"),
                    "HUB_CONFIG": str(HUB / "hub_config.py"),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def home(self, name: str) -> Path:
        """Where the fake server of that user runs."""
        return self.path / "storage" / name


class SteppedApply(FakeApply):
    """The apply program that goes as far as it is let."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._told: dict[str, Any] = {}
        self.command = [sys.executable, "-S", str(HERE / "stepped_apply.py"), str(self.control)]

    def do(self, **control: Any) -> None:
        self._told = control
        super().do(**control)

    def let(self, name: str, steps: int) -> None:
        """Go on with this user's run up to that step; the others' runs are as they were."""
        self.do(**{**self._told, "steps": {**self._told.get("steps", {}), name: steps}})


@dataclass
class Student:
    """A student at a browser; what the spawn page showed stays in :attr:`seen`."""

    name: str
    hub: StudentHub
    context: BrowserContext
    page: Page
    seen: list[tuple[str, int]] = field(default_factory=list)
    """Each sentence and percentage that was on one of their pages, in order."""
    scripts: list[str] = field(default_factory=list)
    """What popped up; nothing may."""

    @classmethod
    async def arrive(cls, name: str, hub: StudentHub, browser: Browser) -> Student:
        context = await browser.new_context(viewport=SIZE, locale="en-GB")
        context.set_default_timeout(15_000)
        student = cls(name, hub, context, await context.new_page())
        await context.expose_function("seen", student._see)
        await context.add_init_script(OBSERVER)
        student.page.on("dialog", lambda dialog: student.scripts.append(dialog.message))
        return student

    def _see(self, sentence: str, percent: int) -> None:
        if (sentence, percent) not in self.seen[-1:]:
            self.seen.append((sentence, percent))

    async def log_in(self) -> None:
        await self.page.goto(f"{self.hub.url}/login?next=%2Fhub%2Fhome")
        await self.page.get_by_label("Username").fill(self.name)
        await self.page.get_by_label("Password").fill("secret")
        await self.page.get_by_role("button", name="Sign in").click()
        await self.page.wait_for_url(re.compile("/hub/home$"))

    async def start(self) -> None:
        """Press Start; the hub answers within a second or so, with the spawn page if it is not ready by then."""
        await self.page.get_by_role("button", name=re.compile("Start My Server|Relaunch Server")).click()

    async def reads(self, sentence: str, percent: int | None = None) -> None:
        """Wait until the spawn page says so."""
        await expect(self.page.locator("#progress-message")).to_have_text(sentence, timeout=15_000)
        if percent is not None:
            bar = self.page.get_by_role("progressbar")
            await expect(bar).to_have_attribute("aria-valuenow", str(percent))

    async def works(self) -> None:
        """Wait until the notebook is there."""
        await expect(self.page.get_by_role("heading", name="Your notebook")).to_be_visible(timeout=30_000)

    async def log(self, page: Page | None = None) -> list[str]:
        """What the event log of the page holds."""
        return await (page or self.page).locator(".progress-log-event").all_inner_texts()

    async def text(self) -> str:
        return await self.page.locator("body").inner_text()

    async def picture(self, name: str) -> None:
        """Keep a picture of the page, if pictures are wanted."""
        if PICTURES:
            bar = self.page.locator("#progress-bar")
            if await bar.count():  # Its width moves for a while.
                await bar.evaluate("bar => Promise.all(bar.getAnimations().map(moving => moving.finished))")
            await self.page.mouse.move(0, 0)
            last = await self.page.get_by_role("button").last.bounding_box()
            height = min(last["y"] + last["height"] + MARGIN, SIZE["height"]) if last else SIZE["height"]
            clip = FloatRect(x=0, y=0, width=SIZE["width"], height=height)
            await self.page.screenshot(path=Path(PICTURES) / f"{name}.png", clip=clip)

    async def leave(self) -> None:
        await self.context.close()


async def until_waiting(api: Api, count: int, seconds: float = 15) -> None:
    """Wait until so many wait for the next run."""
    end = time.monotonic() + seconds
    while True:
        text = (await api.client.get(str(api.client.base_url.join("../metrics")))).text
        found = re.search(r"^ansible_bootstrap_queue_users\{[^}]*\} (\S+)", text, re.MULTILINE)
        if found is not None and float(found[1]) == count:
            return
        assert time.monotonic() < end, text
        await asyncio.sleep(0.05)
