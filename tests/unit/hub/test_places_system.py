"""Spawners whose servers run as accounts of the system: what we say is where, and as whom, their own code starts them."""

from __future__ import annotations

import pwd
import re
import sys
from types import ModuleType
from typing import Any

import batchspawner
import pytest
import sudospawner
import systemdspawner
from jupyterhub.spawner import LocalProcessSpawner
from spawner_fakes import ROOT, everybody_is_known, random_names, settings, spawner
from systemdspawner import systemd
from traitlets.config import Config

from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.errors import RefusedError, UnresolvedError
from ansible_bootstrap.places.offline import Detached
from ansible_bootstrap.places.resolve import resolve

ACCOUNT = {"uid": "request"}
"""So that names that are no account's are not refused here for that alone."""


def owner(name: str) -> tuple[int, int]:
    entry = pwd.getpwnam(name)
    return entry.pw_uid, entry.pw_gid


# LocalProcessSpawner and SudoSpawner


class Sudo(sudospawner.SudoSpawner):
    async def do(self, action: str, **kwargs: Any) -> dict[str, Any]:
        self.told = kwargs
        return {"pid": 1}

    def get_env(self) -> dict[str, str]:
        return self.user_env({})


async def test_sudo_and_local_start_in_the_home_of_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    everybody_is_known(monkeypatch)
    for name in random_names(11):
        asked = spawner(Sudo, name)
        place = await resolve(asked, settings(**ACCOUNT))
        await asked.start()
        assert place.directory == asked.told["env"]["HOME"] == f"{ROOT}/of-{name}"
        assert (place.uid, place.gid) == owner(name)
        local = await resolve(spawner(LocalProcessSpawner, name), settings(**ACCOUNT))
        assert local == place


async def test_a_subclass_that_gives_another_home_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(LocalProcessSpawner):
        def user_env(self, env: dict[str, str]) -> dict[str, str]:
            return {**super().user_env(env), "HOME": f"/elsewhere/{self.user.name}"}

    everybody_is_known(monkeypatch)
    assert (await resolve(spawner(Elsewhere), settings())).directory == "/elsewhere/alice"


@pytest.mark.parametrize("name", ["AliceW", "jane.doe@uni.example"])
async def test_a_name_that_the_name_service_knows_is_good(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    everybody_is_known(monkeypatch)
    place = await resolve(spawner(LocalProcessSpawner, name), settings(uid="nss"))
    assert (place.directory, place.user().name) == (f"{ROOT}/of-{name}", name)


async def test_a_domain_account_is_refused_where_the_account_is_looked_up_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    everybody_is_known(monkeypatch)
    with pytest.raises(RefusedError, match=r"c\.Authenticator\.username_map.*or set uid and gid"):
        await resolve(spawner(LocalProcessSpawner, "CORP\\jdoe"), settings(uid="nss"))


# SystemdSpawner


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What SystemdSpawner tells systemd to start."""
    told: dict[str, Any] = {}

    async def no(*args: Any) -> bool:
        return False

    async def start(unit: str, **given: Any) -> None:
        told.update(given)

    for name in ("service_running", "service_failed"):
        monkeypatch.setattr(systemd, name, no)
    monkeypatch.setattr(systemd, "start_transient_service", start)
    monkeypatch.setattr(systemdspawner.SystemdSpawner, "get_env", lambda self: {})
    return told


@pytest.mark.parametrize("account", ["{USERNAME}", "jupyter-{USERNAME}", "u{USERID}"])
@pytest.mark.parametrize("workingdir", [None, f"{ROOT}/{{USERNAME}}", f"{ROOT}/{{USERID}}/work"])
async def test_what_we_say_is_what_systemd_is_told(
    account: str, workingdir: str | None, started: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    everybody_is_known(monkeypatch)
    for name in random_names(12):
        given = {"username_template": account, "user_workingdir": workingdir, "start_timeout": 0}
        asked = spawner(systemdspawner.SystemdSpawner, name, **given)
        if re.search(r"[\\|]", name) and "USERNAME" in account and account != "{USERNAME}":
            with pytest.raises(RefusedError):  # No account of that name can be told to the apply program.
                await resolve(asked, settings(**ACCOUNT))
            continue
        place = await resolve(asked, settings(**ACCOUNT))
        await asked.start()
        assert (place.directory, place.uid, place.gid) == tuple(
            started[key] for key in ("working_dir", "uid", "gid")
        )


async def test_the_apply_program_is_told_the_account_and_the_hub_keeps_the_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``bob`` of the hub is ``jupyter-bob`` of the system, and not the person who is called ``bob`` there."""
    everybody_is_known(monkeypatch)
    asked = spawner(systemdspawner.SystemdSpawner, "bob", username_template="jupyter-{USERNAME}")
    place = await resolve(asked, settings(uid="nss"))
    assert (place.name, place.user().name, place.directory) == (
        "bob",
        "jupyter-bob",
        f"{ROOT}/of-jupyter-bob",
    )
    with_place = await resolve(asked, settings(place=f"{ROOT}/{{USERNAME}}", uid="nss"))
    assert (with_place.directory, with_place.user().name) == (f"{ROOT}/bob", "jupyter-bob")


async def test_an_account_that_is_missing_names_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    everybody_is_known(monkeypatch, "jupyter-carol")
    asked = spawner(systemdspawner.SystemdSpawner, "carol", username_template="jupyter-{USERNAME}")
    with pytest.raises(
        UnresolvedError, match=r"no user 'jupyter-carol'.*username_template = 'jupyter-\{USERNAME\}'"
    ):
        await resolve(asked, settings())


async def test_accounts_that_systemd_makes_itself_are_explained() -> None:
    with pytest.raises(UnresolvedError, match="dynamic_users"):
        await resolve(spawner(systemdspawner.SystemdSpawner, "nobody", dynamic_users=True), settings())


def configured(cls: type, **given: Any) -> Detached:
    config = {
        "JupyterHub": {"spawner_class": cls},
        cls.__name__: given,
        "AnsibleBootstrap": {"storage_root": ROOT, "uid": "nss"},
    }
    return Detached(AnsibleBootstrap(config=Config(config)))


async def test_a_roster_gets_the_same_as_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    everybody_is_known(monkeypatch)
    given = {"username_template": "jupyter-{USERNAME}", "unit_name_template": "unit-{USERID}"}
    place = await configured(systemdspawner.SystemdSpawner, **given).place("bob")
    assert (place.name, place.account, place.directory) == ("bob", "jupyter-bob", f"{ROOT}/of-jupyter-bob")
    with pytest.raises(UnresolvedError, match=r"user\.id: only a running hub knows it"):
        await configured(systemdspawner.SystemdSpawner, username_template="u{USERID}").place("bob")


# The Littlest JupyterHub, which is on no package index: its spawner as it is there


@pytest.fixture
def tljh(monkeypatch: pytest.MonkeyPatch) -> type:
    module = ModuleType("tljh.user_creating_spawner")
    module.generate_system_username = lambda name: name if len(name) < 26 else f"{name[:26]}-00000"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    base = type("CustomSpawner", (systemdspawner.SystemdSpawner,), {"__module__": module.__name__})
    return type("UserCreatingSpawner", (base,), {"__module__": module.__name__})


async def test_the_littlest_jupyterhub_is_asked_for_the_account_that_it_will_make(
    tljh: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    everybody_is_known(monkeypatch, "jupyter-carol")
    place = await resolve(spawner(tljh, "b" * 30), settings(uid="nss"))
    assert (place.name, place.account) == ("b" * 30, "jupyter-" + "b" * 18 + "-00000")
    assert place.directory == f"{ROOT}/of-{place.account}"
    with pytest.raises(
        UnresolvedError, match=r"no user 'jupyter-carol'.*makes it when the server starts.*pre_spawn_hook"
    ):
        await resolve(spawner(tljh, "carol"), settings())


# batchspawner


class Slurm(batchspawner.SlurmSpawner):
    async def run_command(self, cmd: str, input: str | None = None, env: Any = None) -> str:
        self.command, self.script = cmd, input or ""
        return "1"

    def get_env(self) -> dict[str, str]:
        return {}

    def cmd_formatted_for_batch(self) -> str:
        return "singleuser"


class Torque(Slurm, batchspawner.TorqueSpawner):
    pass


async def test_what_we_say_is_where_slurm_is_told_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    everybody_is_known(monkeypatch)
    for name in random_names(13):
        asked = spawner(Slurm, name)
        place = await resolve(asked, settings(**ACCOUNT))
        await asked.submit_batch_script()
        assert re.search(r"^#SBATCH --chdir=(.*)$", asked.script, re.M)[1] == place.directory
        assert asked.command.startswith(f"sudo -E -u {name} sbatch")
        assert (place.uid, place.gid) == owner(name)


async def test_a_batch_spawner_of_the_sites_own_says_home_and_account(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from traitlets import default

    class Site(Slurm):
        @default("req_homedir")
        def _home(self) -> str:
            return f"{ROOT}/scratch/{self.user.name}"

        @default("req_username")
        def _name(self) -> str:
            return f"hpc-{self.user.name}"

    everybody_is_known(monkeypatch)
    asked = spawner(Site)
    asked.user_options = {"homedir": "/home/bob", "username": "bob"}
    place = await resolve(asked, settings(uid="nss"))
    assert (place.directory, place.user().name) == (f"{ROOT}/scratch/alice", "hpc-alice")
    template = settings(place=f"{ROOT}/{{username}}/{{partition}}", uid="nss")
    asked.req_partition = "gpu"
    assert (await resolve(asked, template)).directory == f"{ROOT}/hpc-alice/gpu"


async def test_an_account_that_nobody_knows_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    everybody_is_known(monkeypatch, "alice")
    for cls in (Slurm, Sudo, LocalProcessSpawner):
        with pytest.raises(
            UnresolvedError, match=r"knows no user 'alice' \(getent passwd\).*AnsibleBootstrap\.place"
        ):
            await resolve(spawner(cls), settings())
