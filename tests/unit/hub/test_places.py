"""Where each kind of spawner keeps a user's storage: asked of the real classes, without a hub."""

from __future__ import annotations

import os
import pwd
import re
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub.spawner import LocalProcessSpawner, SimpleLocalProcessSpawner, Spawner
from traitlets.config import Config

from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.errors import RefusedError, UnreachableError, UnresolvedError
from ansible_bootstrap.place import Place
from ansible_bootstrap.places import family
from ansible_bootstrap.places.resolve import resolve


def spelled(given: object) -> str:
    """A test's id, the same in every process."""
    return re.sub(r"<function <lambda> at 0x[0-9a-f]+>", "a function", repr(given))


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


def named(server: str, asked: Any) -> Any:
    """The spawner as it is for a named server."""
    asked.orm_spawner = SimpleNamespace(name=server, server=None)
    return asked


# Any spawner


def here(name: str, **what: Any) -> Place:
    return Place(name, **{"storage_host": "localhost", **what})


SAID = ROOT + "/{username}"


@pytest.mark.parametrize("root", [ROOT, None])
@pytest.mark.parametrize("name", ["alice", "nobody"])
async def test_an_unknown_spawner_is_never_guessed_at(root: str | None, name: str) -> None:
    """Not even where the system knows the user: the servers may run anywhere."""
    with pytest.raises(
        UnresolvedError, match=r"jupyterhub\.spawner\.Spawner is.*not know: set c\.AnsibleBootstrap\.place"
    ):
        await resolve(spawner(Spawner, name), settings(storage_root=root))


async def test_fixed_ids_are_in_the_place() -> None:
    place = await resolve(spawner(Spawner), settings(place=SAID, uid=1000, gid=100))
    assert (place.uid, place.gid) == (1000, 100)
    assert (await resolve(spawner(Spawner), settings(place=SAID, uid="nss"))).uid is None


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
    "bad",
    [
        {"name": "{{ 7*7 }}"},
        {"directory": "/v/../etc"},
        {"directory": "/v/\udcff"},
        {"storage_host": "web:&db"},
        {"uid": -1},
        {"gid": "100"},
        {"groups": ("a\nb",)},
    ],
    ids=str,
)
def test_a_place_that_is_not_acceptable_cannot_be_made(bad: dict[str, Any]) -> None:
    with pytest.raises(RefusedError):
        Place(**{"name": "alice", **bad})
    with pytest.raises(RefusedError):
        replace(Place("alice"), **bad)


async def test_an_empty_storage_host_of_a_place_is_that_of_the_settings() -> None:
    for said in (Place("alice", f"{ROOT}/alice"), {"directory": f"{ROOT}/alice", "storage_host": ""}):
        config = settings(place=lambda _, said=said: said, storage_host="store1")
        assert (await resolve(spawner(Spawner), config)).storage_host == "store1"


def test_a_place_is_the_same_when_it_has_been_written_down() -> None:
    place = Place("alice", f"{ROOT}/a", 7, 8, "nas", ("staff",), "gpu", "acc", (f"{ROOT}/b",))
    assert Place.from_json(place.to_json()) == place
    assert Place.from_json("{}") is None


async def test_a_place_without_groups_keeps_those_of_the_hub() -> None:
    asked = spawner(Spawner, "alice", "staff")
    said = Place("alice", directory=f"{ROOT}/a")
    assert (await resolve(asked, settings(place=lambda _: said))).groups == ("staff",)
    own = Place("alice", directory=f"{ROOT}/a", groups=("own",))
    assert (await resolve(asked, settings(place=lambda _: own))).groups == ("own",)


async def test_a_name_that_is_a_word_of_the_root_itself_makes_no_shared_mount_the_users() -> None:
    """Else the shared one would count as theirs, too."""
    volumes = {
        "/srv/alice/volumes/shared": "/home/jovyan/shared",
        "/srv/alice/volumes/{username}": "/home/jovyan/work",
    }
    place = await resolve(docker(volumes=volumes), settings(storage_root="/srv/alice/volumes"))
    assert place.directory == "/srv/alice/volumes/alice"


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
    with pytest.raises(UnresolvedError, match="storage_host returned nothing"):
        await resolve(spawner(Spawner), settings(storage_host=lambda asked: ""))


async def test_the_storage_host_may_depend_on_the_user() -> None:
    place = await resolve(
        spawner(Spawner), settings(place=SAID, storage_host=lambda asked: f"s-{asked.user.name}")
    )
    assert place.storage_host == "s-alice"


@pytest.mark.parametrize("host", ["all", "web:&db", "{{ x }}", "storage*"])
async def test_a_storage_host_is_never_a_pattern(host: str) -> None:
    with pytest.raises(RefusedError):
        await resolve(spawner(Spawner), settings(place=SAID, storage_host=lambda asked: host))


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
    monkeypatch.setattr(family, "LOOKUP_SECONDS", 0.1)
    monkeypatch.setattr(pwd, "getpwnam", lambda name: time.sleep(4))
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
            "extra_host_config": {"binds": [ROOT + "/{username}:/home/jovyan"]},
        },
        {"volumes": {ROOT + "/{username}": "/data/work"}, "notebook_dir": "/data/work"},
        {"volumes": {ROOT + "/{username}": "/data"}, "notebook_dir": "/data/{username}"},
    ],
    ids=spelled,
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
        (
            {"volumes": {"/srv/a/{username}": "/a", "/srv/b/{username}": "/b"}},
            r"which of these.*/srv/a/alice at /a, /srv/b/alice at /b",
        ),
    ],
)
async def test_what_docker_cannot_tell_is_explained(given: dict[str, Any], why: str) -> None:
    with pytest.raises(UnresolvedError, match=why) as caught:
        await resolve(docker(**given), settings(storage_root=ROOT))
    assert "c.AnsibleBootstrap.place" in caught.value.details
    assert "/" not in caught.value.message


@pytest.mark.parametrize("given", ["/volumes/../etc/{username}", "/volumes/jupyterhub//{username}"])
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
        ("root", (1000, 100)),
        ("0", (1000, 100)),
        (0, (1000, 100)),
        ("0:55", (1000, 55)),
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

    foreign = {"jupyterhub", "traitlets"} | {
        f"{name}spawner" for name in ("docker", "kube", "systemd", "batch", "wrap")
    }
    code = f"import ansible_bootstrap.places.resolve, sys; assert not {foreign} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_a_place_from_the_admin_is_completed_from_the_settings() -> None:
    config = settings(uid=1000, gid=100, storage_host="store1")
    config.place = lambda spawner: Place(spawner.user.name, directory=ROOT + "/a/alice")
    place = await resolve(spawner(SimpleLocalProcessSpawner), config)
    assert place == Place("alice", directory=ROOT + "/a/alice", uid=1000, gid=100, storage_host="store1")


async def test_a_directory_shared_by_all_is_nobodys_home() -> None:
    both = {ROOT + "/shared": "/home/jovyan/shared", "/homes/{username}": "/home/jovyan"}
    assert (await resolve(docker(volumes=both), settings(storage_root=ROOT))).directory == "/homes/alice"
    with pytest.raises(UnresolvedError, match="shared at /home/jovyan/shared counts as shared by users"):
        await resolve(docker(volumes={ROOT + "/shared": "/home/jovyan/shared"}), settings(storage_root=ROOT))


# Docker, word for word: what the spawner itself would mount is what we say

FORMS: list[dict[str, Any]] = [
    {"volumes": {"SOURCE": "/home/jovyan"}},
    {"volumes": {"SOURCE": {"bind": "/home/jovyan"}}},
    {"volumes": {"SOURCE": {"bind": "/home/jovyan", "mode": "rw"}}},
    {"volumes": {"SOURCE": {"bind": "/home/jovyan", "mode": "z"}}},
    {"volumes": {"SOURCE": {"bind": "/home/jovyan", "mode": "rw", "propagation": "rshared"}}},
    {"mounts": [{"type": "bind", "source": "SOURCE", "target": "/home/jovyan"}]},
    {"mounts": [{"type": "bind", "source": "SOURCE", "target": "/home/jovyan", "read_only": False}]},
    {"extra_host_config": {"binds": ["SOURCE:/home/jovyan"]}},
    {"extra_host_config": {"binds": {"SOURCE": {"bind": "/home/jovyan", "mode": "rw"}}}},
    {"extra_host_config": {"binds": {"SOURCE": "/home/jovyan"}}},
    {"extra_host_config": {"mounts": [{"Type": "bind", "Source": "SOURCE", "Target": "/home/jovyan"}]}},
    {"extra_host_config": lambda self: {"binds": ["SOURCE:/home/jovyan"]}},
]


def with_source(value: Any, source: str) -> Any:
    """The form, with the source put in."""
    if isinstance(value, str):
        return value.replace("SOURCE", source)
    if isinstance(value, dict):
        return {with_source(key, source): with_source(item, source) for key, item in value.items()}
    if isinstance(value, list):
        return [with_source(item, source) for item in value]
    if callable(value):
        return lambda self: with_source(value(self), source)
    return value


@pytest.mark.parametrize("form", FORMS, ids=spelled)
@pytest.mark.parametrize(
    ("escape", "source", "directory"),
    [
        (None, "{username}", "-41nn-2e-4f-27-48ara-40x"),
        (None, "{safe_username}", "-41nn-2e-4f-27-48ara-40x"),
        (None, "{raw_username}", "Ann.O'Hara@x"),
        ("legacy", "{username}", "Ann_2EO_27Hara_40x"),
        (lambda text: "p-" + text.lower().partition("@")[0], "{username}", "p-ann.o'hara"),
        (None, "{username}/{servername}", "-41nn-2e-4f-27-48ara-40x/lab-2d1"),
        (None, "{username}-{raw_servername}", "-41nn-2e-4f-27-48ara-40x-Lab-1"),
        (None, "{prefix}-{username}", "jupyter--41nn-2e-4f-27-48ara-40x"),
    ],
    ids=["default", "safe", "raw", "legacy", "own", "servername", "raw_servername", "prefix"],
)
async def test_every_spelling_with_every_escaping(
    form: dict[str, Any], escape: Any, source: str, directory: str
) -> None:
    given = with_source(form, f"{ROOT}/{source}")
    if escape is not None:
        given["escape"] = escape
    asked = named("Lab-1", docker(name="Ann.O'Hara@x", **given))
    namespace = asked.template_namespace()
    place = await resolve(asked, settings(storage_root=ROOT))
    assert place.directory == f"{ROOT}/{source.format(**namespace)}"
    assert place.directory == f"{ROOT}/{directory}"
    assert (place.name, place.server_name) == ("Ann.O'Hara@x", "Lab-1")


@pytest.mark.parametrize("source", ["{user_server}", "{unescaped_username}"])
async def test_a_template_that_docker_does_not_know_is_explained(source: str) -> None:
    """These words are KubeSpawner's: DockerSpawner's own start would fail, so nothing is made up here."""
    asked = docker(volumes={f"{ROOT}/{source}": "/home/jovyan"})
    with pytest.raises(KeyError):
        _ = asked.volume_binds
    with pytest.raises(UnresolvedError, match=rf"{source.strip('{}')}.*\{{servername\}}"):
        await resolve(asked, settings(storage_root=ROOT))


async def test_named_servers_with_a_volume_each_are_work_of_their_own() -> None:
    places_ = []
    for name in ("", "one", "two"):
        asked = named(name, docker(volumes={ROOT + "/{username}/{servername}": "/home/jovyan"}))
        places_.append(await resolve(asked, settings(storage_root=ROOT)))
    assert [place.directory for place in places_] == [f"{ROOT}/alice{end}" for end in ("", "/one", "/two")]
    assert len({place.job_key for place in places_}) == 3


@pytest.mark.parametrize(
    "given",
    [
        {"read_only_volumes": {ROOT + "/{username}": "/home/jovyan"}},
        {"volumes": {ROOT + "/{username}": {"bind": "/home/jovyan", "mode": "ro"}}},
        {"volumes": {ROOT + "/{username}": {"bind": "/home/jovyan", "mode": "ro,z"}}},
        {
            "mounts": [
                {"type": "bind", "source": ROOT + "/{username}", "target": "/home/jovyan", "read_only": True}
            ]
        },
        {"extra_host_config": {"binds": [ROOT + "/{username}:/home/jovyan:ro"]}},
        {"extra_host_config": {"binds": {ROOT + "/{username}": {"bind": "/home/jovyan", "ro": True}}}},
        {"mounts": [{"type": "tmpfs", "source": "", "target": "/home/jovyan"}]},
    ],
    ids=spelled,
)
async def test_what_the_server_cannot_write_is_not_its_storage(given: dict[str, Any]) -> None:
    with pytest.raises(UnresolvedError, match="mounts no writable directory"):
        await resolve(docker(**given), settings(storage_root=ROOT))


@pytest.mark.parametrize("form", FORMS[:9], ids=spelled)
async def test_a_named_volume_is_explained_and_refused_in_every_spelling(form: dict[str, Any]) -> None:
    given = with_source(form, "jupyterhub-{username}")
    if "mounts" in given:
        given["mounts"][0]["type"] = "volume"
    with pytest.raises(UnresolvedError, match="volume that Docker keeps") as caught:
        await resolve(docker(**given), settings(storage_root=ROOT))
    assert "c.DockerSpawner.volumes" in caught.value.details
    assert "'jupyterhub-alice'" in caught.value.details


async def test_of_several_volumes_the_users_own_below_the_root_is_it() -> None:
    given = {
        "volumes": {
            "/srv/data": {"bind": "/data", "mode": "rw"},
            ROOT + "/{username}": {"bind": "/home/jovyan/work", "mode": "rw"},
            ROOT + "/shared": {"bind": "/home/jovyan/shared", "mode": "rw"},
            "cache-{username}": "/home/jovyan/.cache",
        },
        "read_only_volumes": {"/srv/course": "/home/jovyan/course"},
        "mounts": [{"type": "bind", "source": "/srv/scratch/{username}", "target": "/scratch"}],
    }
    assert (await resolve(docker(**given), settings(storage_root=ROOT))).directory == f"{ROOT}/alice"


async def test_a_naming_strategy_of_the_admins_own_is_asked() -> None:
    naming = pytest.importorskip("dockerspawner.volumenamingstrategy").escaped_format_volume_name
    for strategy in (naming, lambda template, spawner: template.replace("WHO", spawner.escaped_name)):
        asked = docker(
            volumes={f"{ROOT}/" + ("{username}" if strategy is naming else "WHO"): "/home/jovyan"},
            format_volume_name=strategy,
        )
        assert (await resolve(asked, settings(storage_root=ROOT))).directory == f"{ROOT}/alice"
