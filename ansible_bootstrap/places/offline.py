"""Where a user's storage will be, told without a hub: a spawner object made from the configuration alone.

A list of names says nothing of directories: DockerSpawner mounts ``emmy-2enoether`` where the roster has
``emmy.noether``. So a spawner of the hub's own class is made as ``User._new_spawner`` makes it, and asked as the hook
asks (``places.resolve``). Nothing is started, no server is contacted and the hub's database is not opened.

What only a running hub knows (whether they are admin, say) is missing from :class:`DetachedUser` rather than guessed:
code of the site that looks for it fails, and the user is ``unresolved``. A ``None`` would have become part of a path.
A user's id is something else: SystemdSpawner and KubeSpawner look for it in their constructors, most often for nothing.
So it is there, and objects where it ends up in a path. Of what is chosen on the spawn page, all choices are tried; if
they differ, the user is ``unresolved``.

Rejected: the hub's own ``User`` over a database in memory. It has all attributes, with values that are not this user's.

JupyterHub is imported on use only: where the apply side works alone, it may be missing, and its import takes half a
second or more. A configuration that names neither spawner nor authenticator needs it only for users of the system.
``jupyterhub.app`` is never imported: it takes as long again, for nothing but the classes in ``CLASSES``.
"""

from __future__ import annotations

import asyncio
import pwd
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, Final

from traitlets import HasTraits

from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.errors import NowhereError, RefusedError, UnreachableError, UnresolvedError
from ansible_bootstrap.place import Place
from ansible_bootstrap.places.family import looked_up
from ansible_bootstrap.places.identity import identified
from ansible_bootstrap.places.resolve import checked, choices, resolve, unasked, with_options

RESOLVE_SECONDS: Final = 30.0
"""For one user; longer than a name service may take."""

WAY_OUT: Final = (
    "or name the directory in a roster's column directory, or let the user's server start once: where that had its "
    "storage is remembered"
)

CLASSES: Final = {
    "spawner_class": ("spawner.LocalProcessSpawner", "spawner.Spawner", "spawners"),
    "authenticator_class": ("auth.PAMAuthenticator", "auth.Authenticator", "authenticators"),
}
"""Of ``c.JupyterHub``: the default, what it inherits from, and the group of entry points."""

_ONLY_A_HUB: Final = "only a running hub knows it"
_USER_ID: Final = "{user.id}"
_GROUPS: Final = "they are known from a roster's column groups, or with --hub"


class _UserId:
    """A user's id, which nobody knows here. Only a spawner that is being made may write a mark in its place."""

    def __init__(self) -> None:
        self.writable = True

    def __format__(self, spec: str) -> str:
        if self.writable:
            return _USER_ID
        raise AttributeError(f"user.id: {_ONLY_A_HUB}")

    def __str__(self) -> str:
        return format(self)


class DetachedUser:
    """What is known of a user where no hub runs, by the names that ``jupyterhub.user.User`` has for it."""

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any],
        groups: Sequence[str] | None,
        auth_state: Mapping[str, Any] | None,
    ) -> None:
        from jupyterhub.utils import url_escape_path, url_path_join  # noqa: PLC0415 - may be missing

        self.name = name
        self.id = _UserId()
        self.settings = settings
        self.escaped_name = url_escape_path(name)
        self.url = self.base_url = self.prefix = (
            url_path_join(settings["base_url"], "user", self.escaped_name) + "/"
        )
        self.spawners: dict[str, Any] = {}
        self._auth_state = auth_state
        if groups is not None:
            self.groups = [SimpleNamespace(name=group) for group in groups]

    async def get_auth_state(self) -> Mapping[str, Any] | None:
        """Nothing but what the roster says: the hub's database is not opened."""
        return self._auth_state

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"user.{name}: {_GROUPS if name == 'groups' else _ONLY_A_HUB}")


class Detached:
    """Says where users' storage will be, by the hub's configuration alone.

    Args:
        settings: as the hub's configuration file makes them; ``settings.config`` is all of it.
    """

    def __init__(self, settings: AnsibleBootstrap) -> None:
        self._settings = settings
        self._hub: Mapping[str, Any] = settings.config.get("JupyterHub", {})
        self._classes: dict[str, Any] = {}
        self._authenticator: Any = None

    @property
    def names_only(self) -> bool:
        """Whether the configuration says nothing of a spawner, so that a user may be no more than a name."""
        return "spawner_class" not in self._hub and self._settings.place is None

    @property
    def spawner_class(self) -> Any:
        """The hub's spawner class; raises whatever its import does."""
        return self._made("spawner_class")

    async def place(
        self,
        name: str,
        *,
        groups: Sequence[str] | None = None,
        auth_state: Mapping[str, Any] | None = None,
    ) -> Place:
        """Return where the user's default server will have its storage.

        Args:
            name: the hub's username.
            groups: the user's groups; None if they are not known.
            auth_state: what is known of it.

        Raises:
            UnresolvedError: it cannot be told; the details say what to do.
            UnreachableError: the name service, which knows it, does not answer.
            RefusedError: the name, the path or the host is not acceptable.
        """
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                return await self._ask(name, groups, auth_state)
        except (NowhereError, RefusedError, UnreachableError):
            raise
        except UnresolvedError as error:
            raise UnresolvedError(f"{error.details}; {WAY_OUT}") from error
        except TimeoutError:
            raise UnresolvedError(
                f"the spawner has not said within {RESOLVE_SECONDS:g} s where the storage is; {WAY_OUT}"
            ) from None
        except Exception as error:
            raise UnresolvedError(
                f"the spawner cannot say without a hub where the storage is ({type(error).__name__}: {error}): "
                f"set c.AnsibleBootstrap.place, {WAY_OUT}"
            ) from error

    def normal_form(self, name: str) -> str:
        """Return what the hub would call somebody who logs in by that name; the name itself if that cannot be told."""
        sections = (section for section in self._settings.config if section.endswith("Authenticator"))
        if "authenticator_class" not in self._hub and not any(sections):
            return name.lower()  # As the default class escapes a name.
        try:
            if self._authenticator is None:
                self._authenticator = self._made("authenticator_class")(config=self._settings.config)
            return str(self._authenticator.normalize_username(name))
        except Exception:
            return name

    # -- inner --------------------------------------------------------------------------------

    async def _ask(
        self, name: str, groups: Sequence[str] | None, auth_state: Mapping[str, Any] | None
    ) -> Place:
        if self.names_only and not await looked_up(lambda: _has_server(name)):
            # The hub's default class, and the user's server could not start: no spawner is contradicted by what the
            # apply side makes of a name.
            user = SimpleNamespace(name=name, groups=[SimpleNamespace(name=group) for group in groups or ()])
            nobody = SimpleNamespace(user=user, name="", config=self._settings.config)
            place = await unasked(nobody, self._settings)
            return checked(await identified(place, nobody, self._settings), self._settings)
        spawner = self.spawner(name, groups=groups, auth_state=auth_state)
        places, nowhere = set(), False
        for number, options in enumerate(await choices(spawner) or [{}]):
            if number:
                spawner = self.spawner(name, groups=groups, auth_state=auth_state)
            spawner.user_options = options
            try:
                places.add(await resolve(await with_options(spawner), self._settings))
            except NowhereError:
                nowhere = True
        if not places:
            raise NowhereError
        directories = sorted({path for place in places for path in (str(place.directory), *place.also)})
        if len(places) + nowhere > 1:
            raise UnresolvedError(f"it depends on what is chosen on the spawn page: {', '.join(directories)}")
        if any(_USER_ID in text for text in (*directories, *(place.account for place in places))):
            raise UnresolvedError(f"the path has user.id in it: {_ONLY_A_HUB}")
        return places.pop()

    def spawner(
        self,
        name: str,
        *,
        groups: Sequence[str] | None = None,
        auth_state: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return a spawner of the hub's class, which must not be started."""
        cls = self._made("spawner_class")
        from jupyterhub.traitlets import URLPrefix  # noqa: PLC0415 - may be missing

        base_url = URLPrefix().validate(None, self._hub.get("base_url", "/"))
        settings = {"base_url": base_url, "config": self._settings.config, "spawner_class": cls}
        user = DetachedUser(name, settings, groups, auth_state)
        spawner = cls(
            user=user,
            orm_spawner=None,  # Then ``Spawner.name`` is that of the default server.
            hub=None,
            authenticator=None,
            config=self._settings.config,
            user_options={},
        )
        user.spawners[""] = spawner
        spawner.load_state({})
        spawner.clear_state()  # As ``User.spawn`` does.
        user.id.writable = False
        return spawner

    def _made(self, trait: str) -> Any:
        """Return the class that a setting of ``c.JupyterHub`` stands for, as the trait of that name there would."""
        if trait not in self._classes:
            from jupyterhub.traitlets import EntryPointType  # noqa: PLC0415 - may be missing

            default, base, group = CLASSES[trait]
            kind = EntryPointType(
                f"jupyterhub.{default}", f"jupyterhub.{base}", entry_point_group=f"jupyterhub.{group}"
            )
            hub = type("JupyterHub", (HasTraits,), {trait: kind})()
            if trait in self._hub:
                setattr(hub, trait, self._hub[trait])
            self._classes[trait] = getattr(hub, trait)
        return self._classes[trait]


def _has_server(name: str) -> bool:
    """Whether the hub's default spawner could start a server for the user. Blocks: it asks the name service."""
    try:
        return bool(pwd.getpwnam(name)) and find_spec("jupyterhub") is not None
    except (KeyError, ValueError):
        return False
