"""The apply side's settings: one model, two sources.

* Embedded (the hub and the apply program are the same user): the hub writes its values to a file
  of mode 0600 and passes ``--settings FILE``. The file is named after the digest of its content, and is
  refused if the two differ: two hubs or commands that share a directory never read each other's.
* Behind a boundary (sudo, ssh): ``/etc/ansible-bootstrap/settings.yml`` and nothing from the caller.

The file is refused unless only its owner can write it, and its owner is root or the user the program
runs as. Both sources hold the same keys, those of ``c.AnsibleBootstrap``.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ansible_bootstrap.errors import SettingsError
from ansible_bootstrap.protocol import MAX_ID, describe_validation
from ansible_bootstrap.storage._errors import StorageError
from ansible_bootstrap.storage._names import check_directory, check_roots
from ansible_bootstrap.storage._plan import BUILT_IN_ROLES, make_plan
from ansible_bootstrap.storage._ways import open_way

SYSTEM_FILE: Final = Path("/etc/ansible-bootstrap/settings.yml")
"""Owned by root, not writable by group or others, like every directory above it."""

_BY_DIGEST: Final = re.compile(r"settings-[0-9a-f]{64}\.json\Z")

_ENVIRONMENT: Final = (
    r"^(https?_proxy|all_proxy|no_proxy|HTTPS?_PROXY|ALL_PROXY|NO_PROXY"
    r"|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|GIT_SSL_CAINFO)$"
)

Id = Annotated[int, Field(ge=1, le=MAX_ID)]

_PER_USER: Final = frozenset({"username", "user_dir", "user_uid", "user_gid", "user_groups", "storage_host"})
"""Variables of one user that a site role finds; as an extra var each would hold for all users."""

_PER_ROLE: Final = frozenset(f"{role}_users" for role in BUILT_IN_ROLES)
"""The lists of users of our roles, which are the batch; a user who is missing in another list would count as done."""


class RoleSetting(BaseModel):
    """One entry of ``roles``; a bare string is short for ``{"role": string}``."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, serialize_by_alias=True)

    role: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")]
    """A built-in role by its short name, a site role on ``roles_path``, or any role by FQCN."""
    on_failure: Literal["block", "continue"] = "block"
    """``continue``: the user may work without it, and is told so."""
    per: Literal["user", "batch"] = "user"
    """Site roles only: applied once for each user, or once with ``bootstrap_users``."""
    rights: Annotated[Literal["user", "root"] | None, Field(alias="as")] = None
    """Site roles only: with the user's rights (the default of ``per: user``), or with root's."""
    groups: tuple[Id, ...] = ()
    """Further gids of a role that works as the user."""


class ApplySettings(BaseModel):
    """What the apply program does, and for which users; the admin's alone, never the caller's."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    storage_root: Annotated[str, AfterValidator(check_directory)]
    """Absolute path on the storage host below which users' directories lie. It must exist."""
    storage_roots: tuple[Annotated[str, AfterValidator(check_directory)], ...] = ()
    """Further storage roots: a user's home and further directories may lie below any of them. Each must exist, none
    may lie in another, and each has records of its own. A user whose directory nobody names has it below
    ``storage_root``. Default: none."""
    records_dir: Annotated[str, AfterValidator(check_directory)] | None = None
    """Directory of root's on the storage host in which records and locks are kept, where they cannot be in the storage
    root (one that is read-only, and has writable homes mounted below it). It must exist, outside of all storage roots.
    Where it is on another mount than a storage root, homes that exist there are served and no new home is made.
    Default: none; records are in ``.ansible_bootstrap`` in each storage root."""
    work_as: Id | None = None
    """The uid that a file server gives to whatever is made there (an NFS export with ``all_squash`` and ``anonuid``).
    Root then gives up its rights and becomes that uid, with the group ``gid``, before it opens the storage. ``uid``
    must be the same. Default: none; root works as root."""
    roles: tuple[RoleSetting, ...] = (RoleSetting(role="user_dir"),)
    """The roles that bootstrap a user, in order: a name, or a dict with ``role``, ``on_failure`` (``block``, the
    default, or ``continue``: the user may work without it and is told so) and, for site roles, ``per`` (``user`` or
    ``batch``), ``as`` (``user``, the default of ``per: user``, or ``root``) and ``groups`` (further gids of a role that
    works as the user). Default: ``["user_dir"]``."""
    cleanup_roles: tuple[RoleSetting, ...] = ()
    """The roles applied after a server stopped, written like ``roles``. Default: none, and then no run."""
    roles_path: tuple[str, ...] = ()
    """Absolute paths of directories with site roles. Default: none."""
    collections_path: tuple[str, ...] = ()
    """Absolute paths of directories with collections that site roles use. Default: none."""
    extra_vars: dict[str, Any] = Field(default_factory=dict)
    """Extra vars for the roles (``user_dir_mode``, …), templated by Ansible. Default: none."""
    environment: dict[Annotated[str, Field(pattern=_ENVIRONMENT)], str] = Field(default_factory=dict)
    """Environment variables that say how to reach the network: proxies (``http_proxy``, ``https_proxy``, ``all_proxy``,
    ``no_proxy``, also in capitals) and certificate authorities (``SSL_CERT_FILE``, ``SSL_CERT_DIR``,
    ``REQUESTS_CA_BUNDLE``, ``CURL_CA_BUNDLE``, ``GIT_SSL_CAINFO``). The hub's own are not passed on. Default: none."""
    inventory: str | None = None
    """Path of an Ansible inventory with the storage hosts. Default: ``localhost`` alone."""
    uid: Id | Literal["nss", "request"] = "nss"
    """Owner of the directories: one uid for all, ``nss`` (the system user of that name; the default) or ``request``
    (what the spawner or ``place`` says, else ``uidNumber`` and ``gidNumber`` of the user's auth_state, within
    ``uid_min`` and ``uid_max``). With LDAP that takes ``c.LDAPAuthenticator.auth_state_attributes = ["uidNumber",
    "gidNumber"]`` and ``c.Authenticator.enable_auth_state = True``."""
    gid: Id | Literal["nss", "request"] | None = None
    """Group of the directories, written like ``uid``, and by default as ``uid`` says."""
    uid_min: Id = 1000
    """Lowest uid for which root may act. Default: 1000."""
    uid_max: Id = MAX_ID
    """Highest uid for which root may act. Default: no bound."""
    gid_min: Id = 100
    """With ``gid = "request"``, the lowest gid that is accepted. Default: 100."""
    forks: Annotated[int, Field(ge=1, le=64)] = Field(default_factory=lambda: 2 * (os.cpu_count() or 2))
    """Users to whom site roles are applied at the same time. Default: twice the number of cores."""
    task_timeout: Annotated[int, Field(ge=1, le=86400)] = 60
    """Seconds after which Ansible ends a task of a site role; a built-in role has its own bounds. Default: 60, at most
    86400; with a hook it should be less than ``timeout``."""

    @field_validator("roles", "cleanup_roles", mode="before")
    @classmethod
    def _short_roles(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple({"role": item} if isinstance(item, str) else item for item in value)
        return value

    @field_validator("roles", "cleanup_roles")
    @classmethod
    def _plan(cls, value: tuple[RoleSetting, ...]) -> tuple[RoleSetting, ...]:
        make_plan([role.model_dump(exclude_unset=True) for role in value])
        return value

    @field_validator("uid", "gid", mode="before")
    @classmethod
    def _number_or_word(cls, value: Any) -> Any:
        number = not isinstance(value, bool) and str(value).isascii() and str(value).isdigit()
        if value is None or value in ("nss", "request") or number:
            return value
        raise ValueError("a number, 'nss' or 'request'")

    @field_validator("extra_vars")
    @classmethod
    def _extra_vars(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = _PER_USER | _PER_ROLE
        reserved = sorted(key for key in value if key in taken or key.startswith("bootstrap_"))
        if reserved:
            raise ValueError(f"{', '.join(reserved)}: names that the playbook sets itself")
        return value

    @field_validator("inventory")
    @classmethod
    def _inventory(cls, value: str | None) -> str | None:
        if value and "," not in value and not (value.startswith("/") and os.path.exists(value)):
            raise ValueError(f"{value!r} is neither the absolute path of an inventory nor a list of hosts")
        return value

    @field_validator("roles_path", "collections_path")
    @classmethod
    def _paths(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for path in value:
            if not path.startswith("/") or ":" in path:
                raise ValueError(f"{path!r} is not an absolute path without ':'")
        return value

    @model_validator(mode="after")
    def _bounds(self) -> ApplySettings:
        check_roots((self.storage_root, *self.storage_roots), self.records_dir)
        if self.uid_max < self.uid_min:
            raise ValueError("uid_max is below uid_min")
        if self.work_as not in (None, self.uid):
            raise ValueError(f"work_as is {self.work_as}, so all is that uid's: set uid to it, too (and gid)")
        return self


def load_settings(path: Path = SYSTEM_FILE, *, private: bool = False) -> ApplySettings:
    """Read the settings of the apply program.

    Args:
        path: absolute path of a YAML (or JSON) file that its owner alone can write. The admin's belongs
            to root, as does every directory above it (or to the effective user).
        private: the file of an embedded hub instead: 0600 and the effective user's own, wherever it is.

    Raises:
        SettingsError: the file is missing, could have been written by another, or is wrong; the
            details say what to do.
    """
    if not path.is_absolute():
        raise SettingsError(f"{path}: not an absolute path")
    if path.is_symlink():
        raise SettingsError(f"{path}: is a symbolic link: name the file itself")
    try:
        way, _real = open_way(str(path), "settings file", missing="see the README's section on settings")
    except StorageError as error:
        raise SettingsError(str(error)) from None
    try:
        _refuse_public(path, os.fstat(way), private)
        with open(f"/proc/self/fd/{way}", "rb") as file:
            data = file.read()
        if _BY_DIGEST.match(path.name) and path.name != settings_name(data):
            raise SettingsError(
                f"{path}: was changed, for its name is not the digest of its content: remove it"
            )
        raw = yaml.safe_load(data.decode("utf-8"))
    except OSError as error:
        raise SettingsError(f"settings file {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"{path}: not YAML: {error}") from None
    finally:
        os.close(way)
    return make_settings(raw, str(path))


def settings_name(data: bytes) -> str:
    """Return the name of the file that holds these settings."""
    return f"settings-{hashlib.sha256(data).hexdigest()}.json"


def make_settings(raw: object, source: str) -> ApplySettings:
    """Validate settings that are already in memory.

    Args:
        raw: a mapping of the keys above.
        source: where they come from, for the error's text.

    Raises:
        SettingsError: naming the setting that is wrong.
    """
    try:
        return ApplySettings.model_validate(raw)
    except ValidationError as error:
        raise SettingsError(f"{source}: {describe_validation(error)}") from None


def _refuse_public(path: Path, status: os.stat_result, private: bool) -> None:
    own = os.geteuid()
    if not stat.S_ISREG(status.st_mode):
        raise SettingsError(f"{path}: not a regular file")
    if private and (status.st_uid != own or status.st_mode & 0o077):
        raise SettingsError(f"{path}: must belong to uid {own} alone: `chmod 600 {path}`")
