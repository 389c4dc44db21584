"""Spawner classes that bootstrap by themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeVar

from jupyterhub.utils import maybe_future

from ansible_bootstrap.hub.hooks import post_stop_hook, pre_spawn_hook
from ansible_bootstrap.hub.page import progress
from ansible_bootstrap.hub.spawns import bootstrap, stopped

SpawnerClass = TypeVar("SpawnerClass", bound=type)


class _BootstrappedMixin:
    """See :func:`bootstrapped`."""

    shows_bootstrap = True

    def run_pre_spawn_hook(self) -> Any:
        spawner: Any = self
        if spawner.pre_spawn_hook is pre_spawn_hook:
            return super().run_pre_spawn_hook()  # type: ignore[misc]
        return self._bootstrap_then_run()

    async def _bootstrap_then_run(self) -> None:
        await bootstrap(self)
        await maybe_future(super().run_pre_spawn_hook())  # type: ignore[misc]

    def run_post_stop_hook(self) -> Any:
        spawner: Any = self
        if spawner.post_stop_hook is post_stop_hook:
            return super().run_post_stop_hook()  # type: ignore[misc]
        return self._stopped_then_run()

    async def _stopped_then_run(self) -> None:
        await stopped(self)
        await maybe_future(super().run_post_stop_hook())  # type: ignore[misc]

    async def progress(self) -> AsyncIterator[Any]:
        base: Any = super()

        def theirs() -> AsyncIterator[Any]:
            events: AsyncIterator[Any] = (
                base.progress()
            )  # Looked up late: WrapSpawner's is a property, and its child's.
            return events

        async for event in progress(self, theirs):
            yield event


def bootstrapped(spawner_class: SpawnerClass) -> SpawnerClass:
    """Return a subclass whose servers start when the storage is ready, with or without :func:`setup`.

    The difference to the hooks: a page that was opened before the hook began sees our progress, too.

    Args:
        spawner_class: any spawner class; its settings (``c.DockerSpawner…``) hold for the subclass.
    """
    name = f"Bootstrapped{spawner_class.__name__}"
    return type(name, (_BootstrappedMixin, spawner_class), {"__module__": spawner_class.__module__})  # type: ignore[return-value]
