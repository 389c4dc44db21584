"""WrapSpawner and ProfilesSpawner: what we say is what the child mounts that they make; and spawners that nobody knows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wrapspawner
from dockerspawner import DockerSpawner
from hub_fakes import until
from jupyterhub.spawner import LocalProcessSpawner, SimpleLocalProcessSpawner
from spawner_fakes import ROOT, everybody_is_known, random_names, settings, spawner, yarn_spawner
from traitlets.config import Config

from ansible_bootstrap import BootstrapError
from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.errors import RefusedError, UnresolvedError
from ansible_bootstrap.hub import bootstrapped, core, login, pre_spawn_hook
from ansible_bootstrap.hub.page import progress, show_progress
from ansible_bootstrap.hub.spawns import spawn_of
from ansible_bootstrap.place import Place
from ansible_bootstrap.places.offline import Detached
from ansible_bootstrap.places.resolve import FAMILIES, resolve
from ansible_bootstrap.storage._names import component

PROFILES = [
    ("Docker", "docker", "dockerspawner.DockerSpawner", {"volumes": {f"{ROOT}/{{username}}": "/home/jovyan"}}),
    ("Hex", "hex", DockerSpawner, {
        "volumes": {f"{ROOT}/hex/{{username}}-{{servername}}": "/home/jovyan"}, "escape": lambda text: text.encode().hex(),
    }),
    ("Here", "here", "jupyterhub.spawner.SimpleLocalProcessSpawner", {"home_dir_template": ROOT + "/here/{username}"}),
]  # fmt: skip


def mounted(asked: Any) -> str:
    """What the child mounts, made as ``WrapSpawner.start`` makes it."""
    asked.construct_child()
    child = asked.child_spawner
    return (
        str(child.home_dir)
        if isinstance(child, SimpleLocalProcessSpawner)
        else next(iter(child.volume_binds))
    )


@pytest.mark.parametrize("wrap", [lambda cls: cls, bootstrapped], ids=["plain", "bootstrapped"])
async def test_what_we_say_is_what_the_child_mounts(wrap: Any) -> None:
    cls = wrap(wrapspawner.ProfilesSpawner)
    for number, name in enumerate(random_names(21)):
        given = {"profiles": PROFILES}
        asked = spawner(cls, name, server="gpu" if number % 2 else "", **given)
        asked.user_options = {"profile": PROFILES[number % 3][1]}
        place = await resolve(asked, settings())
        assert asked.child_spawner is None, "the spawner is left as it was"
        assert place.directory == mounted(asked), name


async def test_a_wrapper_with_one_child_class() -> None:
    asked = spawner(
        wrapspawner.WrapSpawner,
        "jane.doe",
        child_class=DockerSpawner,
        child_config={"volumes": {f"{ROOT}/{{username}}": "/home/jovyan"}},
    )
    assert (await resolve(asked, settings())).directory == mounted(asked) == f"{ROOT}/jane-2edoe"


async def test_without_a_profile_it_is_the_class_that_starts_then(monkeypatch: pytest.MonkeyPatch) -> None:
    everybody_is_known(monkeypatch)
    asked = spawner(wrapspawner.ProfilesSpawner, profiles=PROFILES)
    assert (await resolve(asked, settings())).directory == f"{ROOT}/of-alice"
    asked.construct_child()
    assert type(asked.child_spawner) is LocalProcessSpawner


def configured(*profiles: Any) -> Detached:
    config = {
        "JupyterHub": {"spawner_class": wrapspawner.ProfilesSpawner},
        "ProfilesSpawner": {"profiles": list(profiles)},
        "AnsibleBootstrap": {"storage_root": ROOT, "uid": 1000},
    }
    return Detached(AnsibleBootstrap(config=Config(config)))


async def test_without_a_hub_profiles_that_agree_are_an_answer_and_others_are_not() -> None:
    twin = ("Docker, too", "two", *PROFILES[0][2:])
    assert (await configured(PROFILES[0], twin).place("jane.doe")).directory == f"{ROOT}/jane-2edoe"
    with pytest.raises(UnresolvedError, match=r"chosen on the spawn page: .*hex/.*, .*/jane-2edoe"):
        await configured(*PROFILES[:2]).place("jane.doe")


@pytest.mark.parametrize("profiles", [PROFILES, PROFILES[:1]])
async def test_before_anything_is_chosen_nothing_is_prepared_at_login(
    profiles: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first start of a server without options would be of another class still."""
    everybody_is_known(monkeypatch)
    monkeypatch.setattr(login, "LOOK_SECONDS", 0.01)
    AnsibleBootstrap.clear_instance()
    asked = spawner(wrapspawner.ProfilesSpawner, profiles=profiles)
    asked.config.AnsibleBootstrap.update(state_dir=str(tmp_path), storage_root=ROOT)
    asked.user.get_spawner, asked.user.active = lambda: asked, False
    made = core.make_core(asked.config, {"users": {}})
    prepared: list[Place] = []
    monkeypatch.setattr(made.dispatcher, "prepare", lambda place, done: prepared.append(place))
    handler = SimpleNamespace(current_user=asked.user, settings={"users": {}})
    login.begin(SimpleNamespace(config=asked.config), handler, {"name": "alice"})
    assert made.preparing == {"alice"}
    await until(lambda: made.idle)
    assert prepared == []
    AnsibleBootstrap.clear_instance()


# Progress


async def theirs() -> AsyncIterator[Any]:
    yield {"progress": 60, "message": "The child's"}


async def test_progress_that_is_a_property_fails_no_spawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook goes on to its own work, and here to its own failure."""
    AnsibleBootstrap.clear_instance()
    asked = spawner(wrapspawner.ProfilesSpawner, profiles=PROFILES)
    asked.config.AnsibleBootstrap.update(state_dir=str(tmp_path), storage_root=ROOT, place={"uid": -1})
    with pytest.raises(BootstrapError) as caught:
        await pre_spawn_hook(asked)
    assert caught.value.reason == "refused"
    AnsibleBootstrap.clear_instance()


@pytest.mark.parametrize("broken", [property(lambda self: 1 // 0), None, property(lambda self: theirs)])
def test_no_progress_whatever_it_is_fails_a_spawn(broken: Any) -> None:
    show_progress(type("Odd", (), {"progress": broken})())


async def test_a_bootstrapped_wrapper_shows_ours_and_then_the_childs() -> None:
    asked = spawner(bootstrapped(wrapspawner.ProfilesSpawner), profiles=PROFILES)
    spawn = spawn_of(asked)
    spawn.progress.say("Copying", 0.5)
    spawn.progress.close()
    spawn.ready = 1.0
    events = asked.progress()
    assert await anext(events) == {"progress": 25, "message": "Copying"}
    asked.child_spawner = spawner(SimpleLocalProcessSpawner)
    asked.child_spawner.progress = theirs
    assert await anext(events) == {"progress": 60, "message": "The child's"}


async def test_a_page_waits_for_no_child_of_a_server_that_was_stopped() -> None:
    def no_child() -> AsyncIterator[Any]:
        raise RuntimeError("No child spawner yet exists")

    asked = SimpleNamespace(config=Config(), user=None, log=None)
    spawn = spawn_of(asked)
    spawn.ready = 1.0
    spawn.progress.say("Copying", 0.5)
    spawn.progress.close()
    events = progress(asked, no_child)
    await anext(events)
    asked.__dict__.pop("_ansible_bootstrap")  # As ``stopped`` does.
    assert [event async for event in events] == []


# Spawners that are not known


async def test_a_spawner_that_is_not_known_is_named_with_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    everybody_is_known(monkeypatch)
    with pytest.raises(
        UnresolvedError,
        match=r"yarnspawner\.spawner\.YarnSpawner is a spawner.*set c\.AnsibleBootstrap\.place",
    ):
        await resolve(spawner(yarn_spawner()), settings())
    said = settings(place="/export/home/{username}")
    assert (await resolve(spawner(yarn_spawner()), said)).directory == "/export/home/alice"


@pytest.mark.parametrize(
    "name", ["systemd", "sudo", "docker", "docker-swarm", "docker-system-user", "simple"]
)
def test_an_entry_point_leads_to_a_class_that_is_known(name: str) -> None:
    config = Config({"JupyterHub": {"spawner_class": name}, "AnsibleBootstrap": {"storage_root": ROOT}})
    cls = Detached(AnsibleBootstrap(config=config))._made("spawner_class")
    assert {f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__} & set(FAMILIES)


# What the admin says

SAYINGS: list[tuple[Any, str]] = [
    (f"{ROOT}/{{username}}", "jane-2edoe"),
    ({"directory": f"{ROOT}/{{username}}/{{servername}}"}, "jane-2edoe/gpu"),
    (lambda asked: {"directory": f"{ROOT}/{{username}}"}, "{username}"),
    (lambda asked: None, "m-jane-2edoe"),
    ({"uid": 7}, "m-jane-2edoe"),
]


@pytest.mark.parametrize(("place", "directory"), SAYINGS, ids=["template", "dict", "function", "None", "uid"])
async def test_what_is_said_is_completed_by_the_spawner(place: Any, directory: str) -> None:
    asked = spawner(
        DockerSpawner,
        "jane.doe",
        server="gpu",
        volumes={f"{ROOT}/m-{{username}}": "/home/jovyan"},
        extra_create_kwargs={"user": "1500:55"},
    )
    found = await resolve(asked, settings(place=place))
    assert found.directory == f"{ROOT}/{directory}"
    assert (found.uid, found.gid) == ((7 if isinstance(place, dict) and "uid" in place else 1500), 55)


@pytest.mark.parametrize("place", [{"volumes": {"home": ROOT}}, lambda asked: {"volumes": {"home": ROOT}}])
async def test_volumes_that_the_spawner_does_not_have_are_no_silent_wish(place: Any) -> None:
    asked = spawner(DockerSpawner, volumes={f"{ROOT}/{{username}}": "/home/jovyan"})
    with pytest.raises(UnresolvedError, match=r"place has volumes, which .*DockerSpawner does not have"):
        await resolve(asked, settings(place=place))
    child = {
        "child_class": DockerSpawner,
        "child_config": {"volumes": {f"{ROOT}/{{username}}": "/home/jovyan"}},
    }
    wrapped = spawner(wrapspawner.WrapSpawner, **child)
    assert (await resolve(wrapped, settings(place=place))).directory == f"{ROOT}/alice", "another child may"


@pytest.mark.parametrize("name", ["CORP\\jdoe", "oauth2|idp|3f2a"])
async def test_a_name_with_signs_works_under_the_spawners_directory_and_crosses_as_a_slug(name: str) -> None:
    asked = spawner(DockerSpawner, name, volumes={f"{ROOT}/{{username}}": "/home/jovyan"})
    place = await resolve(asked, settings(gid=100))
    assert place.directory == next(iter(asked.volume_binds))
    sent = place.user(key=name)
    assert (place.name, sent.name, sent.directory) == (name, component(name), place.directory)
    with pytest.raises(RefusedError, match="directory"):
        Place(name).user()


@pytest.mark.parametrize(
    "name", ["a/b", "{{ x }}", "a;b", "a:b", "../x", "|x", "\\x", "a\nb", "$(id)", "a`id`"]
)
async def test_the_refusal_that_remains_names_the_map(name: str) -> None:
    with pytest.raises(RefusedError, match=r"c\.Authenticator\.username_map"):
        await resolve(
            spawner(DockerSpawner, name, volumes={f"{ROOT}/{{raw_username}}": "/home/jovyan"}), settings()
        )
