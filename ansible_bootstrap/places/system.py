"""Spawners whose servers run as accounts of the system: the account's entry says where its home is.

The account need not be called as the hub's user: SystemdSpawner has ``username_template``, The Littlest JupyterHub
puts ``jupyter-`` before the name. The apply program is then told the account's name, which its name service knows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from string import Formatter
from typing import TYPE_CHECKING, Any, Final

from ansible_bootstrap.errors import UnresolvedError
from ansible_bootstrap.places.family import SETTING, Family, Storage, account, fields_of, looked_up

if TYPE_CHECKING:
    from ansible_bootstrap.place import Place


def _owned(place: Place, name: str, way_out: str = "") -> Place:
    """Return the place of an account. Blocks."""
    entry = account(name, way_out)
    return replace(place, account="" if name == place.name else name, uid=entry.pw_uid, gid=entry.pw_gid)


# -- LocalProcessSpawner, SudoSpawner and whatever inherits from it -------------------------------


async def _local_home(spawner: Any, storage: Storage) -> list[str]:
    """``LocalProcessSpawner.user_env`` says what HOME the server gets; a subclass may have its own."""

    def look() -> str:
        home = account(spawner.user.name).pw_dir
        return str(spawner.user_env({}).get("HOME") or home)

    return [await looked_up(look)]


async def _local_user(spawner: Any, place: Place) -> Place:
    return await looked_up(lambda: _owned(place, spawner.user.name))


LOCAL: Final = Family(where=_local_home, whose=_local_user)


async def _simple_home(spawner: Any, storage: Storage) -> list[str]:
    return [str(spawner.home_dir)]


async def _hubs_account(spawner: Any, place: Place) -> Place:
    """Servers run under the hub's own account, whatever the user is called."""
    return replace(
        place,
        uid=os.getuid() if place.uid is None else place.uid,
        gid=os.getgid() if place.gid is None else place.gid,
    )


SIMPLE: Final = Family(where=_simple_home, whose=_hubs_account)


# -- SystemdSpawner, The Littlest JupyterHub ------------------------------------------------------


def _systemd_account(spawner: Any) -> tuple[str, str]:
    template = spawner.username_template
    name = str(spawner._expand_user_vars(template))
    return name, f"make the account, which c.SystemdSpawner.username_template = {template!r} names"


def _tljh_account(spawner: Any) -> tuple[str, str]:
    """As ``UserCreatingSpawner.start`` names and makes it; its module is loaded where such a spawner is."""
    module = next(
        sys.modules[cls.__module__] for cls in type(spawner).__mro__ if cls.__module__.startswith("tljh.")
    )
    return str(module.generate_system_username("jupyter-" + spawner.user.name)), (
        "The Littlest JupyterHub makes it when the server starts, which is later than this; let "
        "c.Spawner.pre_spawn_hook make it (docs/tljh-and-systemdspawner.md has the lines)"
    )


def _systemd(named: Callable[[Any], tuple[str, str]]) -> Family:
    async def where(spawner: Any, storage: Storage) -> list[str]:
        """As ``SystemdSpawner.start`` finds the working directory."""
        if spawner.dynamic_users:
            raise UnresolvedError(
                "with c.SystemdSpawner.dynamic_users systemd makes directory and account itself when the server "
                "starts; set it to False and let each user have an account"
            )
        if spawner.user_workingdir is not None:
            return [str(spawner._expand_user_vars(spawner.user_workingdir))]
        return [await looked_up(lambda: account(*named(spawner)).pw_dir)]

    async def whose(spawner: Any, place: Place) -> Place:
        return await looked_up(lambda: _owned(place, *named(spawner)))

    return Family(
        where=where,
        whose=whose,
        fields=lambda spawner: fields_of(spawner._expand_user_vars),
        render=lambda spawner, template: str(spawner._expand_user_vars(template)),
    )


SYSTEMD: Final = _systemd(_systemd_account)
TLJH: Final = _systemd(_tljh_account)


# -- batchspawner: Slurm, Torque, PBS, Grid Engine, HTCondor, LSF ---------------------------------


async def _job_home(spawner: Any, storage: Storage) -> list[str]:
    """``{homedir}`` of the job script. The user's options win over it there: their word, with their own rights."""

    def look() -> str:
        try:
            return str(spawner.req_homedir)
        except KeyError:
            account(spawner.user.name)
            raise

    return [await looked_up(look)]


async def _job_user(spawner: Any, place: Place) -> Place:
    """``exec_prefix`` submits the job as ``{username}``."""
    way_out = f"make it known, or {SETTING}, uid and gid"
    return await looked_up(lambda: _owned(place, str(spawner.req_username), way_out))


def _job_fields(spawner: Any) -> Sequence[str]:
    return [name[4:] for name in spawner.trait_names() if name.startswith("req_")]


def _job_render(spawner: Any, template: str) -> str:
    """As ``get_req_subvars`` does, but for the fields that occur: others may need a hub."""
    known = _job_fields(spawner)
    used = {word.partition(".")[0].partition("[")[0] for _, word, _, _ in Formatter().parse(template) if word}
    return template.format(**{word: getattr(spawner, f"req_{word}") for word in used if word in known})


BATCH: Final = Family(where=_job_home, whose=_job_user, fields=_job_fields, render=_job_render)
