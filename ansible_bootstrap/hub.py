"""The JupyterHub side: hooks, progress, and the error that shows well. The only importer of jupyterhub.

What the hub demands of a hook, and where it says so (jupyterhub 6):

* It runs on the event loop and has no time limit: ``start_timeout`` wraps only ``Spawner.start``
  (``User.spawn``). So everything here is bounded by ``c.AnsibleBootstrap.timeout``.
* ``User.spawn`` catches ``Exception``: a CancelledError that leaves the hook without anybody having cancelled
  the spawn would leave a "ready" server that does not exist.
* A spawn is cancelled with one second to end (``UserServerAPIHandler.delete``): nothing is awaited then.
* A TimeoutError is reported as ``start_timeout``; the text of any other exception reaches the student;
  plain ones count towards ``consecutive_failure_limit``, after which the hub exits
  (``BaseHandler.spawn_single_user``). So only :class:`BootstrapError` leaves the hook.
* Settings are deep-copied into each spawner (traitlets' ``Configurable``): the hooks are module-level functions,
  and what they share is in one :class:`_Core`.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from jupyterhub.utils import maybe_future
from traitlets import TraitError
from traitlets.config import Config

from .apply_client import ApplyClient
from .config import DEFAULT_CLEANUP_DELAY, AnsibleBootstrap
from .dispatcher import Dispatcher
from .errors import BY_REASON, AnsibleBootstrapError, ApplyError, DeadlineError, SettingsError
from .history import History, Recorder
from .pending import PendingCleanups
from .places import Place, resolve
from .progress import ProgressLog
from .protocol import Outcome
from .threads import in_thread

try:
    from jupyterhub.spawner import SpawnException as _HubError
except ImportError:  # JupyterHub 5, where every failed spawn counts towards consecutive_failure_limit.
    from tornado.web import HTTPError as _HubError

SpawnerClass = TypeVar("SpawnerClass", bound=type)
Hook = Callable[[Any], Any]

POST_STOP_SECONDS: Final = 2.0
"""A post_stop_hook that hangs locks the user out and keeps the hub from stopping."""

UP_SECONDS: Final = 1.0
"""Between two looks at whether the hub is up."""

SETTINGS_SECONDS: Final = 10.0
"""To write the apply program's settings file on the hub's own disk."""


class BootstrapError(_HubError):  # type: ignore[misc, unused-ignore]
    """What leaves the hook: shows one sentence on the spawn page, in the progress and in the API.

    Attributes:
        jupyterhub_message: that sentence.
        reason: one of ``errors.REASONS``; the hub makes it a label of its metrics.
        status_code: 503.
    """

    def __init__(self, error: AnsibleBootstrapError) -> None:
        if _HubError.__name__ == "SpawnException":
            super().__init__(error.message, reason=error.reason, status_code=503)
        else:
            super().__init__(503, error.message, reason=error.reason)
        self.jupyterhub_message = error.message
        self.jupyterhub_html_message = html.escape(error.message)


# -- what the hooks share ------------------------------------------------------------------------


class _Core:
    """Made once, when the hub is up or at the first hook, when all settings have been made.

    Args:
        config: the settings.
        users: the hub's ``UserDict``, which has at least all users with an active server; None if there is none.
    """

    def __init__(self, config: AnsibleBootstrap, users: Any) -> None:
        config.check()
        self.config = config
        self.cleanup_delay = config.effective_cleanup_delay()
        self.pending: PendingCleanups | None = None
        if self.cleanup_delay is not None and not config.observing:
            self.pending = PendingCleanups(config.state_dir, config.log)
        self.dispatcher = Dispatcher(
            ApplyClient(lambda: in_thread(config.apply_argv, timeout=SETTINGS_SECONDS), config.log),
            config.log,
            batch_size=config.batch_size,
            run_limit=config.timeout,
            check=config.observing,
            cleanup_delay=DEFAULT_CLEANUP_DELAY if self.cleanup_delay is None else self.cleanup_delay,
            record=Recorder(History(config.state_dir, config.history_days), config.log).record,
            keep=self.pending.note if self.pending is not None else lambda key, place: None,
        )
        self.background: set[asyncio.Task[None]] = set()
        if self.pending is not None:
            self.start(self._restore(self.pending, users))

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Let it run beside the hooks."""
        task = asyncio.get_running_loop().create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    async def _restore(self, pending: PendingCleanups, users: Any) -> None:
        self.dispatcher.restore(await pending.load(), partial(_is_active, users))


_core: _Core | None = None


def _get_core(spawner: Any) -> _Core:
    return _make_core(spawner.config, getattr(spawner.user, "settings", None))


def _make_core(hub_config: Config, hub_settings: Mapping[str, Any] | None) -> _Core:
    global _core  # noqa: PLW0603 - one for the process, as SingletonConfigurable has one instance
    try:
        config = AnsibleBootstrap.instance(config=hub_config)
    except TraitError as error:
        raise SettingsError(f"c.AnsibleBootstrap: {error}") from None
    if _core is None or _core.config is not config:
        _core = _Core(config, (hub_settings or {}).get("users"))
    return _core


def _is_active(users: Any, name: str) -> bool:
    """Whether that user has an active server; also if it cannot be told, for then nothing may be deleted."""
    if users is None:
        return True
    try:
        user = users.get(name)
        return user is not None and bool(user.active)
    except Exception:
        return True


def _when_up(loop: asyncio.AbstractEventLoop) -> None:
    """Do what an earlier hub has left, without waiting for somebody to press Start."""
    from jupyterhub.app import JupyterHub  # noqa: PLC0415 - heavy, and loaded wherever there is a hub

    app = JupyterHub.instance() if JupyterHub.initialized() else None
    if app is None or app.http_server is None:  # Before that, the hub does not know yet who has a server.
        loop.call_later(UP_SECONDS, _when_up, loop)
        return
    try:
        _make_core(app.config, app.tornado_settings)
    except Exception as error:  # Each spawn says so, too.
        details = getattr(error, "details", "") or f"{type(error).__name__}: {error}"
        app.log.error("ansible_bootstrap: %s", _line(details))


@dataclass
class _Spawn:
    """What we know of a spawner's present start; ends with the post_stop_hook."""

    progress: ProgressLog = field(default_factory=ProgressLog)
    place: Place | None = None
    begun: bool = False
    ready: bool = False


def _spawn_of(spawner: Any) -> _Spawn:
    spawn: _Spawn | None = spawner.__dict__.get("_ansible_bootstrap")
    if spawn is None:
        spawn = spawner.__dict__["_ansible_bootstrap"] = _Spawn()
    return spawn


# -- hooks ---------------------------------------------------------------------------------------


async def pre_spawn_hook(spawner: Any) -> None:
    """Return when the user's storage is ready; then call the hook that was there before us.

    Raises:
        BootstrapError: it is not ready, with one sentence for the user; the log has the details.
    """
    _show_progress(spawner)
    await _bootstrap(spawner)
    await _call_chained("pre_spawn_hook", spawner)


async def post_stop_hook(spawner: Any) -> None:
    """Note that there is something to clean up, and return; then call the hook that was there before us.

    Never raises, and never waits for a clean-up, only until it is noted on disk. Source: ``User.stop`` calls it
    also after a failed spawn, and at the hub's start for servers that died meanwhile.
    """
    await _enqueue_cleanup(spawner)
    try:
        await _call_chained("post_stop_hook", spawner)
    except Exception:
        spawner.log.exception("post_stop_hook failed for %s", spawner._log_name)


async def _bootstrap(spawner: Any) -> None:
    """The part of the hook that is ours; nothing but BootstrapError and a real cancellation leaves it."""
    spawn = _spawn_of(spawner)
    spawn.begun = True
    try:
        core = _get_core(spawner)
        if core.config.observing:
            core.start(_observe(spawner, core))
            return
        outcome = await _wait(spawner, core, spawn)
        _tell(spawner, spawn, outcome)
        spawn.ready = True
    except asyncio.CancelledError:
        task_ = asyncio.current_task()
        if task_ is not None and task_.cancelling():
            raise
        raise _shown(spawner, ApplyError("cancelled from within")) from None
    except TimeoutError:
        raise _shown(spawner, DeadlineError("a step of the bootstrap timed out")) from None
    except AnsibleBootstrapError as error:
        shown = _shown(spawner, error)
        if spawner.config.get("AnsibleBootstrap", {}).get("mode") == "observe":
            return  # Not even a mistake in the settings holds anybody up then.
        raise shown from None
    except Exception as error:
        spawner.log.exception("ansible_bootstrap: unexpected failure for %s", spawner._log_name)
        raise _shown(spawner, ApplyError(f"unexpected {type(error).__name__}")) from None
    finally:
        spawn.progress.close()


async def _wait(spawner: Any, core: _Core, spawn: _Spawn) -> Outcome:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + core.config.timeout
    try:
        async with asyncio.timeout_at(deadline) as limit:
            spawn.place = await resolve(spawner, core.config)
    except TimeoutError:
        if limit.expired():
            raise DeadlineError("where the storage is was not known in time") from None
        raise
    outcome = await core.dispatcher.wait(
        spawn.place, timeout=max(0.0, deadline - loop.time()), on_progress=spawn.progress.say
    )
    if outcome.status == "failed":
        raise BY_REASON[outcome.reason or "role_failed"](_explained(outcome))
    return outcome


async def _observe(spawner: Any, core: _Core) -> None:
    """``mode = "observe"``: say in the log what would have happened, later, and hold nobody up."""
    name = spawner._log_name
    try:
        outcome = await _wait(spawner, core, _Spawn())
    except AnsibleBootstrapError as error:
        spawner.log.warning(
            "ansible_bootstrap: observed %s: would fail (%s): %s", name, error.reason, _line(error.details)
        )
    except Exception:
        spawner.log.exception("ansible_bootstrap: could not observe %s", name)
    else:
        what = f"would change: {', '.join(outcome.changed)}" if outcome.changed else "nothing to change"
        spawner.log.info("ansible_bootstrap: observed %s: %s", name, _line(what))


def _tell(spawner: Any, spawn: _Spawn, outcome: Outcome) -> None:
    """What went wrong without keeping the user from working: a sentence for them, a line for the admin."""
    if outcome.continued:
        spawn.progress.say("Something extra could not be prepared this time; you can work without it")
        spawner.log.warning(
            "ansible_bootstrap: %s starts without %s: %s",
            spawner._log_name,
            _line(", ".join(outcome.continued)),
            _line("; ".join(outcome.notes) or f"run {outcome.run}"),
        )


def _explained(outcome: Outcome) -> str:
    parts = [
        f"role {outcome.failed_role}" if outcome.failed_role else "",
        f"task {outcome.failed_task!r}" if outcome.failed_task else "",
        f"host {outcome.storage_host}" if outcome.storage_host else "",
        f"run {outcome.run}" if outcome.run else "",
    ]
    return f"{', '.join(part for part in parts if part)}: {outcome.message}"


def _shown(spawner: Any, error: AnsibleBootstrapError) -> BootstrapError:
    """Log the details in one line for the admin, and return what the user may see."""
    spawner.log.error(
        "ansible_bootstrap: %s not started (%s): %s",
        spawner._log_name,
        error.reason,
        _line(error.details or error.message),
    )
    return BootstrapError(error)


def _line(text: str) -> str:
    """One line without control characters, of bounded length."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:2000])


async def _enqueue_cleanup(spawner: Any) -> None:
    spawn: _Spawn | None = spawner.__dict__.pop("_ansible_bootstrap", None)
    if spawn is not None:
        spawn.progress.close()
        if spawn.begun and not spawn.ready:
            return  # Nothing was started, so there is nothing to clean up.
    try:
        core = _get_core(spawner)
        if core.cleanup_delay is None:
            return
        async with asyncio.timeout(POST_STOP_SECONDS):
            place = spawn.place if spawn else None
            place = place or await resolve(spawner, core.config)
        core.dispatcher.cleanup(place, partial(_has_active_server, spawner.user))
        if core.pending is not None:
            await core.pending.written(POST_STOP_SECONDS)  # A hub killed right after this still knows of it.
    except Exception as error:
        details = getattr(error, "details", "") or f"{type(error).__name__}: {error}"
        spawner.log.warning("ansible_bootstrap: no clean-up for %s: %s", spawner._log_name, _line(details))


def _has_active_server(user: Any) -> bool:
    try:
        return any(spawner.active for spawner in user.spawners.values())
    except Exception:  # The user has been deleted from the hub's database in the meantime.
        return False


# -- setup ---------------------------------------------------------------------------------------

_HOOKS: Final[dict[str, Hook]] = {"pre_spawn_hook": pre_spawn_hook, "post_stop_hook": post_stop_hook}

_chained: dict[str, dict[str, Any]] = {name: {} for name in _HOOKS}
"""By hook and by section of the configuration (a class's name): what was configured before us. Not in the
configuration, where it would be deep-copied into every spawner."""


def setup(c: Config) -> None:
    """Install both hooks and the progress in a hub's configuration.

    Hooks that are there already, also those of one spawner class (``c.DockerSpawner.pre_spawn_hook``), are kept and
    called after ours. Call it last: a hook that is set afterwards replaces ours. Clean-ups that waited when an
    earlier hub was killed come once the hub is up; without ``setup``, with :func:`bootstrapped` alone, at the first
    spawn or stop.

    Args:
        c: the configuration object of ``jupyterhub_config.py``.
    """
    for name, ours in _HOOKS.items():
        chained = {
            section: settings[name]
            for section, settings in c.items()
            if isinstance(settings, Config) and _is_set(settings, name)
        }
        if all(hook is not ours for hook in chained.values()):
            _chained[name].clear()  # Another hub's configuration was set up in this process before.
        _chained[name].update({section: hook for section, hook in chained.items() if hook is not ours})
        for section in {"Spawner", *chained}:
            c[section][name] = ours
    with contextlib.suppress(RuntimeError):  # No loop: not in a hub, which reads its configuration in one.
        loop = asyncio.get_running_loop()
        loop.call_later(UP_SECONDS, _when_up, loop)


def _is_set(settings: Config, name: str) -> bool:
    """Whether it has a value; only looking at an unset one makes traitlets put a LazyConfigValue there."""
    return name in settings and type(settings[name]).__name__ != "LazyConfigValue"


async def _call_chained(name: str, spawner: Any) -> None:
    """Call the hook configured for the spawner's class, or the nearest class that it inherits from."""
    for cls in type(spawner).__mro__:
        if cls.__name__ in _chained[name]:
            hook = _chained[name][cls.__name__]
            if hook is not None:
                await maybe_future(hook(spawner))
            return


# -- progress ------------------------------------------------------------------------------------


def _show_progress(spawner: Any) -> None:
    """Wrap ``spawner.progress`` once: the hub calls it for each listener that comes from now on."""
    if isinstance(spawner, _BootstrappedMixin) or "_ansible_bootstrap_wrapped" in spawner.__dict__:
        return
    spawner.__dict__["_ansible_bootstrap_wrapped"] = True
    theirs = spawner.progress
    spawner.progress = lambda: _progress(spawner, theirs)


async def _progress(spawner: Any, theirs: Callable[[], AsyncIterator[Any]]) -> AsyncIterator[Any]:
    """Our sentences from the first, then the spawner's own events."""
    percent = 0
    async for sentence in _spawn_of(spawner).progress.follow():
        percent = min(percent + 5, 45)  # The default spawner's own first event says 50.
        yield {"progress": percent, "message": sentence}  # No html_message: the page escapes this one.
    async for event in theirs():
        yield event


class _BootstrappedMixin:
    """See :func:`bootstrapped`."""

    def run_pre_spawn_hook(self) -> Any:
        spawner: Any = self
        if spawner.pre_spawn_hook is pre_spawn_hook:
            return super().run_pre_spawn_hook()  # type: ignore[misc]
        return self._bootstrap_then_run()

    async def _bootstrap_then_run(self) -> None:
        await _bootstrap(self)
        await maybe_future(super().run_pre_spawn_hook())  # type: ignore[misc]

    def run_post_stop_hook(self) -> Any:
        spawner: Any = self
        if spawner.post_stop_hook is post_stop_hook:
            return super().run_post_stop_hook()  # type: ignore[misc]
        return self._enqueue_then_run()

    async def _enqueue_then_run(self) -> None:
        await _enqueue_cleanup(self)
        await maybe_future(super().run_post_stop_hook())  # type: ignore[misc]

    async def progress(self) -> AsyncIterator[Any]:
        theirs = super().progress  # type: ignore[misc]
        async for event in _progress(self, theirs):
            yield event


def bootstrapped(spawner_class: SpawnerClass) -> SpawnerClass:
    """Return a subclass whose servers start when the storage is ready, with or without :func:`setup`.

    The difference to the hooks: a page that was opened before the hook began sees our progress, too.

    Args:
        spawner_class: any spawner class; its settings (``c.DockerSpawner…``) hold for the subclass.
    """
    name = f"Bootstrapped{spawner_class.__name__}"
    return type(name, (_BootstrappedMixin, spawner_class), {"__module__": spawner_class.__module__})  # type: ignore[return-value]
