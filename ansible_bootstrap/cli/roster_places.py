"""Where the storage of users is that a command names: by the roster, the ledger, or a spawner made without a hub.

A roster's columns are the admin's word and win. What they leave open comes from the ledger: the places that each of the
user's servers last had, for named servers may have storage of their own. For a user without a server so far under the
present settings it comes from a spawner object made for the purpose (``places/offline.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_bootstrap.cli.roster import shown
from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.errors import AnsibleBootstrapError, NowhereError, UnresolvedError
from ansible_bootstrap.place import Place
from ansible_bootstrap.places.identity import GID_ATTRIBUTE, UID_ATTRIBUTE
from ansible_bootstrap.places.offline import Detached
from ansible_bootstrap.protocol import Outcome, User, parse_users
from ansible_bootstrap.storage._names import NameRefusedError, check_hub_name, sent_name

LastPlaces = Callable[[str], Sequence[Place]]


@dataclass(frozen=True, slots=True)
class RosterEntry:
    """One directory to bootstrap."""

    key: str
    """Unique among all of a command."""
    place: Place
    notes: tuple[str, ...] = ()
    """What the admin should know of the record."""


class RosterPlaces:
    """Makes entries of records.

    Args:
        settings: the hub's configuration.
        last_places: says where a user's servers had their storage, the default server's first.
    """

    def __init__(self, settings: AnsibleBootstrap, last_places: LastPlaces) -> None:
        self._settings = settings
        self._last_places = last_places
        self._detached = Detached(settings)
        self._keys: set[str] = set()

    @property
    def names_only(self) -> bool:
        """Whether the configuration says nothing of a spawner."""
        return self._detached.names_only

    async def entries(self, number: int, record: Any) -> list[RosterEntry] | Outcome:
        """Return what is to be done for a record, or why there is nothing: a bad record costs only itself.

        Args:
            number: of the record, from 1, by which one without a usable name is known.
            record: the columns of a roster.
        """
        good, refused = _parsed(record)
        if refused:
            (outcome,) = refused
            return outcome.model_copy(
                update={"key": self._unique(f"#{number}" if outcome.key == "#1" else outcome.key)}
            )
        (user,) = good
        notes = self._notes(user.name)
        try:
            places = await self._places(user, groups_known="groups" in record)
        except NowhereError as said:
            key = self._unique(user.key)
            return Outcome(key=key, name=user.name, status="ok", message=str(said))
        except AnsibleBootstrapError as error:
            return Outcome(
                key=self._unique(user.key),
                name=user.name,
                status="failed",
                reason=error.reason,
                message="; ".join([error.details or error.message, *notes]),
                storage_host=user.storage_host or "",
            )
        if record.get("key") and user.key in self._keys:
            message = f"its key {shown(user.key)!r} repeats an earlier one"
            key = self._unique(user.key)
            return Outcome(key=key, name=user.name, status="failed", reason="refused", message=message)
        return [RosterEntry(self._unique(_label(user, place)), place, notes) for place in places]

    # -- inner --------------------------------------------------------------------------------

    async def _places(self, user: User, *, groups_known: bool) -> list[Place]:
        known = list(self._last_places(user.name))
        if (
            user.directory is not None
        ):  # One place, and what was recorded is of use only for what the columns leave out.
            known = [place for place in known if not place.server_name][:1]
        if not known:
            known = [await self._detached_place(user, groups_known=groups_known)]
        said = {_said(place, user).job_key: _said(place, user) for place in reversed(known)}
        return list(reversed(said.values()))  # Servers that share a directory share the entry.

    async def _detached_place(self, user: User, *, groups_known: bool) -> Place:
        state = {UID_ATTRIBUTE: user.uid, GID_ATTRIBUTE: user.gid}
        try:
            return await self._detached.place(
                user.name,
                groups=user.groups if groups_known else None,
                auth_state={name: value for name, value in state.items() if value is not None} or None,
            )
        except UnresolvedError:
            host = user.storage_host or self._settings.storage_host
            if user.directory is None or not isinstance(host, str):
                raise
            uid, gid = self._settings.uid, self._settings.gid
            return Place(
                user.name,
                uid=uid if isinstance(uid, int) else None,
                gid=gid if isinstance(gid, int) else None,
                storage_host=host,
            )

    def _notes(self, name: str) -> tuple[str, ...]:
        normal = self._detached.normal_form(name)
        return () if normal == name else (f"the hub would call this user {normal!r}, not {name!r}",)

    def _unique(self, key: str) -> str:
        unique, number = key, 2
        while unique in self._keys:
            unique, number = f"{key} ({number})", number + 1
        self._keys.add(unique)
        return unique


def _parsed(record: Any) -> tuple[list[User], list[Outcome]]:
    """As ``parse_users``, for a name of the hub's, which need not be one of the storage host's."""
    name = record.get("name") if isinstance(record, dict) else None
    try:
        sent = sent_name(check_hub_name(name))
    except NameRefusedError:
        return parse_users([record])
    good, refused = parse_users([{**record, "name": sent, "key": record.get("key") or name}])
    return [user.model_copy(update={"name": name}) for user in good], refused


def _said(place: Place, user: User) -> Place:
    """The place, but for what the record says itself."""
    return replace(
        place,
        directory=user.directory or place.directory,
        also=user.also if user.directory else user.also or place.also,
        uid=place.uid if user.uid is None else user.uid,
        gid=place.gid if user.gid is None else user.gid,
        storage_host=user.storage_host or place.storage_host,
        groups=user.groups or place.groups,
    )


def _label(user: User, place: Place) -> str:
    """The record's key; with the server's name, as the hub's log has it, for one that is not the default."""
    return f"{user.key}:{place.server_name}" if place.server_name else user.key
