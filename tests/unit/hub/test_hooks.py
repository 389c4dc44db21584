"""What does not need a whole hub: the error, deadlines, the classes that bootstrap, the progress log."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hub_fakes import Lines, until
from traitlets.config import Config

import ansible_bootstrap
from ansible_bootstrap import (
    AnsibleBootstrap,
    BootstrapError,
    RefusedError,
    RoleFailedError,
    UnreachableError,
    UnresolvedError,
)
from ansible_bootstrap.hub import (
    bootstrapped,
    core,
    failure,
    login,
    mixin,
    post_stop_hook,
    pre_spawn_hook,
    spawns,
)
from ansible_bootstrap.hub.progress import ProgressLog
from ansible_bootstrap.place import Place


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    AnsibleBootstrap.clear_instance()
    yield
    AnsibleBootstrap.clear_instance()


class Spawner:
    """What the hooks use of a spawner."""

    def __init__(self, tmp_path: Path, name: str = "alice", **settings: Any) -> None:
        self.user = SimpleNamespace(name=name, groups=[], spawners={})
        self.name = ""
        self._log_name = name
        self.log = logging.getLogger("test.hooks")
        self.config = Config({"AnsibleBootstrap": {"state_dir": str(tmp_path / "state"), **settings}})

    async def progress(self) -> Any:
        yield {"progress": 50, "message": "Spawning server..."}


# The error


def test_the_error_has_nothing_but_its_sentence() -> None:
    error = BootstrapError(RoleFailedError("/srv/secret <b>"))
    sentence = RoleFailedError.message
    assert error.jupyterhub_message == error.jupyterhub_html_message == sentence
    assert error.status_code == 503
    assert error.reason == "role_failed"
    assert sentence in str(error)
    assert "/srv" not in str(error) + repr(error.__dict__)


async def test_a_contradiction_in_the_settings_fails_the_spawn_not_the_hub(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(BootstrapError) as caught:
        await pre_spawn_hook(Spawner(tmp_path, timeout="soon", storage_root="/v"))
    assert caught.value.reason == "settings"
    assert "timeout" in caplog.text


async def test_post_stop_never_raises(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(spawner: Any) -> None:
        raise RuntimeError("no idea")

    await post_stop_hook(Spawner(tmp_path, storage_root="/v", cleanup_roles=["x"], place=broken))
    assert "no clean-up for alice" in caplog.text
    assert "no idea" in caplog.text


async def test_post_stop_has_a_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def hangs(spawner: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(spawns, "POST_STOP_SECONDS", 0.05)
    spawner = Spawner(tmp_path, storage_root="/v", cleanup_roles=["x"], place=hangs)
    async with asyncio.timeout(5):
        await post_stop_hook(spawner)
    assert "no clean-up for alice" in caplog.text


async def test_nothing_to_clean_up_asks_nobody(tmp_path: Path) -> None:
    asked: list[Any] = []
    await post_stop_hook(Spawner(tmp_path, storage_root="/v", place=asked.append))
    assert not asked


async def test_observing_a_mistake_in_the_settings_holds_nobody_up(tmp_path: Path) -> None:
    await pre_spawn_hook(Spawner(tmp_path, storage_rot="/v", mode="observe"))
    with pytest.raises(BootstrapError):
        await pre_spawn_hook(Spawner(tmp_path, storage_rot="/v"))


async def test_the_hook_has_its_own_deadline_also_for_finding_the_place(tmp_path: Path) -> None:
    async def hangs(spawner: Any) -> None:
        await asyncio.sleep(60)

    with pytest.raises(BootstrapError) as caught:
        await pre_spawn_hook(Spawner(tmp_path, storage_root="/v", place=hangs, timeout=0.1))
    assert caught.value.reason == "timeout"


async def test_a_real_cancellation_is_passed_on_at_once(tmp_path: Path) -> None:
    async def hangs(spawner: Any) -> None:
        await asyncio.sleep(60)

    task = asyncio.create_task(pre_spawn_hook(Spawner(tmp_path, storage_root="/v", place=hangs)))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait({task}, timeout=0.5)
    assert task.cancelled()


def test_bootstrapped_keeps_the_class_and_its_settings() -> None:
    jupyterhub_spawner = pytest.importorskip("jupyterhub.spawner")
    made = bootstrapped(jupyterhub_spawner.SimpleLocalProcessSpawner)
    assert made.__name__ == "BootstrappedSimpleLocalProcessSpawner"
    c = Config()
    c.SimpleLocalProcessSpawner.home_dir_template = "/v/{username}"
    assert made(config=c).home_dir_template == "/v/{username}"


class Base(SimpleNamespace):
    """What the classes use of a spawner: hooks of its own, and a start."""

    pre_spawn_hook: Any = None
    post_stop_hook: Any = None

    def run_pre_spawn_hook(self) -> Any:
        return self.pre_spawn_hook(self) if self.pre_spawn_hook else None

    def run_post_stop_hook(self) -> Any:
        return self.post_stop_hook(self) if self.post_stop_hook else None

    async def start(self) -> str:
        self.order.append("start")
        return "http://127.0.0.1:8888"


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done, in its order."""
    done: list[str] = []

    def noted(what: str) -> Any:
        async def note(spawner: Any) -> None:
            done.append(what)

        return note

    for what in ("bootstrap", "bootstrap_if_moved", "check_mounted", "stopped"):
        monkeypatch.setattr(mixin, what, noted(what))
    monkeypatch.setattr(mixin, "note_place", lambda spawner: done.append("note_place"))
    return done


async def test_the_sites_hook_comes_before_and_the_one_for_afterwards_after(order: list[str]) -> None:
    async def site(spawner: Any) -> None:
        order.append("site")

    def then(spawner: Any) -> None:
        order.append("then")

    made = bootstrapped(bootstrapped(Base, then), then)
    assert bootstrapped(made) is made, "once is enough"
    spawner: Any = made(order=order, pre_spawn_hook=site, post_stop_hook=site)
    await spawner.run_pre_spawn_hook()
    assert await spawner.start() == "http://127.0.0.1:8888"
    await spawner.run_post_stop_hook()
    assert order == [
        *("site", "bootstrap", "then", "bootstrap_if_moved", "note_place", "start", "check_mounted"),
        *("stopped", "site"),
    ]


async def test_our_own_hooks_in_the_configuration_do_nothing_twice(order: list[str]) -> None:
    spawner: Any = bootstrapped(Base)(
        order=order, pre_spawn_hook=pre_spawn_hook, post_stop_hook=post_stop_hook
    )
    await spawner.run_pre_spawn_hook()
    await spawner.run_post_stop_hook()
    assert order == ["bootstrap", "note_place", "stopped"]


async def test_our_own_hook_in_the_configuration_does_not_hide_the_classs_own(order: list[str]) -> None:
    class Site(Base):
        async def run_pre_spawn_hook(self) -> None:
            order.append("site")
            await super().run_pre_spawn_hook()

    spawner: Any = bootstrapped(Site)(order=order, pre_spawn_hook=pre_spawn_hook)
    await spawner.run_pre_spawn_hook()
    assert order == ["site", "bootstrap", "note_place"]


async def test_a_stop_hook_of_the_site_that_fails_is_a_line_in_the_log(order: list[str], log: Lines) -> None:
    async def broken(spawner: Any) -> None:
        raise RuntimeError("no idea")

    spawner: Any = bootstrapped(Base)(order=order, post_stop_hook=broken, log=log.logger, _log_name="alice")
    await spawner.run_post_stop_hook()
    assert "post_stop_hook failed for alice" in log.lines[0]


@pytest.mark.parametrize("moved", ["directory", "uid", "storage_host", ""])
async def test_a_server_that_mounts_what_was_not_prepared_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Lines, moved: str
) -> None:
    before = Place("alice", "/v/alice", uid=1000, storage_host="localhost")
    other = {"directory": "/v/red/alice", "uid": 1001, "storage_host": "nas2"}
    after = replace(before, **{moved: other[moved]}) if moved else before

    async def resolve(spawner: Any, config: Any) -> Place:
        return after

    monkeypatch.setattr(spawns, "resolve", resolve)
    monkeypatch.setattr(spawns, "core_of", lambda spawner: SimpleNamespace(config=None))
    spawner = Spawner(tmp_path)
    spawner.log = log.logger
    spawns.spawn_of(spawner).place = before
    if not moved:
        await spawns.check_mounted(spawner)
        return
    with pytest.raises(BootstrapError) as caught:
        await spawns.check_mounted(spawner)
    assert caught.value.reason == "unresolved"
    assert "'/v/alice' on localhost (uid 1000) was prepared" in log.lines[0]
    assert str(other[moved]) in log.lines[0]


@pytest.mark.parametrize(
    ("answer", "starts"),
    [
        (UnreachableError("the name service has not answered"), True),
        (KeyError("what was it"), True),
        (UnresolvedError("jupyterhub-alice is a volume that Docker keeps"), False),
        (RefusedError("not an absolute path"), False),
    ],
)
async def test_a_server_keeps_running_only_if_nothing_contradicts_what_was_said_before_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Lines, answer: Exception, starts: bool
) -> None:
    async def resolve(spawner: Any, config: Any) -> Place:
        raise answer

    monkeypatch.setattr(spawns, "resolve", resolve)
    monkeypatch.setattr(spawns, "core_of", lambda spawner: SimpleNamespace(config=None))
    spawner = Spawner(tmp_path)
    spawner.log = log.logger
    spawns.spawn_of(spawner).place = Place("alice", "/v/alice")
    if starts:
        await spawns.check_mounted(spawner)
        assert "cannot be told" in log.lines[0]
        return
    with pytest.raises(BootstrapError):
        await spawns.check_mounted(spawner)
    assert "not started" in log.lines[0]


# A hostile name, a settings side that hangs


def test_the_name_of_a_server_makes_no_line_of_the_log(tmp_path: Path, log: Lines) -> None:
    """A user with a token may give a server any name."""
    spawner = Spawner(tmp_path, "alice:two\n[I 2026-01-01 JupyterHub app:1] root logged in\x1b[2K")
    spawner.log = log.logger
    failure.shown(spawner, RoleFailedError("details"))
    assert "\n" not in log.lines[0] and "\x1b" not in log.lines[0] and "alice:two" in log.lines[0]


async def test_a_look_up_that_takes_half_of_the_time_is_given_up_for_a_run() -> None:
    async def known(place: Place) -> Any:
        await asyncio.sleep(30)

    now = asyncio.get_running_loop().time()
    answer = await spawns._known(SimpleNamespace(known=known), Place("alice"), now + 0.2)  # type: ignore[arg-type]
    assert answer == (False, {})
    assert asyncio.get_running_loop().time() < now + 20


async def test_a_time_out_from_within_is_not_taken_for_ours() -> None:
    async def known(place: Place) -> Any:
        raise TimeoutError

    deadline = asyncio.get_running_loop().time() + 60
    with pytest.raises(TimeoutError):
        await spawns._known(SimpleNamespace(known=known), Place("alice"), deadline)  # type: ignore[arg-type]


async def test_a_ledger_that_cannot_forget_costs_nobody_the_clean_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Lines
) -> None:
    async def forget(name: str) -> None:
        await asyncio.sleep(30)

    cleaned: list[Place] = []
    fake = SimpleNamespace(
        books=SimpleNamespace(forget=forget),
        cleanup_delay=1.0,
        dispatcher=SimpleNamespace(cleanup=lambda place, active: cleaned.append(place)),
        pending=None,
        users={},
    )
    monkeypatch.setattr(spawns, "POST_STOP_SECONDS", 0.1)
    monkeypatch.setattr(spawns, "core_of", lambda spawner: fake)
    spawner = Spawner(tmp_path)
    spawner.log = log.logger
    spawn = spawns.spawn_of(spawner)
    spawn.place, spawn.begun, spawn.ready = Place("alice"), True, time.monotonic()
    await spawns.stopped(spawner)
    assert cleaned == [Place("alice")]
    assert "alice could not be made unknown on disk" in log.lines[0]


class Handler:
    settings: ClassVar[dict[str, Any]] = {"users": {}}


async def test_a_hundred_logins_of_a_user_are_one_look_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    async def nobody(core: Any, handler: Any, name: str) -> None:
        looked.append(name)
        await asyncio.sleep(0)

    monkeypatch.setattr(login, "_user", nobody)
    said = {"state_dir": str(tmp_path / "state"), "storage_root": str(tmp_path)}
    authenticator = SimpleNamespace(
        config=Config({"AnsibleBootstrap": said}), log=logging.getLogger("test.hooks")
    )
    for _ in range(100):
        login.begin(authenticator, Handler(), {"name": "mallory"})
    login.begin(authenticator, Handler(), {"name": "alice"})
    made = core.make_core(authenticator.config, None)
    await until(lambda: made.idle)
    assert looked == ["mallory", "alice"]
    login.begin(authenticator, Handler(), {"name": "mallory"})
    await until(lambda: made.idle)
    assert looked == ["mallory", "alice", "mallory"]


# Progress


async def test_a_log_is_replayed_to_everybody_whenever_they_come() -> None:
    log = ProgressLog()
    early = asyncio.create_task(collect(log))
    await asyncio.sleep(0)
    log.say("one", 0.5)
    log.say("one", 0.6)
    await asyncio.sleep(0)
    middle = asyncio.create_task(collect(log))
    log.say("two", 0.2)
    log.close()
    log.say("too late", 1.0)
    late = asyncio.create_task(collect(log))
    async with asyncio.timeout(2):
        assert [await task for task in (early, middle, late)] == [[("one", 0.5), ("two", 0.5)]] * 3


async def collect(log: ProgressLog) -> list[tuple[str, float]]:
    return [said async for said in log.follow()]


# The package


def test_every_public_name_is_there() -> None:
    for name in ansible_bootstrap.__all__:
        assert getattr(ansible_bootstrap, name) is not None
    with pytest.raises(AttributeError):
        _ = ansible_bootstrap.nothing


@pytest.mark.parametrize(
    "module", ["ansible_bootstrap", "ansible_bootstrap.errors", "ansible_bootstrap.dispatch.dispatcher"]
)
def test_what_needs_no_hub_imports_none(module: str) -> None:
    code = f"import {module}, sys; assert not {{'jupyterhub', 'traitlets', 'tornado'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
