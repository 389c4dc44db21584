"""A complete user starts without a run, and a user who may need something is not taken for complete."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hub_fakes import FakeApply, until
from hub_process import Api, RunningHub

from ansible_bootstrap.state.ledger import FILE, Ledger

USER_DIR = {"role": "user_dir", "fingerprint": "u1", "revised": True}
TUTORIALS = {"role": "tutorials", "fingerprint": "t1", "revised": True}


@pytest.fixture
def known(apply: FakeApply, hub: RunningHub) -> Callable[..., Any]:
    """Gives users their storage, by a spawn each, stops their servers and has them cleaned up.

    However slow the machine is, nothing of them is on its way then: while a clean-up is, its users are not known.
    """
    do(apply)

    async def make(api: Api, *names: str) -> None:
        await api.create(*names)
        for name in names:
            home(hub, name).mkdir(exist_ok=True)
            assert (await api.spawn(name)).status_code == 201
        await until(lambda: noted(hub) >= set(names))
        for name in names:
            await stop(api, name)
        await until(lambda: cleaned(apply) >= set(names))
        await until(lambda: noted(hub, believed=True) >= set(names))
        apply.notes.unlink()

    return make


def do(apply: FakeApply, *fingerprints: dict[str, Any], **control: Any) -> None:
    apply.do(fingerprints=list(fingerprints or (USER_DIR, TUTORIALS)), **control)


def home(hub: RunningHub, name: str) -> Path:
    return hub.path / "storage" / name


def noted(hub: RunningHub, *, believed: bool = False) -> set[str]:
    """The users that the hub has written down; those in doubt too, unless only believed ones count."""
    file = f"file:{hub.path}/state/{FILE}?mode=ro"
    with (
        contextlib.suppress(sqlite3.OperationalError),  # There is none yet.
        contextlib.closing(sqlite3.connect(file, uri=True)) as database,
    ):
        rows = database.execute("SELECT name FROM complete WHERE doubt = '' OR NOT ?", (believed,))
        return {name for (name,) in rows}
    return set()


def cleaned(apply: FakeApply) -> set[str]:
    """The users with a clean-up under way; it has made them unknown before."""
    return {name for cleanup in apply.cleanups for name in cleanup["users"]}


async def stop(api: Api, name: str) -> None:
    await api.stop(name)
    await api.until(name, lambda servers: not servers)


async def start(api: Api, name: str) -> None:
    assert (await api.spawn(name)).status_code == 201
    await stop(api, name)


async def test_a_complete_user_starts_without_a_run(
    hub: RunningHub, apply: FakeApply, known: Callable[..., Any]
) -> None:
    async with hub.api() as api:
        await known(api, "ada")
        before = await let_through(hub)
        await start(api, "ada")
    assert apply.runs == []
    assert await let_through(hub) == before + 1


async def test_a_role_that_changed_is_the_only_one_that_is_applied(
    hub: RunningHub, apply: FakeApply, known: Callable[..., Any]
) -> None:
    async with hub.api() as api:
        await known(api, "berta")
        do(apply, USER_DIR, {**TUTORIALS, "fingerprint": "t2"})
        home(hub, "newcomer").mkdir()
        await api.create("newcomer")
        await start(api, "newcomer")  # Their run brings the news; otherwise it takes a minute.
        await start(api, "berta")
    assert [(run["users"], run["done"]) for run in apply.runs] == [
        (["newcomer"], {}),
        (["berta"], {"user_dir": "u1", "tutorials": "t1"}),
    ]


def without(directory: Path) -> None:
    directory.rmdir()


def another_mode(directory: Path) -> None:
    directory.chmod(0o700)


@pytest.mark.parametrize("change", [without, another_mode])
async def test_a_user_with_a_changed_directory_gets_every_role(
    hub: RunningHub, apply: FakeApply, known: Callable[..., Any], change: Callable[[Path], None]
) -> None:
    name = f"carla-{change.__name__}"
    async with hub.api() as api:
        await known(api, name)
        change(home(hub, name))
        assert (await api.spawn(name)).status_code in {201, 500}  # No directory: the fake program makes none.
        await stop(api, name)
    assert [(run["users"], run["done"]) for run in apply.runs] == [([name], {})]


async def test_a_user_forgotten_by_the_admin_gets_every_role(
    hub: RunningHub, apply: FakeApply, known: Callable[..., Any]
) -> None:
    async with hub.api() as api:
        await known(api, "dora")
        assert Ledger(hub.path / "state").forget(["dora"]) == 1
        await start(api, "dora")
    assert [run["users"] for run in apply.runs] == [["dora"]]


async def test_a_server_that_does_not_start_makes_its_user_unknown(
    hub: RunningHub, apply: FakeApply, known: Callable[..., Any]
) -> None:
    async with hub.api() as api:
        await known(api, "emma")
        crash = home(hub, "emma") / "crash"
        crash.touch()
        assert (await api.spawn("emma")).status_code >= 400
        assert apply.runs == []
        crash.unlink()
        await api.until("emma", lambda servers: not servers)
        await start(api, "emma")
    assert [run["users"] for run in apply.runs] == [["emma"]]


async def test_a_server_that_ends_within_a_minute_makes_its_user_unknown(
    hub: RunningHub, apply: FakeApply, known: Callable[..., Any]
) -> None:
    async with hub.api() as api:
        await known(api, "fanny")
        (home(hub, "fanny") / "die").touch()
        assert (await api.spawn("fanny")).status_code == 201
        await api.until("fanny", lambda servers: not servers, 30)
        (home(hub, "fanny") / "die").unlink()
        await start(api, "fanny")
    assert [run["users"] for run in apply.runs] == [["fanny"]]


@pytest.mark.parametrize("changed", [[], ["cleanup"]])
async def test_after_a_clean_up_that_changed_something_everything_is_looked_at_again(
    hub: RunningHub, apply: FakeApply, known: Callable[..., Any], changed: list[str]
) -> None:
    name = "greta" if changed else "gerda"
    async with hub.api() as api:
        await known(api, name)
        do(apply, cleanup={"more": {name: {"changed": changed}}})
        await start(api, name)
        await until(lambda: name in cleaned(apply))
        await until(lambda: (name not in noted(hub)) if changed else (name in noted(hub, believed=True)))
        await start(api, name)
    assert [run["users"] for run in apply.runs] == ([[name]] if changed else [])


async def test_a_user_who_returns_before_the_clean_up_withdraws_it(
    hub: RunningHub, apply: FakeApply, known: Callable[..., Any]
) -> None:
    async with hub.api() as api:
        await known(api, "hanna", "later")
        for name in ("hanna", "later"):
            assert (await api.spawn(name)).status_code == 201
        do(apply, behave="hang")  # While the storage host is busy, no clean-up begins there.
        await api.create("busy")
        busy = api.spawn("busy")
        await until(lambda: apply.runs)
        for name in ("hanna", "later"):
            await stop(api, name)
        assert hub.to_clean_up >= {"hanna", "later"}
        assert (await api.spawn("hanna")).status_code == 201
        await until(lambda: "hanna" not in hub.to_clean_up)
        do(apply)
        await api.stop("busy")
        await busy
        await until(lambda: "later" in cleaned(apply))  # Hers would have come with it, if not before.
        assert "hanna" not in cleaned(apply)
        assert [run["users"] for run in apply.runs] == [["busy"]]
        await stop(api, "hanna")


NO_HOOKS = (
    "c.Spawner.pre_spawn_hook = c.SimpleLocalProcessSpawner.pre_spawn_hook = c.Spawner.auth_state_hook = None"
)


async def test_the_work_begins_at_login_and_start_finds_it_done(
    start_hub: Callable[..., RunningHub], tmp_path: Path
) -> None:
    apply = FakeApply(tmp_path)
    hub = start_hub(apply_command=apply.command, more=NO_HOOKS)
    do(apply)
    home(hub, "irma").mkdir()
    async with httpx.AsyncClient(follow_redirects=True, timeout=30) as browser:
        await browser.get(f"{hub.url}/login")
        form = {"username": "irma", "password": "secret", "_xsrf": browser.cookies["_xsrf"]}
        answer = await browser.post(f"{hub.url}/login?next=%2Fhub%2Ftoken", data=form)
        assert answer.status_code == 200
        await until(lambda: "irma" in noted(hub))
    async with hub.api() as api:
        await start(api, "irma")
    assert [run["users"] for run in apply.runs] == [["irma"]]


async def test_a_login_is_no_slower_and_no_failure_if_nothing_works(
    hub: RunningHub, apply: FakeApply
) -> None:
    do(apply, behave="die")
    async with httpx.AsyncClient(follow_redirects=True, timeout=30) as browser:
        await browser.get(f"{hub.url}/login")
        form = {"username": "buggy", "password": "secret", "_xsrf": browser.cookies["_xsrf"]}
        answer = await browser.post(f"{hub.url}/login?next=%2Fhub%2Ftoken", data=form)
        assert answer.status_code == 200 and "/hub/token" in str(answer.url)


async def let_through(hub: RunningHub) -> float:
    """How many starts needed no run; the line is there before the first."""
    async with hub.api() as api:
        text = (await api.client.get(f"{hub.url}/metrics")).text
    line = 'ansible_bootstrap_hook_duration_seconds_count{way="known"} '
    return float(text.partition(line)[2].split()[0])
