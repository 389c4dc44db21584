"""At login: begin the work, so that it is done when the student presses Start.

No login waits for the work, and every failure of it is only a line in the log: the spawn's own hook decides. The work
is left to the spawn if the user's last server had its storage in another place than the spawner says now (the user may
choose another profile on the spawn page), or if there was no server yet and a hook of the site's own may set volumes.

If the ledger says that the user is complete at the last place, nothing else is asked. That is so for most logins, many
come at once, and the spawn's hook looks at the directory and at the user's groups anyway.

Source: ``Authenticator.get_authenticated_user`` calls ``run_post_auth_hook`` when all checks have passed, but before
the hub has made the user (``BaseHandler.auth_to_user``).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Final

from ansible_bootstrap.errors import AnsibleBootstrapError, NowhereError
from ansible_bootstrap.hub.core import Core, make_core
from ansible_bootstrap.hub.failure import why
from ansible_bootstrap.hub.person import check_person
from ansible_bootstrap.places.family import copied
from ansible_bootstrap.places.resolve import choices, resolve, with_options

USER_SECONDS: Final = 10.0
"""From the login to the hub's knowing the user."""

LOOK_SECONDS: Final = 0.1


def begin(authenticator: Any, handler: Any, auth_model: Any) -> None:
    """Begin the work for a user who logs in; never raises, and never waits."""
    try:
        _begin(authenticator, handler, auth_model)
    except Exception as error:
        authenticator.log.warning("ansible_bootstrap: nothing is prepared at login: %s", why(error))


def _begin(authenticator: Any, handler: Any, auth_model: Any) -> None:
    settings = getattr(handler, "settings", None)
    if not auth_model or not settings or "users" not in settings:
        return
    core = make_core(authenticator.config, settings)
    name = auth_model["name"]
    # One job at a time for a user who logs in again and again.
    if core.config.at_login and not core.config.observing and name not in core.preparing:
        core.preparing.add(name)
        core.start(_prepare(core, handler, name))


async def _prepare(core: Core, handler: Any, name: str) -> None:
    try:
        user = await _user(core, handler, name)
        if user is None or user.active:
            return
        last = core.books.place_of(name)
        if last is not None and await core.noted(last):
            return
        check_person(core, user)
        spawner = user.get_spawner()
        if last is None and await choices(spawner):
            return  # The user chooses on the spawn page.
        place = await resolve(await with_options(copied(spawner)), core.config)
        known, done = await core.known(place)
        if known:
            return
        if not _site_decides(spawner) if last is None else replace(last, groups=place.groups) == place:
            await core.check_move(place)
            core.dispatcher.prepare(place, done)
            core.metrics.login()
    except (AnsibleBootstrapError, NowhereError) as error:
        core.config.log.info(
            "ansible_bootstrap: nothing is prepared for %s at login: %s", ascii(name), why(error)
        )
    except Exception:
        core.config.log.exception("ansible_bootstrap: nothing is prepared for %s at login", ascii(name))
    finally:
        core.preparing.discard(name)


def _site_decides(spawner: Any) -> bool:
    """Whether a hook of the site's own, which runs at the spawn, may say where the storage is."""
    return any(getattr(spawner, name, None) for name in ("pre_spawn_hook", "auth_state_hook"))


async def _user(core: Core, handler: Any, name: str) -> Any:
    """Return the hub's user once there is one; None if the login came to nothing after all.

    The hub's dictionary of users asks the database each time, which a hub in the middle of a storm has no time for. So
    it is asked only where the handler does not get to know its user (an authenticator with its own way to log in).
    Not asked at once, in the midst of the request: a storm of known users then took a third longer.
    """
    for _ in range(round(USER_SECONDS / LOOK_SECONDS)):
        await asyncio.sleep(LOOK_SECONDS)
        user = getattr(handler, "current_user", None)
        if user is not None and user.name == name:
            return user
    return core.users.get(name)
