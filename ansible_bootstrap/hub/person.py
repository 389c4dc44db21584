"""Whether a user of the hub is still the person who was given the directory.

A directory goes by name. A user who is deleted in the hub and made again may be somebody else, and so may one who was
given a name that another had before a rename. The hub's row of the user tells: its id and the time at which it was made
(both, for SQLite uses an id again).

A hub whose whole database was replaced must refuse no user. So a note has some rows of other users beside the user's
own: if one of these rows is still there, it is the same database. If there was no other user, it is the same if the
user's old id is gone from it while later ids are there. No time is compared with a clock's.
"""

from __future__ import annotations

from typing import Any, Final

from ansible_bootstrap.errors import RefusedError
from ansible_bootstrap.hub.core import Core

OTHERS: Final = 4
"""First and last rows of other users that are noted with a user's own, so many of each."""


def check_person(core: Core, user: Any) -> None:
    """Refuse a user who has the name of an earlier user; note the row of a new user.

    Args:
        core: knows the rows that were noted.
        user: ``jupyterhub.user.User``.

    Raises:
        RefusedError: the details name the two ways out.
        ApplyError: the rows that were noted cannot be read now.
    """
    orm_user = getattr(user, "orm_user", None)
    created = getattr(orm_user, "created", None)
    if orm_user is None or created is None or core.config.recreated_user == "allow":
        return
    person = _row(orm_user.id, created)
    known = core.books.person(user.name)
    if known is not None:
        if known.split()[:2] == person.split():
            return
        if _same_database(orm_user, known):
            raise RefusedError(
                f"{user.name!a} was deleted in the hub and made again, or has a name that another user had: if it is "
                f"the same person, `ansible-bootstrap accept {user.name!a}`; if not, move the old directory away "
                "first, then do the same"
            )
        core.config.log.info(
            "ansible_bootstrap: the hub has a new database; %s counts as the same person", ascii(user.name)
        )
    core.books.note_person(user.name, " ".join([person, *_others(orm_user)]), known or "")


def _row(number: int, created: Any) -> str:
    return f"{number} {created.isoformat()}"


def _others(orm_user: Any) -> list[str]:
    """Return the hub's first and last rows of other users."""
    from jupyterhub.orm import User  # noqa: PLC0415 - heavy, and loaded wherever there is a hub
    from sqlalchemy import inspect  # noqa: PLC0415

    rows = inspect(orm_user).session.query(User.id, User.created)
    others = rows.filter(User.id != orm_user.id, User.created.is_not(None))
    return [_row(*row) for order in (User.id, User.id.desc()) for row in others.order_by(order).limit(OTHERS)]


def _same_database(orm_user: Any, known: str) -> bool:
    """Whether the hub's database is the one in which that person was noted."""
    from jupyterhub.orm import User  # noqa: PLC0415
    from sqlalchemy import inspect  # noqa: PLC0415

    words = known.split()
    noted = dict(zip(map(int, words[::2]), words[1::2], strict=True))
    rows = inspect(orm_user).session.query(User.id, User.created)
    if any(
        created and noted[number] == created.isoformat()
        for number, created in rows.filter(User.id.in_(noted))
    ):
        return True
    old, *others = noted
    latest = max(number for number, _ in rows)
    return not others and latest > old and rows.filter(User.id == old).first() is None
