"""Spawner and authenticator classes that bootstrap by themselves, whatever hooks are configured."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from jupyterhub.utils import maybe_future

from ansible_bootstrap.hub.failure import log_name
from ansible_bootstrap.hub.login import begin
from ansible_bootstrap.hub.page import progress
from ansible_bootstrap.hub.spawns import bootstrap, bootstrap_if_moved, check_mounted, note_place, stopped

Class = TypeVar("Class", bound=type)
Then = Callable[[Any], Any]


class BootstrappedSpawner:
    """See :func:`bootstrapped`."""

    shows_bootstrap = True
    bootstrap_then: tuple[Then, ...] = ()

    async def run_pre_spawn_hook(self) -> None:
        """The admin's hook, which may make accounts and set volumes; the storage; the hooks for afterwards."""
        spawner: Any = self
        await maybe_future(super().run_pre_spawn_hook())  # type: ignore[misc]
        await bootstrap(spawner)
        for hook in self.bootstrap_then:
            await maybe_future(hook(spawner))
        if self.bootstrap_then:
            await bootstrap_if_moved(spawner)
        note_place(spawner)

    async def start_object(self) -> None:
        """Called by DockerSpawner when the container is there, and does not run yet: its mounts can be seen now."""
        await check_mounted(self)
        await super().start_object()  # type: ignore[misc]

    async def start(self) -> Any:
        """Start the server, and fail if what it mounts is not what was prepared."""
        address = await maybe_future(super().start())  # type: ignore[misc]
        await check_mounted(self)
        return address

    async def run_post_stop_hook(self) -> None:
        """Note the clean-up; then the admin's hook."""
        spawner: Any = self
        await stopped(spawner)
        try:
            await maybe_future(super().run_post_stop_hook())  # type: ignore[misc]
        except Exception:  # Or the hub counts the server as running.
            spawner.log.exception("post_stop_hook failed for %s", log_name(spawner))

    async def progress(self) -> AsyncIterator[Any]:
        """What we have to say, then what the spawner has."""
        base: Any = super()

        def theirs() -> AsyncIterator[Any]:
            # Late: WrapSpawner's is a property, and its child's.
            events: AsyncIterator[Any] = base.progress()
            return events

        async for event in progress(self, theirs):
            yield event


class PreparingAuthenticator:
    """An authenticator after whose logins the work is begun."""

    async def run_post_auth_hook(self, handler: Any, auth_model: Any) -> Any:
        """Return what the admin's hook makes of the login."""
        auth_model = await super().run_post_auth_hook(handler, auth_model)  # type: ignore[misc]
        begin(self, handler, auth_model)
        return auth_model


def bootstrapped(spawner_class: Class, then: Then | None = None) -> Class:
    """Return a subclass whose servers start when the storage is ready; :func:`setup` does this to the hub's class.

    The class's own hooks (``c.Spawner.pre_spawn_hook``, ``run_pre_spawn_hook``) run before, so that what they make
    and set counts. A server that mounts another directory than the one that was prepared does not start.

    Args:
        spawner_class: any spawner class; its settings (``c.DockerSpawner…``) hold for the subclass.
        then: called with the spawner once the storage is ready; may be async. If it moves the storage, the new place is
            prepared too.
    """
    if issubclass(spawner_class, BootstrappedSpawner):
        made: Any = spawner_class
    else:
        made = _subclass(BootstrappedSpawner, spawner_class, "Bootstrapped")
    if then is not None and then not in made.bootstrap_then:
        made.bootstrap_then = (*made.bootstrap_then, then)
    bootstrapping: Class = made
    return bootstrapping


def prepared_at_login(authenticator_class: Class) -> Class:
    """Return a subclass that begins the work of each user who logs in; never delays or fails a login."""
    if issubclass(authenticator_class, PreparingAuthenticator):
        return authenticator_class
    made: Class = _subclass(PreparingAuthenticator, authenticator_class, "Preparing")
    return made


def _subclass(mixin: type, base: Any, prefix: str) -> Any:
    return type(f"{prefix}{base.__name__}", (mixin, base), {"__module__": base.__module__})
