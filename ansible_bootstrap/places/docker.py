"""What a container of DockerSpawner and its relatives mounts, and which of it is the user's storage.

Binds come from ``volumes``, ``read_only_volumes``, ``mounts`` and ``extra_host_config``, each in several
spellings; templates, escaping and naming strategies are the spawner's own. What is not a directory of the host, or
not writable, is no storage that could be prepared.
"""

from __future__ import annotations

import inspect
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from ansible_bootstrap.errors import UnresolvedError
from ansible_bootstrap.storage._names import NameRefusedError, below

if TYPE_CHECKING:
    from ansible_bootstrap.place import Place

CONTAINER_HOME: Final = "/home/jovyan"
"""The home in the Jupyter project's images, where neither ``notebook_dir`` nor the spawner names one."""

SETTING: Final = "set c.AnsibleBootstrap.place to a callable that says where the user's storage is"


@dataclass(frozen=True)
class _Mount:
    source: str
    target: str


async def docker(spawner: Any, default: Place, root: str | None) -> Place:
    """What a DockerSpawner will mount for its user.

    Args:
        spawner: the spawner.
        default: what is known otherwise.
        root: ``c.AnsibleBootstrap.storage_root``, if it is known here.

    Raises:
        UnresolvedError: it cannot be told which of the mounts it is.
    """
    host_config = await _evaluated(spawner, "extra_host_config")
    mounts = _binds(_merged(_own(spawner, "volume_binds"), host_config.get("binds")))
    mounts += _mounts(_merged(_own(spawner, "mount_binds"), host_config.get("mounts")))
    return await _in_container(spawner, default, mounts, root, home=CONTAINER_HOME)


async def swarm(spawner: Any, default: Place, root: str | None) -> Place:
    """``SwarmSpawner.mounts`` is made of ``volume_binds``, and nothing else is mounted."""
    mounts = _binds(_own(spawner, "volume_binds"))
    return await _in_container(spawner, default, mounts, root, home=CONTAINER_HOME)


def _own(spawner: Any, name: str) -> Any:
    """What it makes of its own settings; a template that it cannot fill in would fail the start, too."""
    try:
        return getattr(spawner, name)
    except (LookupError, ValueError) as error:
        cls = type(spawner).__name__
        raise UnresolvedError(
            f"{cls} cannot fill in the templates of c.{cls}.volumes or mounts ({type(error).__name__}: {error}); "
            f"it knows {', '.join(f'{{{word}}}' for word in sorted(spawner.template_namespace()))}"
        ) from None


async def _in_container(
    spawner: Any, default: Place, mounts: list[_Mount], root: str | None, *, home: str
) -> Place:
    notebook_dir = _rendered(spawner, spawner.notebook_dir)
    inside = notebook_dir if notebook_dir.startswith("/") else home
    own = {spawner.user.name, _rendered(spawner, "{username}")}  # {raw_username} is a template, too.
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


def _is_shared(mount: _Mount, root: str | None, own: set[str]) -> bool:
    """Whether a mount below the storage root is not the user's alone: their name is no word of its path."""
    if not root or not _is_below(root, mount.source):
        return False
    word = rf"(?<![A-Za-z0-9])({'|'.join(map(re.escape, own))})(?![A-Za-z0-9])"
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


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
