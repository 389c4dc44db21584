"""What a spawner object made from the configuration alone says, and that the hub's own says the same."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyterhub import orm
from jupyterhub.app import JupyterHub
from jupyterhub.spawner import LocalProcessSpawner, SimpleLocalProcessSpawner
from jupyterhub.user import User
from traitlets.config import Config
from traitlets.utils.importstring import import_item

from ansible_bootstrap.cli.roster_places import RosterPlaces
from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.errors import NowhereError, RefusedError, UnresolvedError
from ansible_bootstrap.hub import bootstrapped
from ansible_bootstrap.place import Place
from ansible_bootstrap.places.offline import CLASSES, Detached
from ansible_bootstrap.places.resolve import resolve
from ansible_bootstrap.protocol import Outcome
from ansible_bootstrap.storage._names import component

ROOT = "/volumes/jupyterhub"
NAMES = ["alice", "emmy.noether", "Grace_Hopper", "anna.schmidt@example.org", "zoë", "李雷", "o'neil", "a b"]

dockerspawner = pytest.importorskip("dockerspawner")


class OwnSpawner(dockerspawner.DockerSpawner):
    """A site's: the storage lies below the user's faculty."""

    @property
    def volume_binds(self) -> Any:
        return {
            f"{ROOT}/{self.user.name[0].lower()}/{self.escaped_name}": {"bind": "/home/jovyan", "mode": "rw"}
        }


def numbered(template: str, spawner: Any) -> str:
    return template.replace("{username}", f"{len(spawner.user.name)}-{spawner.escaped_name}")


def configured(spawner_class: Any = None, /, **sections: Any) -> Config:
    config = Config({"AnsibleBootstrap": {"storage_root": ROOT}})
    if spawner_class is not None:
        config.JupyterHub.spawner_class = spawner_class
    config.merge(sections)
    return config


HOME = {f"{ROOT}/{{username}}": "/home/jovyan"}
CONFIGURATIONS: dict[str, Callable[[], Config]] = {
    "by entry point": lambda: configured("docker", DockerSpawner={"volumes": HOME}),
    "by import path": lambda: configured("dockerspawner.DockerSpawner", DockerSpawner={"volumes": HOME}),
    "legacy escape": lambda: configured("docker", DockerSpawner={"volumes": HOME, "escape": "legacy"}),
    "escape of the site's": lambda: configured(
        "docker", DockerSpawner={"volumes": HOME, "escape": lambda text: text.encode().hex()}
    ),
    "raw name": lambda: configured(
        "docker", DockerSpawner={"volumes": {f"{ROOT}/{{raw_username}}": "/home/jovyan"}}
    ),
    "format_volume_name": lambda: configured(
        "docker", DockerSpawner={"volumes": HOME, "format_volume_name": numbered}
    ),
    "mounts": lambda: configured(
        "docker",
        DockerSpawner={
            "mounts": [{"type": "bind", "source": f"{ROOT}/{{username}}/m", "target": "/home/jovyan"}]
        },
    ),
    "prefix and name template": lambda: configured(
        "docker",
        DockerSpawner={
            "volumes": {f"{ROOT}/{{prefix}}-{{username}}-{{servername}}": "/home/jovyan"},
            "prefix": "hub",
            "name_template": "{prefix}-{username}--{servername}",
            "extra_create_kwargs": {"user": "1000:100"},
        },
    ),
    "swarm": lambda: configured("dockerspawner.SwarmSpawner", SwarmSpawner={"volumes": HOME}),
    "system user": lambda: configured(
        "dockerspawner.SystemUserSpawner",
        SystemUserSpawner={"host_homedir_format_string": f"{ROOT}/{{username}}", "run_as_root": True},
        AnsibleBootstrap={
            "place": lambda spawner: {"directory": spawner.host_homedir, "uid": 1000, "gid": 100}
        },
    ),
    "bootstrapped": lambda: configured(
        bootstrapped(dockerspawner.DockerSpawner), DockerSpawner={"volumes": HOME}
    ),
    "site's own class": lambda: configured(OwnSpawner),
    "simple": lambda: configured(
        "simple", SimpleLocalProcessSpawner={"home_dir_template": f"{ROOT}/{{username}}"}
    ),
    "place, host and groups": lambda: configured(
        "simple",
        AnsibleBootstrap={
            "place": lambda spawner: {
                "directory": f"{ROOT}/{spawner.user.groups[0].name}/{spawner.user.escaped_name}"
            },
            "storage_host": lambda spawner: "one" if spawner.user.name < "e" else "two",
        },
    ),
    "group overrides": lambda: configured(
        "docker",
        DockerSpawner={
            "volumes": HOME,
            "group_overrides": {
                "students": {
                    "groups": ["students"],
                    "spawner_override": {"escape": "legacy", "extra_create_kwargs": {"user": "1234"}},
                }
            },
        },
    ),
}


def detached(config: Config) -> Detached:
    return Detached(AnsibleBootstrap(config=config))


@pytest.fixture
def hub_says() -> Iterator[Callable[[Config, str], Any]]:
    """The place as the hub's own objects make it, with a database, when it calls the hook."""
    database = orm.new_session_factory("sqlite:///:memory:")()
    group = orm.Group(name="students")
    database.add(group)

    async def say(config: Config, name: str) -> Place:
        row = orm.User(name=name)
        database.add(row)
        row.groups.append(group)
        database.commit()
        cls = detached(config)._made("spawner_class")
        spawner = User(row, {"config": config, "spawner_class": cls, "base_url": "/"}).spawner
        await spawner.apply_group_overrides()
        return await resolve(spawner, AnsibleBootstrap(config=config))

    yield say
    database.close()


@pytest.fixture(autouse=True)
def no_connection(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """No spawner is to speak to Docker, or to anybody."""
    tried: list[Any] = []

    def connect(self: socket.socket, address: Any) -> None:
        tried.append(address)
        raise AssertionError(f"connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket.socket, "connect_ex", connect)
    return tried


@pytest.mark.parametrize("configuration", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
async def test_it_says_what_the_hubs_own_spawner_says(
    configuration: Callable[[], Config], hub_says: Callable[[Config, str], Any], no_connection: list[Any]
) -> None:
    config = configuration()
    asked = detached(config)
    for name in NAMES:
        place = await asked.place(name, groups=["students"])
        assert place == await hub_says(config, name)
        assert place.directory is not None
        assert place.directory.startswith(ROOT)
    assert no_connection == []


async def test_a_name_with_a_dot_is_where_docker_will_mount_it() -> None:
    place = await detached(CONFIGURATIONS["by entry point"]()).place("emmy.noether")
    assert place.directory == f"{ROOT}/emmy-2enoether"


async def test_a_system_user_is_where_the_system_says() -> None:
    me = pwd.getpwuid(os.getuid())
    if me.pw_name == "root":
        me = pwd.getpwnam("daemon")
    for chosen in (LocalProcessSpawner, "localprocess"):
        place = await detached(configured(chosen)).place(me.pw_name)
        assert (place.directory, place.uid, place.gid) == (me.pw_dir, me.pw_uid, me.pw_gid)


async def test_without_a_spawner_class_a_user_unknown_to_the_system_is_only_a_name() -> None:
    asked = detached(configured())
    assert asked.names_only
    assert await asked.place("emmy.noether") == Place("emmy.noether", storage_host="localhost")
    assert not detached(configured("localprocess")).names_only


IMPORTED = """
import asyncio, sys
from traitlets.config import Config
from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.places.offline import Detached
asked = Detached(AnsibleBootstrap(config=Config({{"AnsibleBootstrap": {{"storage_root": "/v"}}, "JupyterHub": {hub}}})))
assert asked.normal_form("Emmy.Noether") == "emmy.noether"
print(asyncio.run(asked.place("emmy.noether")).name, *sorted({{"jupyterhub", "jupyterhub.app"}} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("hub", "imported"),
    [({}, []), ({"spawner_class": "simple", "authenticator_class": "dummy"}, ["jupyterhub"])],
)
def test_no_more_of_the_hub_is_imported_than_it_takes(hub: dict[str, str], imported: list[str]) -> None:
    """The import of ``jupyterhub.app`` takes as long as a run of 500 users."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED.format(hub=hub)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["emmy.noether", *imported]


def test_classes_and_defaults_are_the_hubs() -> None:
    for name, (default, base, group) in CLASSES.items():
        trait = JupyterHub.class_traits()[name]
        assert trait.entry_point_group == f"jupyterhub.{group}"
        assert trait.klass is import_item(f"jupyterhub.{base}")
        assert detached(configured())._made(name) is trait.default() is import_item(f"jupyterhub.{default}")


async def test_with_one_the_same_is_unresolved_with_a_way_out() -> None:
    with pytest.raises(UnresolvedError, match=r"the system knows no user.*column directory.*start once"):
        await detached(configured("localprocess")).place("emmy.noether")


@pytest.mark.parametrize("name", ["CORP\\jdoe", "oauth2|idp|3f2a"])
async def test_a_roster_takes_the_names_that_the_hub_takes(name: str) -> None:
    config = configured("docker", DockerSpawner={"volumes": HOME}, AnsibleBootstrap={"uid": 1000, "gid": 100})
    settings = AnsibleBootstrap(config=config)
    (entry,) = await RosterPlaces(settings, lambda name: []).entries(1, {"name": name})
    assert (entry.key, entry.place.name, entry.place.user().name) == (name, name, component(name))
    assert entry.place == await detached(config).place(name)
    unnamed = await RosterPlaces(
        AnsibleBootstrap(config=configured("docker", DockerSpawner={"volumes": HOME})), lambda name: []
    ).entries(1, {"name": name})
    assert "username_map" in unnamed.message, "an account is looked up by its name"
    refused = await RosterPlaces(settings, lambda name: []).entries(1, {"name": "a;b"})
    assert (refused.key, refused.reason) == ("a;b", "refused")


# What cannot be told


class DemandingSpawner(SimpleLocalProcessSpawner):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.faculty = self.user.orm_user.faculty


def asks_admin(spawner: Any) -> Any:
    return {"directory": f"{ROOT}/{spawner.user.admin}/{spawner.user.name}"}


def asks_groups(spawner: Any) -> Any:
    return {"directory": f"{ROOT}/{spawner.user.groups[0].name}"}


async def asks_auth_state(spawner: Any) -> Any:
    return {"directory": (await spawner.user.get_auth_state())["home"]}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (lambda: configured(DemandingSpawner), "user.orm_user: only a running hub knows it"),
        (lambda: configured(dict), "'spawner_class' trait"),
        (lambda: configured("nope.Spawner"), "'nope.Spawner' could not be imported"),
        (
            lambda: configured("docker", DockerSpawner={"volumes": {"/v/{faculty}": "/home/jovyan"}}),
            "cannot fill in the templates",
        ),
        (
            lambda: configured("docker", DockerSpawner={"volumes": HOME, "escape": lambda text: 1 // 0}),
            "ZeroDivisionError",
        ),
        (
            lambda: configured("simple", AnsibleBootstrap={"place": asks_admin}),
            "user.admin: only a running hub knows it",
        ),
        (lambda: configured("simple", AnsibleBootstrap={"place": asks_groups}), "a roster's column groups"),
        (lambda: configured("simple", AnsibleBootstrap={"place": asks_auth_state}), "TypeError"),
        (
            lambda: configured("simple", AnsibleBootstrap={"storage_host": lambda spawner: None}),
            "storage_host returned NoneType",
        ),
    ],
)
async def test_what_fails_in_a_sites_own_code_is_unresolved_and_names_the_way_out(
    config: Callable[[], Config], said: str
) -> None:
    with pytest.raises(UnresolvedError) as caught:
        await detached(config()).place("alice")
    assert said in caught.value.details
    assert "a roster's column directory" in caught.value.details
    assert "start once" in caught.value.details


async def test_a_name_that_the_policy_refuses_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(RefusedError):
        await detached(CONFIGURATIONS["by entry point"]()).place("../../etc")


async def test_uid_and_gid_of_a_roster_stand_for_the_auth_state() -> None:
    config = configured("docker", DockerSpawner={"volumes": HOME}, AnsibleBootstrap={"uid": "request"})
    place = await detached(config).place("alice", auth_state={"uidNumber": 2001, "gidNumber": 100})
    assert (place.uid, place.gid) == (2001, 100)
    with pytest.raises(UnresolvedError, match="uidNumber"):
        await detached(config).place("alice")


# Names as the hub knows them


def test_the_normal_form_of_a_name_is_the_authenticators() -> None:
    config = configured(
        "simple", Authenticator={"username_map": {"e.noether": "emmy"}}, DummyAuthenticator={"password": "x"}
    )
    config.JupyterHub.authenticator_class = "dummy"
    asked = detached(config)
    assert [asked.normal_form(name) for name in ("Alice", "E.Noether", "bob")] == ["alice", "emmy", "bob"]


def test_an_authenticator_that_cannot_be_made_has_no_opinion() -> None:
    config = configured("simple")
    config.JupyterHub.authenticator_class = "nope.Authenticator"
    assert detached(config).normal_form("Alice") == "Alice"


async def test_nothing_is_prepared_for_whom_the_admin_says_nowhere_and_a_command_has_no_failure(
    tmp_path: Path,
) -> None:
    config = Config({"JupyterHub": {"spawner_class": "simple"}})
    config.AnsibleBootstrap = Config(storage_root=str(tmp_path), uid=1000, gid=100, place="nowhere")
    with pytest.raises(NowhereError):
        await Detached(AnsibleBootstrap(config=config)).place("alice")
    said = await RosterPlaces(AnsibleBootstrap(config=config), lambda name: ()).entries(1, {"name": "alice"})
    assert isinstance(said, Outcome)
    assert (said.status, said.changed) == ("ok", ())
    assert "nowhere" in said.message


async def test_nowhere_for_one_choice_and_a_directory_for_another_depends_on_the_choice(
    tmp_path: Path,
) -> None:
    def place(spawner: Any) -> Any:
        return "nowhere" if spawner.user_options["profile"] == "cloud" else None

    profiles = [(name, name, "jupyterhub.spawner.SimpleLocalProcessSpawner", {}) for name in ("cloud", "nfs")]
    config = Config({"JupyterHub": {"spawner_class": "wrapspawner.ProfilesSpawner"}})
    config.ProfilesSpawner.profiles = profiles
    config.AnsibleBootstrap = Config(storage_root=str(tmp_path), uid=1000, gid=100, place=place)
    with pytest.raises(UnresolvedError, match="chosen on the spawn page"):
        await Detached(AnsibleBootstrap(config=config)).place("alice")
