"""Where a user's storage is, and whose: the spawner is asked, not the admin.

A path that we compute ourselves is sooner or later not the path that the spawner mounts (escaping,
templates, named servers), so each kind of spawner is asked in its own words. No spawner is imported
for that: a class is known by its qualified name in the method resolution order, so subclasses count
and nothing needs to be installed.

Nothing is guessed. A spawner of an unknown class is ``unresolved`` until ``c.AnsibleBootstrap.place`` says where it
keeps a user's files. A subclass of LocalProcessSpawner is none of these: its servers run as system users. That the
system happens to know a user says nothing of an unknown spawner, whose servers may run elsewhere.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final

from ansible_bootstrap.errors import AnsibleBootstrapError, NowhereError, RefusedError, UnresolvedError
from ansible_bootstrap.place import Place
from ansible_bootstrap.places.docker import DOCKER, SWARM, SYSTEM_USER
from ansible_bootstrap.places.family import SETTING, Family, Storage
from ansible_bootstrap.places.identity import identified
from ansible_bootstrap.places.kube import KUBE
from ansible_bootstrap.places.system import BATCH, LOCAL, SIMPLE, SYSTEMD, TLJH
from ansible_bootstrap.places.wrap import WRAP
from ansible_bootstrap.protocol import Finding
from ansible_bootstrap.storage._names import NameRefusedError, check_hub_name

if TYPE_CHECKING:
    from ansible_bootstrap.config import AnsibleBootstrap

FAMILIES: Final[Mapping[str, Family]] = {
    "jupyterhub.spawner.SimpleLocalProcessSpawner": SIMPLE,
    "jupyterhub.spawner.LocalProcessSpawner": LOCAL,  # SudoSpawner, too.
    "dockerspawner.dockerspawner.DockerSpawner": DOCKER,
    "dockerspawner.swarmspawner.SwarmSpawner": SWARM,
    "dockerspawner.systemuserspawner.SystemUserSpawner": SYSTEM_USER,
    "kubespawner.spawner.KubeSpawner": KUBE,
    "systemdspawner.systemdspawner.SystemdSpawner": SYSTEMD,
    "tljh.user_creating_spawner.UserCreatingSpawner": TLJH,
    "tljh.user_creating_spawner.CustomSpawner": TLJH,  # What the former inherits from in some versions.
    "batchspawner.batchspawner.BatchSpawnerBase": BATCH,
    "wrapspawner.wrapspawner.WrapSpawner": WRAP,
}
"""By qualified name. The first in the method resolution order that is here counts."""

TEMPLATES: Final = ("account", "directory")
"""Those fields of a dict in ``c.AnsibleBootstrap.place`` that the spawner fills in."""

NOWHERE: Final = "nowhere"
"""What ``c.AnsibleBootstrap.place`` says of users of whom the storage host has nothing."""

PLACE_FIELDS: Final = ("account", "also", "directory", "gid", "groups", "storage_host", "uid", "volumes")
"""What a dict in ``c.AnsibleBootstrap.place`` may have."""


async def resolve(spawner: Any, config: AnsibleBootstrap | None = None) -> Place:
    """Say where the storage of the spawner's user is.

    Args:
        spawner: any JupyterHub spawner that is about to start a server. It is left as it is.
        config: the settings; by default those of the spawner's hub.

    Raises:
        UnresolvedError: it cannot be told; the details name the setting to make.
        UnreachableError: the name service, which knows it, does not answer.
        RefusedError: the name, the path or the host is not acceptable.
        NowhereError: the settings say that nothing is to be prepared.
    """
    if config is None:
        from ansible_bootstrap.config import AnsibleBootstrap  # noqa: PLC0415 - traitlets, which the apply program may lack

        config = AnsibleBootstrap.instance(config=spawner.config)
    place = await unasked(spawner, config)
    said = await _said(config.place, spawner)
    volumes = said.pop("volumes", {})
    if volumes and (problem := objection(type(spawner), {"volumes": volumes})):
        raise UnresolvedError(f"{problem.what}: {problem.mend}")
    if not callable(config.place) or not {"directory", "uid", "gid"} <= set(said):
        with _explained(spawner):
            family, asked = await _starting(spawner)
            if not callable(config.place):
                said.update(
                    {name: _filled_in(family, asked, said[name]) for name in TEMPLATES if name in said}
                )
                if "also" in said:
                    said["also"] = [_filled_in(family, asked, text) for text in said["also"]]
            if not {"uid", "gid"} <= set(said):
                place = await family.whose(asked, place)
            if "directory" not in said:
                home, *others = await family.where(asked, Storage(config.roots(), volumes))
                place = replace(place, directory=home, also=tuple(others))
    return checked(await identified(replace(place, **said), spawner, config), config)


async def check_container(spawner: Any, place: Place) -> None:
    """Ask the container that was made for the server, where there is one, whether it mounts the place.

    Raises:
        UnresolvedError: it has other mounts; the details say how to get rid of it.
    """
    while (family := _family(spawner)).wraps:
        spawner = await family.starting(spawner)
    await family.check_container(spawner, {place.directory or "", *place.also})


async def unasked(spawner: Any, config: AnsibleBootstrap) -> Place:
    """Return what is known of a user without a question to the spawner: a name, the settings' ids and host.

    Raises:
        RefusedError: the name is not acceptable.
    """
    try:
        check_hub_name(spawner.user.name)  # First: what follows renders the name into paths.
    except NameRefusedError as error:
        raise RefusedError(
            f"{error}; c.Authenticator.username_map gives such a user another name in the hub"
        ) from None
    return Place(
        name=spawner.user.name,
        uid=config.uid if isinstance(config.uid, int) else None,
        gid=config.gid if isinstance(config.gid, int) else None,
        storage_host=await _storage_host(spawner, config),
        groups=tuple(group.name for group in getattr(spawner.user, "groups", ())),
        server_name=spawner.name or "",
    )


def checked(place: Place, config: AnsibleBootstrap) -> Place:
    """Return the place, if the apply program can be told of it.

    Raises:
        RefusedError: it cannot.
    """
    place.user()
    if config.uid == "nss" and config.embedded and place.sent_name != (place.account or place.name):
        raise RefusedError(
            f"{place.name!a} cannot be the name of an account, which it has to be while c.AnsibleBootstrap.uid is "
            '"nss": c.Authenticator.username_map gives such a user another name in the hub; or set uid and gid'
        )
    return place


async def with_options(spawner: Any) -> Any:
    """Apply groups and options to the spawner, as ``User.spawn`` has done when it calls the hook, and return it."""
    if getattr(spawner, "group_overrides", None):
        await spawner.apply_group_overrides()
    if getattr(spawner, "apply_user_options", None):
        await spawner._run_apply_user_options(spawner.user_options)
    return spawner


async def choices(spawner: Any) -> list[dict[str, Any]]:
    """Return the ``user_options`` among which the user will choose; nothing if there is no choice."""
    return await _family(spawner).choices(spawner)


# -- the admin -----------------------------------------------------------------------------------


async def _storage_host(spawner: Any, config: AnsibleBootstrap) -> str:
    host: Any = config.storage_host
    if callable(host):
        host = await _call("storage_host", host, spawner)
    if not isinstance(host, str) or not host:
        what = "nothing" if host == "" else type(host).__name__
        raise UnresolvedError(f"c.AnsibleBootstrap.storage_host returned {what}, not a host's name")
    return host


async def _said(setting: Any, spawner: Any) -> dict[str, Any]:
    """Return the fields that ``c.AnsibleBootstrap.place`` says; templates are not filled in."""
    if setting is None:
        return {}
    answer = await _call("place", setting, spawner) if callable(setting) else setting
    if answer == NOWHERE:
        raise NowhereError
    if isinstance(setting, str):
        return {"directory": setting}
    name = spawner.user.name
    if answer is None:
        return {}
    if isinstance(answer, Place):
        if answer.name != name:
            raise UnresolvedError("c.AnsibleBootstrap.place returned a Place of another name")
        answer = {field.name: getattr(answer, field.name) or None for field in fields(Place)} | {
            "uid": answer.uid,
            "gid": answer.gid,
            "server_name": None,
        }
    if not isinstance(answer, Mapping):
        raise UnresolvedError(
            f"c.AnsibleBootstrap.place returned {type(answer).__name__}, not a Place, a dict, None or '{NOWHERE}'"
        )
    given = {key: value for key, value in answer.items() if value is not None}
    if not given.get("storage_host"):
        given.pop("storage_host", None)
    unknown = sorted(map(str, set(given) - {*PLACE_FIELDS, "name"}))
    if unknown or given.pop("name", name) != name:
        what = ", ".join(unknown) or "another name"
        raise UnresolvedError(
            f"c.AnsibleBootstrap.place returned {what}; a dict may have {', '.join(PLACE_FIELDS)}"
        )
    for name, what in (("also", "directories"), ("groups", "names")):
        if not isinstance(given.get(name, ()), (list, tuple, set, frozenset)):
            raise UnresolvedError(
                f"c.AnsibleBootstrap.place: {name} is a list of {what}, not {given[name]!r}"
            )
    given.update({name: tuple(given[name]) for name in ("also", "groups") if name in given})
    plain = {key: value for key, value in given.items() if key not in {"account", "volumes"}}
    replace(Place("anybody"), **plain)  # Types and bounds.
    return given


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


# -- the spawner ---------------------------------------------------------------------------------


async def _unknown(spawner: Any, storage: Storage) -> list[str]:
    cls = type(spawner)
    raise UnresolvedError(
        f"{cls.__module__}.{cls.__qualname__} is a spawner that ansible_bootstrap does not know: "
        f"{SETTING}, and c.AnsibleBootstrap.uid and gid if its servers do not run as the system user of that name"
    )


UNKNOWN: Final = Family(where=_unknown)


def objection(spawner_class: type, place: Any) -> Finding | None:
    """Return why no server of this class can start with this setting ``c.AnsibleBootstrap.place``, if that is so."""
    family, name = _family_of(spawner_class), f"{spawner_class.__module__}.{spawner_class.__qualname__}"
    if place is None and family is UNKNOWN:
        what = f"{name} is a spawner of an unknown class, so no server will start"
        return Finding(level="error", what=what, mend="set c.AnsibleBootstrap.place (docs/places.md)")
    if isinstance(place, Mapping) and place.get("volumes") and not family.volumes:
        what = f"c.AnsibleBootstrap.place has volumes, which {name} does not have, so no server will start"
        return Finding(level="error", what=what, mend="they are for KubeSpawner: name the directory instead")
    return None


def _family(spawner: Any) -> Family:
    return _family_of(type(spawner))


def _family_of(spawner_class: type) -> Family:
    names = (f"{cls.__module__}.{cls.__qualname__}" for cls in spawner_class.__mro__)
    return next((FAMILIES[name] for name in names if name in FAMILIES), UNKNOWN)


async def _starting(spawner: Any) -> tuple[Family, Any]:
    """Return the spawner as it will start, the innermost of those that wrap another, and how it is asked."""
    family = _family(spawner)
    spawner = await family.starting(spawner)
    return await _starting(spawner) if family.wraps else (family, spawner)


def _filled_in(family: Family, spawner: Any, template: str) -> str:
    try:
        return family.render(spawner, template)
    except (LookupError, ValueError) as error:
        cls = type(spawner).__name__
        raise UnresolvedError(
            f"c.AnsibleBootstrap.place: {template!r} cannot be filled in ({type(error).__name__}: {error}); {cls} "
            f"knows {', '.join(f'{{{name}}}' for name in sorted(family.fields(spawner)))}"
        ) from None


@contextlib.contextmanager
def _explained(spawner: Any) -> Iterator[None]:
    """What goes wrong in a spawner's own code, or in a site's, is no failure of ours."""
    try:
        yield
    except (AnsibleBootstrapError, TimeoutError):
        raise
    except Exception as error:
        raise UnresolvedError(
            f"{type(spawner).__name__} cannot say where the storage is ({type(error).__name__}: {error}): {SETTING}"
        ) from error
