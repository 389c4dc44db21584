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
import posixpath
import pwd
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import ValidationError

from .errors import AnsibleBootstrapError, RefusedError, UnreachableError, UnresolvedError
from .protocol import User, describe_validation
from .storage._names import NameRefusedError, below, check_directory, check_host, check_name
from .threads import in_thread

if TYPE_CHECKING:
    from .config import AnsibleBootstrap

T = TypeVar("T")

LOOKUP_SECONDS: Final = 10.0
"""A name service that has not answered by then is down."""

CONTAINER_HOME: Final = "/home/jovyan"
"""The home in the Jupyter project's images, where neither ``notebook_dir`` nor the spawner names one."""

SETTING: Final = "set c.AnsibleBootstrap.place to a callable that says where the user's storage is"


@dataclass(frozen=True)
class Place:
    """One user's storage: where it is and who owns it. None is for the apply side to fill in."""

    name: str
    """The hub's username."""
    directory: str | None = None
    """Absolute path on the storage host, as the server will see it mounted."""
    uid: int | None = None
    gid: int | None = None
    storage_host: str = ""
    """A host of the inventory; empty means ``c.AnsibleBootstrap.storage_host``."""
    groups: tuple[str, ...] = ()
    server_name: str = field(default="", compare=False)
    """For the log: named servers that share a directory share the work."""

    @property
    def work_key(self) -> tuple[str, str]:
        """Equal for two places exactly if bootstrapping them is the same piece of work."""
        return self.storage_host, self.directory or self.name

    def user(self, key: str = "") -> User:
        """The user as the apply program wants it.

        Raises:
            RefusedError: name, directory, host or ids are not acceptable.
        """
        try:
            return User(
                name=self.name,
                key=key,
                directory=self.directory,
                uid=self.uid,
                gid=self.gid,
                storage_host=self.storage_host or None,
                groups=self.groups,
            )
        except ValidationError as error:
            raise RefusedError(describe_validation(error)) from None


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
        from .config import AnsibleBootstrap  # noqa: PLC0415 - traitlets, which the apply program may lack

        config = AnsibleBootstrap.instance(config=spawner.config)
    _check(check_name, spawner.user.name)  # First: what follows renders the name into paths.
    place = Place(
        name=spawner.user.name,
        uid=config.uid if isinstance(config.uid, int) else None,
        gid=config.gid if isinstance(config.gid, int) else None,
        storage_host=await _storage_host(spawner, config),
        groups=tuple(group.name for group in getattr(spawner.user, "groups", ())),
        server_name=spawner.name or "",
    )
    answer = await _call("place", config.place, spawner) if config.place is not None else None
    place = await _ask(spawner, place, config) if answer is None else _said(answer, place)
    _check(check_host, place.storage_host)
    if place.directory is not None:
        trimmed = place.directory.rstrip("/") or place.directory
        place = replace(place, directory=_check(check_directory, trimmed))
    return place


async def _storage_host(spawner: Any, config: AnsibleBootstrap) -> str:
    host = config.storage_host
    if callable(host):
        host = await _call("storage_host", host, spawner)
    if not isinstance(host, str):
        raise UnresolvedError(f"c.AnsibleBootstrap.storage_host returned {type(host).__name__}, not a name")
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
    if "groups" in given:
        given["groups"] = tuple(given["groups"])
    place = replace(default, **given)
    place.user()  # Types and bounds.
    return place


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


# -- Docker --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mount:
    source: str
    target: str


async def _docker(spawner: Any, default: Place, root: str | None) -> Place:
    host_config = await _evaluated(spawner, "extra_host_config")
    mounts = _binds(_merged(spawner.volume_binds, host_config.get("binds")))
    mounts += _mounts(_merged(spawner.mount_binds, host_config.get("mounts")))
    return await _in_container(spawner, default, mounts, root, home=CONTAINER_HOME)


async def _swarm(spawner: Any, default: Place, root: str | None) -> Place:
    """``SwarmSpawner.mounts`` is made of ``volume_binds``, and nothing else is mounted."""
    return await _in_container(spawner, default, _binds(spawner.volume_binds), root, home=CONTAINER_HOME)


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


async def _in_container(
    spawner: Any, default: Place, mounts: list[_Mount], root: str | None, *, home: str
) -> Place:
    notebook_dir = _rendered(spawner, spawner.notebook_dir)
    inside = notebook_dir if notebook_dir.startswith("/") else home
    own = _rendered(spawner, "{username}")
    directory = _choose([mount for mount in mounts if not _is_shared(mount, root, own)], inside, root)
    uid, gid = _container_user(await _evaluated(spawner, "extra_create_kwargs"))
    return replace(
        default,
        directory=directory,
        uid=default.uid if uid is None else uid,
        gid=default.gid if gid is None else gid,
    )


def _choose(mounts: list[_Mount], inside: str, root: str | None) -> str:
    """The host path of the one mount that holds the user's files."""
    paths = [mount for mount in mounts if mount.source.startswith("/")]
    in_root = [mount for mount in paths if root and _is_below(root, mount.source)]
    if len(in_root) == 1:
        return in_root[0].source
    candidates = in_root or paths
    covering = [mount for mount in in_root or mounts if _covers(mount.target, inside)]
    if covering:
        best = max(covering, key=lambda mount: len(mount.target))
        if not best.source.startswith("/"):
            raise UnresolvedError(
                f"{best.source!r}, mounted at {best.target}, is a volume that Docker keeps where only Docker "
                "knows; mount an absolute path of the host (c.DockerSpawner.volumes = "
                '{"/volumes/jupyterhub/{username}": …}), or ' + SETTING
            )
        return best.source
    if len(candidates) == 1:
        return candidates[0].source
    if not candidates:
        raise UnresolvedError(
            "the container mounts no writable directory of the host (c.DockerSpawner.volumes); "
            "without one nothing of the user's is kept. If this is not so, " + SETTING
        )
    listed = ", ".join(f"{mount.source} at {mount.target}" for mount in candidates)
    raise UnresolvedError(f"which of these is the user's storage? {listed}. Please {SETTING}")


def _is_shared(mount: _Mount, root: str | None, own: str) -> bool:
    """Whether a mount below the storage root is not the user's alone: their name is no word of its path."""
    if not root or not _is_below(root, mount.source):
        return False
    word = rf"(?<![A-Za-z0-9]){re.escape(own)}(?![A-Za-z0-9])"
    return re.search(word, mount.source[len(root) :]) is None


def _is_below(root: str, path: str) -> bool:
    try:
        return bool(below(root, posixpath.normpath(path)))
    except NameRefusedError:
        return False


def _covers(target: str, inside: str) -> bool:
    target = posixpath.normpath(target)
    inside = posixpath.normpath(inside)
    return inside == target or inside.startswith(target.rstrip("/") + "/")


def _merged(ours: Any, extra: Any) -> Any:
    """As ``DockerSpawner.create_object`` merges ``extra_host_config``: dicts are joined, others replaced."""
    if extra is None:
        return ours
    if not (isinstance(ours, Mapping) and isinstance(extra, Mapping)):
        return extra
    return {key: _merged(ours.get(key), extra.get(key)) for key in {**ours, **extra}}


def _binds(binds: Any) -> list[_Mount]:
    """Writable binds, in either form that docker-py's ``convert_volume_binds`` reads."""
    if isinstance(binds, Mapping):
        binds = [_bind_string(source, value) for source, value in binds.items()]
    found = []
    for item in binds:
        source, _, rest = _text(item).partition(":")
        target, _, mode = rest.partition(":")
        if target and "ro" not in mode.split(","):
            found.append(_Mount(source, target))
    return found


def _bind_string(source: Any, value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"{_text(source)}:{_text(value)}"
    mode = "ro" if value.get("ro") else value.get("mode") or "rw"
    return f"{_text(source)}:{_text(value['bind'])}:{mode}"


def _mounts(mounts: Any) -> list[_Mount]:
    """Writable entries of a list of ``docker.types.Mount``, which are dicts."""
    return [
        _Mount(_text(mount["Source"]), _text(mount["Target"]))
        for mount in mounts
        if mount.get("Type") in {"bind", "volume"} and mount.get("Source") and not mount.get("ReadOnly")
    ]


def _container_user(kwargs: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The uid and gid of ``user``: ``1000``, ``"1000"`` or ``"1000:100"``; a name says nothing."""
    uid, _, gid = str(kwargs.get("user", "")).partition(":")
    return (int(uid) if uid.isdecimal() else None), (int(gid) if gid.isdecimal() else None)


async def _evaluated(spawner: Any, name: str) -> Mapping[str, Any]:
    """A setting of DockerSpawner that may be a callable, and async, and holds templates."""
    value = getattr(spawner, name)
    if callable(value):
        value = value(spawner)
    if inspect.isawaitable(value):
        value = await value
    render = getattr(spawner, "_render_templates", None)
    rendered: Mapping[str, Any] = render(value) if render is not None else value
    return rendered or {}


def _rendered(spawner: Any, text: str) -> str:
    return str(spawner.format_string(text)) if text else ""


_SPAWNERS: Final[dict[str, Callable[[Any, Place, str | None], Awaitable[Place]]]] = {
    "jupyterhub.spawner.SimpleLocalProcessSpawner": _simple_local,
    "jupyterhub.spawner.LocalProcessSpawner": _local,
    "dockerspawner.dockerspawner.DockerSpawner": _docker,
    "dockerspawner.swarmspawner.SwarmSpawner": _swarm,
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


def _check(rule: Callable[[object], str], value: object) -> str:
    try:
        return rule(value)
    except NameRefusedError as error:
        raise RefusedError(str(error)) from None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
