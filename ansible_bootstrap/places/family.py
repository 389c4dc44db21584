"""The questions that every kind of spawner is asked, and what is common to the answers.

A kind (:class:`Family`) is asked *where* it keeps a user's files and *whose* they are, separately: an admin may answer
one of the two in ``c.AnsibleBootstrap.place``, and the spawner answers the other.

Some spawners apply the user's choice in ``start()``, after the hook: KubeSpawner its profiles, DockerSpawner the image,
WrapSpawner makes its child. The same method is called on a copy (:func:`copied`), so that the spawner itself is as it
was. What an admin's own function does outside of the spawner, it does twice.
"""

from __future__ import annotations

import copy
import inspect
import pwd
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from ansible_bootstrap.errors import UnreachableError, UnresolvedError
from ansible_bootstrap.place import Place
from ansible_bootstrap.threads import in_thread

T = TypeVar("T")

LOOKUP_SECONDS: Final = 10.0
"""A name service that has not answered by then is down."""

SETTING: Final = 'set c.AnsibleBootstrap.place (to "/export/home/{username}", for example: docs/places.md)'


@dataclass(frozen=True)
class Storage:
    """What the settings say of the storage host's directories."""

    roots: tuple[str, ...] = ()
    """``c.AnsibleBootstrap.storage_root`` and ``storage_roots``, if they are known here."""
    volumes: Mapping[str, str] = field(default_factory=dict)
    """By the name of a pod's volume, the directory of the storage host that is its root."""


class _Fields(str):
    """A template that notes which fields it is given, and renders to nothing."""

    names: tuple[str, ...] = ()

    def format(self, *args: object, **fields: object) -> str:
        self.names = tuple(fields)
        return ""


def fields_of(expand: Callable[[str], object]) -> Sequence[str]:
    """Return the names of the fields that a spawner's own function fills in."""
    template = _Fields()
    expand(template)
    return template.names


def _namespace(spawner: Any) -> Sequence[str]:
    return tuple(spawner.template_namespace())


def _format(spawner: Any, template: str) -> str:
    return template.format(**spawner.template_namespace())


async def _settings_say(spawner: Any, place: Place) -> Place:
    return place


async def _itself(spawner: Any) -> Any:
    return spawner


async def _not_known(spawner: Any, directories: Collection[str]) -> None:
    pass


async def _no_choice(spawner: Any) -> list[dict[str, Any]]:
    return []


@dataclass(frozen=True)
class Family:
    """How one kind of spawner is asked."""

    where: Callable[[Any, Storage], Awaitable[list[str]]]
    """Returns the user's directories on the storage host, the home first. Raises :class:`UnresolvedError`."""
    whose: Callable[[Any, Place], Awaitable[Place]] = _settings_say
    """Returns the place with account, uid and gid filled in. Raises :class:`UnresolvedError`."""
    fields: Callable[[Any], Sequence[str]] = _namespace
    """The names of the fields of the spawner's templates."""
    render: Callable[[Any, str], str] = _format
    """Fills in a template as the spawner would. Raises LookupError or ValueError."""
    starting: Callable[[Any], Awaitable[Any]] = _itself
    """Returns the spawner as it will be once it has applied the user's options, as a copy where that changes it."""
    volumes: bool = False
    """Whether ``c.AnsibleBootstrap.place`` may say where its volumes are."""
    wraps: bool = False
    """Whether ``starting`` returns another spawner, which is to be asked instead."""
    choices: Callable[[Any], Awaitable[list[dict[str, Any]]]] = _no_choice
    """The ``user_options`` among which a user chooses on the spawn page."""
    check_container: Callable[[Any, Collection[str]], Awaitable[None]] = _not_known
    """Asks the container that was made for the server whether it mounts those of the directories that the settings say
    it does. Raises :class:`UnresolvedError`."""


def copied(spawner: Any) -> Any:
    """Return a copy, which can be changed without changing the spawner: dicts and lists are copied, too."""
    clone = copy.copy(spawner)
    values = getattr(clone, "_trait_values", {})
    values.update({name: _fresh(value) for name, value in values.items()})
    return clone


def _fresh(value: Any) -> Any:
    if isinstance(value, dict):
        fresh = copy.copy(value)
        fresh.update({key: _fresh(item) for key, item in value.items()})
        return fresh
    return [_fresh(item) for item in value] if type(value) is list else value


async def evaluated(spawner: Any, value: Any) -> Any:
    """Return a setting's value, which may be a function of the spawner, and async."""
    if callable(value):
        value = value(spawner)
    return await value if inspect.isawaitable(value) else value


async def looked_up(look: Callable[[], T]) -> T:
    """Ask the name service, which may be an LDAP server, without stopping the hub."""
    try:
        return await in_thread(look, timeout=LOOKUP_SECONDS)
    except TimeoutError:
        raise UnreachableError(f"the name service has not answered in {LOOKUP_SECONDS:g} s") from None


def account(name: str, way_out: str = "") -> pwd.struct_passwd:
    """Return the system's entry. Blocks: for :func:`looked_up`.

    Raises:
        UnresolvedError: the system knows no such user; the details say how to make it known.
    """
    try:
        return pwd.getpwnam(name)
    except KeyError:
        way_out = way_out or f"make it known, or {SETTING}, uid and gid"
        raise UnresolvedError(f"the system knows no user {name!r} (getent passwd): {way_out}") from None
