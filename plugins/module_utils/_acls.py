# Copyright (c) 2026, the ansible_bootstrap contributors
# SPDX-License-Identifier: BSD-3-Clause
"""Default ACLs: what a directory hands on to all that is made in it, whatever modes and umasks say.

With ``setfacl -d -m u:backup:rx /home`` every new home has an entry for ``backup``, and the group's bits of its
mode are no longer the group's but the most that such entries can give: 0750 lets ``backup`` in. A mode is a
promise to the user about who gets in, so a home with more than that is not made.
"""

from __future__ import annotations

import errno
import os

_ACCESS, _DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_NONE = (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOSYS)
"""There is no such entry, or the file system has no ACLs at all."""


def drop(directory: int) -> None:
    """Take from a new directory what it inherited, so that its mode is all there is, and hands on nothing."""
    for name in (_DEFAULT, _ACCESS):
        try:
            os.removexattr(directory, name)
        except OSError as error:
            if error.errno not in _NONE:
                raise


def hands_on(directory: int) -> bool:
    """Say whether the directory has a default ACL; a descriptor for names only (O_PATH) will do."""
    try:
        os.getxattr(f"/proc/self/fd/{directory}", _DEFAULT)
    except OSError as error:
        if error.errno not in _NONE:
            raise
        return False
    return True


def widens(mode: int) -> bool:
    """Say whether entries of an ACL could get more from a directory of this mode than everybody gets."""
    return bool(mode >> 3 & 7 & ~mode)
