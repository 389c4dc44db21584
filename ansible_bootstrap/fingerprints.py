"""What a user's being complete depends on, as one hash a role.

The apply program alone can tell (``describe``): only it reads the roles, the variables and the
content. Each role's fingerprint is over what the role is, the variables it can see, and our own
plugins; so a changed tutorial setting does not run the other roles again.

Left out on purpose: the inventory (where a host is does not change what is done there), and content
that lies on a storage host or behind a URL. A user gets a skeleton, a tutorial and a program that is run
once only once, and later content is for later users. A program that the admin wants run each time says
``revised=False``: an equal fingerprint does not mean that it is done.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import site
import stat
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ansible_bootstrap import __path__ as _package_path
from ansible_bootstrap import __version__
from ansible_bootstrap.protocol import RoleFingerprint
from ansible_bootstrap.settings import ApplySettings, RoleSetting
from ansible_bootstrap.storage._plan import BUILT_IN_ROLES, COLLECTION

COLLECTION_DIRECTORY: Final = (
    Path(next(iter(_package_path))).parent / "ansible_collections" / COLLECTION.replace(".", "/")
)
"""The collection of this package, through the tracked symlinks or as installed."""

_EACH_TIME: Final = {"script": ("script_when", "once"), "cleanup": ("", "")}
"""Built-in roles that are never done with, unless a variable of theirs is this or not set."""


_TEMPLATE: Final = re.compile(r"\{[{%]")
_LOOKUP: Final = re.compile(r"\b(lookup|query|q|now)\s*\(")


def describe(settings: ApplySettings) -> tuple[RoleFingerprint, ...]:
    """Return the fingerprint of each role of a bootstrap, in order; reads every file of every role."""
    ours = _tree(COLLECTION_DIRECTORY / "plugins") + _tree(COLLECTION_DIRECTORY / "playbooks")
    ours_alone = all(short_name(role) in BUILT_IN_ROLES for role in settings.roles)
    paths = () if ours_alone else (*settings.roles_path, *settings.collections_path)
    site = "".join(_tree(Path(path)) for path in paths)
    common = [__version__, ours, settings.storage_root, settings.storage_roots, settings.uid, settings.gid]
    return tuple(_describe(role, settings, common, site) for role in settings.roles)


def _describe(role: RoleSetting, settings: ApplySettings, common: list[Any], site: str) -> RoleFingerprint:
    short = short_name(role)
    if short in BUILT_IN_ROLES:
        variables = {
            name: settings.extra_vars[name] for name in settings.extra_vars if name.startswith(f"{short}_")
        }
        if _TEMPLATE.search(_text(variables)):  # it may name any other
            variables = settings.extra_vars
        contents = _tree(COLLECTION_DIRECTORY / "roles" / short)
    else:
        variables, contents = settings.extra_vars, site
    return RoleFingerprint(
        role=short,
        fingerprint=_hash([common, role.model_dump(), variables, contents]),
        revised=_revised(short, settings) and not _looks_elsewhere(variables, settings),
    )


def short_name(role: RoleSetting) -> str:
    """Return a role's name as the admin thinks of it: ours without the collection's."""
    return role.role.removeprefix(f"{COLLECTION}.")


def _revised(short: str, settings: ApplySettings) -> bool:
    if short not in _EACH_TIME:
        return True
    variable, once = _EACH_TIME[short]
    return bool(variable) and settings.extra_vars.get(variable, once) == once


def _looks_elsewhere(variables: dict[str, Any], settings: ApplySettings) -> bool:
    """Whether what variables come to depends on more than settings: on lookups, or on an inventory's variables."""
    text = _text(variables)
    return bool(_TEMPLATE.search(text) and (settings.inventory or _LOOKUP.search(text)))


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
        # Not Path.open(), which waits at a FIFO for somebody to write.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            kind = stat.S_IFMT(os.fstat(file.fileno()).st_mode)
            if kind != stat.S_IFREG:
                return f"no file: {kind:o}"
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:  # A dangling link, say: part of what the tree is.
        return f"unreadable: {error.errno}"


def _hash(value: Any) -> str:
    return hashlib.sha256(_text(value).encode("utf-8", "surrogatepass")).hexdigest()


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def installed() -> list[tuple[str, int]]:
    """Return when what this program and its run are made of was last changed.

    Of other packages the directory tells: one that comes, goes or is replaced by another version changes it.
    """
    ansible = importlib.util.find_spec("ansible")
    files = [Path(sys.executable), Path(sysconfig.get_path("stdlib")), *map(Path, site.getsitepackages())]
    files += [Path(ansible.origin).with_name("release.py")] if ansible and ansible.origin else []
    for root in (Path(__file__).parent, COLLECTION_DIRECTORY / "plugins", COLLECTION_DIRECTORY / "playbooks"):
        files += (path for path in root.rglob("*") if path.suffix in (".py", ".yml"))
    return sorted((str(file), _changed(file)) for file in files)


def _changed(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0
