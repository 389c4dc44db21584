"""DockerSpawner and its relatives: what we say is what the Docker client is told to mount."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import docker
import dockerspawner
import pytest
from spawner_fakes import ROOT, everybody_is_known, random_names, settings, spawner

from ansible_bootstrap.errors import UnresolvedError
from ansible_bootstrap.places.resolve import resolve


class _Told:
    """Takes the place of the Docker daemon: notes what a container is to be made of."""

    client = docker.APIClient(base_url="unix:///nowhere", version="1.41")

    async def docker(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self.made = kwargs
        return {"Id": "1"}

    def get_env(self) -> dict[str, str]:
        return {}  # Needs a hub.

    async def get_command(self) -> list[str]:
        return []  # Asks the daemon.


class Docker(_Told, dockerspawner.DockerSpawner):
    pass


class SystemUser(_Told, dockerspawner.SystemUserSpawner):
    pass


async def mounted(asked: Any) -> dict[str, str]:
    """By path in the container, what its own code tells Docker to mount there."""
    await asked.create_object()
    host_config = asked.made["host_config"]
    found = {bind.split(":")[1]: bind.split(":")[0] for bind in host_config.get("Binds") or ()}
    return found | {mount["Target"]: mount["Source"] for mount in host_config.get("Mounts") or ()}


TEMPLATES = [
    "{username}",
    "{raw_username}",
    "f/{username}/{servername}",
    "{prefix}-{safe_username}",
    "{username}/{imagename}",
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    "escape", [None, "legacy", lambda text: text.encode().hex()], ids=["default", "legacy", "own"]
)
async def test_what_we_say_is_what_docker_is_told(template: str, escape: Any) -> None:
    source, home = f"{ROOT}/{template}", "/home/jovyan"
    ways: list[dict[str, Any]] = [
        {"volumes": {source: home}},
        {"mounts": [{"type": "bind", "source": source, "target": home}]},
        {"extra_host_config": {"binds": {source: {"bind": home, "mode": "rw"}}}},
    ]
    more = {} if escape is None else {"escape": escape}
    for number, name in enumerate(random_names(1)):
        asked = spawner(Docker, name, server="Lab 1" if number % 2 else "", **ways[number % 3], **more)
        place = await resolve(asked, settings())
        assert place.directory == (await mounted(asked))[home].rstrip("/"), name


async def test_the_place_template_has_the_spawners_own_fields() -> None:
    for name in random_names(2):
        asked = spawner(
            Docker, name, server="gpu", volumes={f"{ROOT}/{{username}}-{{servername}}": "/home/jovyan"}
        )
        place = await resolve(asked, settings(place=f"{ROOT}/{{username}}-{{servername}}"))
        assert place.directory == (await mounted(asked))["/home/jovyan"]


async def test_the_image_that_was_chosen_is_part_of_the_path_and_the_spawner_is_left_as_it_was() -> None:
    asked = spawner(
        Docker,
        volumes={f"{ROOT}/{{username}}/{{imagename}}": "/home/jovyan"},
        image="lab:1",
        allowed_images={"gpu": "lab:gpu"},
    )
    asked.user_options = {"image": "gpu"}
    assert (await resolve(asked, settings())).directory == f"{ROOT}/alice/lab-gpu"
    assert asked.image == "lab:1"
    asked.user_options = {"image": "not allowed"}  # Its own start tells the user so.
    assert (await resolve(asked, settings())).directory == f"{ROOT}/alice/lab-1"


async def test_the_home_of_a_system_user(monkeypatch: pytest.MonkeyPatch) -> None:
    everybody_is_known(monkeypatch)
    for template in (f"{ROOT}/{{username}}", ""):
        for name in random_names(3):
            asked = spawner(SystemUser, name, host_homedir_format_string=template)
            place = await resolve(asked, settings())
            told = await mounted(asked)
            assert place.directory == told[asked.homedir], name
            assert (place.uid, place.gid) == (asked.user_id, asked.group_id)


@pytest.mark.parametrize(("told", "found"), [((-1, -1), (1000, 100)), ((5, -1), (5, 100)), ((0, 0), (0, 0))])
async def test_the_ids_of_a_system_user_are_the_admins_where_the_spawner_has_none(
    monkeypatch: pytest.MonkeyPatch, told: tuple[int, int], found: tuple[int, int]
) -> None:
    """Root's are passed on: the apply side refuses them, and nobody else's files are given instead."""
    everybody_is_known(monkeypatch)
    asked = spawner(SystemUser, host_homedir_format_string=f"{ROOT}/{{username}}")
    asked.user_id, asked.group_id = told
    place = await resolve(asked, settings(uid=1000, gid=100))
    assert (place.uid, place.gid) == found


async def test_group_overrides_are_in_what_is_mounted() -> None:
    asked = spawner(
        Docker,
        "alice",
        "red",
        volumes={f"{ROOT}/{{username}}": "/home/jovyan"},
        group_overrides={"1": {"groups": ["red"], "spawner_override": {"escape": lambda spawner: str.upper}}},
    )
    await asked.apply_group_overrides()  # The hub does so before it calls the hook.
    assert (
        (await resolve(asked, settings())).directory
        == (await mounted(asked))["/home/jovyan"]
        == f"{ROOT}/ALICE"
    )


@pytest.mark.parametrize(
    ("said", "ids"), [("0", (1000, 100)), ("root", (1000, 100)), ("0:55", (1000, 55)), ("7:8", (7, 8))]
)
async def test_the_admins_uid_wins_over_a_container_that_starts_as_root(
    said: str, ids: tuple[int, int]
) -> None:
    asked = spawner(
        Docker, volumes={f"{ROOT}/{{username}}": "/home/jovyan"}, extra_create_kwargs={"user": said}
    )
    place = await resolve(asked, settings(gid=100))
    assert (place.uid, place.gid) == ids


async def test_all_volumes_of_the_user_are_prepared_the_one_at_the_notebook_directory_first() -> None:
    for name in random_names(4):
        asked = spawner(
            Docker,
            name,
            server="gpu",
            volumes={
                f"{ROOT}/work/{{username}}": "/home/jovyan/work",
                f"{ROOT}/{{username}}/": "/home/jovyan",
                f"{ROOT}/{{username}}/{{servername}}": "/srv",
                f"{ROOT}/teams/red": "/red",
                "/elsewhere/{username}": "/mnt",
            },
            read_only_volumes={f"{ROOT}/read/{{username}}": "/read"},
        )
        place = await resolve(asked, settings())
        told = {target: source.rstrip("/") for target, source in (await mounted(asked)).items()}
        assert place.directory == told["/home/jovyan"]
        assert set(place.also) == {told["/home/jovyan/work"], told["/srv"]}


@pytest.mark.parametrize("home", ["/home", "/opt/data"])
async def test_mounts_below_any_storage_root_are_the_users(home: str) -> None:
    other = {"/home": "/opt/data", "/opt/data": "/home"}[home]
    volumes = {
        f"{home}/{{username}}": "/home/jovyan",
        f"{other}/{{username}}": "/data",
        "/srv/{username}": "/srv",
    }
    asked = spawner(Docker, "red", volumes=volumes | {f"{other}/home/red": "/red"})
    place = await resolve(asked, settings(storage_root="/home", storage_roots=["/opt/data"]))
    assert (place.directory, place.also) == (f"{home}/red", (f"{other}/red",))


async def test_servers_of_one_user_that_share_the_home_but_nothing_else_are_two_pieces_of_work() -> None:
    volumes = {f"{ROOT}/{{username}}": "/home/jovyan", f"{ROOT}/data/{{username}}/{{servername}}": "/data"}
    places = [
        await resolve(spawner(Docker, server=server, volumes=volumes), settings())
        for server in ("cpu", "gpu")
    ]
    assert places[0].directory == places[1].directory
    assert places[0].job_key != places[1].job_key


async def test_what_a_group_adds_is_the_users_or_named_once_if_it_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "blue").mkdir()

    async def place(name: str) -> Any:
        added = {f"{tmp_path}/{team}": f"/{team}" for team in ("red", "blue")} | {
            f"{tmp_path}/gpu/{{username}}": "/gpu"
        }
        asked = spawner(
            Docker,
            name,
            "red",
            volumes={f"{tmp_path}/{{username}}": "/home/jovyan"},
            group_overrides={"1": {"groups": ["red"], "spawner_override": {"volumes": added}}},
        )
        asked.log = logging.getLogger("spawner")
        await asked.apply_group_overrides()
        return await resolve(asked, settings(storage_root=str(tmp_path)))

    for name in ("alice", "bob"):
        assert {(found := await place(name)).directory, *found.also} == {
            f"{tmp_path}/{name}",
            f"{tmp_path}/gpu/{name}",
        }
    (warning,) = [record.getMessage() for record in caplog.records if "does not exist" in record.getMessage()]
    assert (
        f"{tmp_path}/red does not exist, and nothing says that it is the user's alone: Docker will make it"
        in warning
    )


async def test_a_user_called_as_a_team_is_not_given_what_the_team_has() -> None:
    for name, path in (("red", "teams/red"), ("teams", "teams/red"), ("lab", "shared-{imagename}")):
        asked = spawner(
            Docker,
            name,
            volumes={f"{ROOT}/home/{{username}}": "/home/jovyan", f"{ROOT}/{path}": "/team"},
            extra_host_config={"binds": {f"{ROOT}/{path}/more": {"bind": "/more", "mode": "rw"}}},
            image="lab",
        )
        place = await resolve(asked, settings())
        assert (place.directory, place.also) == (f"{ROOT}/home/{name}", ())


TEAMS: list[dict[str, Any]] = [
    {"volumes": {f"{ROOT}/teams/red": "/home/jovyan"}},
    {"mounts": [{"type": "bind", "source": f"{ROOT}/teams/red", "target": "/home/jovyan"}]},
    {"extra_host_config": {"binds": [f"{ROOT}/teams/red:/home/jovyan"]}},
    {"group_overrides": {"1": {"groups": ["red"], "spawner_override": {"volumes": {f"{ROOT}/teams/red/": "/home/jovyan"}}}}},
]  # fmt: skip


@pytest.mark.parametrize("root", [ROOT, None])
@pytest.mark.parametrize("way", TEAMS, ids=lambda way: next(iter(way)))
async def test_a_teams_directory_is_not_the_home_of_the_user_who_is_called_like_the_team(
    way: dict[str, Any], root: str | None
) -> None:
    for name in ("red", "teams", "bob"):
        asked = spawner(Docker, name, "red", **way)
        if "group_overrides" in way:
            await asked.apply_group_overrides()
        with pytest.raises(UnresolvedError, match=r"teams/red/? at /home/jovyan counts as shared by users"):
            await resolve(asked, settings(storage_root=root))


async def test_a_path_that_a_hook_has_made_with_the_name_in_it_is_the_home() -> None:
    asked = spawner(Docker, "red", volumes={f"{ROOT}/teams/red": "/home/jovyan"})
    asked.volumes = {f"{ROOT}/home/{asked.user.name}": "/home/jovyan"}
    assert (await resolve(asked, settings())).directory == f"{ROOT}/home/red"


async def test_a_field_in_the_target_alone_makes_no_directory_the_users() -> None:
    for binds in (
        [f"{ROOT}/{{username}}:/home/jovyan", f"{ROOT}/all:/home/{{username}}/all"],
        {f"{ROOT}/all": {"bind": "/home/{username}/all", "mode": "rw"}},
    ):
        asked = spawner(
            Docker,
            volumes={f"{ROOT}/{{username}}": "/home/jovyan"},
            extra_host_config={"binds": binds},
        )
        place = await resolve(asked, settings())
        assert (place.directory, place.also) == (f"{ROOT}/alice", ())


async def test_further_directories_in_every_spelling_of_a_mount() -> None:
    source = f"{ROOT}/work/{{username}}"
    ways: list[dict[str, Any]] = [
        {"mounts": [{"type": "bind", "source": source, "target": "/work"}]},
        {"extra_host_config": {"mounts": [{"Type": "bind", "Source": source, "Target": "/work"}]}},
        {"extra_host_config": {"binds": [f"{ROOT}/{{username}}:/home/jovyan", f"{source}:/work:rw"]}},
        {"extra_host_config": lambda spawner: {"binds": {source: {"bind": "/work", "mode": "rw"}}}},
    ]
    for name in random_names(6):
        for way in ways:
            asked = spawner(Docker, name, **{"volumes": {f"{ROOT}/{{username}}": "/home/jovyan"}, **way})
            place = await resolve(asked, settings())
            told = await mounted(asked)
            if "/home/jovyan" in told:
                assert (place.directory, place.also) == (told["/home/jovyan"], (told["/work"],))


async def test_a_missing_shared_directory_is_not_told_where_this_machine_does_not_see_the_storage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    volumes = {f"{ROOT}/{{username}}": "/home/jovyan", f"{ROOT}/teams/unseen": "/red"}
    asked = spawner(Docker, volumes=volumes)
    asked.log = logging.getLogger("spawner")
    assert (await resolve(asked, settings())).also == ()
    assert not caplog.records


async def test_the_home_of_a_system_user_and_the_volumes_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    everybody_is_known(monkeypatch)
    asked = spawner(
        SystemUser,
        host_homedir_format_string=f"{ROOT}/{{username}}",
        volumes={f"{ROOT}/work/{{username}}": "/work", f"{ROOT}/all": "/all"},
    )
    place = await resolve(asked, settings())
    assert (place.directory, place.also) == (f"{ROOT}/alice", (f"{ROOT}/work/alice",))


async def test_place_says_the_others_too() -> None:
    asked = spawner(Docker, "jane.doe", volumes={f"{ROOT}/{{username}}": "/home/jovyan"})
    said = {"also": [f"{ROOT}/work/{{username}}/"]}
    assert (await resolve(asked, settings(place=said))).also == (f"{ROOT}/work/jane-2edoe",)


async def test_a_part_of_the_name_is_no_field_of_the_users() -> None:
    """``by/a`` is that of all users whose names begin so."""
    volumes = {f"{ROOT}/{{username}}": "/home/jovyan", f"{ROOT}/by/{{username[0]}}": "/by"}
    assert (await resolve(spawner(Docker, "alice", volumes=volumes), settings(storage_root=ROOT))).also == ()


@pytest.mark.parametrize("said", [{"groups": "students"}, {"groups": 5}, {"also": "/v/x"}])
async def test_a_text_is_no_list(said: dict[str, Any]) -> None:
    name = next(iter(said))
    asked = spawner(Docker, "alice", volumes={f"{ROOT}/{{username}}": "/home/jovyan"})
    with pytest.raises(UnresolvedError, match=rf"place: {name} is a list of .*, not {said[name]!r}"):
        await resolve(asked, settings(storage_root=ROOT, place=lambda spawner: said))


async def test_a_user_called_like_a_directory_of_all_users_does_not_get_it() -> None:
    volumes = {f"{ROOT}/{{username}}": "/home/jovyan", f"{ROOT}/shared": "/shared"}
    assert (await resolve(spawner(Docker, volumes=volumes), settings())).directory == f"{ROOT}/alice"
    with pytest.raises(
        UnresolvedError, match="shared is mounted for all users, and would be the own directory of 'shared'"
    ):
        await resolve(spawner(Docker, "shared", volumes=volumes), settings())
