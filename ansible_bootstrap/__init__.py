"""The storage is ready before the notebook starts.

The public names are found on first use (PEP 562), so that the apply program, which shares this
package, starts without JupyterHub, and often runs where JupyterHub is not installed at all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .config import AnsibleBootstrap as AnsibleBootstrap
    from .errors import AnsibleBootstrapError as AnsibleBootstrapError
    from .errors import ApplyError as ApplyError
    from .errors import DeadlineError as DeadlineError
    from .errors import NowhereError as NowhereError
    from .errors import RefusedError as RefusedError
    from .errors import RoleFailedError as RoleFailedError
    from .errors import SettingsError as SettingsError
    from .errors import UnreachableError as UnreachableError
    from .errors import UnresolvedError as UnresolvedError
    from .hub import BootstrapError as BootstrapError
    from .hub import bootstrapped as bootstrapped
    from .hub import post_stop_hook as post_stop_hook
    from .hub import pre_spawn_hook as pre_spawn_hook
    from .hub import setup as setup
    from .place import Place as Place
    from .places.resolve import resolve as resolve

_HOME = {
    "AnsibleBootstrap": "config",
    "AnsibleBootstrapError": "errors",
    "ApplyError": "errors",
    "BootstrapError": "hub",
    "DeadlineError": "errors",
    "NowhereError": "errors",
    "Place": "place",
    "RefusedError": "errors",
    "RoleFailedError": "errors",
    "SettingsError": "errors",
    "UnreachableError": "errors",
    "UnresolvedError": "errors",
    "bootstrapped": "hub",
    "post_stop_hook": "hub",
    "pre_spawn_hook": "hub",
    "resolve": "places.resolve",
    "setup": "hub",
}
"""Each public name and the module that it lives in."""

__all__ = ["__version__", *_HOME]  # noqa: PLE0604 - all of them are strings


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
