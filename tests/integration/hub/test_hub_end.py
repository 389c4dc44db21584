"""How a hub ends, and the other ways to use it: without setup(c), observing, with the real apply program."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_fakes import FakeApply, until
from hub_process import RunningHub

from ansible_bootstrap.history import History

UID = 20_000


@pytest.fixture
def own(tmp_path: Path) -> FakeApply:
    """A fake apply program of the test's own: the hub ends in the test."""
    return FakeApply(tmp_path)


@pytest.mark.parametrize("ignore_term", [False, True])
async def test_sigterm_ends_the_hub_and_the_run_within_2_s(
    start_hub: Callable[..., RunningHub], own: FakeApply, ignore_term: bool
) -> None:
    hub = start_hub(apply_command=own.command, cleanup_delay=1)
    own.do(behave="hang", ignore_term=ignore_term)
    async with hub.api() as api:
        await api.create("alice", "bob")
        spawns = [api.spawn("alice"), api.spawn("bob")]
        await until(lambda: own.runs)
        begin = time.monotonic()
        hub.process.send_signal(signal.SIGTERM)
        await until(lambda: hub.process.poll() is not None, 15)
        # 2 s of ours, and what the hub itself takes; the rest is for a busy machine. The run would hang for ever.
        assert time.monotonic() - begin < 6
        await asyncio.gather(*spawns, return_exceptions=True)
    assert not own.alive()
    assert "Traceback (most recent call last)" not in hub.log.partition("received signal")[2]


async def test_kill_9_of_the_hub_leaves_no_descendant(
    start_hub: Callable[..., RunningHub], own: FakeApply
) -> None:
    hub = start_hub(apply_command=own.command)
    own.do(behave="hang")
    async with hub.api() as api:
        await api.create("alice")
        spawn = api.spawn("alice")
        await until(lambda: own.runs)
        hub.process.kill()
        await until(lambda: not own.alive(), 5)
        await asyncio.gather(spawn, return_exceptions=True)


async def test_a_bootstrapped_class_needs_no_setup_and_shows_progress_to_early_pages(
    start_hub: Callable[..., RunningHub], own: FakeApply
) -> None:
    hub = start_hub(apply_command=own.command, bootstrapped=True)
    own.do(delay=0.3)
    async with hub.api() as api:
        await api.create("early")
        for _ in range(2):  # Again on the same spawner: the first start's progress is not repeated.
            spawn = api.spawn("early")
            await asyncio.sleep(0.3)  # The hub waits 3 s in its auth_state_hook, before ours.
            count = len(own.runs)
            messages = [event["message"] for event in await api.progress("early")]
            assert len(own.runs) == count + 1, "the page was not early"
            assert messages[:3] == ["Server requested", "Preparing your directory", "Copying tutorials"]
            assert messages.count("Copying tutorials") == 1
            assert (await spawn).status_code == 201
            await api.stop("early")
        assert hub.hooks == ["chained early", "stopped early"] * 2
        own.do(fail={"late": {"message": "quota"}})
        await api.create("late")
        assert (await api.spawn("late")).status_code == 503


async def test_observing_holds_nobody_up_and_says_what_would_be(
    start_hub: Callable[..., RunningHub], own: FakeApply
) -> None:
    hub = start_hub(apply_command=own.command, mode="observe")
    own.do(delay=8, more={"alice": {"changed": ["user_dir"]}}, fail={"bob": {"message": "wrong owner"}})
    async with hub.api() as api:
        await api.create("alice", "bob", "buggy")
        begin = time.monotonic()
        answers = await asyncio.gather(*(api.spawn(name) for name in ("alice", "bob", "buggy")))
        assert {answer.status_code for answer in answers} == {201}
        assert time.monotonic() - begin < 6
        await until(lambda: "observed alice: would change: user_dir" in hub.log)
        await until(lambda: "observed bob: would fail (role_failed)" in hub.log)
        assert all(run["check"] for run in own.runs)


async def test_settings_that_contradict_themselves_are_named(
    start_hub: Callable[..., RunningHub], own: FakeApply
) -> None:
    hub = start_hub(apply_command=own.command, storage_root="/volumes")
    async with hub.api() as api:
        await api.create("alice")
        answer = await api.spawn("alice")
        assert answer.status_code == 503
        assert answer.json()["message"] == (
            "The preparation of your storage is misconfigured. Please tell your administrator."
        )
        assert "c.AnsibleBootstrap.storage_root" in hub.log
        assert "/etc/ansible-bootstrap/settings.yml" in hub.log
        assert not own.runs


# With the real apply program


def owner() -> dict[str, int]:
    return {"uid": UID, "gid": UID} if os.geteuid() == 0 else {}


async def test_a_user_without_storage_gets_it_before_the_server_starts(
    start_hub: Callable[..., RunningHub], tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("storage")
    base.chmod(0o755)
    source = base / "course"
    source.mkdir()
    (source / "welcome.ipynb").write_text("{}")
    hub = start_hub(
        embedded=True,
        roles=["user_dir", {"role": "tutorials", "on_failure": "continue"}],
        extra_vars={"tutorials_sources": [{"name": "course", "path": str(source), "dest": "tutorials"}]},
        **owner(),
    )
    home = hub.path / "storage" / "alice"
    async with hub.api() as api:
        await api.create("alice")
        spawn = api.spawn("alice")
        await asyncio.sleep(0.3)
        messages = [event["message"] for event in await api.progress("alice")]
        assert (await spawn).status_code == 201, hub.log
        assert messages[1:3] == ["Preparing your directory", "Copying tutorials"]
        assert (home / "tutorials/welcome.ipynb").read_text() == "{}"
        assert home.stat().st_uid == owner().get("uid", os.geteuid())
    status = History(hub.path / "state")
    await until(status.runs, 3)
    assert [(run.operation, run.users, run.failed) for run in status.runs()] == [("bootstrap", 1, 0)]
    assert status.outcomes("alice")[0].outcome.status == "ok"
    for file in (hub.path / "state").iterdir():
        assert file.stat().st_mode & 0o777 == 0o600, file
    assert (hub.path / "state").stat().st_mode & 0o777 == 0o700


async def test_a_real_run_ends_with_its_hub(start_hub: Callable[..., RunningHub], tmp_path: Path) -> None:
    from ansible_bootstrap.descendants import descendants

    roles = tmp_path / "roles" / "slow" / "tasks"
    roles.mkdir(parents=True)
    (roles / "main.yml").write_text("- name: Take long\n  ansible.builtin.command: sleep 61.5\n")
    hub = start_hub(
        embedded=True, roles=["user_dir", "slow"], roles_path=[str(tmp_path / "roles")], **owner()
    )
    async with hub.api() as api:
        await api.create("alice")
        spawn = api.spawn("alice")
        sleeping = await until(lambda: sleepers(descendants(hub.process.pid)), 15)
        left = descendants(hub.process.pid)
        hub.process.kill()
        await until(lambda: not sleepers(left), 5)
        await asyncio.gather(spawn, return_exceptions=True)
        assert sleeping


def sleepers(pids: object) -> list[int]:
    found = []
    for pid in pids:  # type: ignore[attr-defined]
        try:
            if b"61.5" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def cleaned(own: FakeApply) -> list[str]:
    return [name for run in own.cleanups for name in run["users"]]


@pytest.mark.parametrize("when", ["waits", "in_flight"])
async def test_a_clean_up_outlives_a_killed_hub_and_happens_once(
    start_hub: Callable[..., RunningHub], own: FakeApply, when: str
) -> None:
    delay = 1 if when == "in_flight" else 4
    hub = start_hub(apply_command=own.command, cleanup_delay=delay)
    own.do(cleanup={"behave": "hang"})
    async with hub.api() as api:
        await api.create("alice", "back")
        for name in ("alice", "back"):
            assert (await api.spawn(name)).status_code == 201
        await asyncio.gather(api.stop("alice"), api.stop("back"))
        if when == "in_flight":
            await until(lambda: cleaned(own))  # One of them, or both: as their stops fell.
    hub.process.kill()
    await until(lambda: not own.alive())
    own.notes.unlink(missing_ok=True)
    own.do()
    hub.restart()
    async with hub.api() as api:
        if when == "waits":  # Who is back before it came needs none.
            assert (await api.spawn("back")).status_code == 201
        # Nobody has pressed Start for alice.
        expected = ["alice"] if when == "waits" else ["alice", "back"]
        await until(lambda: set(expected) <= set(cleaned(own)), 20)
        await asyncio.sleep(2 * delay + 0.5)
        assert sorted(cleaned(own)) == expected
        await api.stop("back")
    hub.process.kill()
    own.notes.unlink()
    hub.restart(cleanup_delay=0.5)  # What was left over would come soon.
    await asyncio.sleep(3)
    assert "alice" not in cleaned(own), "it was done already"


async def test_a_server_that_died_with_its_hub_is_cleaned_up_once(
    start_hub: Callable[..., RunningHub], own: FakeApply
) -> None:
    hub = start_hub(apply_command=own.command, cleanup_delay=0.5)
    async with hub.api() as api:
        await api.create("dead", "lives")
        for name in ("dead", "lives"):
            assert (await api.spawn(name)).status_code == 201
            await api.until(name, lambda servers: servers and servers[""]["ready"])
        log = hub.log
        with sqlite3.connect(hub.path / "hub.sqlite") as database:
            rows = database.execute(
                "SELECT users.name, spawners.state FROM spawners JOIN users ON users.id = spawners.user_id"
            ).fetchall()
        hub.process.kill()
        os.kill(json.loads(dict(rows)["dead"])["pid"], signal.SIGKILL)
    hub.restart()
    await until(lambda: cleaned(own), 15)
    await asyncio.sleep(2)
    assert cleaned(own) == ["dead"], hub.log[len(log) :]
    async with hub.api() as api:
        await api.stop("lives")
        await until(lambda: cleaned(own) == ["dead", "lives"], 15)
