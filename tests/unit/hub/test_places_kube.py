"""KubeSpawner: what we say is what its own manifest mounts, on the storage host."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubespawner.spawner
import pytest
from kubernetes_asyncio.client.exceptions import ApiException
from spawner_fakes import ROOT, random_names, settings, user
from traitlets.config import Config

from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.errors import UnresolvedError
from ansible_bootstrap.places.offline import Detached
from ansible_bootstrap.places.resolve import resolve

HOME = "/home/jovyan"
NFS = {"name": "home", "nfs": {"server": "nfs1", "path": ROOT}}
SHARED = {"name": "home", "persistentVolumeClaim": {"claimName": "everybody"}}


def mount(sub: str, **more: Any) -> dict[str, Any]:
    return {"name": "home", "mountPath": HOME, "subPath": sub, **more}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubespawner.spawner, "load_config", lambda **given: None)


def pod_of(
    name: str = "alice", *, server: str = "", volumes: Any = (NFS,), mounts: Any = None, **given: Any
) -> Any:
    given = {"volumes": list(volumes), "volume_mounts": mounts or [mount("{username}")], **given}
    made = kubespawner.KubeSpawner(user=user(name), config=Config({"KubeSpawner": given}), _mock=True)
    if server:
        made.orm_spawner = type("Row", (), {"name": server, "server": None})()
    return made


async def mounted(asked: Any, roots: dict[str, str] | None = None) -> str:
    """The directory at the home as ``start`` would make the pod; ``roots`` says where volumes are."""
    await asked.load_user_options()
    pod = await asked.get_pod_manifest()
    if asked.modify_pod_hook:
        pod = asked.modify_pod_hook(asked, pod)
    spec = asked.api.api_client.sanitize_for_serialization(pod)["spec"]
    (here,) = (each for each in spec["containers"][0]["volumeMounts"] if each["mountPath"] == HOME)
    (volume,) = (each for each in spec["volumes"] if each["name"] == here["name"])
    root = (roots or {}).get(here["name"]) or (volume.get("nfs") or volume["hostPath"])["path"]
    return f"{root}/{here['subPath']}" if "subPath" in here else root


@pytest.mark.parametrize("scheme", ["safe", "escape"])
@pytest.mark.parametrize(
    "template",
    [
        "{username}",
        "{username}-{servername}",
        "u/{user_server}",
        "{unescaped_username}",
        "{escaped_user_server}",
        "{userid}/{safe_username}",
    ],
)
async def test_what_we_say_is_what_its_manifest_mounts(scheme: str, template: str) -> None:
    for number, name in enumerate(random_names(4)):
        server = "Lab 1" if number % 3 else ""
        volumes = [
            [NFS],
            [{"name": "home", "hostPath": {"path": ROOT}}],
            [{"name": "home", "host_path": {"path": f"{ROOT}/{{username}}/x"}}],
        ][number % 3]
        asked = pod_of(name, server=server, volumes=volumes, mounts=[mount(template)], slug_scheme=scheme)
        assert (await resolve(asked, settings())).directory == await mounted(asked), name


async def test_a_name_with_signs_gets_its_slug_and_no_other() -> None:
    place = await resolve(pod_of("jane.doe@uni.example"), settings())
    assert place.directory == f"{ROOT}/jane-doe-uni-example---62362669"


async def test_a_volume_is_where_the_admin_says() -> None:
    for name in random_names(5, 50):
        asked = pod_of(name, volumes=[SHARED])
        place = await resolve(asked, settings(place={"volumes": {"home": f"{ROOT}/shared"}}))
        assert place.directory == await mounted(asked, {"home": f"{ROOT}/shared"})


async def test_the_place_template_is_expanded_by_the_spawner() -> None:
    for name in random_names(6, 50):
        asked = pod_of(name, volumes=[SHARED], mounts=[mount("{username}-{servername}")])
        place = await resolve(asked, settings(place=f"{ROOT}/{{username}}-{{servername}}"))
        assert place.directory == await mounted(asked, {"home": ROOT})


async def test_an_unknown_field_lists_the_fields() -> None:
    with pytest.raises(
        UnresolvedError, match=r"'/v/\{faculty\}' cannot be filled in.*KubeSpawner knows.*\{user_server\}"
    ):
        await resolve(pod_of(), settings(place="/v/{faculty}"))


# Profiles

PROFILES = [
    {"display_name": "Small"},
    {
        "display_name": "Big",
        "slug": "big",
        "kubespawner_override": {"volume_mounts": [mount("big/{username}")], "environment": {"A": "1"}},
        "profile_options": {
            "disk": {
                "display_name": "Disk",
                "choices": {
                    "slow": {"display_name": "Slow", "default": True, "kubespawner_override": {}},
                    "fast": {
                        "display_name": "Fast",
                        "kubespawner_override": {
                            "volumes": lambda spawner: [
                                {"name": "home", "hostPath": {"path": f"{ROOT}/fast"}}
                            ],
                            "uid": 1234,
                        },
                    },
                },
            }
        },
    },
]


@pytest.mark.parametrize(
    ("options", "directory"),
    [
        ({}, "alice"),
        ({"profile": "small"}, "alice"),
        ({"profile": "big"}, "big/alice"),
        ({"profile": "big", "disk": "fast"}, "fast/big/alice"),
    ],
)
@pytest.mark.parametrize("listed", [PROFILES, lambda spawner: PROFILES], ids=["a list", "a function"])
async def test_profiles_are_applied_before_the_question_and_not_to_the_spawner(
    options: dict[str, str], directory: str, listed: Any
) -> None:
    asked = pod_of(profile_list=listed, environment={"B": "2"})
    asked.user_options = options
    before = copy.deepcopy(
        {name: value for name, value in asked._trait_values.items() if isinstance(value, list | dict)}
    )
    place = await resolve(asked, settings())
    assert place.directory == f"{ROOT}/{directory}"
    assert before.items() <= asked._trait_values.items()
    assert place.uid == (1234 if "disk" in options else 1000)
    assert place.directory == await mounted(asked)


async def test_a_profile_that_does_not_exist_is_explained() -> None:
    asked = pod_of(profile_list=PROFILES)
    asked.user_options = {"profile": "huge"}
    with pytest.raises(
        UnresolvedError, match=r"cannot apply the user's options.*No such profile: huge.*profile_list"
    ):
        await resolve(asked, settings())


async def test_a_pod_that_a_hook_changes_is_asked_after_the_change() -> None:
    def modify(spawner: Any, pod: Any) -> Any:
        pod.spec.containers[0].volume_mounts[0].sub_path = f"hooked/{spawner.user.name}"
        return pod

    asked = pod_of(modify_pod_hook=modify)
    assert (await resolve(asked, settings())).directory == await mounted(asked) == f"{ROOT}/hooked/alice"


async def test_a_pod_that_is_left_is_deleted_by_kubespawner_so_its_mounts_are_those_of_now() -> None:
    stopped: list[bool] = []

    async def create(namespace: str, pod: Any) -> None:
        if not stopped:
            raise ApiException(status=409)

    async def stop(now: bool) -> None:
        stopped.append(now)

    asked = pod_of()
    asked.api, asked.stop = SimpleNamespace(create_namespaced_pod=create), stop
    pod = SimpleNamespace(metadata=SimpleNamespace(name="jupyter-alice"))
    assert not await asked._make_create_pod_request(pod, 10)
    assert stopped == [True]
    assert await asked._make_create_pod_request(pod, 10)


TEAMS = {"name": "teams", "nfs": {"server": "nfs1", "path": f"{ROOT}/teams"}}


async def test_a_teams_directory_is_not_given_to_the_user_who_is_called_like_the_team() -> None:
    team = {"name": "teams", "mountPath": "/team", "subPath": "red"}
    place = await resolve(pod_of("red", volumes=(NFS, TEAMS), mounts=[mount("{username}"), team]), settings())
    assert (place.directory, place.also) == (f"{ROOT}/red", ())
    with pytest.raises(UnresolvedError, match="teams/red at /home/jovyan counts as shared by users"):
        await resolve(pod_of("red", volumes=(TEAMS,), mounts=[{**team, "mountPath": HOME}]), settings())
    claimed = {"name": "teams", "persistentVolumeClaim": {"claimName": "teams"}}
    place_of_claim = settings(place={"volumes": {"teams": f"{ROOT}/teams"}})
    with pytest.raises(UnresolvedError, match="counts as shared by users"):
        await resolve(pod_of("red", volumes=(claimed,), mounts=[{**team, "mountPath": HOME}]), place_of_claim)


async def test_what_a_container_beside_the_notebook_mounts_is_not_the_users() -> None:
    beside = {"name": "beside", "image": "x", "volumeMounts": [mount("beside/alice")]}
    for given in ({}, {"modify_pod_hook": lambda spawner, pod: pod}):
        asked = pod_of(extra_containers=[beside], **given)
        assert (await resolve(asked, settings())).directory == await mounted(asked) == f"{ROOT}/alice"


async def test_extra_settings_replace_the_mounts() -> None:
    asked = pod_of(
        extra_container_config={"volumeMounts": [mount("fixed/alice")]},
        extra_pod_config={
            "volumes": [{"name": "home", "nfs": {"server": "n", "path": f"{ROOT}/{{username}}"}}]
        },
    )
    assert (await resolve(asked, settings())).directory == await mounted(asked) == f"{ROOT}/alice/fixed/alice"


# What is refused


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"volumes": [{"name": "home", "persistentVolumeClaim": {"claimName": "{pvc_name}"}}]},
         r"claim 'claim-alice' is a volume of this user's own.*\"volumes\": \{\"home\""),
        ({"volumes": [{"name": "home", "persistentVolumeClaim": {"claimName": "disk-{username}"}}]},
         "'disk-alice' is a volume of this user's own"),
        ({"volumes": [SHARED]}, r"claim 'everybody' is the cluster's.*c\.AnsibleBootstrap\.place = \{\"volumes\""),
        ({"volumes": [{"name": "home", "csi": {"driver": "x"}}]}, "volume 'home' is the cluster's"),
        ({"volumes": [{"name": "home", "nfs": {"server": "nfs1", "path": "/export"}}]},
         r"/export/alice of the NFS server nfs1 is not below the storage root /volumes/jupyterhub"),
        ({"volumes": [{"name": "home", "emptyDir": {}}]}, "mounts no writable volume that is kept"),
        ({"mounts": [mount("{username}", readOnly=True)]}, "mounts no writable volume"),
        ({"mounts": [{"name": "home", "mountPath": HOME, "subPathExpr": "$(JUPYTERHUB_USER)"}]}, "use subPath"),
    ],
)  # fmt: skip
async def test_what_a_pod_cannot_tell_is_explained(given: dict[str, Any], why: str) -> None:
    with pytest.raises(UnresolvedError, match=why):
        await resolve(pod_of(**given), settings())


async def test_the_pods_security_context_says_whose_the_files_are() -> None:
    async def gid(spawner: Any) -> int:
        return 55

    place = await resolve(pod_of(uid=lambda spawner: 1500, gid=gid), settings(gid=100))
    assert (place.uid, place.gid) == (1500, 55)
    place = await resolve(pod_of(uid=0, fs_gid=100), settings())
    assert (place.uid, place.gid) == (1000, 100), "root says nothing, as in a container of Docker"


# Without a hub


def configured(**given: Any) -> AnsibleBootstrap:
    given = {"volumes": [NFS], "volume_mounts": [mount("{username}")], **given}
    ours = {"storage_root": ROOT, "uid": 1000}
    config = {
        "JupyterHub": {"spawner_class": kubespawner.KubeSpawner},
        "KubeSpawner": given,
        "AnsibleBootstrap": ours,
    }
    return AnsibleBootstrap(config=Config(config))


async def test_a_roster_gets_what_the_pods_will_mount(tmp_path: Path) -> None:
    detached = Detached(configured(pod_name_template="pod-{userid}"))
    for name in random_names(7, 30):
        assert (await detached.place(name)).directory == await mounted(pod_of(name)), name


@pytest.mark.parametrize(
    "given",
    [
        {"volume_mounts": [mount("{userid}")]},
        {"volume_mounts": [mount("{username}/{pod_name}")], "pod_name_template": "pod-{userid}"},
    ],
)
async def test_an_id_in_the_path_is_for_a_hub_to_say(given: dict[str, Any]) -> None:
    with pytest.raises(UnresolvedError, match=r"user\.id.*only a running hub knows it.*column directory"):
        await Detached(configured(**given)).place("alice")


async def test_a_profile_that_moves_the_storage_is_for_a_hub_to_say_and_others_are_not() -> None:
    with pytest.raises(
        UnresolvedError, match=r"chosen on the spawn page: .*/alice, .*/big/alice, .*/fast/big/alice"
    ):
        await Detached(configured(profile_list=PROFILES)).place("alice")
    same = [{"display_name": "A"}, {"display_name": "B", "kubespawner_override": {"mem_limit": "2G"}}]
    assert (await Detached(configured(profile_list=same)).place("alice")).directory == f"{ROOT}/alice"


async def test_no_choice_is_asked_on_a_spawner_that_has_applied_another() -> None:
    def apply(spawner: Any, options: dict[str, Any]) -> None:
        if options["profile"] == "one":
            spawner.volume_mounts[0]["subPath"] = "one/{username}"

    listed = [{"display_name": slug, "slug": slug} for slug in ("one", "two")]
    with pytest.raises(UnresolvedError, match=r"chosen on the spawn page: .*/alice, .*/one/alice"):
        await Detached(configured(profile_list=listed, apply_user_options=apply)).place("alice")


async def test_all_mounts_of_the_user_are_prepared_and_no_shared_or_read_only_one() -> None:
    for name in random_names(5, 50):
        mounts = [
            mount("{username}"),
            {**mount("{username}/work"), "mountPath": f"{HOME}/work"},
            {**mount("shared"), "mountPath": "/shared"},
            {**mount("old/{username}"), "mountPath": "/old", "readOnly": True},
        ]
        place = await resolve(pod_of(name, mounts=mounts), settings())
        assert place.also == (f"{place.directory}/work",), name
