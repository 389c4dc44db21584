"""The hooks that were configured before ours: kept, and called after ours."""

from __future__ import annotations

from typing import Any, Final

from jupyterhub.utils import maybe_future
from traitlets.config import Config

HOOKS: Final = ("pre_spawn_hook", "post_stop_hook", "post_auth_hook")

_chained: dict[str, dict[str, Any]] = {name: {} for name in HOOKS}
"""By hook and by section of the configuration (a class's name): what was configured before us. Not in the
configuration, where it would be deep-copied into every spawner."""


def chain(c: Config, name: str, ours: Any, base: str) -> None:
    """Put ours in the place of every hook of that name, and keep those.

    Args:
        c: the configuration.
        name: of the hook.
        ours: the hook to install.
        base: the section that gets it in any case: ``Spawner`` or ``Authenticator``.
    """
    before = {
        section: settings[name]
        for section, settings in c.items()
        if isinstance(settings, Config) and _is_set(settings, name)
    }
    if all(hook is not ours for hook in before.values()):
        _chained[name].clear()  # Another hub's configuration was set up in this process before.
    _chained[name].update({section: hook for section, hook in before.items() if hook is not ours})
    for section in {base, *before}:
        c[section][name] = ours


async def call_chained(name: str, cls: type, *args: Any) -> Any:
    """Call the hook configured for the class, or the nearest class that it inherits from; None if there is none."""
    for base in cls.__mro__:
        if base.__name__ in _chained[name]:
            hook = _chained[name][base.__name__]
            return None if hook is None else await maybe_future(hook(*args))
    return None


def is_chained(name: str, cls: type) -> bool:
    """Whether :func:`call_chained` would call anything."""
    return any(_chained[name].get(base.__name__) is not None for base in cls.__mro__)


def _is_set(settings: Config, name: str) -> bool:
    """Whether it has a value; only looking at an unset one makes traitlets put a LazyConfigValue there."""
    return name in settings and type(settings[name]).__name__ != "LazyConfigValue"
