"""Whether a user of the hub is still the person who was given the directory.

A directory goes by name. A user who is deleted in the hub and made again may be somebody else, and so may one who was
given a name that another had before a rename. The hub's row of the user tells: its id and the time at which it was made
(both, for SQLite uses an id again).

A hub whose whole database was replaced must refuse nobody. It is still the same database if one of its users is older
than what we remember of this one, or if this one's old id is gone from it while later ones are there.
"""

from __future__ import annotations

from datetime import UTC
from typing import Any

from ansible_bootstrap.errors import RefusedError
from ansible_bootstrap.hub.core import Core


def check_person(core: Core, user: Any) -> None:
    """Refuse a user who has the name of an earlier one; note who a new user is.

    Args:
        core: knows who the users were.
        user: ``jupyterhub.user.User``.

    Raises:
        RefusedError: the details name the two ways out.
    """
    orm_user = getattr(user, "orm_user", None)
    created = getattr(orm_user, "created", None)
    if orm_user is None or created is None or core.config.recreated_user == "allow":
        return
    person = f"{orm_user.id} {created.isoformat()}"
    known = core.books.person(user.name)
    if known is not None and known[0] == person:
        return
    if known is not None:
        if _same_database(orm_user, *known):
            raise RefusedError(
                f"{user.name!a} was deleted in the hub and made again, or has a name that another user had: if it is "
                f"the same person, `ansible-bootstrap accept {user.name!a}`; if not, move the old directory away "
                "first, then do the same"
            )
        core.config.log.info(
            "ansible_bootstrap: the hub has a new database; %s counts as the same person", ascii(user.name)
        )
    core.books.note_person(user.name, person)


def _same_database(orm_user: Any, person: str, at: float) -> bool:
    """Whether the hub's database is the one in which that person was noted at that time (as ``time.time``)."""
    from jupyterhub.orm import User  # noqa: PLC0415 - heavy, and loaded wherever there is a hub
    from sqlalchemy import func, inspect  # noqa: PLC0415

    session = inspect(orm_user).session
    oldest, latest = session.query(func.min(User.created), func.max(User.id)).one()
    old = int(person.split(maxsplit=1)[0])
    return bool(
        oldest.replace(tzinfo=UTC).timestamp() < at or (latest > old and session.get(User, old) is None)
    )
