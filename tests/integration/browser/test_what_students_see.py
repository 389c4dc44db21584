"""What a student sees while their storage is prepared, in a real browser.

The sentences themselves, their order and who hears them are held elsewhere (``test_hub_hooks.py``, the dispatcher's
tests); here is what only a page can show: the bar, a reload, a second tab, where a link leads.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_fakes import until
from playwright.async_api import expect
from student import PICTURES, SteppedApply, Student, StudentHub, until_waiting

pytestmark = pytest.mark.asyncio(loop_scope="module")

Arrive = Callable[..., Any]

DIRECTORY, TUTORIALS = "Preparing your directory", "Copying tutorials"
FAILED = "Your storage could not be prepared. Please try again; if it fails again, tell your administrator."
EXTRA = "Something extra could not be prepared this time; you can work without it"


async def test_the_bar_and_the_sentence_move_until_the_notebook_is_there(
    hub: StudentHub, apply: SteppedApply, student: Arrive
) -> None:
    apply.do(steps={"ada": 0})
    ada: Student = await student("ada", hub)
    await ada.start()
    await ada.reads(DIRECTORY, 5)
    await ada.picture("preparing-your-directory")
    apply.let("ada", 1)
    await ada.reads(TUTORIALS, 25)
    await ada.picture("copying-tutorials")
    apply.let("ada", 2)
    await ada.works()
    percents = [percent for _, percent in ada.seen]
    assert percents == sorted(percents)


async def test_a_page_that_is_reloaded_or_opened_late_shows_every_sentence(
    hub: StudentHub, apply: SteppedApply, student: Arrive
) -> None:
    apply.do(steps={"berta": 0})
    berta: Student = await student("berta", hub)
    await berta.start()
    await berta.reads(DIRECTORY, 5)
    apply.let("berta", 1)
    await berta.reads(TUTORIALS, 25)
    before = len(berta.seen)
    await berta.page.reload()
    await berta.reads(TUTORIALS, 25)
    percents = [percent for _, percent in berta.seen[before:]]
    assert percents == sorted(percents)
    tab = await berta.context.new_page()
    await tab.goto(berta.page.url)
    await expect(tab.locator("#progress-message")).to_have_text(TUTORIALS)
    for page in (berta.page, tab):
        await page.get_by_text("Event log").click()
        assert await berta.log(page) == ["Server requested", DIRECTORY, TUTORIALS]
    await berta.picture("event-log")
    apply.let("berta", 2)
    await berta.works()
    await expect(tab.get_by_role("heading", name="Your notebook")).to_be_visible()


async def test_in_a_class_the_page_says_how_many_others_there_are(
    hub: StudentHub, apply: SteppedApply, student: Arrive
) -> None:
    before, beside = (12, 49) if PICTURES else (4, 6)
    early = [f"first{number}" for number in range(before)]
    later = [f"next{number}" for number in range(beside - (before - 1))]
    apply.do(
        steps={"first0": 0, "carla": 1}, fail={name: {} for name in early + later}
    )  # No server for them.
    async with hub.api() as api:
        await api.create(*early, *later)
        spawns = [api.spawn(early[0])]
        await until(lambda: apply.runs)
        spawns += [api.spawn(name) for name in early[1:]]
        await until_waiting(api, before - 1)
        carla: Student = await student("carla", hub)
        await carla.start()
        await carla.reads(f"Waiting for {before} others", 5)
        await carla.picture("waiting-for-others")
        spawns += [api.spawn(name) for name in later]
        await until_waiting(api, beside + 1)
        apply.let("first0", 99)
        await carla.reads(f"{TUTORIALS}, with {beside} others", 25)
        await carla.picture("with-others")
        apply.let("carla", 99)
        await carla.works()
        await asyncio.gather(*spawns)


async def test_a_failure_says_what_to_do_and_doing_it_helps(
    hub: StudentHub, apply: SteppedApply, student: Arrive
) -> None:
    message = "fatal: [localhost]: FAILED! => /srv/secret <img src=x onerror=alert(1)>"
    fail = {"failed_role": "tutorials", "failed_task": "Copy the tutorials", "message": message}
    apply.do(steps={"dora": 0}, fail={"dora": fail})
    dora: Student = await student("dora", hub)
    await dora.start()
    await dora.reads(DIRECTORY)
    apply.let("dora", 1)
    await dora.reads(TUTORIALS)
    apply.let("dora", 2)
    await dora.reads(FAILED, 100)
    await expect(dora.page.locator("#progress-message").get_by_role("link", name="try again")).to_be_visible()
    await dora.picture("failed")
    live = await dora.text()
    assert await dora.log() == ["Server requested", DIRECTORY, TUTORIALS, FAILED]
    await dora.page.reload()
    await expect(dora.page.get_by_role("heading", name="Spawn failed")).to_be_visible()
    await dora.picture("failed-reloaded")
    late = await dora.text()
    assert FAILED in late
    for technical in (
        "/srv",
        "fatal",
        "FAILED",
        "<img",
        "localhost",
        "Copy the",
        "Ansible",
        "BootstrapError",
    ):
        assert technical not in live + late
    assert await dora.page.locator("img[src=x]").count() == 0
    apply.do()
    await dora.page.get_by_role("link", name="try again").click()
    await dora.works()


async def test_what_may_be_missing_is_said_while_the_server_starts(
    hub: StudentHub, apply: SteppedApply, student: Arrive
) -> None:
    apply.do(steps={"emma": 1}, more={"emma": {"continued": ["tutorials"], "notes": ["mirror is down"]}})
    home = hub.home("emma")
    home.mkdir()
    (home / "hold").touch()
    emma: Student = await student("emma", hub)
    await emma.start()
    await emma.reads(TUTORIALS)
    apply.let("emma", 2)
    await emma.reads(f"Spawning server... ({EXTRA})", 50)
    await emma.picture("something-extra")
    (home / "hold").unlink()
    await emma.works()


async def test_a_name_that_would_be_html_is_refused_and_stays_text(hub: StudentHub, student: Arrive) -> None:
    mallory: Student = await student("<img src=x onerror=alert(1)>", hub)
    await mallory.start()
    await expect(mallory.page.get_by_text("not accepted here")).to_be_visible()
    assert await mallory.page.locator("img[src=x]").count() == 0


@pytest.mark.slow
async def test_a_complete_user_sees_no_page_of_ours(
    hub: StudentHub, apply: SteppedApply, student: Arrive
) -> None:
    apply.do(
        fingerprints=[
            {"role": role, "fingerprint": "1", "revised": True} for role in ("user_dir", "tutorials")
        ]
    )
    hub.home("fanny").mkdir()
    fanny: Student = await student("fanny", hub)
    await fanny.start()
    await fanny.works()
    async with hub.api() as api:
        await api.stop("fanny")
        await api.until("fanny", lambda servers: not servers)
    apply.notes.unlink()
    before = len(fanny.seen)
    await fanny.page.goto(f"{hub.url}/home")
    await fanny.start()
    await fanny.works()
    assert not {sentence for sentence, _ in fanny.seen[before:]} & {DIRECTORY, TUTORIALS}
    assert apply.runs == []


@pytest.fixture
def course() -> Iterator[Path]:
    """Tutorials where every user can read them, which is not so below tmp_path."""
    with tempfile.TemporaryDirectory(prefix="ansible_bootstrap_", dir="/tmp") as path:
        Path(path).chmod(0o755)
        Path(path, "welcome.ipynb").write_text("{}")
        yield Path(path)


@pytest.mark.root
@pytest.mark.slow
async def test_the_whole_way_with_the_real_apply_program(
    tmp_path: Path, course: Path, student: Arrive
) -> None:
    hub = StudentHub(
        tmp_path,
        embedded=True,
        at_login=False,
        roles=["user_dir", "tutorials"],
        extra_vars={"tutorials_sources": [{"name": "course", "path": str(course), "dest": "tutorials"}]},
        uid=20_000,
        gid=20_000,
    )
    try:
        hub.wait_until_up()
        gerda: Student = await student("gerda", hub)
        await gerda.start()
        await gerda.works()
    finally:
        hub.kill()
    said = dict.fromkeys(sentence for sentence, _ in gerda.seen)
    assert [sentence for sentence in said if sentence in {DIRECTORY, TUTORIALS}] == [DIRECTORY, TUTORIALS]
    assert (hub.home("gerda") / "tutorials/welcome.ipynb").is_file()
