"""Whose files they are, where neither system nor container says: the numbers that the login brought along.

JupyterHub's LDAPAuthenticator puts the attributes that the admin lists into the user's auth_state, since its
version 2 below ``user_attributes``, before at the top; each is a list, as LDAP has it.

The directory is not taken from there: LDAP's ``homeDirectory`` is a path on some other machine or inside the
container, while the spawner knows what it mounts.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ansible_bootstrap.errors import UnresolvedError

if TYPE_CHECKING:
    from ansible_bootstrap.config import AnsibleBootstrap
    from ansible_bootstrap.place import Place

UID_ATTRIBUTE: Final = "uidNumber"
GID_ATTRIBUTE: Final = "gidNumber"

MAX_DIGITS: Final = 10
"""A uid has 32 bits."""

KEEP_STATE: Final = (
    "c.Authenticator.enable_auth_state = True, with JUPYTERHUB_CRYPT_KEY in the hub's environment"
)


async def identified(place: Place, spawner: Any, config: AnsibleBootstrap) -> Place:
    """Fill in the uid and gid that the hub is to name (``"request"``) and that nobody has named so far.

    The auth_state is only asked for then, and never logged; nothing of it but the two numbers is used.

    Raises:
        UnresolvedError: there is no uid or gid, or not one plain number; the details name the settings.
    """
    # A gid that is not set goes by what uid says.
    uid_asked = config.uid == "request" and place.uid is None
    gid_asked = (config.uid if config.gid is None else config.gid) == "request" and place.gid is None
    if not (uid_asked or gid_asked):
        return place
    attributes = await _attributes(spawner)
    if uid_asked:
        place = replace(place, uid=_number(attributes, UID_ATTRIBUTE, "uid"))
    if gid_asked:
        place = replace(place, gid=_number(attributes, GID_ATTRIBUTE, "gid"))
    return place


async def _attributes(spawner: Any) -> dict[str, Any]:
    """The two attributes by their names in lower case (LDAP does not tell them apart)."""
    get = getattr(spawner.user, "get_auth_state", None)
    try:
        state = get() if get is not None else None
        if inspect.isawaitable(state):
            state = await state
    except Exception as error:
        # Not its text: it may quote the state.
        raise UnresolvedError(
            f"the user's auth_state cannot be read ({type(error).__name__}): check {KEEP_STATE}"
        ) from None
    if not isinstance(state, Mapping):
        return {}
    nested = state.get("user_attributes")
    layers = [state, nested] if isinstance(nested, Mapping) else [state]
    wanted = {UID_ATTRIBUTE.lower(), GID_ATTRIBUTE.lower()}
    return {
        str(name).lower(): value
        for layer in layers
        for name, value in layer.items()
        if str(name).lower() in wanted
    }


def _number(attributes: Mapping[str, Any], attribute: str, setting: str) -> int:
    found = attributes.get(attribute.lower())
    values = list(found) if isinstance(found, list | tuple) else [] if found is None else [found]
    if not values:
        container = "1000" if setting == "uid" else "100"
        raise UnresolvedError(
            f'c.AnsibleBootstrap.{setting} is "request" (gid: by default as uid), and neither the spawner nor '
            f"the user's auth_state has {attribute}. With LDAP: c.LDAPAuthenticator.auth_state_attributes = "
            f'["{UID_ATTRIBUTE}", "{GID_ATTRIBUTE}"] and {KEEP_STATE}; the user then logs in again. '
            f"For containers that all run under one account: c.AnsibleBootstrap.{setting} = {container}. "
            "Or let c.AnsibleBootstrap.place say it"
        )
    if len(values) > 1:
        raise UnresolvedError(f"the user's {attribute} in the auth_state has {len(values)} values, not one")
    (value,) = values
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    if isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS:
        return int(text)
    raise UnresolvedError(
        f"the user's {attribute} in the auth_state is one {type(value).__name__} that is no plain number; "
        f"correct it in the directory, or let c.AnsibleBootstrap.place say the {setting}"
    )
