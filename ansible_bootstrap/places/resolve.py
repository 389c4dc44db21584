"""Where a user's storage is, and whose: the spawner is asked, not the admin.

A path that we compute ourselves is sooner or later not the path that the spawner mounts (escaping,
templates, named servers), so each kind of spawner is asked in its own words. No spawner is imported
for that: a class is known by its qualified name in the method resolution order, so subclasses count
and nothing needs to be installed.

Any other spawner: only the name is known, and the apply side's settings fill in the rest; or the
admin says it with ``c.AnsibleBootstrap.place``.
"""

from __future__ import annotations

import inspect
import os
import pwd
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ansible_bootstrap.errors import AnsibleBootstrapError, UnreachableError, UnresolvedError
from ansible_bootstrap.place import Place
from ansible_bootstrap.places.docker import SETTING, docker, swarm
from ansible_bootstrap.places.identity import identified
from ansible_bootstrap.threads import in_thread

if TYPE_CHECKING:
    from ansible_bootstrap.config import AnsibleBootstrap

T = TypeVar("T")

LOOKUP_SECONDS: Final = 10.0
"""A name service that has not answered by then is down."""


async def resolve(spawner: Any, config: AnsibleBootstrap | None = None) -> Place:
    """Say where the storage of the spawner's user is.

    Args:
        spawner: any JupyterHub spawner that is about to start a server.
        config: the settings; by default those of the spawner's hub.

    Raises:
        UnresolvedError: it cannot be told; the details name the setting to make.
        UnreachableError: the name service, which knows it, does not answer.
        RefusedError: the name, the path or the host is not acceptable.
    """
    if config is None:
        from ansible_bootstrap.config import AnsibleBootstrap  # noqa: PLC0415 - traitlets, which the apply program may lack

        config = AnsibleBootstrap.instance(config=spawner.config)
    place = Place(spawner.user.name)  # First, for it checks the name, which what follows renders into paths.
    place = replace(
        place,
        uid=config.uid if isinstance(config.uid, int) else None,
        gid=config.gid if isinstance(config.gid, int) else None,
        storage_host=await _storage_host(spawner, config),
        groups=tuple(group.name for group in getattr(spawner.user, "groups", ())),
        server_name=spawner.name or "",
    )
    answer = await _call("place", config.place, spawner) if config.place is not None else None
    place = await _ask(spawner, place, config) if answer is None else _said(answer, place)
    return await identified(place, spawner, config)


async def _storage_host(spawner: Any, config: AnsibleBootstrap) -> str:
    host = config.storage_host
    if callable(host):
        host = await _call("storage_host", host, spawner)
    if not isinstance(host, str) or not host:
        what = "nothing" if host == "" else type(host).__name__
        raise UnresolvedError(f"c.AnsibleBootstrap.storage_host returned {what}, not a name")
    return host


def _said(answer: Any, default: Place) -> Place:
    """What the admin's callable said, completed from the settings."""
    if isinstance(answer, Place):
        if answer.name != default.name:
            raise UnresolvedError("c.AnsibleBootstrap.place returned a Place of another name")
        return replace(
            answer,
            storage_host=answer.storage_host or default.storage_host,
            uid=default.uid if answer.uid is None else answer.uid,
            gid=default.gid if answer.gid is None else answer.gid,
            groups=answer.groups or default.groups,
        )
    if not isinstance(answer, Mapping):
        raise UnresolvedError(
            f"c.AnsibleBootstrap.place returned {type(answer).__name__}; it returns a Place, a dict or None"
        )
    known = {"directory", "uid", "gid", "storage_host", "groups"}
    unknown = sorted(map(str, set(answer) - known - {"name"}))
    if unknown or answer.get("name", default.name) != default.name:
        what = ", ".join(unknown) or "another name"
        raise UnresolvedError(f"c.AnsibleBootstrap.place returned {what}; a dict may have {sorted(known)}")
    given = {key: value for key, value in answer.items() if value is not None}
    given["storage_host"] = given.get("storage_host") or default.storage_host
    if "groups" in given:
        given["groups"] = tuple(given["groups"])
    return replace(default, **given)


async def _ask(spawner: Any, default: Place, config: AnsibleBootstrap) -> Place:
    for cls in type(spawner).__mro__:
        ask = _SPAWNERS.get(f"{cls.__module__}.{cls.__qualname__}")
        if ask is not None:
            return await ask(spawner, default, config.storage_root)
    return default


# -- local processes -----------------------------------------------------------------------------


async def _simple_local(spawner: Any, default: Place, root: str | None) -> Place:
    """Servers run under the hub's own account, whatever the user is called."""
    return replace(
        default,
        directory=spawner.home_dir,
        uid=os.getuid() if default.uid is None else default.uid,
        gid=os.getgid() if default.gid is None else default.gid,
    )


async def _local(spawner: Any, default: Place, root: str | None) -> Place:
    """``LocalProcessSpawner.make_preexec_fn`` becomes the system user and goes to its home."""
    entry = await _lookup(spawner, lambda: pwd.getpwnam(spawner.user.name))
    return replace(default, directory=entry.pw_dir, uid=entry.pw_uid, gid=entry.pw_gid)


async def _system_user(spawner: Any, default: Place, root: str | None) -> Place:
    """The home is among the binds, but the spawner knows best which one; its ids come from NSS."""

    def look() -> tuple[str, int, int]:
        return spawner.host_homedir, spawner.user_id, spawner.group_id

    directory, uid, gid = await _lookup(spawner, look)
    return replace(
        default,
        directory=directory,
        uid=uid if uid >= 0 else default.uid,
        gid=gid if gid >= 0 else default.gid,
    )


_SPAWNERS: Final[dict[str, Callable[[Any, Place, str | None], Awaitable[Place]]]] = {
    "jupyterhub.spawner.SimpleLocalProcessSpawner": _simple_local,
    "jupyterhub.spawner.LocalProcessSpawner": _local,
    "dockerspawner.dockerspawner.DockerSpawner": docker,
    "dockerspawner.swarmspawner.SwarmSpawner": swarm,
    "dockerspawner.systemuserspawner.SystemUserSpawner": _system_user,
}


# -- shared --------------------------------------------------------------------------------------


async def _call(setting: str, function: Callable[[Any], Any], spawner: Any) -> Any:
    """Call the admin's function; what goes wrong in it is the setting's fault."""
    try:
        answer = function(spawner)
        return await answer if inspect.isawaitable(answer) else answer
    except AnsibleBootstrapError:
        raise
    except Exception as error:
        raise UnresolvedError(
            f"c.AnsibleBootstrap.{setting} raised {type(error).__name__}: {error}"
        ) from error


async def _lookup(spawner: Any, look: Callable[[], T]) -> T:
    """Ask the name service, which may be an LDAP server, without stopping the hub."""
    try:
        return await in_thread(look, timeout=LOOKUP_SECONDS)
    except KeyError:
        raise UnresolvedError(
            f"the system knows no user {spawner.user.name!r} (getent passwd); make it known, or {SETTING}"
        ) from None
    except TimeoutError:
        raise UnreachableError(f"the name service has not answered in {LOOKUP_SECONDS:g} s") from None
