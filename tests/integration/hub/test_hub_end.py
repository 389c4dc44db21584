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

from ansible_bootstrap.state.history import History

UID = 20_000


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
            await api.until("early", lambda servers: servers)
            count = len(own.runs)
            page = hub.path / "page"  # The hub waits for it in its auth_state_hook, before ours.
            messages = [event["message"] for event in await api.progress("early", begun=page.touch)]
            page.unlink()
            assert len(own.runs) == count + 1, "the page was not early"
            assert messages[:3] == ["Server requested", "Preparing your directory", "Copying tutorials"]
            assert messages.count("Copying tutorials") == 1
            assert (await spawn).status_code == 201
            await api.stop("early")
            await api.until("early", lambda servers: not servers)
        assert hub.hooks == ["chained early", "stopped early"] * 2
        own.do(fail={"late": {"message": "quota"}})
        await api.create("late")
        assert (await api.spawn("late")).status_code == 503


@pytest.mark.parametrize("bootstrapped", [False, True])
async def test_a_spawner_that_wraps_another_starts_and_its_child_says_where(
    bootstrapped: bool, start_hub: Callable[..., RunningHub], own: FakeApply
) -> None:
    """The wrapper's ``progress`` is a property that raises while there is no child, as there is none in the hook."""
    hub = start_hub(apply_command=own.command, profiles=True, bootstrapped=bootstrapped)
    own.do(delay=0.5)
    async with hub.api() as api:
        await api.create("jane")
        spawn = api.spawn("jane", profile="below")
        if bootstrapped:
            await until(lambda: own.runs)
            messages = [event["message"] for event in await api.progress("jane")]
            assert "Copying tutorials" in messages
        assert (await spawn).status_code == 201, hub.log
        (run,) = own.runs
        assert run["directories"] == [str(hub.path / "storage" / "profile" / "jane")]
        await api.stop("jane")


async def test_observing_holds_nobody_up_and_says_what_would_be(
    start_hub: Callable[..., RunningHub], own: FakeApply
) -> None:
    hub = start_hub(apply_command=own.command, mode="observe")
    own.do(behave="hang")
    async with hub.api() as api:
        await api.create("first", "alice", "bob", "buggy")
        assert (await api.spawn("first")).status_code == 201
        await until(lambda: own.runs)
        answers = await asyncio.gather(*(api.spawn(name) for name in ("alice", "bob", "buggy")))
        assert {answer.status_code for answer in answers} == {201}
        (run,) = own.runs
        assert own.alive() == [run["pid"]], "they were held up for as long as it took"
        own.do(more={"alice": {"changed": ["user_dir"]}}, fail={"bob": {"message": "wrong owner"}})
        own.clean()
        await until(lambda: "observed first: would fail (apply_failed)" in hub.log)
        await until(lambda: "observed alice: would change: user_dir" in hub.log)
        await until(lambda: "observed bob: would fail (role_failed)" in hub.log)
        assert {run["check"] for run in own.runs} == {True}


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
    from ansible_bootstrap.apply.descendants import descendants

    roles = tmp_path / "roles" / "slow" / "tasks"
    roles.mkdir(parents=True)
    (roles / "main.yml").write_text("- name: Take long\n  ansible.builtin.command: sleep 61.5\n")
    hub = start_hub(
        embedded=True,
        roles=["user_dir", {"role": "slow", "as": "root"}],
        roles_path=[str(tmp_path / "roles")],
        **owner(),
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


async def test_a_clean_up_in_flight_outlives_a_killed_hub_and_happens_once(
    start_hub: Callable[..., RunningHub], own: FakeApply
) -> None:
    hub = start_hub(apply_command=own.command, cleanup_delay=0.5)
    own.do(cleanup={"behave": "hang"})
    async with hub.api() as api:
        await api.create("alice", "bob")
        for name in ("alice", "bob"):
            assert (await api.spawn(name)).status_code == 201
        await asyncio.gather(api.stop("alice"), api.stop("bob"))
        await until(lambda: cleaned(own))  # One user, or both: it depends on when the two stops came.
    await killed(hub, own)
    hub.restart()
    # Nobody has pressed Start.
    await until(lambda: {"alice", "bob"} <= set(cleaned(own)), 20)
    await until(lambda: not hub.to_clean_up)
    await a_later_clean_up(hub, own)
    assert sorted(cleaned(own)) == ["alice", "bob", "later"]
    await until(lambda: not hub.to_clean_up)
    await killed(hub, own)
    hub.restart()
    await a_later_clean_up(hub, own)
    assert cleaned(own) == ["later"], "it was done already"


async def test_a_waiting_clean_up_survives_a_killed_hub_and_a_returned_user_needs_none(
    start_hub: Callable[..., RunningHub], own: FakeApply
) -> None:
    hub = start_hub(apply_command=own.command, cleanup_delay=600)
    async with hub.api() as api:
        await api.create("alice", "back")
        for name in ("alice", "back"):
            assert (await api.spawn(name)).status_code == 201
        await asyncio.gather(api.stop("alice"), api.stop("back"))
    assert hub.to_clean_up == {"alice", "back"}
    await killed(hub, own)
    hub.restart()
    async with hub.api() as api:
        assert (await api.spawn("back")).status_code == 201
    await until(lambda: hub.to_clean_up == {"alice"})
    await killed(hub, own)
    hub.restart(cleanup_delay=0.5)
    await until(lambda: cleaned(own), 20)
    await a_later_clean_up(hub, own)
    assert cleaned(own) == ["alice", "later"]


async def killed(hub: RunningHub, own: FakeApply) -> None:
    """The hub is killed, its runs are gone, and what they have noted with them."""
    hub.process.kill()
    await until(lambda: not own.alive())
    own.notes.unlink(missing_ok=True)
    own.do()


async def a_later_clean_up(hub: RunningHub, own: FakeApply) -> None:
    """Somebody else comes and goes and is cleaned up after: whatever waited before would have begun before."""
    async with hub.api() as api:
        await api.create("later")
        assert (await api.spawn("later")).status_code == 201
        await api.stop("later")
    await until(lambda: "later" in cleaned(own))


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
    await a_later_clean_up(hub, own)
    assert cleaned(own) == ["dead", "later"], hub.log[len(log) :]
    async with hub.api() as api:
        await api.stop("lives")
        await until(lambda: cleaned(own) == ["dead", "later", "lives"], 15)


async def test_a_second_hub_with_the_same_state_directory_does_not_start_before_the_first_has_ended(
    start_hub: Callable[..., RunningHub], own: FakeApply, tmp_path: Path
) -> None:
    first = start_hub(apply_command=own.command)
    path = tmp_path / "second"
    path.mkdir()
    second = RunningHub(path, apply_command=own.command, state_dir=str(first.path / "state"))
    try:
        assert second.process.wait(30) == 1
        assert f"in use by another hub (process {first.process.pid})" in second.log
        first.kill()
        second.restart()
        async with second.api() as api:
            await api.create("bob")
            assert (await api.spawn("bob")).status_code == 201
    finally:
        second.kill()
