"""``c.AnsibleBootstrap``: every setting, as a traitlet with help.

Two kinds of settings are here, because an admin has one configuration file:

* the **hub's own**: how long a spawn waits, where the history is kept;
* the **apply side's** (:data:`APPLY_SIDE`, the keys of ``settings.ApplySettings``): what is done to a user's storage.
  Their traits are made from the fields of that model, so a setting is described once. An embedded apply program gets
  the values that are not defaults in a file of mode 0600. Behind a boundary (another ``apply_command``) the apply
  program takes no settings from its caller, and setting one here is an error.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CellType, CodeType
from typing import TYPE_CHECKING, Any, ClassVar, Final

from traitlets import Any as Any_
from traitlets import Bool, Callable, Dict, Enum, Float, Int, List, TraitType, Unicode, Union, default
from traitlets.config import SingletonConfigurable
from traitlets.config.loader import LazyConfigValue

from ansible_bootstrap.errors import SettingsError
from ansible_bootstrap.protocol import MAX_USERS
from ansible_bootstrap.settings import SYSTEM_FILE, ApplySettings, RoleSetting, make_settings, settings_name
from ansible_bootstrap.state.directory import default_state_dir, ensure_state_dir, write_private

EMBEDDED_COMMAND: Final = (sys.executable, "-I", "-m", "ansible_bootstrap.apply")
"""The apply program as a child of the hub, under the hub's own account."""

DEFAULT_CLEANUP_DELAY: Final = 5.0

_PLACE_SETTINGS: Final = ("place", "storage_host", "storage_root", "storage_roots", "uid", "gid")


def _apply_side() -> dict[str, TraitType[Any, Any]]:
    """Return a trait for each field of :class:`ApplySettings`, which also judges the values (:meth:`check`)."""
    traits: dict[str, TraitType[Any, Any]] = {}
    for name, field in ApplySettings.model_fields.items():
        value = None if field.is_required() else field.get_default(call_default_factory=True)
        trait: TraitType[Any, Any] = Any_(value)
        if isinstance(value, tuple):
            trait = List(
                default_value=[role.role if isinstance(role, RoleSetting) else role for role in value]
            )
        elif isinstance(value, dict):
            trait = Dict()
        trait.help = str(field.description)
        traits[name] = trait.tag(config=True, apply_side=True)
    return traits


class AnsibleBootstrap(SingletonConfigurable):
    """What happens to a user's storage before the server starts and after it stops."""

    set_up: ClassVar[bool] = False
    """Whether a configuration that was read without a hub has called ``setup(c)``, for ``ansible-bootstrap doctor``."""

    # -- the hub's own ------------------------------------------------------------------------

    storage_host = Union(
        [Unicode(), Callable()],
        default_value="localhost",
        help="""
        The inventory host on which users' directories live: a name, or ``callable(spawner) -> name``
        (may be async). Storage hosts are worked on at the same time, the users of one host in batches.
        Default: ``localhost``, the machine on which the apply program runs.
        """,
    ).tag(config=True)

    apply_command = List(
        Unicode(),
        default_value=list(EMBEDDED_COMMAND),
        minlen=1,
        help="""
        The command that applies the roles, as a list; the program by its absolute path. By default it
        runs under the hub's own account. For another account or machine, copy the command of
        ``examples/behind-sudo`` or ``examples/behind-ssh`` exactly (a sudoers line that names the interpreter
        itself would give root to the hub's account). The program then reads
        ``/etc/ansible-bootstrap/settings.yml`` there, and ``storage_root``, ``roles`` and the other settings of
        that file must not be set here.
        """,
    ).tag(config=True)

    state_dir = Unicode(
        help="""
        Directory for the record of complete users, the history, waiting clean-ups and the apply program's
        settings; made with mode 0700 if missing. Default: ``/var/lib/ansible-bootstrap`` as root, else the account's
        own state directory (``~/.local/state/ansible-bootstrap``).
        """,
    ).tag(config=True)

    timeout = Float(
        120.0,
        min=0.1,
        help="""
        Seconds after which a spawn that still waits for its storage fails with a message to try
        again. A run that takes longer is stopped. Default: 120. The hub has no limit of its own here:
        ``start_timeout`` begins after the hook.
        """,
    ).tag(config=True)

    mode = Enum(
        ["enforce", "observe"],
        default_value="enforce",
        help="""
        ``enforce`` (default): a server starts once its storage is ready, and does not start if that
        fails. ``observe``: Ansible's check mode; nothing is changed, no spawn waits or fails, and the
        hub's log says what would have been changed or refused.
        """,
    ).tag(config=True)

    recheck = Enum(
        ["changed", "always"],
        default_value="changed",
        help="""
        ``changed`` (default): a complete user needs no run until a role, a setting, the place of their storage or the
        directory itself (as this machine sees it) changes, or until ``ansible-bootstrap forget NAME``. ``always``:
        every spawn needs a run, for site roles that must do something each time.
        """,
    ).tag(config=True)

    trust_for = Float(
        86400.0,
        min=0.0,
        help="""
        Seconds for which a user counts as complete if this machine cannot see the storage, as on a remote storage
        host. After that, the next spawn needs a run. Default: 86400, a day.
        """,
    ).tag(config=True)

    at_login = Bool(
        True,
        help="""
        Begin at login, so that the storage is ready when the user presses Start. Default: True. It never delays or
        fails a login.
        """,
    ).tag(config=True)

    spare = Bool(
        True,
        help="""
        Keep one apply program waiting that has started Ansible already, so that a run begins at once. It takes about
        80 MB of memory. Only for the default ``apply_command``, and without an ``inventory``. Default: True.
        """,
    ).tag(config=True)

    batch_size = Int(
        500,
        min=1,
        max=MAX_USERS,
        help="""
        Most users in one run. Default: 500. Further users go into the next run. If runs take long, the hub makes them
        smaller.
        """,
    ).tag(config=True)

    max_runs = Int(
        min=1,
        help="""
        Most runs at once, over all storage hosts. Default: twice the number of cores, at least 4. A run that has
        reported nothing for 10 seconds is not counted; four times as many is the limit with those.
        """,
    ).tag(config=True)

    recreated_user = Enum(
        ["refuse", "allow"],
        default_value="refuse",
        help="""
        A user who was deleted in the hub and made again, or has a name that another user had, may be another person.
        ``refuse`` (default): their server does not start until ``ansible-bootstrap accept NAME`` confirms that the
        directory is theirs. ``allow``: the user of that name gets the directory.
        """,
    ).tag(config=True)

    on_move = Enum(
        ["refuse", "warn"],
        default_value="refuse",
        help="""
        What happens to a known user whose storage would now be at another place, where there is no directory yet, while
        the old directory has files: ``refuse`` (default): no server starts until the directory is moved, the settings
        are set back, or ``ansible-bootstrap accept NAME`` lets the user begin anew. ``warn``: one line in the log.
        Directories beside the home count only after a change of settings, for a profile may mount others.
        """,
    ).tag(config=True)

    place = Union(
        [Callable(), Unicode(), Dict()],
        default_value=None,
        allow_none=True,
        help="""
        Where a user's storage is, if the spawner cannot tell or is wrong: a template such as
        ``"/export/home/{username}"``, with the fields that the spawner itself knows; or a dict with any of
        ``directory``, ``also`` (a list) and ``account`` (templates), ``uid``, ``gid``, ``storage_host``, ``groups``,
        ``volumes``; or ``callable(spawner)`` that returns a Place or such a dict (its text is no template; it may be
        async, and it must not block, for it runs on the hub's event loop). Of what is left out, the spawner is asked,
        then the settings. None: ask the spawner. ``"nowhere"``, also as the answer of the function: nothing is prepared
        for this user, and the server starts. docs/places.md leads to an example for each spawner. Default: None.
        """,
    ).tag(config=True)

    cleanup_delay = Float(
        None,
        min=0.0,
        allow_none=True,
        help="""
        Seconds in which the stops of servers are gathered into one clean-up; it begins one to two times that
        after a stop. Default: 5 if ``cleanup_roles`` is set here, else there are no clean-ups. Behind another
        ``apply_command`` the hub cannot see ``cleanup_roles``: set this to have clean-ups.
        """,
    ).tag(config=True)

    history_days = Float(
        30.0,
        min=0.0,
        help="Days for which runs and outcomes are kept for ``ansible-bootstrap status``. Default: 30.",
    ).tag(config=True)

    # -- the apply side's ---------------------------------------------------------------------

    vars().update(_apply_side())

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @default("max_runs")
    def _max_runs(self) -> int:
        return max(4, 2 * (os.cpu_count() or 2))

    @default("state_dir")
    def _state_dir(self) -> str:
        return default_state_dir()

    # -- what the rest of the package asks ----------------------------------------------------

    @property
    def embedded(self) -> bool:
        """Whether the apply program is our own child under our own account."""
        return tuple(self.apply_command) == EMBEDDED_COMMAND

    @property
    def here(self) -> bool:
        """Whether the storage host ``localhost`` is this machine: no ssh is in the way to the apply program."""
        return all(Path(str(word)).name != "ssh" for word in self.apply_command)

    @property
    def observing(self) -> bool:
        """Whether nothing may be changed and no spawn may wait or fail."""
        return bool(self.mode == "observe")

    def apply_settings(self) -> dict[str, Any]:
        """The apply side's settings that are not its defaults."""
        given = {name: getattr(self, name) for name in APPLY_SIDE}
        return {
            name: _plain(value) for name, value in sorted(given.items()) if value != self.trait_defaults(name)
        }

    def effective_cleanup_delay(self) -> float | None:
        """Seconds before a clean-up; None if there is nothing to clean up."""
        if self.embedded and not self.cleanup_roles:
            return None
        if self.cleanup_delay is not None:
            return float(self.cleanup_delay)
        return DEFAULT_CLEANUP_DELAY if self.embedded else None

    def roots(self) -> tuple[str, ...]:
        """All storage roots that are known here, the first of them that of users without a directory of their own."""
        return (self.storage_root, *self.storage_roots) if self.storage_root else ()

    def summary(self) -> str:
        """Return what will be done and how, in one line for the log."""
        roles = ", ".join(str(role if isinstance(role, str) else role.get("role")) for role in self.roles)
        what = f"storage root {', '.join(map(str, self.roots()))}, roles {roles}, as the hub's own account"
        return f"{what if self.embedded else f'through {self.apply_command[0]}'}, mode {self.mode}"

    def place_digest(self) -> str:
        """A digest of all settings that say where a user's storage is: the spawners' and ours."""
        sections = {name: dict(section) for name, section in self.config.items() if name.endswith("Spawner")}
        ours = self.config.get("AnsibleBootstrap", {})
        kept = {name: ours[name] for name in _PLACE_SETTINGS if name in ours}
        spawner = self.config.get("JupyterHub", {}).get("spawner_class", "")
        return digest({**sections, "AnsibleBootstrap": kept, "spawner_class": spawner})

    def check(self) -> None:
        """Refuse settings that contradict themselves.

        Raises:
            SettingsError: naming the setting and the way out.
        """
        for problem in self.problems():
            raise SettingsError(problem)

    def problems(self) -> Iterator[str]:
        """Yield a sentence for each setting that cannot be used: the setting, and the way out."""
        for name in self.config.get("AnsibleBootstrap", {}):
            if not self.has_trait(name):
                near = difflib.get_close_matches(name, self.trait_names(config=True), n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                yield f"c.AnsibleBootstrap.{name} is not a setting{hint}"
        given = self.apply_settings()
        if given and not self.embedded:
            names = ", ".join(f"c.AnsibleBootstrap.{name}" for name in sorted(given))
            yield (
                f"{names}: with an apply_command of your own the apply program reads {SYSTEM_FILE} "
                "and nothing from the hub; move them there"
            )
        if self.embedded and "storage_root" not in given:
            yield "c.AnsibleBootstrap.storage_root is not set: where are users' directories?"
        elif self.embedded:
            try:
                make_settings(given, "c.AnsibleBootstrap")
            except SettingsError as error:
                yield error.details

    def spare_wanted(self) -> tuple[str, bool]:
        """What a spare program is made for: the settings, and that the file it reads them from is there and private."""
        path = self._settings_file()
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            return path.name, False
        return path.name, stat.S_ISREG(mode) and stat.S_IMODE(mode) == 0o600

    def apply_argv(self) -> list[str]:
        """The command line of the apply program; writes the settings file that it names.

        Blocks on the local disk for about a millisecond: call it in a thread.

        Raises:
            SettingsError: as :meth:`check`, or the file cannot be written.
        """
        self.check()
        if not self.embedded:
            return list(self.apply_command)
        ensure_state_dir(self.state_dir)
        path = self._settings_file()
        write_private(path, self._settings_text())
        return [*self.apply_command, "--settings", str(path)]

    def _settings_text(self) -> str:
        try:
            return json.dumps(self.apply_settings(), indent=1, sort_keys=True, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise SettingsError(f"c.AnsibleBootstrap.extra_vars cannot be written as JSON: {error}") from None

    def _settings_file(self) -> Path:
        """The file is named after its content, so no other hub or command ever writes other settings to it."""
        return Path(self.state_dir).absolute() / settings_name(self._settings_text().encode())


APPLY_SIDE: Final = frozenset(AnsibleBootstrap.class_traits(apply_side=True))
"""The settings that are the apply program's, not the hub's."""


def _plain(value: Any) -> Any:
    """Lists and dicts as JSON knows them; traitlets' config objects are subclasses that it does not."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    return value


def digest(settings: Mapping[str, Any]) -> str:
    """Return a digest of settings; equal means that they say the same, in any process."""
    text = json.dumps(settings, sort_keys=True, default=_described)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _described(value: Any) -> Any:
    """Say what a function does or an object holds, as far as it can be told."""
    if isinstance(value, LazyConfigValue):  # c.DockerSpawner.volumes.update(...)
        return value.to_dict()
    kind = value if hasattr(value, "__qualname__") else type(value)
    name = f"{getattr(kind, '__module__', '')}.{kind.__qualname__}"
    code = getattr(value, "__code__", None)
    if code is None:
        return name
    closure = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
    return [name, _code(code), value.__defaults__, value.__kwdefaults__, closure]


def _code(code: CodeType) -> list[Any]:
    return [code.co_code.hex(), code.co_names, [_constant(each) for each in code.co_consts]]


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return _code(value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)
