# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""The role ``cleanup``: what the admin names is removed from users' directories, and nothing else.

Rules are read before anybody is worked for, so that a slip that would empty a home is refused for all. What
they match is removed by a process with the user's rights only (``_cleaning.py``), from an opened home. Whoever
exchanges names under its hands can lose what is their own, by their own doing, and nobody else's.

Rejected: ``**`` (it names nothing); the shell or ``find -delete`` (links on the way to a match are followed).
"""

from __future__ import annotations

import fnmatch
import os
import re
from functools import partial
from typing import Any

from . import _batch
from ._as_user import Answer
from ._batch import Claim
from ._cleaning import Rule, remove
from ._errors import StorageError, printable
from ._homes import open_present
from ._report import Report
from ._storage import Roots, Storage

_SHARE = 0.9
"""Of the time allowed, for the work: the rest is for saying how far it came."""

_MEMORY = 512 << 20
"""Bytes for one user's walk: whoever has a directory with millions of names in it must not use up the host's."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AGE = re.compile(r"([1-9][0-9]{0,8})([smhdw])\Z")
_WILD = re.compile(r"\*|\?|\[!?\]?[^\]]*\]")


def parse_rules(given: object) -> list[Rule]:
    """Return the admin's rules; StorageError if one is unclear or would match a whole home."""
    if not isinstance(given, list):
        raise StorageError("cleanup_paths is a list of paths")
    return [_rule(each) for each in given]


def _rule(given: object) -> Rule:
    older: object = None
    if isinstance(given, dict):
        if not set(given) <= {"path", "older_than"} or "path" not in given:
            raise StorageError(
                'an entry of cleanup_paths has "path" and, if wanted, "older_than" and no other'
            )
        older = given.get("older_than")
        given = given["path"]
    if not isinstance(given, str):
        raise StorageError(
            'an entry of cleanup_paths is a string, or a mapping such as {path: "x/*", older_than: "7d"}'
        )
    shown = f'cleanup_paths: "{printable(given[:200])}"'
    parts = given.split("/")
    if given.startswith("/"):
        raise StorageError(f"{shown} is absolute: give it as it is within a user's directory")
    if any(ord(char) < 32 or ord(char) == 127 for char in given):
        raise StorageError(f"{shown} has control characters")
    if "" in parts or "." in parts or ".." in parts:
        raise StorageError(f"{shown} has '.', '..' or an empty part (no slash at the end either)")
    try:
        longest = max(len(part.encode("utf-8")) for part in parts)
    except UnicodeEncodeError:
        raise StorageError(f"{shown} has characters that no UTF-8 text has") from None
    if longest > 255 or len(parts) > 32:
        raise StorageError(f"{shown} is too long: at most 255 bytes in each of at most 32 parts")
    if any("**" in part for part in parts):
        raise StorageError(f"{shown} has '**', which is not understood: give one '*' for each part")
    if not _WILD.sub("", parts[0]).strip("."):
        raise StorageError(
            f"{shown} would match nearly all that is in a home: name what is to go "
            "(its first part must have more than dots and * ? [..])"
        )
    return Rule(tuple((part, _pattern(part)) for part in parts), _age(older, shown))


def _pattern(part: str) -> re.Pattern[str] | None:
    return re.compile(fnmatch.translate(part)) if _WILD.search(part) else None


def _age(given: object, shown: str) -> int | None:
    if given is None:
        return None
    found = _AGE.match(given) if isinstance(given, str) else None
    if not found:
        raise StorageError(f'{shown}: older_than is a number and one of s, m, h, d, w, such as "7d"')
    return int(found.group(1)) * _UNITS[found.group(2)]


def clean(
    users: list[Any],
    root: str | Roots,
    uid_min: int,
    paths: object,
    child_timeout: float,
    *,
    check: bool,
    patience: float = 0,
) -> Report:
    """Remove from each user's directory what ``paths`` names; see the module ``cleanup``."""
    work = partial(_work, paths, child_timeout)
    return _batch.run(users, root, uid_min, work, check=check, patience=patience)


def _work(paths: object, timeout: float, storage: Storage, claims: list[Claim]) -> None:
    rules = parse_rules(paths)  # a mistake of the admin's is everybody's
    if not rules:
        return
    homes: list[tuple[Claim, int]] = []
    try:
        for claim in claims:
            with claim.alone():
                directory = open_present(storage, claim.home)
                if directory is not None:
                    homes.append((claim, directory))
        work = partial(remove, rules=rules, seconds=timeout * _SHARE, check=storage.check)
        tasks = [claim.task(home, partial(work, home), memory=_MEMORY) for claim, home in homes]
        for (claim, _), answer in zip(homes, storage.run_all(tasks, timeout)):  # noqa: B905
            _report(claim, answer)
    finally:
        for _, directory in homes:
            os.close(directory)


def _report(claim: Claim, answer: Answer) -> None:
    claim.take(answer)
    if answer.error is not None:
        claim.error = f"{answer.error}; what was removed is gone, the next clean-up goes on"
        return
    said = answer.value
    claim.changed = said["removed"] > 0
    claim.error = said["error"]
    claim.notes += said["notes"]
    for path, before, after in said["paths"]:
        claim.differs(f"{claim.home.directory}/{path}", {"state": before}, {"state": after})
    if said["matched"] > len(said["paths"]):
        more = said["matched"] - len(said["paths"])
        claim.differs(claim.home.directory, {"more": more}, {"more": 0})
