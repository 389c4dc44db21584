"""What a container of DockerSpawner and its relatives mounts, and what of it is the user's storage.

Binds come from ``volumes``, ``read_only_volumes``, ``mounts`` and ``extra_host_config``, each in several
spellings; templates, escaping and naming strategies are the spawner's own. What is not a directory of the host, or
not writable, is no storage that could be prepared. A directory below a storage root that is not one user's is the
admin's to make: the hub's log names one that is missing, for Docker would make it as root's.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ansible_bootstrap.errors import UnreachableError, UnresolvedError
from ansible_bootstrap.places.family import SETTING, Family, Storage, account, copied, evaluated, looked_up
from ansible_bootstrap.places.mounts import Mount, below_root, choose, is_below, of_the_user, written

if TYPE_CHECKING:
    from ansible_bootstrap.place import Place

CONTAINER_HOME: Final = "/home/jovyan"
"""The home in the Jupyter project's images, where neither ``notebook_dir`` nor the spawner names one."""


async def _starting(spawner: Any) -> Any:
    """``DockerSpawner.start`` takes the image from the user's options; ``{imagename}`` may be part of a path."""
    image = spawner.user_options.get("image")
    if not image:
        return spawner
    clone = copied(spawner)
    with contextlib.suppress(Exception):  # Not allowed: then ``start`` says so to the user.
        clone.image = await clone.check_allowed(image)
    return clone


async def _container(spawner: Any, storage: Storage) -> list[str]:
    return await _chosen(spawner, await _all_mounts(spawner), storage)


async def _service(spawner: Any, storage: Storage) -> list[str]:
    return await _chosen(spawner, await _service_mounts(spawner), storage)


async def _containers_user(spawner: Any, place: Place) -> Place:
    uid, gid = _numbers((await _rendered(spawner, "extra_create_kwargs")).get("user", ""))
    return replace(place, uid=place.uid if uid is None else uid, gid=place.gid if gid is None else gid)


async def _system_users_home(spawner: Any, storage: Storage) -> list[str]:
    """The home is among the binds, but the spawner knows best which one."""

    def look() -> str:
        if not spawner.host_homedir_format_string:
            account(spawner.user.name)
        return str(spawner.host_homedir)

    home = await looked_up(look)
    mounts = await _all_mounts(spawner)
    found = [home, *below_root([mount for mount in mounts if mount.own], storage.roots)]
    await _tell_missing(spawner, mounts, found, storage)
    return found


async def _system_user(spawner: Any, place: Place) -> Place:
    """The ids come from NSS, or from what an authenticator left in the spawner's state."""

    def look() -> tuple[int, int]:
        try:
            return spawner.user_id, spawner.group_id
        except KeyError:
            account(spawner.user.name)
            raise

    uid, gid = await looked_up(look)
    return replace(place, uid=uid if uid >= 0 else place.uid, gid=gid if gid >= 0 else place.gid)


async def _check(spawner: Any, directories: Collection[str]) -> None:
    """A container of an earlier start, which is kept, has the mounts with which it was made, whatever ``volumes`` says.

    A directory that the settings do not mount, for ``c.AnsibleBootstrap.place`` says it, is none of Docker's paths.
    """
    has = _made_with(await spawner.docker(f"inspect_{spawner.object_type}", spawner.object_id))
    listed = _service_mounts if spawner.object_type == "service" else _all_mounts
    way_out = (
        "its class, or a setting beside c.DockerSpawner.volumes, says so: set it in volumes"
        if spawner.remove
        else "it is kept from an earlier start, with the mounts that it was made with. Remove it (docker rm "
        f"{spawner.object_name}; what is in no mount is lost), or set c.DockerSpawner.remove = True"
    )
    for mount in await listed(spawner):
        source, target = posixpath.normpath(mount.source), posixpath.normpath(mount.target)
        if source not in directories or (source, True) in has.values():
            continue
        other, writable = has.get(target, ("nothing", True))
        raise UnresolvedError(
            f"{source} was prepared, and the {spawner.object_type} {spawner.object_name} has {other} "
            f"{'' if writable else '(read-only) '}at {target}: {way_out}"
        )


def _made_with(made: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
    """By path in the container or service, what is mounted there, and whether it can be written to."""
    if "Mounts" in made:
        mounts = [(each["Destination"], each.get("Source"), each["RW"]) for each in made["Mounts"]]
    else:
        listed = made["Spec"]["TaskTemplate"]["ContainerSpec"].get("Mounts") or ()
        mounts = [(each["Target"], each.get("Source"), not each.get("ReadOnly")) for each in listed]
    return {
        posixpath.normpath(target): (posixpath.normpath(source or ""), rw) for target, source, rw in mounts
    }


DOCKER: Final = Family(where=_container, whose=_containers_user, starting=_starting, check_container=_check)
SWARM: Final = replace(DOCKER, where=_service)
SYSTEM_USER: Final = replace(DOCKER, where=_system_users_home, whose=_system_user)


MOST_NAMED: Final = 1000
"""Users may choose names of servers, and these may be part of a path."""

_named: set[str] = set()
"""Directories of which the log has said that they are missing."""


# -- inner ---------------------------------------------------------------------------------------


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


async def _all_mounts(spawner: Any) -> list[Mount]:
    templates = await evaluated(spawner, spawner.extra_host_config)
    host_config = _render(spawner, templates)
    binds = _binds(_merged(_own(spawner, "volume_binds"), host_config.get("binds")))
    mounts = _mounts(_merged(_own(spawner, "mount_binds"), host_config.get("mounts")))
    return _marked(spawner, binds + mounts, templates)


async def _service_mounts(spawner: Any) -> list[Mount]:
    """``SwarmSpawner.mounts`` is made of ``volume_binds``, and of nothing else."""
    return _marked(spawner, _binds(_own(spawner, "volume_binds")))


def _marked(spawner: Any, mounts: list[Mount], templates: Any = None) -> list[Mount]:
    """Mark those that are made of a template with a field of the user's."""
    # Swarm's mounts are made of its volumes.
    sources = [*spawner.volumes, *(mount.get("source") or "" for mount in spawner.mounts)]
    own = of_the_user(sources, lambda text: str(spawner.format_volume_name(text, spawner)))
    for source in own & {text for text in sources if not of_the_user([text], str)}:
        raise UnresolvedError(
            f"{source} is mounted for all users, and would be the own directory of {spawner.user.name!a}, too, whose "
            "name fits the template: c.Authenticator.username_map gives such a user another name in the hub"
        )
    sources = [_text(bind).partition(":")[0] for bind in (templates or {}).get("binds") or ()]
    sources += [_text(mount.get("Source") or "") for mount in (templates or {}).get("mounts") or ()]
    own |= of_the_user(sources, lambda text: _text(_render(spawner, text)))
    fixed = written(spawner)
    return [
        replace(mount, own=mount.source in own, fixed=mount.source.rstrip("/") in fixed) for mount in mounts
    ]


async def _tell_missing(spawner: Any, mounts: list[Mount], found: list[str], storage: Storage) -> None:
    """Have the log name, once, the directories below a storage root that Docker will have to make."""
    new = [source for source in below_root(mounts, storage.roots) if source not in {*found, *_named}]
    if not new or len(_named) >= MOST_NAMED:
        return

    def missing() -> list[str]:
        # Where there is no root, this machine does not see the storage host's disk.
        seen = [root for root in storage.roots if os.path.isdir(root)]
        return [source for source in new if is_below(seen, source) and not os.path.lexists(source)]

    with contextlib.suppress(UnreachableError):
        for source in await looked_up(missing):
            _named.add(source)
            spawner.log.warning(
                "ansible_bootstrap: %s does not exist, and nothing says that it is the user's alone: Docker will make "
                "it, and it will be root's. Make it yourself, with the owner and mode that its users need; a "
                "directory of each user's has {username} in its template",
                source,
            )


async def _chosen(spawner: Any, mounts: list[Mount], storage: Storage) -> list[str]:
    notebook_dir = _formatted(spawner, spawner.notebook_dir)
    found = choose(
        mounts,
        notebook_dir if notebook_dir.startswith("/") else CONTAINER_HOME,
        storage.roots,
        {spawner.user.name, _formatted(spawner, "{username}")},  # {raw_username} is a template, too.
        "the container mounts no writable directory of the host (c.DockerSpawner.volumes); without one nothing of "
        "the user's is kept",
    )
    await _tell_missing(spawner, mounts, found, storage)
    return found


def _mount(source: str, target: str) -> Mount:
    return Mount(
        source,
        target,
        f"{source!r}, mounted at {target}, is a volume that Docker keeps where only Docker knows; mount an absolute "
        'path of the host (c.DockerSpawner.volumes = {"/volumes/jupyterhub/{username}": …}), or ' + SETTING,
    )


def _merged(ours: Any, extra: Any) -> Any:
    """As ``DockerSpawner.create_object`` merges ``extra_host_config``: dicts are joined, others replaced."""
    if extra is None:
        return ours
    if not (isinstance(ours, Mapping) and isinstance(extra, Mapping)):
        return extra
    return {key: _merged(ours.get(key), extra.get(key)) for key in {**ours, **extra}}


def _binds(binds: Any) -> list[Mount]:
    """Writable binds, in either form that docker-py's ``convert_volume_binds`` reads."""
    if isinstance(binds, Mapping):
        binds = [_bind_string(source, value) for source, value in binds.items()]
    found = []
    for item in binds:
        source, _, rest = _text(item).partition(":")
        target, _, mode = rest.partition(":")
        if target and "ro" not in mode.split(","):
            found.append(_mount(source, target))
    return found


def _bind_string(source: Any, value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"{_text(source)}:{_text(value)}"
    mode = "ro" if value.get("ro") else value.get("mode") or "rw"
    return f"{_text(source)}:{_text(value['bind'])}:{mode}"


def _mounts(mounts: Any) -> list[Mount]:
    """Writable entries of a list of ``docker.types.Mount``, which are dicts."""
    return [
        _mount(_text(mount["Source"]), _text(mount["Target"]))
        for mount in mounts
        if mount.get("Type") in {"bind", "volume"} and mount.get("Source") and not mount.get("ReadOnly")
    ]


def _numbers(user: object) -> tuple[int | None, int | None]:
    """The uid and gid of ``user``: ``1000``, ``"1000"`` or ``"1000:100"``; a name says nothing.

    Nor does 0, which is the name root: such an image changes to another account, which the settings name.
    """
    uid, _, gid = str(user).partition(":")
    return (int(uid) if uid.isdecimal() and int(uid) else None), (int(gid) if gid.isdecimal() else None)


async def _rendered(spawner: Any, name: str) -> Mapping[str, Any]:
    """A setting of DockerSpawner that may be a callable, and async, and holds templates."""
    rendered: Mapping[str, Any] = _render(spawner, await evaluated(spawner, getattr(spawner, name)))
    return rendered


def _render(spawner: Any, value: Any) -> Any:
    render = getattr(spawner, "_render_templates", None)
    return (value if render is None else render(value)) or {}


def _formatted(spawner: Any, text: str) -> str:
    return str(spawner.format_string(text)) if text else ""


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
