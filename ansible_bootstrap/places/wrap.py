"""WrapSpawner and ProfilesSpawner: the spawner that they will make for the chosen profile is asked.

The child is made in ``start()``, after the hook. A copy of the wrapper makes it here by its own ``construct_child``,
which links the child's traits to those of the copy, and is forgotten after the question.
"""

from __future__ import annotations

from typing import Any, Final

from ansible_bootstrap.places.family import Family, Storage, copied


async def _child(spawner: Any) -> Any:
    clone = copied(spawner)
    clone.construct_child()
    return clone.child_spawner


async def _profiles(spawner: Any) -> list[dict[str, Any]]:
    return [{"profile": key} for _, key, *_ in getattr(spawner, "profiles", ())]


async def _never(spawner: Any, storage: Storage) -> list[str]:
    raise NotImplementedError("the child is asked")


WRAP: Final = Family(where=_never, starting=_child, wraps=True, choices=_profiles, volumes=True)
