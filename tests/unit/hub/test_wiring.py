"""What the hooks make of a login, a start and a stop: the real core with a fake apply program, and no hub."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from dockerspawner import DockerSpawner
from hub_fakes import FakeApply, until
from prometheus_client import REGISTRY
from traitlets.config import Config

from ansible_bootstrap import AnsibleBootstrap, BootstrapError, findings
from ansible_bootstrap.dispatch.client import ApplyClient
from ansible_bootstrap.hub import core, login, post_stop_hook, pre_spawn_hook, spawns
from ansible_bootstrap.hub.mixin import prepared_at_login
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import Outcome, RoleFingerprint
from ansible_bootstrap.run_record import RunRecord
from ansible_bootstrap.state.ledger import Ledger

V1, V2 = ({"role": "user_dir", "fingerprint": version, "revised": True} for version in ("1", "2"))


class Authenticator(SimpleNamespace):
    """What is used of one."""

    async def run_post_auth_hook(self, handler: Any, auth_model: Any) -> Any:
        return await self.post_auth_hook(self, handler, auth_model) if self.post_auth_hook else auth_model


class Spawner(SimpleNamespace):
    """What is used of one."""


class Hub:
    """One user of a hub, what the hub's handlers do for her, and what came of it."""

    def __init__(self, apply: FakeApply, path: Path, settings: dict[str, Any]) -> None:
        self.apply = apply
        self.path = path
        self.where = "storage"
        self.post_auth_hook: Any = None
        self.hooks: dict[str, Any] = {}
        self.done: dict[str, str] = {}
        """What the last login said to be done already."""
        self.config = Config()
        self.config.AnsibleBootstrap = Config(
            state_dir=str(path / "state"),
            apply_command=apply.command,
            place=lambda spawner: {"directory": str(path / self.where / "alice")},
            **settings,
        )
        self.log = logging.getLogger("test.wiring")
        self.user = SimpleNamespace(
            name="alice",
            groups=[],
            spawners={},
            active=False,
            get_spawner=lambda: self.spawner(),
            settings={"users": {}},
        )
        for where in ("storage", "other"):
            (path / where / "alice").mkdir(parents=True)

    def spawner(self) -> Any:
        return Spawner(
            user=self.user,
            name="",
            _log_name="alice",
            log=self.log,
            config=self.config,
            progress=None,
            **self.hooks,
        )

    @property
    def core(self) -> core.Core:
        return core.make_core(self.config, self.user.settings)

    @property
    def runs(self) -> int:
        return len(self.apply.runs)

    def revise(self, *fingerprints: dict[str, Any]) -> None:
        """The roles are others now, and the hub has had the time to find out."""
        self.apply.do(fingerprints=list(fingerprints))
        self.core.fingerprints.renewed(tuple(RoleFingerprint(**said) for said in fingerprints))

    async def start(self) -> Any:
        """Press Start, and let everything be written down."""
        spawner = self.spawner()
        await pre_spawn_hook(spawner)
        await self.written()
        return spawner

    def again(self) -> None:
        """Start the hub again, with its settings as they are now."""
        AnsibleBootstrap.clear_instance()

    async def log_in(self) -> list[Place]:
        """Log in; return the places for which the work was begun, and let it end."""
        begun: list[Place] = []
        made = core.make_core(self.config, {"users": {}})
        prepare = made.dispatcher.prepare

        def spy(place: Place, done: Any = MappingProxyType({})) -> None:
            begun.append(place)
            self.done = dict(done)
            prepare(place, done)

        runs = self.runs
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(made.dispatcher, "prepare", spy)
            assert await self.auth({"name": "alice"}) == {"name": "alice"}
            await until(lambda: made.idle)
        await until(lambda: len(self.apply.ended) == runs + len(begun))
        await self.written()
        return begun

    async def auth(self, auth_model: Any) -> Any:
        authenticator: Any = prepared_at_login(Authenticator)(
            config=self.config, log=self.log, post_auth_hook=self.post_auth_hook
        )
        handler = SimpleNamespace(settings={"users": {}}, current_user=self.user)
        return await authenticator.run_post_auth_hook(handler, auth_model)

    async def written(self) -> None:
        await self.core.books.written(10)


@pytest.fixture
def hub(
    apply: FakeApply, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Hub]:
    """Parametrized indirectly: with these settings."""
    monkeypatch.setattr(login, "LOOK_SECONDS", 0.01)
    AnsibleBootstrap.clear_instance()
    apply.do(fingerprints=[V1])
    yield Hub(apply, tmp_path, getattr(request, "param", {}))
    AnsibleBootstrap.clear_instance()


def settings(**given: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("hub", [given], indirect=True, ids=[""])


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"ansible_bootstrap_{name}", labels) or 0.0


# The account


async def test_the_apply_program_knows_the_account_and_the_hub_its_user(hub: Hub) -> None:
    directory = str(hub.path / "storage" / "alice")
    hub.config.AnsibleBootstrap.place = lambda spawner: {"directory": directory, "account": "jupyter-alice"}
    await hub.start()
    assert [run["users"] for run in hub.apply.runs] == [["jupyter-alice"]]
    await hub.start()
    assert hub.runs == 1, "she is known, by her name in the hub"
    known = hub.core.books.place_of("alice")
    assert known is not None
    assert (known.name, known.account) == ("alice", "jupyter-alice")


# The login


async def test_a_login_begins_the_users_work_and_is_counted(hub: Hub) -> None:
    before = metric("logins_prepared_total")
    assert [place.name for place in await hub.log_in()] == ["alice"]
    assert metric("logins_prepared_total") == before + 1
    await hub.start()
    assert hub.runs == 1, "Start finds it done"
    assert await hub.log_in() == [], "a complete user needs nothing"
    assert metric("logins_prepared_total") == before + 1


async def test_a_login_of_a_complete_user_asks_no_spawner(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    await hub.start()
    monkeypatch.setattr(hub.user, "get_spawner", lambda: pytest.fail("the spawner was asked"))
    monkeypatch.setattr("ansible_bootstrap.threads.Pool.submit", lambda *_: pytest.fail("a thread"))
    assert await hub.log_in() == []


@settings(storage_host="nas1", trust_for=0.5)
async def test_a_login_after_trust_for_begins_the_work(hub: Hub) -> None:
    await hub.start()
    assert await hub.log_in() == []
    await asyncio.sleep(0.6)
    assert len(await hub.log_in()) == 1


async def test_with_recheck_always_each_login_begins_the_work(hub: Hub) -> None:
    await hub.start()
    assert await hub.log_in() == []
    hub.config.AnsibleBootstrap.recheck = "always"
    hub.again()
    assert len(await hub.log_in()) == 1, "whatever the ledger says"


async def test_a_directory_that_was_taken_away_is_made_anew_by_the_spawn(hub: Hub) -> None:
    await hub.start()
    (hub.path / "storage" / "alice").rmdir()
    assert await hub.log_in() == []
    await hub.start()
    assert hub.runs == 2


@settings(at_login=False)
async def test_nothing_is_begun_at_login_if_the_admin_does_not_want_it(hub: Hub) -> None:
    assert await hub.log_in() == []
    assert hub.runs == 0


async def test_a_first_login_is_left_to_the_spawn_where_a_hook_of_the_site_may_set_volumes(hub: Hub) -> None:
    hub.hooks = {"pre_spawn_hook": lambda spawner: None}
    assert await hub.log_in() == []
    await hub.start()
    hub.revise(V2)
    assert len(await hub.log_in()) == 1, "where the last server had it"


async def test_a_first_login_is_left_to_the_spawn_where_a_profile_is_still_to_be_chosen(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def choices(spawner: Any) -> list[dict[str, Any]]:
        return [{"profile": "small"}]

    monkeypatch.setattr(login, "choices", choices)
    assert await hub.log_in() == []
    await hub.start()
    hub.revise(V2)
    assert len(await hub.log_in()) == 1, "as the last time"


async def test_a_login_of_a_user_with_a_server_begins_nothing(hub: Hub) -> None:
    hub.user.active = True
    assert await hub.log_in() == []


async def test_a_login_begins_with_the_roles_that_are_not_done(hub: Hub) -> None:
    await hub.start()
    hub.revise(V2)
    assert len(await hub.log_in()) == 1
    assert hub.done == {"user_dir": "1"}


async def test_a_login_begins_nothing_if_the_last_server_had_its_storage_elsewhere(hub: Hub) -> None:
    await hub.start()
    hub.where = "other"
    assert await hub.log_in() == [], "it cannot be told yet which of the two it will be"
    await hub.start()
    hub.revise(V2)
    assert len(await hub.log_in()) == 1, "where the last server had it"


async def test_a_start_without_a_run_tells_the_next_login_where_the_storage_is_too(hub: Hub) -> None:
    place = spawns.spawn_of(await hub.start()).place
    hub.core.books.note_place(replace(place, directory="/elsewhere"))
    await hub.written()
    await hub.start()
    assert hub.runs == 1
    hub.revise(V2)
    assert len(await hub.log_in()) == 1


async def test_a_hook_of_the_admins_at_login_comes_first_and_once_and_has_its_say(hub: Hub) -> None:
    asked: list[Any] = []

    async def hook(authenticator: Any, handler: Any, auth_model: Any) -> Any:
        asked.append(auth_model)
        return None if auth_model["name"] == "mallory" else {**auth_model, "admin": True}

    hub.post_auth_hook = hook
    assert await hub.auth({"name": "alice"}) == {"name": "alice", "admin": True}
    assert hub.core.preparing == {"alice"}
    assert await hub.auth({"name": "mallory"}) is None
    assert hub.core.preparing == {"alice"}, "a user whom the admin's hook refused gets nothing"
    assert asked == [{"name": "alice"}, {"name": "mallory"}]
    await until(lambda: hub.apply.ended)


# The start


@settings(recheck="always")
async def test_with_recheck_always_each_start_is_a_run(hub: Hub) -> None:
    await hub.start()
    await hub.start()
    assert hub.runs == 2


@pytest.mark.parametrize(
    ("hub", "runs"),
    [
        ({"storage_host": "storage2", "trust_for": 0.0}, 2),
        ({"storage_host": "storage2", "trust_for": 3600.0}, 1),
    ],
    indirect=["hub"],
)
async def test_storage_that_this_machine_cannot_see_is_trusted_as_long_as_the_admin_says(
    hub: Hub, runs: int
) -> None:
    hub.where = "only/there"
    await hub.start()
    await hub.start()
    assert hub.runs == runs


async def test_a_known_user_gets_no_empty_directory_beside_the_one_with_files(hub: Hub) -> None:
    await hub.start()
    (hub.path / "storage/alice/thesis.ipynb").touch()
    (hub.path / "other/alice").rmdir()
    hub.where = "other"
    hub.config.DemoSpawner.escape = "new"  # Whatever the settings are now.
    hub.again()
    hub.apply.do(fingerprints=[V1])
    assert await hub.log_in() == [], "not at login either, or the spawn would find it made"
    with pytest.raises(BootstrapError) as caught:
        await hub.start()
    assert caught.value.reason == "refused" and hub.runs == 1
    hub.config.AnsibleBootstrap.on_move = "warn"
    hub.again()
    await hub.start()
    assert hub.runs == 2


async def test_what_the_first_of_two_runs_has_given_does_not_refuse_the_second(hub: Hub) -> None:
    """A hook for afterwards moves a new user's storage."""
    spawner = hub.spawner()
    await spawns.bootstrap(spawner)
    await hub.written()
    (hub.path / "storage/alice/tutorial.ipynb").touch()
    (hub.path / "other/alice").rmdir()
    hub.where = "other"
    await spawns.bootstrap_if_moved(spawner)
    assert hub.runs == 2
    spawns.note_place(spawner)
    await hub.written()
    assert hub.core.books.place_of("alice") == spawns.spawn_of(spawner).place


async def test_a_second_bootstrap_speaks_to_the_student_too(hub: Hub) -> None:
    spawner = hub.spawner()
    await spawns.bootstrap(spawner)
    said = [sentence async for sentence in spawner._ansible_bootstrap.progress.follow()]
    hub.where = "other"
    await spawns.bootstrap_if_moved(spawner)
    assert hub.runs == 2
    again = [sentence async for sentence in spawner._ansible_bootstrap.progress.follow()]
    assert len(again) > len(said)


async def test_a_spawner_that_hangs_after_the_hook_for_afterwards_is_an_error_in_time(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawner = hub.spawner()
    await spawns.bootstrap(spawner)

    async def hangs(*args: Any) -> None:
        await asyncio.sleep(60)

    async def raises(*args: Any) -> None:
        raise TimeoutError("the cluster's own")

    monkeypatch.setattr(spawns.core_of(spawner).config, "timeout", 1)
    for answer in (hangs, raises):
        monkeypatch.setattr(spawns, "resolve", answer)
        with pytest.raises(BootstrapError) as caught:
            async with asyncio.timeout(20):
                await spawns.bootstrap_if_moved(spawner)
        assert caught.value.reason == "timeout"


async def test_each_start_is_counted_by_its_way(hub: Hub) -> None:
    before = {
        way: metric("hook_duration_seconds_count", way=way) for way in ("run", "known", "failed", "observed")
    }
    await hub.start()
    await hub.start()
    after = {way: metric("hook_duration_seconds_count", way=way) - count for way, count in before.items()}
    assert after == {"run": 1, "known": 1, "failed": 0, "observed": 0}


SQUASHED = {
    "level": "error",
    "what": "root is squashed here\nforged",
    "mend": "no_root_squash in /etc/exports",
}


@pytest.mark.parametrize("mode", ["enforce", "observe"])
@pytest.mark.parametrize("hosts", ["nas1", "those of the ledger"])
async def test_what_a_probe_finds_at_the_hubs_start_is_a_line_in_its_log(
    hub: Hub, mode: str, hosts: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub.config.AnsibleBootstrap.update(
        mode=mode, storage_host="nas1" if hosts == "nas1" else lambda spawner: ""
    )
    made = core.make_core(hub.config, {"users": {}})
    made.config.log = logging.getLogger("test.wiring")
    Ledger(made.config.state_dir).note_places([Place("alice", "/v/alice", storage_host="nas1")], "")
    hub.apply.do(findings=[SQUASHED, {"level": "warning", "what": "no cgroup", "mend": ""}])
    await core._look(made, None)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    if mode == "observe":
        assert said == [], "nothing is changed"
        return
    assert said == [
        ("ERROR", "ansible_bootstrap: nas1: root is squashed here\\nforged: no_root_squash in /etc/exports"),
        ("WARNING", "ansible_bootstrap: nas1: no cgroup"),
    ]
    caplog.clear()
    hub.apply.do()
    await core._look(made, None)
    assert not caplog.records, "it says nothing where there is nothing to say"


async def test_a_hub_in_a_container_without_the_storage_is_told_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".dockerenv").touch()
    (tmp_path / "mountinfo").write_text("1 0 8:1 / / rw - overlay dev rw\n")
    monkeypatch.setattr(findings, "SYSTEM", tmp_path)
    monkeypatch.setattr("ansible_bootstrap.storage._mounts.MOUNTINFO", str(tmp_path / "mountinfo"))
    config = AnsibleBootstrap(
        config=Config({"AnsibleBootstrap": {"storage_root": "/volumes", "mode": "observe", "uid": 1}})
    )
    config.log = logging.getLogger("test.wiring")
    await core._look(SimpleNamespace(config=config), DockerSpawner)  # type: ignore[arg-type]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "the hub runs in a container, and /volumes is not a mount" in line and "docker run -v" in line


@pytest.mark.parametrize("mode", ["enforce", "observe"])
async def test_where_nothing_is_to_be_prepared_the_server_starts_and_the_log_says_so_once(
    hub: Hub, mode: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(spawns, "_nowhere", set())
    hub.config.AnsibleBootstrap.update(
        place=lambda spawner: "nowhere", mode=mode, cleanup_delay=0.0, at_login=True
    )
    before = metric("hook_duration_seconds_count", way="nowhere")
    for _ in range(2):
        spawner = await hub.start()
        await until(lambda: hub.core.idle)
        await spawns.bootstrap_if_moved(spawner)
        spawns.note_place(spawner)
        await spawns.check_mounted(spawner)
        await spawns.stopped(spawner)
        await spawns.stopped(hub.spawner())  # As after a restart of the hub.
    assert await hub.log_in() == []
    assert hub.runs == 0 and hub.apply.cleanups == []
    assert metric("hook_duration_seconds_count", way="nowhere") - before == (2 if mode == "enforce" else 0)
    said = [record for record in caplog.records if "start without a storage" in record.getMessage()]
    assert len(said) == 1
    assert all(record.levelno < logging.WARNING for record in caplog.records), caplog.text


async def test_a_known_user_gets_a_run_while_other_work_for_the_user_is_under_way(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hub.start()
    monkeypatch.setattr(hub.core.dispatcher, "claim_untouched", lambda place: False)
    await hub.start()
    assert hub.runs == 2


async def test_a_run_leaves_out_what_the_ledger_knows_to_be_done(hub: Hub) -> None:
    await hub.start()
    hub.revise(V1, {**V1, "role": "tutorials"})
    await hub.start()
    assert [run["done"] for run in hub.apply.runs] == [{}, {"user_dir": "1"}]


async def test_the_progress_ends_with_the_hook(hub: Hub) -> None:
    progress = spawns.spawn_of(await hub.start()).progress
    async with asyncio.timeout(5):
        assert [said async for said, _ in progress.follow()]


# The stop


async def test_a_server_that_was_asked_to_stop_soon_is_not_doubted_but_one_that_died_is(hub: Hub) -> None:
    asked = await hub.start()
    asked._stop_future = asyncio.get_running_loop().create_future()
    await post_stop_hook(asked)
    died = await hub.start()
    assert hub.runs == 1
    await post_stop_hook(died)
    await hub.start()
    assert hub.runs == 2


@settings(cleanup_delay=60.0)
async def test_a_start_that_failed_leaves_nothing_to_clean_up(hub: Hub) -> None:
    hub.apply.do(fail={"alice": {"message": "quota"}})
    failed = hub.spawner()
    with pytest.raises(Exception, match="could not be prepared"):
        await pre_spawn_hook(failed)
    await post_stop_hook(failed)
    assert hub.core.dispatcher.waiting_cleanups() == 0
    hub.apply.do()
    await post_stop_hook(await hub.start())
    assert hub.core.dispatcher.waiting_cleanups() == 1


@settings(cleanup_delay=0.01, mode="observe")
async def test_a_clean_up_is_predicted_where_nothing_is_done(hub: Hub) -> None:
    spawner = hub.spawner()
    await pre_spawn_hook(spawner)
    await until(lambda: hub.runs == 1 and hub.core.idle)
    await post_stop_hook(spawner)
    (cleanup,) = await until(lambda: hub.apply.cleanups)
    assert cleanup["check"] and cleanup["users"] == ["alice"]
    await until(lambda: hub.core.idle)


@settings(cleanup_delay=0.01)
async def test_a_user_is_unknown_during_the_clean_up(hub: Hub) -> None:
    spawner = await hub.start()
    place = spawns.spawn_of(spawner).place
    spawner._stop_future = asyncio.get_running_loop().create_future()
    assert await hub.core.books.look(place) is not None
    hub.apply.do(fingerprints=[V1], cleanup={"behave": "hang"})
    await post_stop_hook(spawner)
    await until(lambda: hub.apply.cleanups)
    assert await hub.core.books.look(place) is None


@settings(cleanup_delay=0.01)
async def test_a_name_with_an_active_server_is_not_cleaned_up(hub: Hub) -> None:
    """The old user was renamed, or deleted and made again, while its server ran."""
    spawner = await hub.start()
    again = SimpleNamespace(active=True)
    hub.user.settings["users"]["alice"] = again
    await post_stop_hook(spawner)
    await until(hub.core.dispatcher.waiting_cleanups, 3)
    await asyncio.sleep(0.3)
    assert not hub.apply.cleanups
    again.active = False
    await post_stop_hook(await hub.start())
    await until(lambda: hub.apply.cleanups)


async def test_where_the_last_server_had_its_storage_is_told_by_the_present_settings_only(hub: Hub) -> None:
    await hub.start()
    hub.where = "other"
    hub.config.DemoSpawner.image = "new"
    hub.again()
    assert len(await hub.log_in()) == 1, "the admin has moved everybody"


# The core


@pytest.mark.parametrize(
    ("more", "spare"),
    [({"storage_root": "/v"}, True), ({"storage_root": "/v", "spare": False}, False), (None, False)],
)
async def test_only_the_embedded_program_is_kept_ready_and_only_if_the_admin_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub, more: dict[str, Any] | None, spare: bool
) -> None:
    said: list[bool] = []

    class Client(ApplyClient):
        def __init__(self, *args: Any, spare: bool = False, **more: Any) -> None:
            super().__init__(*args, **more)
            said.append(spare)
            assert more["wanted"].__func__ is AnsibleBootstrap.spare_wanted

    monkeypatch.setattr(core, "ApplyClient", Client)
    ours = Config(state_dir=str(tmp_path / "state"))
    ours.update({"apply_command": hub.apply.command} if more is None else more)
    core.make_core(Config(AnsibleBootstrap=ours), None)
    assert said == [spare]


async def test_a_hub_that_is_up_makes_ready_before_the_first_user_comes(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[bool] = []
    made = core.make_core(hub.config, None)
    monkeypatch.setattr(made.client, "prepare", lambda: prepared.append(True))
    await core.make_ready(made)
    assert prepared == [True]
    hub.apply.do(fingerprints=[V2])
    assert [role.fingerprint for role in await made.fingerprints.current() or ()] == ["1"]


async def test_the_ledger_is_asked_only_after_the_roles_were_described(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes long comes first: a clean-up that begins meanwhile makes the user unknown."""
    await hub.start()
    order: list[str] = []
    current, look, noted = hub.core.fingerprints.current, hub.core.books.look, hub.core.books.noted

    async def describe() -> Any:
        order.append("roles")
        return await current()

    async def look_up(place: Place) -> Any:
        order.append("user")
        return await look(place)

    def read(place: Place) -> Any:
        order.append("user")
        return noted(place)

    monkeypatch.setattr(hub.core.fingerprints, "current", describe)
    monkeypatch.setattr(hub.core.books, "look", look_up)
    monkeypatch.setattr(hub.core.books, "noted", read)
    await hub.start()
    assert order == ["roles", "user"]
    order.clear()
    await hub.core.noted(Place("alice", directory=str(hub.path / "storage/alice"), storage_host="localhost"))
    assert order == ["roles", "user"]


async def test_a_failed_clean_up_makes_its_user_unknown(hub: Hub) -> None:
    hub.apply.do(fingerprints=[V1])
    await hub.start()
    place = Place("alice", directory=str(hub.path / "storage/alice"), storage_host="localhost")
    assert (await hub.core.known(place))[0]
    await hub.core.before_cleanup([place])
    failed = Outcome(key="alice", name="alice", status="failed", reason="role_failed")
    record = RunRecord("r", "cleanup", "localhost", time.time(), 1, outcomes=[failed])
    hub.core.run_ended(record)
    await until(lambda: hub.core.idle)
    assert not (await hub.core.known(place))[0]
