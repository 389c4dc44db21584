"""The hooks in a real hub: what students see, what admins see, and what the hub survives."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time

import httpx
import jupyterhub.spawner
import pytest
from hub_fakes import FakeApply, until
from hub_process import RunningHub, scrape

OF_OLD = not hasattr(jupyterhub.spawner, "SpawnException")
"""JupyterHub 5 logs a traceback of each failed spawn, knows no reason in its metrics, and escapes the link of a page."""

SENTENCE = "Your storage could not be prepared. Please try again; if it fails again, tell your administrator."


async def test_the_server_starts_when_the_storage_is_ready(hub: RunningHub, apply: FakeApply) -> None:
    apply.do(delay=0.5)
    async with hub.api() as api:
        await api.create("alice")
        spawn = api.spawn("alice")
        await until(lambda: apply.runs)
        assert "server.pid" not in hub.log
        events = await api.progress("alice")
        assert (await spawn).status_code == 201
        assert apply.ended
        assert [event["message"] for event in events][:3] == [
            "Server requested",
            "Preparing your directory",
            "Copying tutorials",
        ]
        assert events[-1]["ready"]
        percents = [event["progress"] for event in events if "progress" in event]
        assert percents == sorted(percents)
        assert (await api.user("alice"))["servers"][""]["ready"]
        # Where the spawner will start the server is what was bootstrapped.
        assert apply.runs[0]["users"] == ["alice"]
        await api.stop("alice")


async def test_every_listener_gets_the_progress_from_the_start(hub: RunningHub, apply: FakeApply) -> None:
    apply.do(delay=1)
    async with hub.api() as api:
        await api.create("lena")
        spawn = api.spawn("lena")
        await until(lambda: apply.runs)
        first = asyncio.create_task(api.progress("lena"))
        await asyncio.sleep(0.5)
        second = asyncio.create_task(api.progress("lena"))
        messages = [[event["message"] for event in await task] for task in (first, second)]
        assert messages[0] == messages[1]
        assert "Copying tutorials" in messages[0]
        await spawn
        await api.stop("lena")


def with_link(name: str) -> str:
    """The sentence, as a page shows it."""
    return SENTENCE.replace("try again", f'<a href="/hub/spawn/{name}">try again</a>', 1)


async def test_a_failure_is_one_sentence_for_the_student_and_one_line_for_the_admin(
    hub: RunningHub, apply: FakeApply
) -> None:
    fail = {
        "failed_role": "tutorials",
        "failed_task": "Copy the tutorials",
        "message": "fatal: [localhost]: FAILED! => /srv/secret/master.zip\n\x1b[31mTraceback",
    }
    apply.do(delay=0.5, fail={"bob": fail})
    async with hub.api() as api:
        await api.create("bob")
        spawn = api.spawn("bob")
        await until(lambda: apply.runs)
        events = await api.progress("bob")
        assert events[-1]["failed"]
        assert events[-1]["message"] == f"Spawn failed: {SENTENCE}"
        assert events[-1]["html_message"] == with_link("bob")
        answer = await spawn
        assert answer.status_code == 503
        assert answer.json()["message"] == SENTENCE
        seen = str(events) + answer.text
        for technical in (
            "/srv",
            "fatal",
            "Traceback",
            "Ansible",
            "localhost",
            "BootstrapError",
        ):
            assert technical not in seen
    (line,) = [line for line in hub.log.splitlines() if "bob not started" in line]
    for detail in (
        "tutorials",
        "Copy the tutorials",
        "localhost",
        "/srv/secret/master.zip",
        "fake-",
        "role_failed",
    ):
        assert detail in line
    assert line.isprintable()
    assert OF_OLD or "Traceback (most recent" not in hub.log


async def test_the_page_shows_the_same_sentence(hub: RunningHub, apply: FakeApply) -> None:
    apply.do(fail={"paula": {"message": "/srv/secret is full"}})
    async with httpx.AsyncClient(follow_redirects=True, timeout=30) as browser:
        await browser.get(f"{hub.url}/login")
        form = {"username": "paula", "password": "secret", "_xsrf": browser.cookies["_xsrf"]}
        await browser.post(f"{hub.url}/login?next=%2Fhub%2Fhome", data=form)
        page = await browser.get(f"{hub.url}/spawn/paula")
        assert page.status_code == 503
        assert OF_OLD or with_link("paula") in page.text
        assert "/srv/secret" not in page.text
        late = await browser.get(f"{hub.url}/spawn-pending/paula")
        assert with_link("paula") in late.text
        assert "/srv/secret" not in late.text


@pytest.mark.parametrize(
    ("name", "reason"), [("timeouty", "timeout"), ("cancelly", "apply_failed"), ("buggy", "apply_failed")]
)
async def test_whatever_goes_wrong_inside_is_our_message(hub: RunningHub, name: str, reason: str) -> None:
    async with hub.api() as api:
        await api.create(name)
        answer = await api.spawn(name)
        assert answer.status_code == 503
        assert re.search(r"storage", answer.json()["message"])
        assert "/srv" not in answer.text
        assert not (await api.user(name))["servers"], "a phantom"
        assert f"{name} not started ({reason})" in hub.log
        metrics = (await api.client.get(f"{hub.url}/metrics")).text
        assert OF_OLD or f'reason="{reason}",status="failure"' in metrics


async def test_five_failures_in_a_row_do_not_end_the_hub(hub: RunningHub, apply: FakeApply) -> None:
    names = [f"unlucky{number}" for number in range(6)]
    apply.do(behave="die")
    async with hub.api() as api:
        await api.create(*names)
        for name in names:
            assert (await api.spawn(name)).status_code == 503
        await asyncio.sleep(2.5)  # BaseHandler.spawn_single_user ends the hub 2 s after the fifth.
        assert hub.process.poll() is None
        apply.do()
        assert (await api.spawn(names[0])).status_code == 201
        await api.stop(names[0])


async def test_the_hub_stays_quick_while_a_bootstrap_works(hub: RunningHub, apply: FakeApply) -> None:
    async def worst(seconds: float) -> float:
        times = []
        async with httpx.AsyncClient() as client:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                begin = time.monotonic()
                await client.get(f"{hub.url}/health")
                times.append(time.monotonic() - begin)
                await asyncio.sleep(0.01)
        return max(times)

    async with hub.api() as api:
        names = [f"storm{number}" for number in range(10)]
        await api.create(*names)
        idle = await worst(0.5)
        apply.do(delay=4)
        spawns = [api.spawn(name) for name in names]
        await until(lambda: apply.runs)
        await asyncio.sleep(0.5)  # The hub's own work for ten spawns at once.
        busy = await worst(2)
        assert not apply.ended, "the bootstrap was over before the measurement was"
        apply.do()
        for spawn in spawns:
            await spawn
        assert busy < idle + 1  # a hook that blocks would hold it for all of the 4 s
        for name in names:
            await api.until(name, lambda servers: servers and servers[""]["ready"], 20)
        await asyncio.gather(*(api.stop(name) for name in names))


async def test_a_cancelled_spawn_leaves_no_phantom_and_no_process(hub: RunningHub, apply: FakeApply) -> None:
    apply.do(behave="hang")
    async with hub.api() as api:
        await api.create("carol")
        spawn = api.spawn("carol")
        await until(lambda: apply.runs)
        begin = time.monotonic()
        stopped = await api.stop("carol")
        assert stopped.status_code in {202, 204}
        assert time.monotonic() - begin < 6
        await spawn
        await api.until("carol", lambda servers: not servers)
        await until(lambda: not apply.alive(), 4)
        apply.do()
        assert (await api.spawn("carol")).status_code == 201  # And she can come again.
        await api.stop("carol")


async def test_named_servers_and_double_clicks_share_one_run(hub: RunningHub, apply: FakeApply) -> None:
    apply.do(delay=1)
    async with hub.api() as api:
        await api.create("dora")
        spawns = [api.spawn("dora", server) for server in ("", "one", "two")]
        await until(lambda: apply.runs)
        again = await api.spawn("dora")
        assert again.status_code == 202
        assert {(await spawn).status_code for spawn in spawns} == {201}
        assert [run["users"] for run in apply.runs] == [["dora"]]
        for server in ("", "one", "two"):
            await api.stop("dora", server)


async def test_one_of_two_users_in_a_run_may_cancel(hub: RunningHub, apply: FakeApply) -> None:
    apply.do(delay=2)
    async with hub.api() as api:
        await api.create("erin")
        one, two = api.spawn("erin", "one"), api.spawn("erin", "two")
        await until(lambda: apply.runs)
        await api.stop("erin", "one")
        await one
        assert (await two).status_code == 201
        servers = (await api.user("erin"))["servers"]
        assert [name for name, server in servers.items() if server["ready"]] == ["two"]
        assert len(apply.runs) == 1
        await api.stop("erin", "two")


async def test_a_class_shares_a_run_and_hears_of_the_others(hub: RunningHub, apply: FakeApply) -> None:
    apply.do(delay=0.7, fail={"class3": {"message": "quota"}})
    names = [f"class{number}" for number in range(8)]
    async with hub.api() as api:
        await api.create(*names)
        spawns = [api.spawn(name) for name in names]
        await until(lambda: apply.runs)
        heard = await api.progress("class7")
        codes = [(await spawn).status_code for spawn in spawns]
        assert codes == [503 if name == "class3" else 201 for name in names]
        assert len(apply.runs) <= 3
        assert any(", with " in event["message"] for event in heard)
        await asyncio.gather(*(api.stop(name) for name in names))


async def test_the_hook_of_the_nearest_class_runs_before_ours(hub: RunningHub, apply: FakeApply) -> None:
    apply.do(fail={"frank": {"message": "quota"}})
    async with hub.api() as api:
        await api.create("grace", "frank")
        await api.spawn("grace")
        await api.spawn("frank")
        await api.stop("grace")
        # Once though setup(c) ran twice, and the class's, not the generic one.
        assert hub.hooks.count("chained grace") == 1
        assert "generic grace" not in hub.hooks
        assert hub.hooks.count("chained frank") == 1
        assert hub.hooks.count("stopped grace") == 1


async def test_a_chained_stop_hook_that_raises_does_not_hold_the_user(
    hub: RunningHub, apply: FakeApply
) -> None:
    async with hub.api() as api:
        await api.create("raiser")
        await api.spawn("raiser")
        assert (await api.stop("raiser")).status_code in {202, 204}
        await api.until("raiser", lambda servers: not servers)
        assert (await api.spawn("raiser")).status_code == 201
        await api.stop("raiser")


@pytest.mark.alone(reason="its servers stop within the hub's clean-up delay of 0.3 s")
async def test_clean_ups_come_after_the_stops_and_together(hub: RunningHub, apply: FakeApply) -> None:
    apply.do(cleanup={"behave": "hang"})
    names = [f"leaver{number}" for number in range(6)]

    def cleaned() -> list[str]:
        return [name for run in apply.cleanups for name in run["users"]]

    async with hub.api() as api:
        await api.create(*names)
        await asyncio.gather(*(api.spawn(name) for name in names))
        await asyncio.gather(*(api.stop(name) for name in names))
        for name in names:
            await api.until(name, lambda servers: not servers)  # The stops have not waited for the clean-up.
        (cleanup,) = await until(lambda: apply.cleanups)
        # A user who comes back during the clean-up waits for its end.
        back = cleanup["users"][-1]
        count = len(apply.runs)
        spawn = api.spawn(back)
        await until(lambda: scrape(hub).get('ansible_bootstrap_queue_users{storage_host="localhost"}') == 1)
        assert len(apply.runs) == count
        assert apply.alive() == [cleanup["pid"]]
        apply.do()
        os.kill(cleanup["pid"], signal.SIGKILL)
        assert (await spawn).status_code == 201
        assert [run["users"] for run in apply.runs[count:]] == [[back]]
        await until(lambda: set(names) <= set(cleaned()))
        assert len(apply.cleanups) <= 3
        await api.stop(back)


async def test_what_may_be_missing_is_one_sentence(hub: RunningHub, apply: FakeApply) -> None:
    apply.do(delay=0.5, more={"jane": {"continued": ["tutorials"], "notes": ["tutorials: mirror is down"]}})
    async with hub.api() as api:
        await api.create("jane")
        spawn = api.spawn("jane")
        await until(lambda: apply.runs)
        messages = [event["message"] for event in await api.progress("jane")]
        assert (await spawn).status_code == 201
        assert "Something extra could not be prepared this time; you can work without it" in messages
        assert "mirror is down" in hub.log
        assert "mirror" not in str(messages)
        await api.stop("jane")


async def test_storage_hosts_have_runs_of_their_own(hub: RunningHub, apply: FakeApply) -> None:
    apply.do(delay=1)
    async with hub.api() as api:
        await api.create("kim", "kim-two")
        spawns = [api.spawn("kim"), api.spawn("kim-two")]
        await until(lambda: len(apply.runs) == 2)
        assert not apply.ended, "they waited for one another"
        for spawn in spawns:
            assert (await spawn).status_code == 201
        await asyncio.gather(api.stop("kim"), api.stop("kim-two"))
