"""What the hooks share, made once a process: dispatcher, ledger, fingerprints, history, metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final

from traitlets import TraitError
from traitlets.config import Config

from ansible_bootstrap.config import DEFAULT_CLEANUP_DELAY, AnsibleBootstrap
from ansible_bootstrap.describing import ask_fingerprints
from ansible_bootstrap.dispatch.client import ApplyClient
from ansible_bootstrap.dispatch.dispatcher import Dispatcher
from ansible_bootstrap.dispatch.observer import Observer
from ansible_bootstrap.errors import SettingsError
from ansible_bootstrap.findings import outside_of_container, probe
from ansible_bootstrap.hub.current_fingerprints import CurrentFingerprints
from ansible_bootstrap.hub.failure import one_line, why
from ansible_bootstrap.hub.metrics import metrics_of
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import Finding, Outcome, RoleFingerprint
from ansible_bootstrap.run_record import RunRecord
from ansible_bootstrap.state.bookkeeper import Bookkeeper
from ansible_bootstrap.state.directory import hold_state_dir
from ansible_bootstrap.state.history import History, Recorder
from ansible_bootstrap.state.ledger import Ledger
from ansible_bootstrap.state.pending_cleanups import PendingCleanups
from ansible_bootstrap.threads import in_thread

UP_SECONDS: Final = 1.0
"""Between two looks at whether the hub is up."""

SETTINGS_SECONDS: Final = 10.0
"""To write the apply program's settings file on the hub's own disk."""

DESCRIBE_SECONDS: Final = 10.0

ENDING_SECONDS: Final = 60.0
"""For a clean-up that has run out of time to be ended, with whatever its roles have started, and to be noted."""


class Core(Observer):
    """Made when the hub is up or at the first hook, when all settings have been made.

    Args:
        config: the settings.
        users: the hub's ``UserDict``, which has at least all users with an active server; None if there is none.

    Raises:
        SettingsError: the settings contradict themselves.
    """

    def __init__(self, config: AnsibleBootstrap, users: Any) -> None:
        config.check()
        hold_state_dir(config.state_dir)
        self.config = config
        self.users = users
        self.cleanup_delay = config.effective_cleanup_delay()
        self.pending: PendingCleanups | None = None
        if self.cleanup_delay is not None and not config.observing:
            self.pending = PendingCleanups(config.state_dir, config.log)
        self.client = ApplyClient(
            lambda: in_thread(config.apply_argv, timeout=SETTINGS_SECONDS),
            config.log,
            spare=config.embedded and config.spare and not (config.inventory or config.observing),
            wanted=config.spare_wanted,
        )
        self.fingerprints = CurrentFingerprints(
            lambda: ask_fingerprints(config, self.client, DESCRIBE_SECONDS), config.log
        )
        self.books = Bookkeeper(
            Ledger(config.state_dir, config.trust_for, here=config.here), config.log, config.place_digest()
        )
        self._doubts: dict[tuple[str, str], str] = {}
        """By storage host and name of users whose clean-up has begun: its token."""
        self.begun = False
        """Whether what is to be done at the hub's start has begun."""
        self.preparing: set[str] = set()
        """Names of users for whose login the work is just being begun."""
        self.metrics = metrics_of(hosts=[config.storage_host] if isinstance(config.storage_host, str) else [])
        self._recorder = Recorder(History(config.state_dir, config.history_days), config.log)
        self.dispatcher = Dispatcher(
            self.client,
            config.log,
            self,
            batch_size=config.batch_size,
            run_limit=config.timeout,
            max_runs=config.max_runs,
            check=config.observing,
            cleanup_delay=DEFAULT_CLEANUP_DELAY if self.cleanup_delay is None else self.cleanup_delay,
        )
        self.metrics.watch(self.dispatcher.waiting, self.dispatcher.waiting_cleanups)
        self._background: set[asyncio.Task[None]] = set()
        if self.pending is not None:
            self.start(self._restore(self.pending))

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Let it run beside the hooks."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    @property
    def idle(self) -> bool:
        """Whether nothing runs beside the hooks."""
        return not self._background

    @property
    def remembers(self) -> bool:
        """Whether a user who is complete is let through without a run."""
        return self.config.recheck == "changed" and not self.config.observing

    async def known(self, place: Place) -> tuple[bool, Mapping[str, str]]:
        """Return whether the user needs nothing, and which roles they have at which fingerprint."""
        if not self.remembers:
            return False, {}
        # First, for it may take a while: a clean-up that begins meanwhile makes the user unknown.
        fingerprints = await self.fingerprints.current()
        entry = await self.books.look(place)
        if entry is None:
            return False, {}
        return fingerprints is not None and entry.has(fingerprints), entry.roles

    async def noted(self, place: Place) -> bool:
        """Return whether the ledger says that the user needs nothing at this place, without a look at the directory."""
        if not self.remembers:
            return False
        fingerprints = await self.fingerprints.current()
        entry = self.books.noted(place)
        return entry is not None and fingerprints is not None and entry.has(fingerprints)

    async def check_move(self, place: Place) -> None:
        """As :meth:`Bookkeeper.check_move`, by the setting ``on_move``."""
        await self.books.check_move(place, refuse=self.config.on_move == "refuse")

    # -- dispatch.observer.Observer -----------------------------------------------------------

    def run_ended(self, record: RunRecord) -> None:  # noqa: D102
        self._recorder.record(record)
        self.metrics.record(record)
        if record.operation == "cleanup" and not record.check:
            self._after_cleanup(record)

    def user_completed(  # noqa: D102
        self, place: Place, outcome: Outcome, fingerprints: Sequence[RoleFingerprint], since: float
    ) -> None:
        self.fingerprints.renewed(tuple(fingerprints), outcome.seconds)
        if self.remembers:
            self.books.complete(place, outcome, fingerprints, since)

    def cleanup_asked(self, place: Place) -> None:  # noqa: D102
        if self.pending is not None:
            self.pending.note(place.job_key, place)

    def cleanup_settled(self, place: Place) -> None:  # noqa: D102
        if self.pending is not None:
            self.pending.note(place.job_key, None)

    async def before_cleanup(self, places: Sequence[Place]) -> None:
        """Make the users unknown: a clean-up may take away what a bootstrap gave."""
        token = await self.books.doubt(places, self.config.timeout + ENDING_SECONDS)
        self._doubts.update(((place.storage_host, place.name), token) for place in places)

    def _after_cleanup(self, run: RunRecord) -> None:
        """Users that a clean-up left unchanged are still complete."""
        users = {(run.storage_host, outcome.name) for outcome in run.outcomes}
        token = max((self._doubts.pop(user, "") for user in users), default="")  # They have the same.
        changed = {
            (run.storage_host, outcome.name)
            for outcome in run.outcomes
            if outcome.status != "ok" or outcome.changed
        }
        self.start(
            self.books.after_cleanup(token, sorted(users - changed), sorted(changed), time.monotonic())
        )

    async def _restore(self, pending: PendingCleanups) -> None:
        self.dispatcher.restore(await pending.load(), partial(is_active, self.users))


_core: Core | None = None


def core_of(spawner: Any) -> Core:
    """Return the one core of this process, for a spawner of its hub.

    Raises:
        SettingsError: the settings cannot be used.
    """
    return make_core(spawner.config, getattr(spawner.user, "settings", None))


def make_core(hub_config: Config, hub_settings: Mapping[str, Any] | None) -> Core:
    """Return the one core of this process.

    Raises:
        SettingsError: the settings cannot be used.
    """
    global _core  # noqa: PLW0603 - one for the process, as SingletonConfigurable has one instance
    try:
        config = AnsibleBootstrap.instance(config=hub_config)
    except TraitError as error:
        raise SettingsError(f"c.AnsibleBootstrap: {error}") from None
    if _core is None or _core.config is not config:
        _core = Core(config, (hub_settings or {}).get("users"))
    return _core


def is_active(users: Any, name: str) -> bool:
    """Whether that user has an active server; also if it cannot be told, for then nothing may be deleted."""
    if users is None:
        return True
    try:
        user = users.get(name)
        return user is not None and bool(user.active)
    except Exception:
        return True


def when_up(loop: asyncio.AbstractEventLoop) -> None:
    """Do what an earlier hub has left, and pre-compute what the first spawn needs, once the hub is up."""
    from jupyterhub.app import JupyterHub  # noqa: PLC0415 - heavy, and loaded wherever there is a hub

    app = JupyterHub.instance() if JupyterHub.initialized() else None
    if app is None or app.http_server is None:  # Before that, the hub does not know yet who has a server.
        loop.call_later(UP_SECONDS, when_up, loop)
        return
    if not getattr(app.tornado_settings.get("spawner_class"), "shows_bootstrap", False):
        app.log.error(
            "ansible_bootstrap: the hub's spawner class was replaced after setup(c): no storage is prepared. "
            "Set c.JupyterHub.spawner_class = bootstrapped(YourSpawner)"
        )
    try:
        core = make_core(app.config, app.tornado_settings)
    except Exception as error:  # Each spawn says so, too.
        app.log.error("ansible_bootstrap: %s", why(error))
        return
    if not core.begun:  # ``setup`` may be called more than once.
        core.begun = True
        core.start(make_ready(core))
        core.start(_look(core, app.tornado_settings.get("spawner_class")))


async def _look(core: Core, spawner_class: Any) -> None:
    """Log what would fail the first spawns; log nothing if all is well."""
    config = core.config
    try:
        found = await in_thread(
            partial(outside_of_container, config, spawner_class), timeout=DESCRIBE_SECONDS
        )
        _tell(core, found)
        hosts = [config.storage_host]
        if callable(config.storage_host):
            last = await in_thread(Ledger(config.state_dir).last_places, timeout=DESCRIBE_SECONDS)
            hosts = sorted({place.storage_host for place in last})
        for host in [] if config.observing else hosts:  # A probe makes a directory, and removes it.
            found, _ = await probe(core.client, host)
            _tell(core, found)
    except Exception as error:
        config.log.warning("ansible_bootstrap: the storage was not probed: %s", why(error))


def _tell(core: Core, found: Sequence[Finding]) -> None:
    for finding in found:
        level = logging.ERROR if finding.level == "error" else logging.WARNING
        said = ": ".join(filter(None, (finding.what, finding.mend)))
        core.config.log.log(level, "ansible_bootstrap: %s", one_line(said))


async def make_ready(core: Core) -> None:
    """Prepare at the hub's start what the first spawn needs."""
    core.client.prepare()
    if core.remembers:
        await core.fingerprints.current()
