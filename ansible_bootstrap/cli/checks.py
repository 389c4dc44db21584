"""What ``ansible-bootstrap doctor`` looks at: each check yields what it finds, and what mends it.

Nothing is changed, except that ``state_dir`` is made with the settings file of the apply program in it, as by
``ansible-bootstrap run``. Behind a boundary the apply program alone knows roles and storage root: it is asked.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import platform
import pwd
import re
import shlex
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from ansible_bootstrap import __version__
from ansible_bootstrap.cli.mends import what_mends
from ansible_bootstrap.cli.report import Progress
from ansible_bootstrap.cli.roster import Record, shown
from ansible_bootstrap.cli.roster_places import RosterEntry, RosterPlaces
from ansible_bootstrap.cli.sources import find_missing
from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.dispatch.client import ASK_DOCTOR, ApplyClient
from ansible_bootstrap.errors import AnsibleBootstrapError
from ansible_bootstrap.findings import ask, mount_of, outside_of_container, probe
from ansible_bootstrap.fingerprints import short_name
from ansible_bootstrap.place import Place
from ansible_bootstrap.places.offline import Detached
from ansible_bootstrap.places.resolve import objection
from ansible_bootstrap.protocol import Finding, Outcome
from ansible_bootstrap.settings import ApplySettings, make_settings
from ansible_bootstrap.state.directory import ensure_state_dir
from ansible_bootstrap.state.ledger import FILE, Ledger
from ansible_bootstrap.state.moves import where
from ansible_bootstrap.storage._plan import BUILT_IN_ROLES
from ansible_bootstrap.threads import in_thread

SUPPORTED: Final = {
    "python": ((3, 11), (3, 15)),
    "ansible-core": ((2, 19), (2, 23)),
    "ansible-runner": ((2, 4), (3, 0)),
    "jupyterhub": ((5, 2), (7, 0)),
}
"""The first version that is supported, and the first that is not."""

KNOWN_USERS: Final = 20
"""Users of the ledger who are resolved if nobody is named."""

ALIKE: Final = 5
"""Up to so many users who fail have a finding each."""

FEW_SPAWNS: Final = 20

_REMOTE: Final = re.compile(r"(nfs4?|cifs|smb3|ceph|lustre|gpfs|afs|9p|fuse\.(?!fuse-overlayfs).*)\Z")
_LOG = logging.getLogger(__name__)

Users = Callable[[AnsibleBootstrap], Sequence[Record]]
Found = Iterator[Finding]
FoundLater = AsyncIterator[Finding]


class Site:
    """What the checks look at, and what they have learned for those that follow."""

    def __init__(self, settings: AnsibleBootstrap, users: Users) -> None:
        self.settings = settings
        self.users = users
        self.client = ApplyClient(partial(in_thread, settings.apply_argv, timeout=10), _LOG)
        self.spawner_class: Any = None
        self.ledger: Ledger | None = None
        """None as long as it is not known to be readable."""
        self.skipped: set[str] = set()
        """Checks that could only say again what another has said."""
        self.places: list[Place] = []
        self.about: dict[str, Any] = {"version": __version__, "account": os.geteuid(), "hosts": {}}

    @property
    def apply_settings(self) -> ApplySettings | None:
        """The apply side's settings, where they are known here."""
        return make_settings(self.settings.apply_settings(), "") if self.settings.embedded else None


def _error(what: str, mend: str = "") -> Finding:
    return Finding(level="error", what=what, mend=mend)


def _warning(what: str, mend: str = "") -> Finding:
    return Finding(level="warning", what=what, mend=mend)


# -- the checks, in the order in which their findings are to be mended ------------------------------


def _configuration(site: Site) -> Found:
    for problem in site.settings.problems():
        site.skipped |= CHECKS.keys() - {"configuration", "hook", "versions"}
        yield _error(problem)


def _hook(site: Site) -> Found:
    try:
        site.spawner_class = Detached(site.settings).spawner_class
    except Exception as error:
        site.skipped |= {"users", "known users"}
        yield _error(f"c.JupyterHub.spawner_class cannot be loaded: {error}", "install it beside JupyterHub")
        return
    site.about["spawner"] = f"{site.spawner_class.__module__}.{site.spawner_class.__qualname__}"
    if AnsibleBootstrap.set_up or getattr(site.spawner_class, "shows_bootstrap", False):
        return
    sections = [site.settings.config.get(cls.__name__, {}) for cls in site.spawner_class.__mro__]
    hooks = [section["pre_spawn_hook"] for section in sections if "pre_spawn_hook" in section]
    mend = "add to the configuration: from ansible_bootstrap import setup; setup(c)"
    if not hooks:
        yield _error("no server waits for its storage: the configuration does not call setup(c)", mend)
    elif not str(getattr(hooks[0], "__module__", "")).startswith("ansible_bootstrap."):
        yield _warning("c.Spawner.pre_spawn_hook is the site's own, and may not prepare the storage", mend)


def _versions(site: Site) -> Found:
    for package, (first, end) in SUPPORTED.items():
        mend = f"install '{package}>={first[0]}.{first[1]},<{end[0]}.{end[1]}'"
        try:
            found = platform.python_version() if package == "python" else version(package)
        except PackageNotFoundError:
            yield _error(f"{package} is not installed beside ansible_bootstrap", mend)
            continue
        site.about[package] = found
        numbers = tuple(map(int, re.findall(r"\d+", found)[:2]))
        if numbers < first:
            yield _error(f"{package} {found} is too old", mend)
        elif numbers >= end:
            yield _warning(f"{package} {found} is newer than what was tested", mend)


def _roles(site: Site) -> Found:
    settings = site.apply_settings
    if settings is None:
        return
    for path in (*settings.roles_path, *settings.collections_path):
        if not os.path.isdir(path):
            yield _error(
                f"roles_path or collections_path: {path} is not a directory",
                f"install -d {shlex.quote(path)}",
            )
    names = [*BUILT_IN_ROLES, *(role.name for path in settings.roles_path for role in Path(path).glob("*/"))]
    for name in dict.fromkeys(map(short_name, (*settings.roles, *settings.cleanup_roles))):
        if name not in BUILT_IN_ROLES and not any(place.is_dir() for place in _role_places(name, settings)):
            near = difflib.get_close_matches(name, names, n=1)
            mend = (
                f"did you mean {near[0]!r}?" if near else "c.AnsibleBootstrap.roles_path or collections_path"
            )
            yield _error(f"roles or cleanup_roles: there is no role {name!r}", mend)


async def _sources(site: Site) -> FoundLater:
    """Where the storage host is this machine; of another one, this machine's files and network say nothing."""
    if site.apply_settings is not None and site.settings.storage_host == "localhost":
        async for finding in find_missing(site.apply_settings):
            yield finding


def _role_places(name: str, settings: ApplySettings) -> Iterator[Path]:
    """Yield where Ansible looks for a role that is none of ours."""
    yield from (Path(path, name) for path in settings.roles_path)
    namespace, _, rest = name.partition(".")
    collection, _, role = rest.partition(".")
    for path in (*settings.collections_path, *sys.path) if role else ():
        for base in (Path(path), Path(path, "ansible_collections")):
            yield base.joinpath(namespace, collection, "roles", *role.split("."))


def _timeouts(site: Site) -> Found:
    timeout, settings = site.settings.timeout, site.apply_settings
    longer = f"is more than c.AnsibleBootstrap.timeout ({timeout:g} s)"
    names = {short_name(role) for role in settings.roles} if settings is not None else set()
    if settings is not None and names - {*BUILT_IN_ROLES} and settings.task_timeout > timeout:
        yield _warning(
            f"task_timeout ({settings.task_timeout} s) {longer}: where a task of a site role hangs, all who wait for "
            "the run fail before the task is ended",
            f"c.AnsibleBootstrap.task_timeout = {max(1, int(timeout / 2))}",
        )
    for variable, value in settings.extra_vars.items() if settings is not None else ():
        ours = variable.endswith("timeout") and any(variable.startswith(f"{role}_") for role in names)
        if ours and isinstance(value, int | float) and value > timeout:
            yield _warning(
                f"{variable} ({value:g} s) {longer}: what takes longer than that is stopped with its run each time",
                f"c.AnsibleBootstrap.timeout = {2 * value:g}",
            )
    limit = site.settings.config.get("JupyterHub", {}).get("concurrent_spawn_limit", 100)
    if not site.settings.at_login and isinstance(limit, int) and 0 < limit <= FEW_SPAWNS:
        yield _warning(
            f"c.JupyterHub.concurrent_spawn_limit is {limit} and at_login is off: each run has at most {limit} users, "
            "and the hub turns further students away meanwhile",
            "c.AnsibleBootstrap.at_login = True, or c.JupyterHub.concurrent_spawn_limit = 100",
        )


def _state_dir(site: Site) -> Found:
    blocked = {"apply program", "storage"} if site.settings.embedded else set()
    site.skipped |= blocked  # The settings of an embedded apply program are written there.
    with contextlib.suppress(OSError):
        owner = os.stat(site.settings.state_dir).st_uid
        if owner not in (os.geteuid(), 0) and os.geteuid() == 0:
            yield _error(
                f"c.AnsibleBootstrap.state_dir {site.settings.state_dir!r} is uid {owner}'s, and this is root",
                f"as the hub's account: sudo -u '#{owner}' ansible-bootstrap doctor; if the hub runs as root, which "
                f"believes nothing there: chown root {shlex.quote(site.settings.state_dir)}",
            )
            return
    directory = str(ensure_state_dir(site.settings.state_dir))
    site.skipped -= blocked
    _, kind = mount_of(directory)
    if _REMOTE.match(kind):
        yield _warning(
            f"c.AnsibleBootstrap.state_dir {directory!r} is on {kind}: the hub waits for it at each spawn",
            'c.AnsibleBootstrap.state_dir = "…", on a local disk',
        )
    ledger = Path(directory, FILE)
    try:
        if ledger.exists():
            address = f"{ledger.as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
                if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                    raise sqlite3.DatabaseError("it is damaged")
        site.ledger = Ledger(directory)
    except sqlite3.Error as error:
        yield _warning(
            f"{str(ledger)!r} cannot be read ({error}): everybody is bootstrapped once more",
            f"mv {shlex.quote(str(ledger))} {shlex.quote(str(ledger.with_suffix('.broken')))}",
        )


async def _apply_program(site: Site) -> FoundLater:
    try:
        await ask(site.client, "describe")
    except AnsibleBootstrapError as error:
        site.skipped.add("storage")
        said = error.details.removesuffix(ASK_DOCTOR)
        yield _error(said, "" if site.settings.embedded else what_mends(said, site.settings.apply_command))


async def _storage(site: Site) -> FoundLater:
    """The storage hosts: the setting's, or those of the users who were resolved."""
    fixed = site.settings.storage_host
    hosts = {place.storage_host for place in site.places} | (set() if callable(fixed) else {str(fixed)})
    for host in sorted(hosts):
        found, about = await probe(site.client, host)
        if about:
            site.about["hosts"][host] = about
        for finding in found:
            yield finding


def _container(site: Site) -> Found:
    yield from outside_of_container(site.settings, site.spawner_class)


async def _users(site: Site) -> FoundLater:
    if problem := objection(site.spawner_class, site.settings.place):
        site.skipped.add("known users")
        yield problem
        return
    under, ledger = site.settings.place_digest(), site.ledger
    remembered = RosterPlaces(site.settings, lambda name: ledger.places(name, under) if ledger else ())
    records = site.users(site.settings) or _known(site)[:KNOWN_USERS] or _example(site.settings)
    root = site.settings.storage_root
    failed = []
    async for record, said in _resolved(site, "resolving", records):
        answer = said
        if isinstance(said, Outcome) and said.reason == "unresolved":  # It may depend on what is chosen.
            last = await remembered.entries(1, record)
            answer = said if isinstance(last, Outcome) else last
        if isinstance(answer, Outcome):
            failed += [answer] * (answer.status == "failed")
            continue
        for place in (entry.place for entry in answer):
            made = f"{root}/{place.sent_name}" if root else None  # What the apply side makes of a name.
            site.places.append(replace(place, directory=place.directory or made))
    for outcome in failed[:ALIKE]:
        yield _error(f"{shown(outcome.name)}: {outcome.reason}: {outcome.message}")
    if failed[ALIKE:]:
        yield _error(f"{len(failed[ALIKE:])} more users have no place", "name them, to see why")


async def moved_users(site: Site) -> list[str]:
    """Return the known users who would get another place than the last one, each with both."""
    moved: list[str] = []
    under, ledger = site.settings.place_digest(), site.ledger
    if ledger is None:
        return moved
    async for record, said in _resolved(site, "comparing with the ledger", _known(site)):
        for entry in () if isinstance(said, Outcome) else said:
            if (old := ledger.elsewhere(entry.place, under)) is not None:
                moved.append(f"{record['name']}: {where(old)} → {where(entry.place)}")
    return moved


async def _moved(site: Site) -> FoundLater:
    if moved := await moved_users(site):
        users = "1 user" if len(moved) == 1 else f"{len(moved)} users"
        yield _warning(
            f"{users} would get another directory than they have: {', '.join(moved[:3])}{', …' * bool(moved[3:])}",
            "move the directories, or undo the change of settings; ansible-bootstrap accept NAME begins anew",
        )


async def _resolved(
    site: Site, what: str, records: Sequence[Record]
) -> AsyncIterator[tuple[Record, list[RosterEntry] | Outcome]]:
    """Yield each record with what a spawner says that knows nothing of the user's last server."""
    asked = RosterPlaces(site.settings, lambda name: ())
    with Progress(what, len(records), quiet=not sys.stderr.isatty()) as progress:
        for number, record in enumerate(records, start=1):
            yield record, await asked.entries(number, record)
            progress.reach(number, len(records))


def _known(site: Site) -> list[Record]:
    columns = ("name", "groups", *(("uid", "gid") if site.settings.uid == "request" else ()))
    last = site.ledger.last_places() if site.ledger is not None else []
    return [{name: value for name in columns if (value := getattr(place, name))} for place in last]


def _example(settings: AnsibleBootstrap) -> list[Record]:
    """Where nobody is known: an account that could be a user's; any name, if users need no account."""
    if settings.uid != "nss":
        return [{"name": "student"}]
    low = settings.uid_min if settings.embedded else 1000
    roots = tuple(f"{root}/" for root in settings.roots() or ("",))
    accounts = [
        user for user in pwd.getpwall() if low <= user.pw_uid < 60_000 and user.pw_dir.startswith(roots)
    ]
    return [{"name": user.pw_name} for user in accounts[:1]]


CHECKS: Final[Mapping[str, Callable[[Site], Found | FoundLater]]] = {
    "configuration": _configuration,
    "hook": _hook,
    "versions": _versions,
    "roles": _roles,
    "sources": _sources,
    "timeouts": _timeouts,
    "state_dir": _state_dir,
    "apply program": _apply_program,
    "container": _container,
    "users": _users,
    "known users": _moved,
    "storage": _storage,
}
