# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Where root is not almighty: what a file system is, why it does not obey root, and the ways out.

Refusals (``_storage.py``, ``_state.py``, ``_files.py``) tell it by a look, which writes nothing; the probe
(``_probe.py``) by a try. Both say it with the sentences of this module.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass
from typing import Optional

from ._descriptors import NAMES, opened
from ._errors import StorageError, printable

_OWNERLESS = frozenset(
    (
        "cifs",
        "smb3",
        "smbfs",
        "vfat",
        "msdos",
        "exfat",
        "ntfs",
        "ntfs3",
        "fuseblk",
        "vboxsf",
        "fuse.vmhgfs-fuse",
    )
)
"""File systems whose owners and modes come from the mount's options."""

_REMOTE = re.compile(r"(nfs4?|fuse(\..+)?|9p|afs|ceph|lustre|beegfs|gpfs)\Z")
"""File systems of which somebody else decides what root may do."""

MOUNTINFO = "/proc/self/mountinfo"

_NOBODIES = (65534, 2**32 - 2)

_OPTIONS = {
    **dict.fromkeys(("cifs", "smb3"), "dir_mode=0700,file_mode=0600"),
    **dict.fromkeys(("vfat", "msdos"), "umask=077,quiet"),
}
"""Mount options with which files are one uid's alone, and chmod and chown do nothing without an error."""

KINDS = {
    "root squashed": (
        "root is squashed on {root} ({filesystem}): what root makes there belongs to nobody, or root may make nothing",
        "export it to this host with no_root_squash, or name the file server itself as the storage host, where the "
        "disk is its own; where all homes exist, set records_dir to a directory of this host",
    ),
    "all squashed": (
        "all accounts are squashed on {root} ({filesystem}): whatever is made there belongs to uid {owner}, and no "
        "chown or chmod changes that",
        "set work_as and uid to {owner}, and gid to {group}; or export it with no_root_squash and no_all_squash",
    ),
    "no owners": (
        "{root} is on {filesystem}, which keeps no owners: each file has the owner and the mode that the mount gives "
        "it (here uid {owner}, mode {mode}), and no chown or chmod changes that",
        "mount it with the options uid=N,gid=N,{modes}, and set work_as, uid and gid to those numbers; or take a file "
        "system that keeps owners",
    ),
    "tickets": (
        "{root} is on {filesystem}, which asks for a ticket (Kerberos, AFS), and root has none that lets it write",
        "name the file server itself as the storage host, or make the homes where they are stored",
    ),
    "read-only": (
        "the file system is read-only: {root} ({filesystem}) takes no records of ansible_bootstrap and no new homes",
        "mount it writable; where only the homes below it are mounted, and all exist, set records_dir to a directory "
        "of this host",
    ),
    "autofs map": (
        "{root} is an autofs map: nothing can be made in it, and a home is there once it is mounted",
        "name the file server itself as the storage host; where all homes exist, set records_dir to a directory of "
        "this host",
    ),
    "refused": (
        "this account (uid {account}) may not write in {root} ({filesystem})",
        "let it write there, or run the apply program as root",
    ),
}
"""By kind, what it is and what can be done."""


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo; proc_pid_mountinfo(5)."""

    device: str
    point: str
    filesystem: str
    options: frozenset[str]

    @property
    def is_remote(self) -> bool:
        """Whether somebody else decides what root may do there."""
        return bool(_REMOTE.match(self.filesystem))

    @property
    def has_owners(self) -> bool:
        """Whether the owners and modes are the files' own."""
        return self.filesystem not in _OWNERLESS

    @property
    def asks_for_tickets(self) -> bool:
        """Whether a process may do there what its ticket says."""
        return self.filesystem == "afs" or any(option.startswith("sec=krb5") for option in self.options)


def mounts() -> dict[int, Mount]:
    """Return what is mounted for this process, by the mount's id; nothing where there is no /proc."""
    found = {}
    with contextlib.suppress(OSError), open(MOUNTINFO, "rb") as file:
        for line in file:
            fields = os.fsdecode(line).rstrip("\n").split(" ")
            rest = fields[fields.index("-") + 1 :]
            options = {*fields[5].split(","), *rest[-1].split(",")}
            found[int(fields[0])] = Mount(fields[2], plain(fields[4]), rest[0], frozenset(options))
    return found


def plain(path: str) -> str:
    """Return a path of mountinfo or fstab without their escapes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), path)


def mount_of(descriptor: int) -> Optional[Mount]:
    """Return the mount that a descriptor (O_PATH will do) is on; None where the kernel does not say."""
    number = mount_id(descriptor)
    return None if number is None else mounts().get(number)


def mount_id(descriptor: int) -> Optional[int]:
    """Return the number of the mount that a descriptor is on; None where the kernel does not say."""
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{descriptor}", "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return int(line.split()[1])
    return None


def explain(kind: str, root: str, mount: Optional[Mount], status: os.stat_result) -> tuple[str, str]:
    """Say in a sentence what kind of storage this is, and what can be done; of :data:`KINDS`.

    Args:
        kind: one of :data:`KINDS`.
        root: the path that is meant.
        mount: what it is on.
        status: whose it is, or what was made there is.
    """
    filesystem = mount.filesystem if mount else "unknown"
    words = {
        "root": printable(root),
        "filesystem": filesystem,
        "owner": str(status.st_uid),
        "group": str(status.st_gid),
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "account": str(os.geteuid()),
        "modes": _OPTIONS.get(filesystem, "umask=077"),
    }
    what, mend = KINDS[kind]
    return what.format(**words), mend.format(**words)


def sentence(kind: str, root: str, mount: Optional[Mount], status: os.stat_result) -> str:
    """Return both parts of :func:`explain` in one line."""
    return "; ".join(explain(kind, root, mount, status))


def refuse_what_takes_no_records(above: int, path: str, name: str) -> None:
    """Refuse (StorageError) a place for our state in which nothing can be written, by a look: check mode tells it too.

    Args:
        above: the directory that has or shall have it, a storage root or ``records_dir``.
        path: of that directory.
        name: of ours in it.
    """
    with contextlib.suppress(NotADirectoryError):  # is said when it is opened
        try:
            with opened(name, NAMES, above) as state:
                refuse_what_takes_nothing(state, path)
        except FileNotFoundError:
            refuse_what_takes_nothing(above, path)


def refuse_what_takes_nothing(directory: int, path: str) -> None:
    """Refuse (StorageError) a directory in which this process can make nothing, if a look tells that."""
    kind = kind_by_look(directory)
    if kind:
        raise StorageError(sentence(kind, path, mount_of(directory), os.fstat(directory)))


def kind_by_look(directory: int) -> Optional[str]:
    """Return the kind of a file system in which this process can make nothing; None if a look does not tell."""
    way = f"/proc/self/fd/{directory}"
    if os.fstatvfs(directory).f_flag & os.ST_RDONLY:
        return "read-only"
    mount = mount_of(directory)
    if mount and mount.filesystem == "autofs":
        return "autofs map"
    if os.access(way, os.W_OK | os.X_OK, effective_ids=True):
        return None
    if mount and mount.asks_for_tickets:
        return "tickets"
    return "root squashed" if os.geteuid() == 0 and mount and mount.is_remote else "refused"


def ways_out(path: str, status: os.stat_result, mend: str) -> str:
    """Return what to do about a directory that others could change: ``mend``, unless that would change nothing.

    Args:
        path: of the directory.
        status: of the directory.
        mend: the command that mends it on a file system that obeys root.
    """
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    mount = next((mount for mount in mounts().values() if mount.device == device), None)
    if mount and not mount.has_owners:
        return sentence("no owners", path, mount, status)
    if mount is None or not mount.is_remote or os.geteuid() != 0:
        return f"`{mend}`"
    if status.st_uid in _NOBODIES:
        return sentence("root squashed", path, mount, status)
    kind = "all squashed" if status.st_uid else "no owners"
    return f"`{mend}`; if that changes nothing: {sentence(kind, path, mount, status)}"


def kind_by_owner(made: os.stat_result, mount: Optional[Mount]) -> Optional[str]:
    """Return the kind of a file system where root made a directory of this status; None if it is root's alone."""
    if os.geteuid() != 0 or (made.st_uid == 0 and not made.st_mode & 0o077):
        return None
    if (mount and not mount.has_owners) or made.st_uid == 0:
        return "no owners"
    return "root squashed" if made.st_uid in _NOBODIES else "all squashed"


def is_of_user(parent: int, name: str, uid: int) -> bool:
    """Tell whether a directory that root may not enter is a mount of this user's own, or a remote directory of theirs.

    The kernel says so: FUSE admits nobody but the account that mounted it, and a file server that knows no root still
    says whose a directory is.
    """
    with opened(name, NAMES, parent) as directory:
        mount = mount_of(directory)
        if mount is None or not mount.is_remote:
            return False
        if mount.filesystem.startswith("fuse"):
            return f"user_id={uid}" in mount.options
        return os.fstat(directory).st_uid == uid
