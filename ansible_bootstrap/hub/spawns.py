"""One start of one server, from the hook to the stop: what is waited for, what is let through, what is logged."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.errors import (
    BY_REASON,
    AnsibleBootstrapError,
    ApplyError,
    DeadlineError,
    NowhereError,
    RefusedError,
    UnresolvedError,
)
from ansible_bootstrap.hub.core import Core, core_of, is_active
from ansible_bootstrap.hub.failure import log_name, one_line, shown, why
from ansible_bootstrap.hub.person import check_person
from ansible_bootstrap.hub.progress import ProgressLog
from ansible_bootstrap.place import Place
from ansible_bootstrap.places.resolve import check_container, resolve
from ansible_bootstrap.protocol import Outcome
from ansible_bootstrap.state.moves import where

POST_STOP_SECONDS: Final = 2.0
"""A post_stop_hook that hangs locks the user out and keeps the hub from stopping."""

MOUNTED_SECONDS: Final = 15.0
"""To ask once more where the storage is, after the start; longer than a name service may take."""

EARLY_SECONDS: Final = 60.0
"""A server that dies so soon may have died because its storage is not what we think it is."""


_nowhere: set[type] = set()
"""Classes of which the log has said that nothing is prepared."""


@dataclass
class Spawn:
    """What we know of a spawner's present start; ends with the post_stop_hook."""

    progress: ProgressLog = field(default_factory=ProgressLog)
    place: Place | None = None
    begun: bool = False
    ready: float | None = None
    """When the storage was ready, by ``time.monotonic``."""
    checked: bool = False
    """Whether the server mounts what was prepared."""


def spawn_of(spawner: Any) -> Spawn:
    """Return what we know of the spawner's present start."""
    spawn: Spawn | None = spawner.__dict__.get("_ansible_bootstrap")
    if spawn is None:
        spawn = spawner.__dict__["_ansible_bootstrap"] = Spawn()
    return spawn


async def bootstrap(spawner: Any) -> None:
    """The part of the hook that is ours; nothing but BootstrapError and a real cancellation leaves it."""
    spawn = spawn_of(spawner)
    spawn.begun = True
    began = time.monotonic()
    way = "failed"
    core: Core | None = None
    try:
        core = core_of(spawner)
        if core.config.observing:
            core.start(_observe(spawner, core))
            spawn.ready = began  # it holds nobody up, and the server's stop has a clean-up to predict
            way = "observed"
            return
        way = await _make_ready(spawner, core, spawn)
        spawn.ready = time.monotonic()
    except asyncio.CancelledError:
        way = "cancelled"
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise shown(spawner, ApplyError("cancelled from within")) from None
    except NowhereError:
        way = "nowhere"
        _tell_nowhere(spawner)
    except TimeoutError:
        raise shown(spawner, DeadlineError("a step of the bootstrap timed out")) from None
    except AnsibleBootstrapError as error:
        exception = shown(spawner, error)
        if spawner.config.get("AnsibleBootstrap", {}).get("mode") == "observe":
            return  # Not even a mistake in the settings holds anybody up then.
        raise exception from None
    except Exception as error:
        spawner.log.exception("ansible_bootstrap: unexpected failure for %s", log_name(spawner))
        raise shown(spawner, ApplyError(f"unexpected {type(error).__name__}")) from None
    finally:
        spawn.progress.close()
        if core is not None:
            core.metrics.hook(way, time.monotonic() - began)


def _tell_nowhere(spawner: Any) -> None:
    if type(spawner) not in _nowhere:
        _nowhere.add(type(spawner))
        spawner.log.info(
            "ansible_bootstrap: servers of %s start without a storage that is prepared, where c.AnsibleBootstrap.place "
            'says "nowhere"; this is said once',
            type(spawner).__name__,
        )


async def _make_ready(spawner: Any, core: Core, spawn: Spawn) -> str:
    """Return once the storage is ready, and by which way: ``known`` without a run, or ``run``."""
    deadline = asyncio.get_running_loop().time() + core.config.timeout
    check_person(core, spawner.user)
    place = spawn.place = await _resolved(spawner, core.config, deadline)
    known, done = await _known(core, place, deadline)
    if known and core.dispatcher.claim_untouched(place):
        return "known"
    await core.check_move(place)
    _tell(spawner, spawn, await _wait(core, place, spawn.progress, deadline, done))
    return "run"


def note_place(spawner: Any) -> None:
    """Note where the server will have its storage, when no hook can move it any more."""
    spawn = spawn_of(spawner)
    if spawn.place is not None and spawn.ready is not None:
        core_of(spawner).books.note_place(spawn.place)


async def bootstrap_if_moved(spawner: Any) -> None:
    """Bootstrap once more if a hook has moved the storage since."""
    spawn = spawn_of(spawner)
    if spawn.place is None or spawn.ready is None:
        return
    try:
        moved = await _moved(spawner, spawn.place, core_of(spawner).config.timeout)
    except AnsibleBootstrapError as error:
        raise shown(spawner, error) from None
    except TimeoutError:
        raise shown(spawner, DeadlineError("the spawner timed out where it names the storage")) from None
    if moved is not None:
        spawn.ready = None  # Nothing is ready at the new place yet.
        spawn.progress.reopen()
        await bootstrap(spawner)


async def check_mounted(spawner: Any) -> None:
    """Fail the start of a server that mounts another directory than was prepared.

    What a spawner's own ``start`` sets is not known to a hook, nor with which mounts a container was made that is kept.

    Raises:
        BootstrapError: the log names both directories.
    """
    spawn = spawn_of(spawner)
    if spawn.place is None or spawn.checked:
        return
    try:
        async with asyncio.timeout(MOUNTED_SECONDS):
            moved = await _moved(spawner, spawn.place, MOUNTED_SECONDS)
            if moved is None:
                await check_container(spawner, spawn.place)
                spawn.checked = True
    except (UnresolvedError, RefusedError) as error:  # Before the start the spawner had another answer.
        spawn.ready = None
        raise shown(spawner, error) from None
    except Exception as error:  # The name service does not answer, say: no reason to take the server away.
        spawner.log.warning(
            "ansible_bootstrap: whether %s has the storage that was prepared cannot be told: %s",
            log_name(spawner),
            why(error),
        )
        return
    if moved is not None:
        spawn.ready = None
        raise shown(
            spawner,
            UnresolvedError(
                f"{where(spawn.place)} was prepared, and the server has {where(moved)}: the start of "
                f"{type(spawner).__name__} sets it. Set it in c.Spawner.pre_spawn_hook, or say it with "
                "c.AnsibleBootstrap.place"
            ),
        )


async def _moved(spawner: Any, place: Place, seconds: float) -> Place | None:
    """Return the place that the spawner names now, if it is not this one."""
    deadline = asyncio.get_running_loop().time() + seconds
    try:
        now = await _resolved(spawner, core_of(spawner).config, deadline)
    except NowhereError:
        return None
    same = (now.job_key, now.uid, now.gid) == (place.job_key, place.uid, place.gid)
    return None if same else now


async def _resolved(spawner: Any, config: AnsibleBootstrap, deadline: float) -> Place:
    try:
        async with asyncio.timeout_at(deadline) as limit:
            return await resolve(spawner, config)
    except TimeoutError:
        if limit.expired():
            raise DeadlineError("where the storage is was not known in time") from None
        raise


async def _known(core: Core, place: Place, deadline: float) -> tuple[bool, Mapping[str, str]]:
    """As :meth:`Core.known`; who cannot be told in half of the time gets a run in the other half."""
    now = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(now + (deadline - now) / 2) as limit:
            return await core.known(place)
    except TimeoutError:
        if limit.expired():
            return False, {}
        raise


async def _wait(
    core: Core, place: Place, progress: ProgressLog, deadline: float, done: Mapping[str, str]
) -> Outcome:
    left = max(0.0, deadline - asyncio.get_running_loop().time())
    outcome = await core.dispatcher.wait(place, timeout=left, on_progress=progress.say, done=done)
    if outcome.status == "failed":
        raise BY_REASON[outcome.reason or "role_failed"](_explained(outcome))
    return outcome


async def _observe(spawner: Any, core: Core) -> None:
    """``mode = "observe"``: say in the log what would have happened, later, and hold nobody up."""
    name = log_name(spawner)
    deadline = asyncio.get_running_loop().time() + core.config.timeout
    try:
        check_person(core, spawner.user)
        place = await _resolved(spawner, core.config, deadline)
        await core.check_move(place)
        outcome = await _wait(core, place, ProgressLog(), deadline, {})
    except NowhereError:
        _tell_nowhere(spawner)
    except AnsibleBootstrapError as error:
        spawner.log.warning(
            "ansible_bootstrap: observed %s: would fail (%s): %s", name, error.reason, why(error)
        )
    except Exception:
        spawner.log.exception("ansible_bootstrap: could not observe %s", name)
    else:
        what = f"would change: {', '.join(outcome.changed)}" if outcome.changed else "nothing to change"
        spawner.log.info("ansible_bootstrap: observed %s: %s", name, one_line(what))


def _tell(spawner: Any, spawn: Spawn, outcome: Outcome) -> None:
    """What went wrong without keeping the user from working: a sentence for them, a line for the admin."""
    if outcome.continued:
        spawn.progress.say("Something extra could not be prepared this time; you can work without it", 1.0)
        spawner.log.warning(
            "ansible_bootstrap: %s starts without %s: %s",
            log_name(spawner),
            one_line(", ".join(outcome.continued)),
            one_line("; ".join(outcome.notes) or f"run {outcome.run}"),
        )


def _explained(outcome: Outcome) -> str:
    parts = [
        f"role {outcome.failed_role}" if outcome.failed_role else "",
        f"task {outcome.failed_task!r}" if outcome.failed_task else "",
        f"host {outcome.storage_host}" if outcome.storage_host else "",
        f"run {outcome.run}" if outcome.run else "",
    ]
    return f"{', '.join(part for part in parts if part)}: {outcome.message}"


# -- after the server ----------------------------------------------------------------------------


async def stopped(spawner: Any) -> None:
    """Do what is to be done after a server: note the clean-up, doubt the storage of one that ended early."""
    spawn: Spawn | None = spawner.__dict__.pop("_ansible_bootstrap", None)
    if spawn is not None:
        spawn.progress.close()
        if spawn.begun and spawn.ready is None:
            return  # No storage was ready, or the server did not get it: there is nothing to clean up.
    try:
        core = core_of(spawner)
        if spawn is not None and spawn.place is not None and _early(spawner, spawn):
            await _forget(spawner, core, spawn.place)
        async with asyncio.timeout(POST_STOP_SECONDS):
            if core.cleanup_delay is None:
                return
            place = spawn.place if spawn else None
            place = place or await resolve(spawner, core.config)
        core.dispatcher.cleanup(place, partial(_is_in_use, core.users, spawner.user, place.name))
        if core.pending is not None:
            await core.pending.written(POST_STOP_SECONDS)  # A hub killed right after this still knows of it.
    except NowhereError:
        pass
    except Exception as error:
        spawner.log.warning("ansible_bootstrap: no clean-up for %s: %s", log_name(spawner), why(error))


async def _forget(spawner: Any, core: Core, place: Place) -> None:
    try:
        async with asyncio.timeout(POST_STOP_SECONDS):
            await core.books.forget(place.name)
    except Exception as error:  # This hub does not know the user any more, all the same.
        spawner.log.warning(
            "ansible_bootstrap: %s could not be made unknown on disk: %s", log_name(spawner), why(error)
        )


def _early(spawner: Any, spawn: Spawn) -> bool:
    """Whether the server did not come up, or died soon; not if it was asked to stop."""
    starting = getattr(spawner, "_spawn_future", None)
    if starting is not None and not starting.done():
        return True  # ``User.spawn`` stops what did not start.
    if getattr(spawner, "_stop_future", None) is not None:
        return False  # ``BaseHandler.stop_single_user``
    return spawn.ready is not None and time.monotonic() - spawn.ready < EARLY_SECONDS


def _is_in_use(users: Any, user: Any, name: str) -> bool:
    """Whether the user has an active server, or who has the name by now: somebody else, after a rename."""
    with contextlib.suppress(Exception):  # The user has been deleted from the hub's database in the meantime.
        if any(spawner.active for spawner in user.spawners.values()):
            return True
    return is_active(users, name)
