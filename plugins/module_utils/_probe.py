# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Try on a storage root what a run will need: make a directory, move it, give it away, enter it, remove it.

Nothing is left. What a killed probe left is removed by the next one: the directories have names that no user's
directory may have, and nobody but root reaches the one that is given away, for it lies in the state directory.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import platform
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Optional

from . import _worker
from ._as_user import Task, run
from ._descriptors import DIRECTORY, held, opened
from ._errors import StorageError, explain, printable
from ._files import exists, open_records_dir, open_root, rename_directory
from ._mounts import KINDS, Mount, kind_by_look, kind_by_owner, mount_of, mounts, plain
from ._mounts import explain as explain_kind
from ._names import PROBE_DIRECTORY, STATE_DIRECTORY
from ._rights import give_up_rights
from ._state import open_private, state_name
from ._trees import discard

STRANGER = 65533
"""A uid and gid for the try where each user has another: nobody's as a rule, and known to each user namespace."""

_INNER = "probe"
_SECONDS = 10.0
_FSTAB = "/etc/fstab"


class _FoundError(Exception):
    """What a storage root is, where it cannot be used; ``text`` says more than the kind does."""

    def __init__(
        self, kind: str, text: str = "", mend: str = "", made: Optional[os.stat_result] = None
    ) -> None:
        super().__init__(kind)
        self.kind, self.text, self.mend, self.made = kind, text, mend, made


def probe_all(roots: Sequence[str], look: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Return what the storage roots are.

    Args:
        roots: their paths.
        look: :func:`probe`, with all else that it takes.

    Returns:
        ``about``: of the first root, and by the path of each other one what it is, in one line. ``findings``: of all.
    """
    answers = [look(root) for root in roots]
    findings = [
        finding
        if len(roots) == 1 or root in finding["what"]
        else {**finding, "what": f"{root}: {finding['what']}"}
        for root, answer in zip(roots, answers)  # noqa: B905
        for finding in answer["findings"]
    ]
    ways = sorted((answer["about"].pop("way", ""), root) for root, answer in zip(roots, answers))  # noqa: B905
    for (way, one), (inner, other) in itertools.combinations(ways, 2):
        if way and f"{inner}/".startswith(f"{way}/"):
            what = f"the storage root {other} lies in {one} by a link: one does not know what the other has recorded"
            findings.append({"level": "error", "what": printable(what), "mend": "name each directory once"})
    about = answers[0]["about"]
    for root, answer in zip(roots[1:], answers[1:]):  # noqa: B905
        seen = answer["about"]
        words = (name for name in ("kind", "filesystem", "owner", "mode") if name in seen)
        about[root] = ", ".join(f"{name} {seen[name]}" for name in words)
    return {"about": about, "findings": findings}


def probe(
    root: str,
    uid: Optional[int],
    gid: Optional[int],
    *,
    check: bool = False,
    records_dir: str = "",
    work_as: Optional[int] = None,
) -> dict[str, Any]:
    """Return what a storage root is.

    Args:
        root: its path.
        uid: of all users, if it is one.
        gid: likewise.
        check: look, and write nothing.
        records_dir: where the records are, if not in the root.
        work_as: the uid that all is done as, if it is not this process's.

    Returns:
        ``about``: by short names ``python``, ``account`` (its uid), ``kind`` and, where there is something,
        ``filesystem``, ``owner`` and ``mode``. ``findings``: what is wrong, each with ``level``, ``what`` and ``mend``.
    """
    ids = (STRANGER if uid is None else uid, STRANGER if gid is None else gid)
    try:
        ended = _worker.apart(partial(_work, root, ids, check, records_dir, work_as))
    except (OSError, StorageError) as error:
        return _answer({"kind": "unknown"}, str(error))
    if ended.silent_at is None:
        return dict(ended.said)
    what = f"{printable(root)} does not answer (no sign of life for {_worker.SILENCE:g} s)"
    return _answer({"kind": "silent"}, what, "look at the disk or its server on this host")


def _answer(about: dict[str, str], what: str = "", mend: str = "", level: str = "error") -> dict[str, Any]:
    about = {"python": platform.python_version(), "account": str(os.geteuid()), **about}
    findings = [{"level": level, "what": what, "mend": mend}] if what else []
    return {"about": about, "findings": findings}


def _work(
    root: str, ids: tuple[int, int], check: bool, records_dir: str, work_as: Optional[int]
) -> dict[str, Any]:
    """Look and try, in the worker."""
    os.umask(0o022)
    if work_as is not None:
        give_up_rights(work_as, work_as if ids[1] == STRANGER else ids[1])
    about: dict[str, str] = {}
    try:
        _refuse_unmounted(root)
        with held(_open(root)) as directory:
            status, mount = os.fstat(directory), mount_of(directory)
            about["way"] = os.path.realpath(root)
            about["filesystem"] = mount.filesystem if mount else "unknown"
            about["owner"], about["mode"] = str(status.st_uid), f"{stat.S_IMODE(status.st_mode):04o}"
            blamed = root, mount, status
            try:
                _judge(root, directory, mount)
                with _place(root, directory, records_dir) as place:
                    if records_dir:
                        blamed = records_dir, mount_of(place[0]), os.fstat(place[0])
                    _look(place)
                    if not check:
                        _try(directory, mount, ids, place)
            except _FoundError as found:
                if found.kind not in KINDS or found.text:
                    raise
                path, mount, status = blamed
                what, mend = explain_kind(found.kind, path, mount, found.made or status)
                return _answer({**about, "kind": found.kind}, what, mend)
    except _FoundError as found:
        level = "warning" if found.kind == "records elsewhere" else "error"
        return _answer({**about, "kind": found.kind}, found.text, found.mend, level)
    return _answer({**about, "kind": "plain"})


def _refuse_unmounted(root: str) -> None:
    """Refuse a root at or below a place where fstab(5) mounts something that is not mounted."""
    path, there = os.path.realpath(root), {mount.point for mount in mounts().values()}
    with contextlib.suppress(OSError), open(_FSTAB, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split()
            if len(fields) < 3 or line.lstrip().startswith("#"):
                continue
            point = os.path.normpath(plain(fields[1]))
            if point.startswith("/") and point not in there and point in _and_above(path):
                shown = printable(point)
                raise _FoundError(
                    "not mounted", f"{_FSTAB} mounts {shown}, which is not mounted", f"mount {shown}"
                )


def _and_above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) or "/" for count in range(2, len(parts) + 1)]


def _open(root: str) -> int:
    """Open the root, trusted or not."""
    try:
        return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        kind = "missing" if isinstance(error, FileNotFoundError) else "closed"
        try:
            os.close(open_root(root))
        except StorageError as refusal:
            raise _FoundError(kind, str(refusal)) from None
        raise _FoundError(kind, explain(error, f"storage root {root}")) from None


def _judge(root: str, directory: int, mount: Optional[Mount]) -> None:
    """Refuse what a run would refuse before it does anything."""
    try:
        os.close(open_root(root))
    except StorageError as refusal:
        if mount and not mount.has_owners:
            raise _FoundError("no owners") from None
        # Nothing is tried: others choose what the path leads to.
        status = os.fstat(directory)
        kind = kind_by_owner(status, mount) if mount and mount.is_remote else None
        mend = explain_kind(kind, root, mount, status)[1] if kind else ""
        raise _FoundError(kind or "not root's", str(refusal), mend) from None


@contextlib.contextmanager
def _place(root: str, directory: int, records_dir: str) -> Iterator[tuple[int, str, str]]:
    """Open the directory that has or shall have our state, for the body; with its path, and the name of ours in it."""
    if not records_dir:
        yield directory, root, STATE_DIRECTORY
        return
    try:
        above = open_records_dir(records_dir)
    except StorageError as refusal:
        raise _FoundError("no records", str(refusal)) from None
    with held(above):
        yield above, records_dir, state_name(root)


def _look(place: tuple[int, str, str]) -> None:
    """Refuse a place for our state that takes nothing, if a look tells that."""
    directory, _, name = place
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            directory = stack.enter_context(opened(name, DIRECTORY, directory))
        kind = kind_by_look(directory)
    if kind:
        raise _FoundError(kind)


def _try(directory: int, mount: Optional[Mount], ids: tuple[int, int], place: tuple[int, str, str]) -> None:
    """Make, move, give away, enter and remove."""
    above, path, name = place
    mount = mount if above == directory else mount_of(above)
    try:
        with contextlib.ExitStack() as stack:
            if exists(directory, PROBE_DIRECTORY):  # a probe was killed
                os.rmdir(PROBE_DIRECTORY, dir_fd=directory)
            if not exists(above, name):
                os.mkdir(name, 0o700, dir_fd=above)
            stack.callback(_remove_if_empty, above, name)
            made = os.stat(name, dir_fd=above, follow_symlinks=False)
            kind = kind_by_owner(made, mount) if mount and (mount.is_remote or not mount.has_owners) else None
            if kind:
                raise _FoundError(kind, made=made)
            state = stack.enter_context(held(open_private(above, name, path)))
            uid, gid = ids if os.geteuid() == 0 else (os.geteuid(), os.getegid())
            _discard(state, uid)
            stack.callback(_discard, state, uid)
            os.mkdir(_INNER, 0o700, dir_fd=state)
            _move(state, directory, f"{path}/{name}")
            _give(state, mount, uid, gid)
    except StorageError as error:
        raise _FoundError("refused", str(error)) from None
    except OSError as error:
        raise _FoundError(*_as_kind(error, mount, path)) from None
    for what, own, wanted in (("uid", os.geteuid(), ids[0]), ("gid", os.getegid(), ids[1])):
        if os.geteuid() != 0 and wanted not in (own, STRANGER):
            text = f"the apply program works as {what} {own} and cannot make directories of {what} {wanted}"
            raise _FoundError("another account", text, f"run it as root, or set {what} to {own}")


def _remove_if_empty(above: int, name: str) -> None:
    with contextlib.suppress(OSError):  # it has been in use
        os.rmdir(name, dir_fd=above)


def _discard(state: int, uid: int) -> None:
    why = discard(state, _INNER, uid, _SECONDS)
    if why:
        raise StorageError(f"{STATE_DIRECTORY}/{_INNER} cannot be removed: {why}")


def _move(state: int, root: int, path: str) -> None:
    """Move the directory as a home is moved to its place, and back while it is still root's."""
    try:
        rename_directory(state, _INNER, root, PROBE_DIRECTORY)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        text = f"{path} is not on the storage root's mount: homes that exist are served, and none can be made"
        mend = "have each home there before its user starts"
        raise _FoundError("records elsewhere", text, mend) from None
    os.rename(PROBE_DIRECTORY, _INNER, src_dir_fd=root, dst_dir_fd=state)


def _give(state: int, mount: Optional[Mount], uid: int, gid: int) -> None:
    """Give the directory to a user, and enter it with that user's rights."""
    with opened(_INNER, DIRECTORY, state) as directory:
        if os.geteuid() == 0:
            try:
                os.fchown(directory, uid, gid)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    text = f"uid {uid} or gid {gid} does not exist in this host's user namespace: it can own nothing"
                    raise _FoundError("unmapped", text, "map it, or give the users others") from None
                if error.errno not in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP):
                    raise
                raise _FoundError("no owners") from None
            status = os.fstat(directory)
            if status.st_uid != uid or status.st_mode & 0o077:
                raise _FoundError("no owners")
        answer = run(Task(uid, gid, directory, partial(_enter, directory)), _SECONDS)
    if answer.error is not None:
        if mount and mount.asks_for_tickets:
            raise _FoundError("tickets")
        text = f"uid {uid} may not work in a directory that it owns: {answer.error}"
        raise _FoundError("closed", text, "look at what the file system lets that uid do")


def _enter(directory: int) -> None:
    os.mkdir("x", dir_fd=directory)
    os.rmdir("x", dir_fd=directory)


def _as_kind(error: OSError, mount: Optional[Mount], root: str) -> tuple[str, str]:
    if error.errno == errno.EROFS:
        return "read-only", ""
    if error.errno in (errno.EACCES, errno.EPERM):
        if mount and mount.filesystem == "autofs":
            return "autofs map", ""
        return ("root squashed" if mount and mount.is_remote and os.geteuid() == 0 else "refused"), ""
    return "failing", explain(error, f"storage root {root}")
