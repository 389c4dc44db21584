# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Fill in what a user's record leaves open: directory, uid, gid.

Whoever asks gives at least a name. What the request says about directory and owner is checked
against the admin's policy, and a contradiction is refused, never repaired. The policy for owners:

* an integer: everybody's directory has this uid (or gid); the container maps it;
* ``nss``: the system user of that name, as the storage host's name service knows it;
* ``request``: what the request says, within ``uid_min`` and ``uid_max``, from ``gid_min`` on.

A process that is not root can only work for itself: whatever the policy, the owner is its own uid
and gid, and a request for another is refused.
"""

from __future__ import annotations

import dataclasses
import os
import pwd
import re
from collections.abc import Callable
from typing import Any

from . import _names
from ._names import UserRefusedError

FIELDS = ("key", "name", "directory", "also", "uid", "gid", "storage_host", "groups")
"""A user's record, everywhere the same."""

MAX_ALSO = 8
"""Most further directories of one user."""

Failure = dict[str, Any]

_PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_.-]{0,30}\Z")
"""A system user's name as Debian's ``adduser`` has it; the name service may know it by a longer one (``alice@uni``)."""

_NOBODY = 65534
"""The account ``nobody``; ``_as_user.py`` gives it the work on strangers' data."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """The admin's word on where directories lie and whose they are.

    Attributes:
        root: the storage root of users without a directory of their own.
        roots: further storage roots.
    """

    root: str
    uid: int | str = "nss"
    gid: int | str | None = None
    uid_min: int = 1000
    uid_max: int = 2**32 - 2
    gid_min: int = 100
    roots: tuple[str, ...] = ()

    @property
    def all_roots(self) -> tuple[str, ...]:
        """All storage roots."""
        return (self.root, *self.roots)


def parse_user(raw: object) -> dict[str, Any]:
    """Return a record with all :data:`FIELDS` from what a caller gave.

    Raises:
        UserRefusedError: a field is unknown, of the wrong type, or against the policy for names.
    """
    if not isinstance(raw, dict):
        raise UserRefusedError("a user is a mapping")
    if not set(raw) <= set(FIELDS):
        raise UserRefusedError(f"a user has only the fields {', '.join(FIELDS)}")
    name = _names.check_name(raw.get("name"))
    also = _check_list("also", raw.get("also"), _names.check_directory)
    if len(also) > MAX_ALSO:
        raise UserRefusedError(f"a user has at most {MAX_ALSO} directories beside the first")
    return {
        "key": _names.check_key(raw["key"]) if raw.get("key") else name,
        "name": name,
        "directory": _optional(_names.check_directory, raw.get("directory")),
        "also": also,
        "uid": _optional(_check_id, raw.get("uid")),
        "gid": _optional(_check_id, raw.get("gid")),
        "storage_host": _optional(_names.check_host, raw.get("storage_host")),
        "groups": _check_list("groups", raw.get("groups"), _names.check_group),
    }


def resolve_user(user: dict[str, Any], policy: Policy) -> dict[str, Any]:
    """Return the record with directory, uid and gid filled in, on the storage host.

    Raises:
        UserRefusedError: the owner is unknown, out of bounds, or not the one the policy says.
    """
    uid, gid, home = _owner(user, policy)
    directory = user["directory"] or _default_directory(user["name"], home, policy)
    for each in (directory, *user["also"]):
        _names.below(policy.all_roots, each)
    return {**user, "directory": directory, "uid": uid, "gid": gid}


def _owner(user: dict[str, Any], policy: Policy) -> tuple[int, int, str | None]:
    """Return uid, gid and, for a system user, the home directory the name service knows."""
    own = os.geteuid()
    if own != 0:
        uid, gid = own, os.getegid()
        if policy.uid not in ("nss", "request", own) or user["uid"] not in (None, own):
            raise UserRefusedError(f"to work for another uid than {own} needs root")
        if policy.gid not in (None, "nss", "request", gid) or user["gid"] not in (None, gid):
            raise UserRefusedError(f"to work for another gid than {gid} needs root")
        return uid, gid, None
    entry = system_user(user["name"]) if "nss" in (policy.uid, policy.gid or policy.uid) else None
    uid = _choose("uid", policy.uid, user["uid"], entry and entry.pw_uid)
    if not policy.uid_min <= uid <= policy.uid_max:
        raise UserRefusedError(f"uid {uid} is outside uid_min {policy.uid_min} and uid_max {policy.uid_max}")
    if uid == _NOBODY:
        raise UserRefusedError(f"uid {_NOBODY} reads archives and the network here: it is no user's")
    gid_policy = policy.gid
    if gid_policy is None:
        if isinstance(policy.uid, int):
            raise UserRefusedError("uid is fixed but gid is not set: set gid too (for example 100)")
        gid_policy = policy.uid
    gid = _choose("gid", gid_policy, user["gid"], entry and entry.pw_gid)
    if gid_policy == "request" and gid < policy.gid_min:
        raise UserRefusedError(f"gid {gid} is below gid_min {policy.gid_min}")
    return uid, gid, entry.pw_dir if entry else None


def _choose(what: str, policy: int | str, asked: int | None, known: int | None) -> int:
    if policy == "request":
        if asked is None:
            raise UserRefusedError(f"the request names no {what}, and {what} is set to 'request'")
        return asked
    value = policy if isinstance(policy, int) else known
    if value is None:
        raise UserRefusedError(
            f"not a system user of the storage host: set uid and gid to the container's, "
            f"or make the account ({what} is set to 'nss')"
        )
    if asked is not None and asked != value:
        raise UserRefusedError(f"the request says {what} {asked}, the settings say {value}")
    return value


def system_user(name: str) -> pwd.struct_passwd | None:
    """Return what the name service knows of an account; None if it knows none.

    Any name of the policy may be an account's. Some services take ``Alice`` for ``alice``, and ``1000`` for a uid: two
    users of the hub would be one account.

    Raises:
        UserRefusedError: the account has another name.
    """
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    if entry.pw_name != name and not _PLAIN_NAME.match(name):
        raise UserRefusedError(
            f"the system's name of this account is {entry.pw_name!a}: let the hub call the user so "
            "(c.Authenticator.username_map), or set uid and gid"
        )
    return entry


def _default_directory(name: str, home: str | None, policy: Policy) -> str:
    """A system user's home if it lies below a storage root, else a component of our own."""
    if home:
        try:
            _names.below(policy.all_roots, _names.check_directory(home))
        except _names.NameRefusedError:
            pass
        else:
            return home
    return f"{policy.root.rstrip('/')}/{_names.component(name)}"


def _optional(check: Callable[[object], Any], value: object) -> Any:
    return None if value is None else check(value)


def _check_list(what: str, value: object, check: Callable[[object], str]) -> list[str]:
    if not isinstance(value, (list, tuple, type(None))):
        raise _names.NameRefusedError(f"malformed {what}: not a list")
    return [check(item) for item in value or []]


def _check_id(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32 - 1:
        raise _names.NameRefusedError("a uid or gid is an integer from 0 to 4294967294")
    return value


def resolve_users(users: list[dict[str, Any]], policy: Policy) -> tuple[list[dict[str, Any]], list[Failure]]:
    """Resolve each user alone; return the whole ones and the failures."""
    whole = []
    failures: list[Failure] = []
    for user in users:
        try:
            whole.append(resolve_user(user, policy))
        except UserRefusedError as error:
            failures.append(failure(user, str(error)))
    return whole, failures


def parse_users(raw: list[Any], storage_host: str) -> tuple[list[dict[str, Any]], list[Failure]]:
    """Parse each user alone; return the good ones, bound to ``storage_host``, and the failures.

    A key may not repeat; a record without a usable key is known by its place, ``#3``.
    """
    good = []
    failures: list[Failure] = []
    seen: set[str] = set()
    for place, item in enumerate(raw, start=1):
        try:
            user = parse_user(item)
            if user["key"] in seen:
                raise UserRefusedError("its key repeats an earlier one")
            if user["storage_host"] not in (None, storage_host):
                raise UserRefusedError("its storage host is not the one of this run")
        except UserRefusedError as error:
            failures.append(failure(label(item, f"#{place}", seen), str(error)))
            continue
        seen.add(user["key"])
        good.append({**user, "storage_host": storage_host})
    return good, failures


def label(raw: object, place: str, seen: set[str]) -> dict[str, str]:
    """Return the key and name under which a record is reported: its own if usable and not seen, else ``place``."""
    given = raw if isinstance(raw, dict) else {}
    usable = {"key": place, "name": place}
    for field, check, value in (
        ("name", _names.check_name, given.get("name")),
        ("key", _names.check_key, given.get("key") or given.get("name")),
    ):
        try:
            usable[field] = check(value)
        except _names.NameRefusedError:
            continue
    return {**usable, "key": place} if usable["key"] in seen else usable


def failure(user: dict[str, Any], msg: str, reason: str = "refused", **where: str) -> Failure:
    """Return the record of a user who failed: key, name, reason, msg, and where (role, task)."""
    return {"key": user["key"], "name": user["name"], "reason": reason, "msg": msg, **where}
