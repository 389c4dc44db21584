"""Where each kind of spawner keeps a user's storage: asked of the real classes, without a hub."""

from __future__ import annotations

import os
import pwd
import time
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub.spawner import LocalProcessSpawner, SimpleLocalProcessSpawner, Spawner
from traitlets.config import Config

from ansible_bootstrap import places
from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.errors import RefusedError, UnreachableError, UnresolvedError
from ansible_bootstrap.places import Place, resolve

ROOT = "/volumes/jupyterhub"


def user(name: str = "alice", *groups: str) -> Any:
    return SimpleNamespace(
        name=name, groups=[SimpleNamespace(name=group) for group in groups], url="/", settings={}, spawners={}
    )


def spawner(cls: type, name: str = "alice", *groups: str, **settings: Any) -> Any:
    return cls(user=user(name, *groups), config=Config({cls.__name__: settings}))


def settings(**given: Any) -> AnsibleBootstrap:
    return AnsibleBootstrap(config=Config({"AnsibleBootstrap": given}))


def docker(cls_name: str = "DockerSpawner", name: str = "alice", **given: Any) -> Any:
    dockerspawner = pytest.importorskip("dockerspawner")
    return spawner(getattr(dockerspawner, cls_name), name, **given)


# Any spawner


def here(name: str, **what: Any) -> Place:
    return Place(name, **{"storage_host": "localhost", **what})


async def test_an_unknown_spawner_gives_only_the_name() -> None:
    assert await resolve(spawner(Spawner, "alice", "staff"), settings()) == here("alice", groups=("staff",))


async def test_fixed_ids_are_in_the_place() -> None:
    place = await resolve(spawner(Spawner), settings(uid=1000, gid=100))
    assert (place.uid, place.gid) == (1000, 100)
    assert (await resolve(spawner(Spawner), settings(uid="nss"))).uid is None


async def test_the_admins_word_wins_and_may_be_partial() -> None:
    class Mine(SimpleLocalProcessSpawner):
        pass

    async def place(asked: Spawner) -> dict[str, Any]:
        return {"directory": f"{ROOT}/{asked.user.name}", "uid": 2000, "gid": None}

    assert await resolve(spawner(Mine), settings(place=place, gid=100)) == here(
        "alice", directory=f"{ROOT}/alice", uid=2000, gid=100
    )
    assert (await resolve(spawner(Mine), settings(place=lambda asked: Place("alice", uid=7)))).uid == 7
    ask_after_all = await resolve(spawner(Mine), settings(place=lambda asked: None))
    assert ask_after_all.directory == "/tmp/alice"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("/volumes/alice", "returned str"),
        ({"path": "/v"}, "returned path"),
        ({"name": "bob"}, "returned another name"),
        (Place("bob"), "returned a Place of another"),
    ],
)
async def test_a_wrong_answer_names_the_setting(answer: Any, why: str) -> None:
    with pytest.raises(UnresolvedError, match=rf"c\.AnsibleBootstrap\.place {why}"):
        await resolve(spawner(Spawner), settings(place=lambda asked: answer))


async def test_a_callable_that_fails_names_the_setting() -> None:
    def broken(asked: Spawner) -> str:
        raise KeyError("uidNumber")

    with pytest.raises(UnresolvedError, match=r"c\.AnsibleBootstrap\.place raised KeyError"):
        await resolve(spawner(Spawner), settings(place=broken))
    with pytest.raises(UnresolvedError, match=r"c\.AnsibleBootstrap\.storage_host raised KeyError"):
        await resolve(spawner(Spawner), settings(storage_host=broken))
    with pytest.raises(UnresolvedError, match="storage_host returned int"):
        await resolve(spawner(Spawner), settings(storage_host=lambda asked: 7))


async def test_the_storage_host_may_depend_on_the_user() -> None:
    place = await resolve(spawner(Spawner), settings(storage_host=lambda asked: f"s-{asked.user.name}"))
    assert place.storage_host == "s-alice"


@pytest.mark.parametrize("host", ["all", "web:&db", "{{ x }}", "", "storage*"])
async def test_a_storage_host_is_never_a_pattern(host: str) -> None:
    with pytest.raises(RefusedError):
        await resolve(spawner(Spawner), settings(storage_host=lambda asked: host))


@pytest.mark.parametrize("name", ["{{ 7*7 }}", "../etc", "a\nb", "root", "x" * 300, "$(id)"])
async def test_a_hostile_name_is_refused_before_anybody_is_asked(name: str) -> None:
    asked: list[Any] = []
    with pytest.raises(RefusedError):
        await resolve(spawner(Spawner, name), settings(place=asked.append, storage_host=asked.append))
    assert not asked


# Local processes


async def test_simple_local_is_the_hubs_own_account() -> None:
    simple = spawner(SimpleLocalProcessSpawner, home_dir_template=ROOT + "/{username}/")
    assert await resolve(simple, settings()) == here(
        "alice", directory=f"{ROOT}/alice", uid=os.getuid(), gid=os.getgid()
    )
    assert (await resolve(simple, settings(uid=1000))).uid == 1000


async def test_local_is_the_system_user() -> None:
    me = pwd.getpwnam("nobody")
    assert await resolve(spawner(LocalProcessSpawner, "nobody"), settings(uid=1000)) == here(
        "nobody", directory=me.pw_dir, uid=me.pw_uid, gid=me.pw_gid
    )


async def test_an_unknown_system_user_is_explained() -> None:
    with pytest.raises(UnresolvedError, match=r"knows no user 'nobody-here'.*c\.AnsibleBootstrap\.place"):
        await resolve(spawner(LocalProcessSpawner, "nobody-here"), settings())


async def test_a_name_service_that_hangs_holds_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "LOOKUP_SECONDS", 0.1)
    monkeypatch.setattr(places.pwd, "getpwnam", lambda name: time.sleep(4))
    begin = time.monotonic()
    with pytest.raises(UnreachableError, match="name service"):
        await resolve(spawner(LocalProcessSpawner), settings())
    assert time.monotonic() - begin < 3


# Docker

HOME = {ROOT + "/{username}": "/home/jovyan"}


@pytest.mark.parametrize(
    "given",
    [
        {"volumes": HOME},
        {"volumes": {**HOME, "/srv/shared": {"bind": "/home/jovyan/shared", "mode": "ro"}}},
        {"volumes": {**HOME, "/srv/shared": "/srv/shared", "data-{username}": "/data"}},
        {"volumes": {**HOME, "/srv/scratch/{username}": "/home/jovyan/scratch"}},
        {"volumes": HOME, "read_only_volumes": {"/srv/course": "/home/jovyan"}},
        {"mounts": [{"source": ROOT + "/{username}", "target": "/home/jovyan", "type": "bind"}]},
        {"extra_host_config": {"binds": {ROOT + "/{username}": {"bind": "/home/jovyan", "mode": "rw"}}}},
        {"extra_host_config": {"binds": [ROOT + "/{username}:/home/jovyan:rw,z", "/srv/x:/x"]}},
        {"extra_host_config": lambda self: {"binds": [f"{ROOT}/{self.user.name}:/home/jovyan"]}},
        {
            "volumes": {"/elsewhere": "/home/jovyan"},
            "extra_host_config": {"binds": [ROOT + "/alice:/home/jovyan"]},
        },
        {"volumes": {ROOT + "/{username}": "/data/work"}, "notebook_dir": "/data/work"},
        {"volumes": {ROOT + "/{username}": "/data"}, "notebook_dir": "/data/{username}"},
    ],
    ids=repr,
)
@pytest.mark.parametrize("root", [ROOT, None])
async def test_docker_says_what_it_will_mount(given: dict[str, Any], root: str | None) -> None:
    place = await resolve(docker(**given), settings(storage_root=root))
    assert place.directory == f"{ROOT}/alice"


async def test_below_the_storage_root_wins_over_the_home() -> None:
    both = {"/srv/homes/{username}": "/home/jovyan", ROOT + "/{username}": "/home/jovyan/work"}
    assert (await resolve(docker(volumes=both), settings(storage_root=ROOT))).directory == f"{ROOT}/alice"


async def test_dockers_escaping_is_dockers() -> None:
    place = await resolve(docker(name="Ann O'Hara", volumes=HOME), settings())
    assert place.directory == docker(name="Ann O'Hara", volumes=HOME).volume_binds.popitem()[0]
    assert place.directory != f"{ROOT}/Ann O'Hara"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"volumes": {"jupyterhub-{username}": "/home/jovyan"}}, "volume that Docker keeps"),
        (
            {"volumes": {"jupyterhub-{username}": "/home/jovyan", "/srv/shared": "/shared"}},
            "volume that Docker",
        ),
        ({}, "mounts no writable directory"),
        (
            {"volumes": {"/srv/course": {"bind": "/home/jovyan", "mode": "ro"}}},
            "mounts no writable directory",
        ),
        ({"volumes": {"/srv/a": "/a", "/srv/b": "/b"}}, r"which of these.*/srv/a at /a, /srv/b at /b"),
    ],
)
async def test_what_docker_cannot_tell_is_explained(given: dict[str, Any], why: str) -> None:
    with pytest.raises(UnresolvedError, match=why) as caught:
        await resolve(docker(**given), settings(storage_root=ROOT))
    assert "c.AnsibleBootstrap.place" in caught.value.details
    assert "/" not in caught.value.message


@pytest.mark.parametrize("given", ["/volumes/../etc", "/volumes/jupyterhub//alice"])
async def test_a_path_that_is_not_normal_is_refused_not_repaired(given: str) -> None:
    with pytest.raises(RefusedError):
        await resolve(docker(volumes={given: "/home/jovyan"}), settings())


@pytest.mark.parametrize(
    ("container_user", "expected"),
    [
        (1234, (1234, 100)),
        ("1234", (1234, 100)),
        ("1234:55", (1234, 55)),
        ("jovyan", (1000, 100)),
        ("", (1000, 100)),
    ],
)
async def test_the_containers_user_is_the_owner_if_it_is_a_number(
    container_user: Any, expected: tuple[int, int]
) -> None:
    asked = docker(volumes=HOME, extra_create_kwargs={"user": container_user})
    place = await resolve(asked, settings(uid=1000, gid=100))
    assert (place.uid, place.gid) == expected


async def test_async_settings_of_docker_are_awaited() -> None:
    async def host_config(self: Any) -> dict[str, Any]:
        return {"binds": [f"{ROOT}/{self.user.name}:/home/jovyan"]}

    assert (await resolve(docker(extra_host_config=host_config), settings())).directory == f"{ROOT}/alice"


async def test_system_user_spawner_knows_home_and_ids() -> None:
    asked = docker("SystemUserSpawner", "nobody", host_homedir_format_string=ROOT + "/{username}")
    me = pwd.getpwnam("nobody")
    place = await resolve(asked, settings(uid=1000))
    assert place == here("nobody", directory=f"{ROOT}/nobody", uid=me.pw_uid, gid=me.pw_gid)


async def test_a_subclass_is_asked_like_its_parent() -> None:
    dockerspawner = pytest.importorskip("dockerspawner")
    mine = type("MyDockerSpawner", (dockerspawner.DockerSpawner,), {})
    assert (await resolve(spawner(mine, volumes=HOME), settings())).directory == f"{ROOT}/alice"


def test_no_spawner_is_imported() -> None:
    import subprocess
    import sys

    foreign = {"jupyterhub", "dockerspawner", "traitlets"}
    code = f"import ansible_bootstrap.places, sys; assert not {foreign} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_a_place_from_the_admin_is_completed_from_the_settings() -> None:
    config = settings(uid=1000, gid=100, storage_host="store1")
    config.place = lambda spawner: Place(spawner.user.name, directory=ROOT + "/a/alice")
    place = await resolve(spawner(SimpleLocalProcessSpawner), config)
    assert place == Place("alice", directory=ROOT + "/a/alice", uid=1000, gid=100, storage_host="store1")


async def test_a_directory_shared_by_all_is_nobodys_home() -> None:
    both = {ROOT + "/shared": "/home/jovyan/shared", "/homes/{username}": "/home/jovyan"}
    assert (await resolve(docker(volumes=both), settings(storage_root=ROOT))).directory == "/homes/alice"
    with pytest.raises(UnresolvedError, match="mounts no writable directory"):
        await resolve(docker(volumes={ROOT + "/shared": "/home/jovyan/shared"}), settings(storage_root=ROOT))
