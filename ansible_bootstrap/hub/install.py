"""What an admin writes into ``jupyterhub_config.py``.

The hub's classes are replaced, not its hooks: a hook in the configuration is lost as soon as a later line, or another
file (``load_subconfig`` reads it into a ``c`` of its own), sets it too, and nobody is told. This is done when the
configuration is complete and no spawner or authenticator has been made: when the application's trait
``session_factory`` is set (``JupyterHub.init_db``).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from traitlets import TraitError
from traitlets.config import Config

import ansible_bootstrap
from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.errors import SettingsError
from ansible_bootstrap.hub.core import UP_SECONDS, when_up
from ansible_bootstrap.hub.failure import why
from ansible_bootstrap.hub.mixin import BootstrappedSpawner, bootstrapped, prepared_at_login
from ansible_bootstrap.places.resolve import objection
from ansible_bootstrap.state.directory import hold_state_dir


def setup(c: Config, then: Callable[[Any], Any] | None = None) -> None:
    """Have each server start when its user's storage is ready, and begin at login.

    It may stand anywhere in the configuration, more than once, and in a file of ``load_subconfig``. Hooks stay where
    they are configured: ``pre_spawn_hook`` runs before the storage is prepared, ``post_stop_hook`` after a clean-up is
    noted, ``post_auth_hook`` before the work is begun. The hub does not start with settings that cannot be used, unless
    it only observes. Clean-ups that waited when an earlier hub was killed come once the hub is up.

    Args:
        c: the configuration object of ``jupyterhub_config.py``.
        then: called with the spawner once the storage is ready; may be async.
    """
    app = _running_hub()
    if app is None:  # Something else reads the configuration, such as ``ansible-bootstrap run``.
        AnsibleBootstrap.set_up = True
        return
    app.observe(partial(_configured, then=then), names="session_factory")
    with contextlib.suppress(RuntimeError):  # No loop: a command such as ``jupyterhub token``.
        loop = asyncio.get_running_loop()
        loop.call_later(UP_SECONDS, when_up, loop)


def _running_hub() -> Any:
    """Return the hub's application if this process is a hub; jupyterhub.app is not imported for that."""
    module = sys.modules.get("jupyterhub.app")
    return module.JupyterHub.instance() if module is not None and module.JupyterHub.initialized() else None


def _configured(change: Any, then: Callable[[Any], Any] | None) -> None:
    app = change.owner
    first = not issubclass(app.spawner_class, BootstrappedSpawner)
    app.spawner_class = bootstrapped(app.spawner_class, then)
    app.authenticator_class = prepared_at_login(app.authenticator_class)
    if first:
        _check(app)


def _check(app: Any) -> None:
    """End the hub if the settings cannot be used; else say once what will be done."""
    try:
        config = AnsibleBootstrap.instance(config=app.config)
        config.check()
        hold_state_dir(config.state_dir)
    except (TraitError, SettingsError) as error:
        said = f"c.AnsibleBootstrap: {error}" if isinstance(error, TraitError) else why(error)
        if app.config.AnsibleBootstrap.get("mode") == "observe":
            app.log.error("ansible_bootstrap: %s", said)
            return
        app.log.critical("ansible_bootstrap: the hub does not start: %s", said)
        app.exit(1)
    spawner = next(cls for cls in app.spawner_class.__mro__ if not issubclass(cls, BootstrappedSpawner))
    where = "c.AnsibleBootstrap.place" if config.place is not None else spawner.__qualname__
    app.log.info(
        "ansible_bootstrap %s: %s, places from %s", ansible_bootstrap.__version__, config.summary(), where
    )
    if problem := objection(spawner, config.place):
        app.log.error("ansible_bootstrap: %s: %s", problem.what, problem.mend)
