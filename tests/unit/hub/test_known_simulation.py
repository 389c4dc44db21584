"""Whatever comes in whatever order, nobody is known to have what their directory does not have.

A model of what has really been done to each directory, against what core, dispatcher, bookkeeper and ledger say: spawns,
logins, named servers, cancels, stops, clean-ups, servers that die early, an admin who forgets, a command line that
bootstraps beside the hub, settings that are changed meanwhile, directories by two names, and a hub that is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from hub_fakes import Lines
from hub_fakes import SeeingLedger as Ledger
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from traitlets.config import Config

from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.dispatch import cleanups, health, queue
from ansible_bootstrap.dispatch import run as flights
from ansible_bootstrap.dispatch.dispatcher import Dispatcher
from ansible_bootstrap.errors import AnsibleBootstrapError, ApplyError
from ansible_bootstrap.hub import core
from ansible_bootstrap.hub.core import Core
from ansible_bootstrap.hub.current_fingerprints import CurrentFingerprints, Fingerprints
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import (
    Accepted,
    Event,
    Outcome,
    OutcomeEvent,
    Request,
    RoleFingerprint,
)
from ansible_bootstrap.state import bookkeeper, ledger
from ansible_bootstrap.state.bookkeeper import Bookkeeper
from ansible_bootstrap.state.ledger import Entry, completed

ROLES = ("user_dir", "tutorials")
NAMES = ("alice", "bob")

WHO = st.sampled_from(NAMES)
PLACES = st.tuples(WHO, st.booleans(), st.sampled_from([1, 1, 1, 2]))
"""Name; whether the spawner knows the directory or only the apply side does; uid."""

STEPS = st.one_of(
    st.tuples(st.just("spawn"), PLACES),
    st.tuples(st.just("spawn"), PLACES),
    st.tuples(st.just("login"), PLACES),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("stop"), PLACES),
    st.tuples(st.just("stop"), PLACES),
    st.tuples(st.just("work"), st.integers(0, 3)),
    st.tuples(
        st.just("settle"),
        st.integers(0, 3),
        st.sampled_from(["ok", "ok", "ok", "failed", "continued", "timeout"]),
    ),
    st.tuples(st.just("later"), st.sampled_from([10.0, 300.0])),
    st.tuples(st.just("finish")),
    st.tuples(st.just("finish")),
    st.tuples(st.just("break")),
    st.tuples(st.just("settings"), st.sampled_from(ROLES)),
    st.tuples(st.just("early"), WHO),
    st.tuples(st.just("forget"), WHO),
    st.tuples(st.just("command looks"), PLACES),
    st.tuples(st.just("command works"), st.integers(0, 3)),
    st.tuples(st.just("kill")),
    st.tuples(st.just("wait")),
    st.tuples(st.just("wait")),
)


class World:
    """The directories, and the settings of the apply side."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.random = random.Random(seed)
        self.versions = dict.fromkeys(ROLES, 1)
        self.has: dict[str, dict[str, int]] = {name: {} for name in NAMES}
        """By user and role: the version that was applied. Not for which uid: a home of another's is refused."""
        self.damages = dict.fromkeys(NAMES, 0)
        for name in NAMES:
            (path / name).mkdir()

    def place(self, name: str, told: bool, uid: int) -> Place:
        directory = str(self.path / name) if told else None
        return Place(name, directory, uid, 7, "localhost", server_name="" if told else "two")

    def fingerprints(self) -> Fingerprints:
        return tuple(
            RoleFingerprint(role=role, fingerprint=str(version), revised=True)
            for role, version in self.versions.items()
        )

    def apply(self, name: str, role: str, version: int, uid: int) -> None:
        if role == "user_dir":
            (self.path / name).chmod(0o700 + uid)  # As a change of the owner would, it shows.
        self.has[name][role] = max(version, self.has[name].get(role, 0))

    def damage(self, name: str) -> None:
        """Something goes that a role has given."""
        self.has[name].pop(self.random.choice(ROLES), None)
        self.damages[name] += 1

    def check(self, place: Place, roles: Any, what: str) -> None:
        for role, fingerprint in dict(roles).items():
            version = self.has[place.name].get(role, 0)
            assert version >= int(fingerprint), f"{what}: {place} has not {role} {fingerprint}"


@dataclass
class Run:
    """A run that does what a batch does, step by step."""

    world: World
    request: Request
    on_event: Callable[[Event], None]
    left: list[dict[str, Any]] = field(default_factory=list)
    roles: list[tuple[str, int]] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)
    stopped: AnsibleBootstrapError | None = None

    def begin(self) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.left = list(self.request.users)
        now = self.world.fingerprints() if self.request.operation == "bootstrap" else ()
        self.roles = [
            (said.role, int(said.fingerprint))
            for said in now
            if self.request.done.get(said.role) != said.fingerprint
        ]
        names = tuple(role for role, _ in self.roles)
        self.on_event(Accepted(run="r", storage_host="localhost", roles=names, fingerprints=now))

    def work(self, user: dict[str, Any], roles: list[tuple[str, int]] | None = None) -> None:
        """Do some of it, or all."""
        if self.request.operation == "cleanup":
            if self.world.random.random() < 0.5 and self.world.has[user["name"]]:
                self.world.damage(user["name"])
                self.world.damages[user["name"]] -= 1  # A clean-up is no excuse.
                self.changed.add(user["key"])
            return
        for role, version in self.roles if roles is None else roles:
            self.world.apply(user["name"], role, version, user["uid"])

    def settle(self, number: int, how: str) -> None:
        if not self.left:
            return
        user = self.left.pop(number % len(self.left))
        continued = how == "continued" and ("tutorials", self.world.versions["tutorials"]) in self.roles
        failed = how in {"failed", "timeout"}
        self.work(user, self.roles[:1] if failed else None if not continued else self.roles[:-1])
        self.on_event(
            OutcomeEvent(
                outcome=Outcome(
                    key=user["key"],
                    name=user["name"],
                    status="failed" if failed else "ok",
                    reason="timeout" if how == "timeout" else None,
                    directory=str(self.world.path / user["name"]),
                    changed=("cleanup",) if user["key"] in self.changed else (),
                    continued=("tutorials",) if continued else (),
                )
            )
        )

    def end(self, error: AnsibleBootstrapError | None = None) -> None:
        error = error or self.stopped
        if not self.over.done():
            self.over.set_exception(error) if error else self.over.set_result(None)

    def stop(self, why: AnsibleBootstrapError) -> None:
        self.stopped = why

    async def finish(self) -> None:
        await asyncio.wait({self.over})
        self.over.result()


class LedgerOfAHub:
    """A killed hub writes nothing more."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.killed = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*values: Any, **more: Any) -> Any:
            if self.killed:
                raise OSError("the hub was killed")
            return getattr(self.ledger, name)(*values, **more)

        return call


class Hub:
    """One hub after the other, over the same directories."""

    def __init__(self, path: Path, seed: int) -> None:
        (path / "storage").mkdir()
        self.world = World(path / "storage", seed)
        self.state = path / "state"
        self.log = Lines()
        self.ledger = Ledger(self.state)
        self.command: list[tuple[Place, Entry | None, float]] = []
        self.known = 0
        self.slept = 0.0
        self.spawns: list[asyncio.Task[None]] = []
        self.begin()

    def begin(self) -> None:
        said = {"state_dir": str(self.state), "cleanup_delay": 0, "apply_command": ["never started"]}
        config = AnsibleBootstrap(config=Config({"AnsibleBootstrap": said}))
        config.log = self.log.logger
        self.runs: list[Run] = []
        self.active = dict.fromkeys(NAMES, 0)
        active = self.active
        users = SimpleNamespace(get=lambda name: SimpleNamespace(active=bool(active[name])))
        self.core = Core(config, users)
        self.its_ledger = LedgerOfAHub(Ledger(self.state, config.trust_for))
        self.core.books = Bookkeeper(self.its_ledger, config.log, config.place_digest())  # type: ignore[arg-type]
        self.core.dispatcher = Dispatcher(self, config.log, self.core, cleanup_delay=0.0)
        self.core.fingerprints = CurrentFingerprints(self.describe, self.log.logger)

    async def describe(self) -> Fingerprints:
        return self.world.fingerprints()

    async def start(self, request: Request, on_event: Callable[[Event], None], *, limit: float) -> Run:
        run = Run(self.world, request, on_event)
        run.begin()
        self.runs.append(run)
        return run

    @property
    def flying(self) -> list[Run]:
        return [run for run in self.runs if not run.over.done()]

    async def kill(self) -> None:
        self.its_ledger.killed = True
        closing = asyncio.create_task(self.core.dispatcher.close())
        await asyncio.sleep(0)
        tasks = {closing, *asyncio.all_tasks()} - {asyncio.current_task()}
        for task in tasks:
            task.cancel()  # type: ignore[union-attr]
        await asyncio.gather(*tasks, return_exceptions=True)  # type: ignore[arg-type]
        self.spawns = [task for task in self.spawns if not task.cancelled()]
        self.begin()

    def later(self, seconds: float) -> None:
        """Let the time pass without a sign of any run."""
        self.slept += seconds
        self.core.dispatcher.tick()

    async def spawn(self, place: Place) -> None:
        """As the hook does."""
        core, world = self.core, self.world
        damages = world.damages[place.name]
        known, done = await core.known(place)
        if damages == world.damages[place.name]:
            world.check(place, done, "known")
        if known and core.dispatcher.claim_untouched(place):
            assert damages != world.damages[place.name] or set(world.has[place.name]) == set(ROLES)
            self.known += 1
        else:
            try:
                outcome = await core.dispatcher.wait(
                    place, timeout=60, on_progress=lambda text, share: None, done=done
                )
            except AnsibleBootstrapError:
                return
            if outcome.status != "ok":
                return
            if damages == world.damages[place.name]:
                missing = set(ROLES) - set(outcome.continued) - set(world.has[place.name])
                assert not missing, f"{place} starts without {missing}"
        self.active[place.name] += 1

    async def login(self, place: Place) -> None:
        known, done = await self.core.known(place)
        if not known:
            self.core.dispatcher.prepare(place, done)

    def command_works(self, number: int) -> None:
        """``ansible-bootstrap run`` has looked, and now applies what is left and notes it."""
        if not self.command:
            return
        place, entry, since = self.command.pop(number % len(self.command))
        has = entry.roles if entry is not None else {}
        said = self.world.fingerprints()
        for role in said:
            if has.get(role.role) != role.fingerprint:
                self.world.apply(place.name, role.role, int(role.fingerprint), place.uid or 0)
        self.ledger.complete([completed(place, str(self.world.path / place.name), said, since=since)])

    def audit(self) -> None:
        """What the ledger says is so."""
        for name in NAMES:
            for told in (True, False):
                for uid in (1, 2):
                    place = self.world.place(name, told, uid)
                    entry = self.ledger.look(place)
                    if entry is not None:
                        self.world.check(place, entry.roles, "ledger")

    async def settled(self) -> None:
        """Everything that is under way comes to its end."""
        for _ in range(2000):
            for run in self.flying:
                run.settle(0, "ok")
                if not run.left:
                    run.end()
            self.later(10.0)
            await asyncio.sleep(0.001)
            await self.core.books.written()
            busy = self.flying or not (self.core.idle and self.core.dispatcher.idle)
            if not busy and all(task.done() for task in self.spawns):
                return
        raise AssertionError("it does not come to an end")


async def simulate(steps: list[tuple[Any, ...]], path: Path, seed: int) -> int:
    hub = Hub(path, seed)
    clock = SimpleNamespace(
        monotonic=lambda: time.monotonic() + hub.slept,
        time=time.time,
        localtime=time.localtime,
        strftime=time.strftime,
    )
    with contextlib.ExitStack() as held:
        for module in (flights, health, queue, core, bookkeeper, ledger):
            held.enter_context(patch.object(module, "time", clock))
        return await take(steps, hub)


async def take(steps: list[tuple[Any, ...]], hub: Hub) -> int:
    world = hub.world
    for step in steps:
        flying = hub.flying
        match step:
            case ("spawn", place):
                hub.spawns.append(asyncio.create_task(hub.spawn(world.place(*place))))
            case ("login", place):
                hub.spawns.append(asyncio.create_task(hub.login(world.place(*place))))
            case ("cancel", number) if hub.spawns:
                hub.spawns[number % len(hub.spawns)].cancel()
            case ("stop", place):
                name = place[0]
                hub.active[name] = max(0, hub.active[name] - 1)
                active = hub.active
                hub.core.dispatcher.cleanup(
                    world.place(*place), lambda active=active, name=name: bool(active[name])
                )
            case ("work", number) if flying and flying[0].left:
                run = flying[0]
                run.work(run.left[number % len(run.left)], run.roles[:1])
            case ("settle", number, how) if flying:
                flying[number % len(flying)].settle(number, how)
            case ("later", seconds):
                hub.later(seconds)
            case ("finish",) if flying:
                while flying[0].left:
                    flying[0].settle(0, "ok")
                flying[0].end()
            case ("break",) if flying:
                flying[0].end(ApplyError("died"))
            case ("settings", role):
                world.versions[role] += 1
            case ("early", name):
                world.damage(name)
                hub.active[name] = max(0, hub.active[name] - 1)
                await hub.core.books.forget(name)
            case ("forget", name):
                world.damage(name)
                hub.ledger.forget([name])
            case ("command looks", place):
                at = time.monotonic() + hub.slept
                hub.command.append((world.place(*place), hub.ledger.look(world.place(*place)), at))
            case ("command works", number):
                hub.command_works(number)
            case ("kill",):
                await hub.kill()
            case ("wait",):
                await asyncio.sleep(0.003)
        for _ in range(3):
            await asyncio.sleep(0)
    await hub.settled()
    hub.audit()
    for task in hub.spawns:
        if not task.cancelled():
            task.result()
    mishaps = [record for record in hub.log.records if record.levelno >= logging.ERROR]
    assert not mishaps, mishaps[0].exc_text
    return hub.known


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # Threads take part: what fails once may not again.
)
@given(steps=st.lists(STEPS, min_size=60, max_size=150), seed=st.integers(0, 999))
def test_nobody_is_known_to_have_what_their_directory_has_not(
    steps: list[tuple[Any, ...]], seed: int
) -> None:
    retry = cleanups.RETRY_SECONDS
    cleanups.RETRY_SECONDS = 0.0  # type: ignore[misc]
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
            asyncio.run(simulate(steps, Path(directory), seed))
    finally:
        cleanups.RETRY_SECONDS = retry  # type: ignore[misc]


def test_in_the_simulation_there_are_users_who_are_known() -> None:
    """Or it would prove nothing."""
    alice = ("alice", True, 1)
    steps: list[tuple[Any, ...]] = []
    for _ in range(5):
        steps += [("spawn", alice), *[("wait",)] * 10, ("finish",), *[("wait",)] * 10, ("stop", alice)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        assert asyncio.run(simulate(steps, Path(directory), 1)) > 0
