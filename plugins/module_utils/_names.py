# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
r"""The one policy for names: usernames, keys, hosts, directories, path components.

The hook, the apply program, the playbook and the modules all ask here, so that none of them is
more generous than the next. Plain Python >= 3.9, standard library only: it runs on storage hosts.

Every rule is an allow-list. A username may hold letters and digits of any script, and ``. _ - @ +``,
an apostrophe or a space inside. That leaves out, without naming them, template markers, slashes,
quotes, shell syntax, control characters, escape sequences and lone surrogates.

The hub knows some users by names that this leaves out: ``DOMAIN\user``, ``oauth2|idp|id``. They are good on the
hub's side (:func:`check_hub_name`), which hands them to nothing but the spawner. What crosses to the storage host is
a slug (:func:`sent_name`): a site's role may put the name into a shell, where ``|`` and ``\`` mean something.

Rejected: percent-style escaping as JupyterHub's spawners do it (two names can collide:
``al\x020x`` and ``al x``), and a short hash (32 bits collide after some 58,000 tries).
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import posixpath
import re
import unicodedata
from collections.abc import Sequence

MAX_NAME = 128
"""Most characters in a username; and at most 255 bytes of UTF-8, a path component's limit."""

_INSIDE = frozenset("._-@+' ")
_PLAIN = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,62}\Z")
_SLUG = re.compile(r".*-[a-z2-7]{26}\Z")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?\Z")
_NOT_HOSTS = frozenset({"all", "ungrouped"})

STATE_DIRECTORY = ".ansible_bootstrap"
"""Below each storage root: stages, locks and records, root-owned, mode 0700."""

PROBE_DIRECTORY = f"{STATE_DIRECTORY}_probe"
"""Below a storage root while it is probed."""


class UserRefusedError(ValueError):
    """This user cannot be worked for; the text names the rule or the setting to make."""


class NameRefusedError(UserRefusedError):
    """The name breaks a rule; the text says which, and never repeats the name."""


def check_name(name: object) -> str:
    """Return ``name`` if it is an acceptable username, else raise :class:`NameRefusedError`."""
    if not isinstance(name, str):
        raise NameRefusedError("a username must be a string")
    if not name:
        raise NameRefusedError("a username must not be empty")
    if len(name) > MAX_NAME:
        raise NameRefusedError(f"a username has at most {MAX_NAME} characters")
    for char in name:
        if not (char in _INSIDE or unicodedata.category(char)[0] in "LNM"):
            raise NameRefusedError("a username has only letters, digits and . _ - @ + ' or a space")
    if not (unicodedata.category(name[0])[0] in "LN" or name[0] == "_"):
        raise NameRefusedError("a username begins with a letter, a digit or _")
    if name[-1] in " '":
        raise NameRefusedError("a username does not end with a space or an apostrophe")
    if unicodedata.normalize("NFC", name) != name:
        raise NameRefusedError("a username is in Unicode normal form C")
    if len(name.encode("utf-8")) > 255:
        raise NameRefusedError("a username has at most 255 bytes of UTF-8")
    if name == "root":
        raise NameRefusedError("root is not a user of the hub")
    return name


def check_hub_name(name: object) -> str:
    r"""Return ``name`` if the hub's side may work for it: :func:`check_name`, and ``\`` or ``|`` inside."""
    plain = name.translate({ord("\\"): "-", ord("|"): "-"}) if isinstance(name, str) else name
    check_name(plain)
    return str(name)


def sent_name(name: str) -> str:
    """Return the name by which the storage host knows a user of the hub: the same, or a slug of it.

    No two users of the hub are sent by one name: what looks like a slug becomes a slug itself.
    """
    try:
        return component(name) if _SLUG.match(check_name(name)) else name
    except NameRefusedError:
        return component(name)


def check_key(key: object) -> str:
    """Return ``key`` if it can stand in logs and JSON as it is, else raise :class:`NameRefusedError`.

    ``#3`` and the like stand for records that have no usable key.
    """
    if check_group(key).startswith("#"):
        raise NameRefusedError("a key does not begin with #")
    return str(key)


def check_group(group: object) -> str:
    """Return ``group`` if it can stand in logs and JSON as it is, else raise :class:`NameRefusedError`."""
    if not isinstance(group, str) or not 0 < len(group) <= 512:
        raise NameRefusedError("a key or group is a string of 1 to 512 characters")
    if not group.isprintable():
        raise NameRefusedError("a key or group has only printable characters")
    return group


def check_host(host: object) -> str:
    """Return ``host`` if it can only be one inventory host, never a pattern or ``all``."""
    if not isinstance(host, str) or not _HOST.match(host) or host in _NOT_HOSTS:
        raise NameRefusedError(
            "a storage host is the name of one host of the inventory, no group and no pattern"
        )
    return host


def check_directory(directory: object) -> str:
    """Return ``directory`` if it is an absolute, normal path that nothing can be hidden in.

    Whether it lies below the storage root is for :func:`below` to say.
    """
    if not isinstance(directory, str) or not directory.startswith("/"):
        raise NameRefusedError("a directory is an absolute path")
    if len(directory.encode("utf-8", "surrogatepass")) > 4000:
        raise NameRefusedError("a directory's path has at most 4000 bytes")
    if posixpath.normpath(directory) != directory or directory.startswith("//") or directory == "/":
        raise NameRefusedError("a directory's path has no '..', no '.', no empty part and no trailing slash")
    if not directory.isprintable():
        raise NameRefusedError("a directory's path has only printable characters")
    for reserved in (STATE_DIRECTORY, PROBE_DIRECTORY, "lost+found"):
        if reserved in directory.casefold().split("/"):  # as a file system that folds case has it
            raise NameRefusedError(f"{reserved} is not a user's directory")
    return directory


def below(roots: Sequence[str], directory: str) -> tuple[str, tuple[str, ...]]:
    """Return the storage root that ``directory`` is strictly below, and its components from there.

    Raises:
        NameRefusedError: it is below none of them.
    """
    for root in roots:
        prefix = posixpath.normpath(root).rstrip("/") + "/"
        if directory.startswith(prefix) and directory != prefix:
            return root, tuple(directory[len(prefix) :].split("/"))
    what = f"the storage root {roots[0]}" if len(roots) == 1 else f"any storage root ({', '.join(roots)})"
    raise NameRefusedError(
        f"{directory} is not below {what}: set storage_root to a directory above it, or add one to storage_roots (with "
        "Ansible alone, bootstrap_root and bootstrap_roots), or set c.AnsibleBootstrap.place to one below"
    )


def check_roots(roots: Sequence[object], records_dir: object = "") -> tuple[str, ...]:
    """Return the storage roots; NameRefusedError if one is no good path, lies in another, or has the records in it."""
    checked = tuple(map(check_directory, roots))
    for one, other in itertools.combinations(sorted(checked), 2):
        if f"{other}/".startswith(f"{one}/"):
            raise NameRefusedError(
                f"storage_roots: {other} {'is given twice' if one == other else f'lies in {one}'}: no storage root "
                "lies in another"
            )
    for root in checked if records_dir else ():
        if f"{check_directory(records_dir)}/".startswith(f"{root}/"):
            raise NameRefusedError(
                f"records_dir: {records_dir} lies in the storage root {root}, where users' directories are: name a "
                "directory elsewhere"
            )
    return checked


def carries(name: str, parts: Sequence[str]) -> bool:
    """Say whether one of the components of a path is the user's own.

    That is the name, our slug of it, or what spawners make of it: escaped by escapism (``jane-2edoe`` for
    ``jane.doe``, with ``-``, ``_`` or ``%``), or a safe slug, which ends in the name's hash
    (``jane-doe---f0e4c2f7``). Case does not matter.
    Source: DockerSpawner ``escape``; kubespawner/slugs.py ``safe_slug``.
    """
    own = {name.casefold(), component(name)}
    safe = f"---{hashlib.sha256(name.encode('utf-8')).hexdigest()[:8]}"
    return any(part.endswith(safe) or not own.isdisjoint(_unescaped(part.casefold())) for part in parts)


def _unescaped(part: str) -> list[str]:
    """Return a component as it is, and with each of the escape characters undone."""
    raw = part.encode("utf-8", "surrogateescape")
    forms = [
        re.sub(escape + rb"([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), raw)
        for escape in (b"-", b"_", b"%")
    ]
    return [part, *(form.decode("utf-8", "replace").casefold() for form in forms)]


def component(name: str) -> str:
    """Return the path component for a username: itself if it is plain, else a slug.

    Plain is lower-case ASCII, so that no two plain names meet on a file system that folds case. A
    slug is a readable stem and 130 bits of the name's sha256; a plain name that looks like a slug
    becomes one, so the two kinds cannot meet either.
    """
    if _PLAIN.match(name) and not _SLUG.match(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8")).digest()
    tail = base64.b32encode(digest).decode("ascii").lower()[:26]
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:24].strip("-")
    return f"{stem or 'user'}-{tail}"
