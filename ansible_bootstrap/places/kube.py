"""What a pod of KubeSpawner mounts, and where that is on the storage host.

A volume of a pod is a directory of the storage host only where somebody says so: a ``hostPath`` and the path of an NFS
export are taken as they are, and ``c.AnsibleBootstrap.place = {"volumes": {"home": "/volumes/home"}}`` says it of any
volume by its name. ``subPath`` comes after that, as the spawner expands it. That the root of a claim is the storage
root would be a guess.

Profiles are applied by ``load_user_options`` in ``start()``; it is called on a copy. So is ``modify_pod_hook``, with a
manifest of its own, for it may mount anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ansible_bootstrap.errors import UnresolvedError
from ansible_bootstrap.places.docker import CONTAINER_HOME
from ansible_bootstrap.places.family import Family, Storage, copied, evaluated, fields_of
from ansible_bootstrap.places.mounts import Mount, choose, is_below, of_the_user, written

if TYPE_CHECKING:
    from ansible_bootstrap.place import Place

OWN_FIELDS: Final = ("username", "unescaped_username", "safe_username", "escaped_username", "user_server")
"""Those that carry the user's name."""

NO_STORAGE: Final = frozenset(
    {"configMap", "secret", "projected", "downwardAPI", "emptyDir", "ephemeral", "image"}
)
"""Kinds of volumes in which nothing of the user's is kept."""


async def _starting(spawner: Any) -> Any:
    clone = copied(spawner)
    try:
        await clone.load_user_options()
    except Exception as error:
        raise UnresolvedError(
            f"{type(spawner).__name__} cannot apply the user's options ({type(error).__name__}: {error}); its "
            "start would fail, too: see c.KubeSpawner.profile_list"
        ) from error
    return clone


async def _pod(spawner: Any, storage: Storage) -> list[str]:
    volumes, mounts = await _volumes(spawner)
    known = {volume["name"]: volume for volume in volumes}
    own = _own(spawner, storage)
    writable = [
        _mount(spawner, known.get(mount["name"], {}), mount, storage, own)
        for mount in mounts
        if not _get(mount, "readOnly") and not NO_STORAGE & set(map(_camel, known.get(mount["name"], {})))
    ]
    notebook_dir = str(spawner.format_string(spawner.notebook_dir or ""))
    return choose(
        writable,
        notebook_dir if notebook_dir.startswith("/") else spawner.working_dir or CONTAINER_HOME,
        storage.roots,
        {_expand(spawner, f"{{{name}}}") for name in OWN_FIELDS},
        "the pod mounts no writable volume that is kept (c.KubeSpawner.volumes, volume_mounts); without one nothing of "
        "the user's is kept",
    )


async def _pods_user(spawner: Any, place: Place) -> Place:
    """The ids in the pod; ``fs_gid`` owns what the cluster makes. 0 says nothing, as in ``docker``."""
    uid, gid, fs_gid = [await evaluated(spawner, getattr(spawner, name)) for name in ("uid", "gid", "fs_gid")]
    group = gid or fs_gid
    return replace(place, uid=uid or place.uid, gid=place.gid if group is None else group)


async def _profiles(spawner: Any) -> list[dict[str, Any]]:
    listed = await evaluated(spawner, spawner._sorted_dict_values(spawner.profile_list))
    choices = []
    for profile in spawner._get_initialized_profile_list(listed) or ():
        choices.append({"profile": profile["slug"]})
        for name, option in profile.get("profile_options", {}).items():
            choices += [{"profile": profile["slug"], name: choice} for choice in option.get("choices", {})]
    return choices


def _expand(spawner: Any, template: str) -> str:
    return str(spawner._expand_user_properties(template))


KUBE: Final = Family(
    where=_pod,
    whose=_pods_user,
    fields=lambda spawner: fields_of(spawner._expand_user_properties),
    render=_expand,
    starting=_starting,
    choices=_profiles,
    volumes=True,
)


# -- inner ---------------------------------------------------------------------------------------


async def _volumes(spawner: Any) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """Return volumes and mounts as ``get_pod_manifest`` has them, in either spelling of their keys."""
    if spawner.modify_pod_hook is not None:
        manifest = await spawner.get_pod_manifest()
        pod = await evaluated(spawner, lambda asked: asked.modify_pod_hook(asked, manifest))
        spec = spawner.api.api_client.sanitize_for_serialization(pod)["spec"]
        return spec.get("volumes") or (), spec["containers"][0].get("volumeMounts") or ()
    volumes, mounts = _templates(spawner)
    extra = _get(spawner.extra_container_config, "volumeMounts")  # Replaces the others.
    return spawner._expand_all(volumes), spawner._expand_all(mounts) if extra is None else extra


def _templates(spawner: Any) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """Return volumes and mounts as the settings have them; volumes of ``extra_pod_config`` replace the others."""
    volumes, listed = _get(spawner.extra_pod_config, "volumes"), spawner._sorted_dict_values
    return listed(spawner.volumes) if volumes is None else volumes, listed(spawner.volume_mounts)


def _own(spawner: Any, storage: Storage) -> set[str]:
    """Return the directories in whose templates, of volume and ``subPath``, is a field of the user's."""
    volumes, mounts = _templates(spawner)
    by_name = {_expand(spawner, volume["name"]): volume for volume in volumes}
    own = set()
    for mount in mounts:
        name = _expand(spawner, mount["name"])
        top, sub = _parts(name, by_name.get(name, {}), mount, storage)
        if of_the_user((top, sub), str):
            own.add(_joined(_expand(spawner, top), _expand(spawner, sub)))
    return own


def _parts(
    name: str, volume: Mapping[str, Any], mount: Mapping[str, Any], storage: Storage
) -> tuple[str, str]:
    """Return the directory that is the volume's root, empty if it is not known, and the path below it."""
    kinds = [_get(volume, kind) or {} for kind in ("hostPath", "nfs")]
    top = storage.volumes.get(name) or next((kind["path"] for kind in kinds if kind.get("path")), "")
    return str(top), str(_get(mount, "subPath") or "")


def _mount(
    spawner: Any, volume: Mapping[str, Any], mount: Mapping[str, Any], storage: Storage, own: set[str]
) -> Mount:
    name, target = str(mount["name"]), str(_get(mount, "mountPath"))
    said = storage.volumes.get(name) or _get(_get(volume, "hostPath") or {}, "path")
    parts = _parts(name, volume, mount, storage)
    source = _joined(*parts)
    if _get(mount, "subPathExpr"):
        why_not = (
            f"the subPathExpr of volume {name!r} is expanded by the cluster; use subPath with {{username}}"
        )
    elif said or (_get(volume, "nfs") and (not storage.roots or is_below(storage.roots, source))):
        said_so = written(spawner) | {root.rstrip("/") for root in storage.volumes.values()}
        fixed = {part.rstrip("/") for part in parts if part} <= said_so
        return Mount(source, target, own=source in own, fixed=fixed)
    else:
        why_not = _why_not(spawner, name, volume, source, storage.roots)
    return Mount("", target, why_not)


def _why_not(spawner: Any, name: str, volume: Mapping[str, Any], source: str, roots: Sequence[str]) -> str:
    """Why nothing can be prepared in that volume, and what to set."""
    example = f'c.AnsibleBootstrap.place = {{"volumes": {{"{name}": "/its/root/on/the/storage/host"}}}}'
    nfs = _get(volume, "nfs")
    if nfs:
        return (
            f"{source} of the NFS server {nfs.get('server')} is not below the storage root {', '.join(roots)}: if that "
            f"export is mounted elsewhere on the storage host, {example}"
        )
    claim = _get(_get(volume, "persistentVolumeClaim") or {}, "claimName")
    if claim and claim in {spawner.pvc_name, *_named_after(spawner, claim)}:
        return (
            f"the claim {claim!r} is a volume of this user's own, which only the cluster's pods can reach: nothing can "
            f"be prepared there. Mount one shared volume with subPath {{username}} and {example}; where storage "
            "inside of pods is all that is meant, c.AnsibleBootstrap.place = 'nowhere'"
        )
    kind = f"claim {claim!r}" if claim else f"volume {name!r}"
    return f"the {kind} is the cluster's: say where it is on the storage host, {example}"


def _named_after(spawner: Any, claim: str) -> list[str]:
    """The claim, if the user's name is one of its words."""
    own = "|".join(re.escape(_expand(spawner, f"{{{name}}}")) for name in OWN_FIELDS)
    return [claim] if re.search(rf"(?<![A-Za-z0-9])({own})(?![A-Za-z0-9])", claim) else []


def _joined(root: str, sub: str) -> str:
    return f"{root.rstrip('/')}/{sub}".rstrip("/") if sub else root


def _get(values: Mapping[str, Any], name: str) -> Any:
    """The value of a key that may be spelled ``hostPath`` or ``host_path``, as ``make_pod`` takes both."""
    return next((value for key, value in values.items() if _camel(key) == name), None)


def _camel(key: str) -> str:
    first, *rest = key.split("_")
    return first + "".join(word.capitalize() for word in rest)
