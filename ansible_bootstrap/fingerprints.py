"""What a user's being complete depends on, as one hash a role.

The apply program alone can tell (``describe``): only it reads the roles, the variables and the
content. Each role's fingerprint is over what the role is, the variables it can see, and our own
plugins; so a changed tutorial setting does not run the other roles again.

Left out on purpose: the inventory (where a host is does not change what is done there), and content
that lies on a storage host or behind a URL, which the role itself revalidates; a role with such
content says ``revised=False``, and whoever keeps fingerprints must not take an equal one for an
unchanged content.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from . import __path__ as _package_path
from . import __version__
from .protocol import RoleFingerprint
from .settings import ApplySettings, RoleSetting
from .storage._plan import BUILT_IN_ROLES, COLLECTION

COLLECTION_DIRECTORY: Final = (
    Path(next(iter(_package_path))).parent / "ansible_collections" / COLLECTION.replace(".", "/")
)
"""The collection of this package, through the tracked symlinks or as installed."""

_CONTENT_ELSEWHERE: Final = frozenset({"tutorials", "script"})
"""Built-in roles whose content lies where only they can see it."""


def describe(settings: ApplySettings) -> tuple[RoleFingerprint, ...]:
    """Return the fingerprint of each role of a bootstrap, in order; reads every file of every role."""
    ours = _tree(COLLECTION_DIRECTORY / "plugins") + _tree(COLLECTION_DIRECTORY / "playbooks")
    site = "".join(_tree(Path(path)) for path in (*settings.roles_path, *settings.collections_path))
    common = [__version__, ours, settings.storage_root, settings.uid, settings.gid]
    return tuple(_describe(role, settings, common, site) for role in settings.roles)


def _describe(role: RoleSetting, settings: ApplySettings, common: list[Any], site: str) -> RoleFingerprint:
    short = role.role.removeprefix(f"{COLLECTION}.")
    if short in BUILT_IN_ROLES:
        variables = {
            name: settings.extra_vars[name] for name in settings.extra_vars if name.startswith(f"{short}_")
        }
        contents = _tree(COLLECTION_DIRECTORY / "roles" / short)
    else:
        variables, contents = settings.extra_vars, site
    return RoleFingerprint(
        role=short,
        fingerprint=_hash([common, role.model_dump(), variables, contents]),
        revised=short not in _CONTENT_ELSEWHERE,
    )


def _tree(root: Path) -> str:
    """Hash names, executability and contents of all files below ``root``."""
    return _hash(
        [[str(path.relative_to(root)), os.access(path, os.X_OK), _content(path)] for path in _files(root)]
    )


def _files(root: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(root, followlinks=True):
        names[:] = sorted(name for name in names if name not in (".git", "__pycache__"))
        yield from (Path(directory, name) for name in sorted(files) if not name.endswith(".pyc"))


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:  # A dangling link, say: part of what the tree is.
        return f"unreadable: {error.errno}"


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
