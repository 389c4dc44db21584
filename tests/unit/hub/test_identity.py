"""uid and gid from the login: what LDAPAuthenticator leaves in the auth_state, and what else may be there."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub.spawner import SimpleLocalProcessSpawner, Spawner
from traitlets.config import Config

from ansible_bootstrap import BootstrapError
from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.errors import UnresolvedError
from ansible_bootstrap.hub import pre_spawn_hook
from ansible_bootstrap.place import Place
from ansible_bootstrap.places.resolve import resolve

ROOT = "/volumes/jupyterhub"
STATE = {"user_attributes": {"uidNumber": ["20001"], "gidNumber": ["20002"], "homeDirectory": ["/home/x"]}}


class User(SimpleNamespace):
    """A user whose auth_state is asked for at a cost."""

    def __init__(self, state: Any) -> None:
        super().__init__(name="alice", groups=[], url="/", settings={}, spawners={}, state=state, asked=0)

    async def get_auth_state(self) -> Any:
        self.asked += 1
        await asyncio.sleep(0)
        if isinstance(self.state, Exception):
            raise self.state
        return self.state


def spawner(state: Any, cls: type = Spawner, **given: Any) -> Any:
    return cls(user=User(state), config=Config({cls.__name__: given}))


def docker(state: Any, **given: Any) -> Any:
    dockerspawner = pytest.importorskip("dockerspawner")
    return spawner(
        state, dockerspawner.DockerSpawner, volumes={ROOT + "/{username}": "/home/jovyan"}, **given
    )


def settings(**given: Any) -> AnsibleBootstrap:
    return AnsibleBootstrap(config=Config({"AnsibleBootstrap": given}))


REQUEST = {"uid": "request", "place": ROOT + "/{username}"}


async def test_the_login_gives_uid_and_gid_and_the_spawner_the_directory() -> None:
    place = await resolve(docker(STATE), settings(**REQUEST, storage_root=ROOT))
    assert place == Place(
        "alice", directory=f"{ROOT}/alice", uid=20001, gid=20002, storage_host="localhost"
    ), "homeDirectory is no directory of ours"


@pytest.mark.parametrize(
    "state",
    [
        STATE,
        {"uidNumber": ["20001"], "gidNumber": ["20002"]},
        {"user_attributes": {"uidNumber": [20001], "gidNumber": [20002]}},
        {"user_attributes": {"uidNumber": [b"20001"], "gidNumber": [b"20002"]}},
        {"user_attributes": {"uidNumber": 20001, "gidNumber": "20002"}},
        {"user_attributes": {"uidnumber": ["20001"], "GIDNUMBER": ("20002",)}},
        {"uidNumber": ["7"], "gidNumber": ["7"], **STATE},
        {"user_attributes": {}, "uidNumber": ["20001"], "gidNumber": ["20002"]},
    ],
    ids=["v2", "v1", "int", "bytes", "single", "case", "nested_wins", "flat_beside_nested"],
)
async def test_every_form_that_authenticators_leave(state: Any) -> None:
    place = await resolve(spawner(state), settings(**REQUEST))
    assert (place.uid, place.gid) == (20001, 20002)


async def test_what_the_real_authenticator_leaves() -> None:
    """The form is the authenticator's, and its values are those of ldap3."""
    ldap3 = pytest.importorskip("ldap3")
    authenticator = pytest.importorskip("ldapauthenticator").LDAPAuthenticator(
        config=Config(
            {
                "LDAPAuthenticator": {
                    "server_address": "ldap.example.org",
                    "bind_dn_template": "uid={username},ou=people,dc=example,dc=org",
                    "auth_state_attributes": ["uidNumber", "gidNumber"],
                }
            }
        )
    )
    dn = "uid=alice,ou=people,dc=example,dc=org"
    server = ldap3.Server("fake", get_info=ldap3.OFFLINE_SLAPD_2_4)
    connection = ldap3.Connection(server, user=dn, password="secret", client_strategy=ldap3.MOCK_SYNC)
    connection.strategy.add_entry(
        dn,
        {
            "uid": "alice",
            "userPassword": "secret",
            "objectClass": ["posixAccount"],
            "uidNumber": "20001",
            "gidNumber": "20002",
        },
    )
    connection.bind()
    authenticator.get_connection = lambda *args, **kwargs: connection
    answer = await authenticator.authenticate(None, {"username": "alice", "password": "secret"})
    assert answer["name"] == "alice"
    place = await resolve(spawner(answer["auth_state"]), settings(**REQUEST))
    assert (place.uid, place.gid) == (20001, 20002), answer["auth_state"]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (["20001", "20002"], "has 2 values, not one"),
        (["alice"], "is one str that is no plain number"),
        (["-1"], "is one str"),
        (["0x10"], "is one str"),
        (["²"], "is one str"),
        (["9" * 4500], "is one str"),
        ([-1], "is one int"),
        ([True], "is one bool"),
        ([20001.0], "is one float"),
        ([None], "is one NoneType"),
        ([b"\xff"], "is one bytes"),
        ({"a": 1}, "is one dict"),
        ([["20001"]], "is one list"),
    ],
    ids=lambda value: repr(value)[:20],
)
async def test_what_is_no_single_number_is_refused_without_quoting_it(value: Any, why: str) -> None:
    state = {"user_attributes": {"uidNumber": value, "gidNumber": ["1"], "userPassword": ["hunter2"]}}
    with pytest.raises(UnresolvedError, match=f"uidNumber in the auth_state {why}") as caught:
        await resolve(spawner(state), settings(**REQUEST))
    assert "hunter2" not in caught.value.details
    assert "alice" not in caught.value.details
    assert "20001" not in caught.value.details


@pytest.mark.parametrize(
    "state",
    [None, {}, "broken", {"user_attributes": None}, {"user_attributes": {"uidNumber": [], "mail": ["x"]}}],
    ids=repr,
)
async def test_nothing_there_names_every_way_out(state: Any) -> None:
    with pytest.raises(UnresolvedError) as caught:
        await resolve(spawner(state), settings(**REQUEST))
    for way in (
        'c.LDAPAuthenticator.auth_state_attributes = ["uidNumber", "gidNumber"]',
        "c.Authenticator.enable_auth_state",
        "JUPYTERHUB_CRYPT_KEY",
        "c.AnsibleBootstrap.uid = 1000",
        "c.AnsibleBootstrap.place",
    ):
        assert way in caught.value.details
    with pytest.raises(UnresolvedError, match=r"c\.AnsibleBootstrap\.gid = 100\b"):
        await resolve(spawner({"uidNumber": ["20001"]}), settings(**REQUEST))


async def test_an_auth_state_that_cannot_be_read_names_the_settings_and_not_its_text() -> None:
    with pytest.raises(UnresolvedError, match=r"KeyError.*enable_auth_state.*JUPYTERHUB_CRYPT_KEY") as caught:
        await resolve(spawner(KeyError("hunter2")), settings(**REQUEST))
    assert "hunter2" not in caught.value.details


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ({"uid": 1000, "gid": 100}, (1000, 100)),
        ({"uid": "nss"}, (None, None)),
        ({}, (None, None)),
        ({"uid": "request", "place": lambda asked: {"uid": 5000, "gid": 5001}}, (5000, 5001)),
    ],
    ids=["container", "nss", "default", "place"],
)
async def test_the_auth_state_is_read_only_where_it_is_needed(
    given: dict[str, Any], ids: tuple[int | None, int | None]
) -> None:
    asked = docker(KeyError("must not be asked"))
    place = await resolve(asked, settings(**given))
    assert (place.uid, place.gid) == ids
    assert asked.user.asked == 0


async def test_only_what_is_missing_is_filled_in() -> None:
    place = await resolve(spawner(STATE), settings(**{**REQUEST, "gid": 100}))
    assert (place.uid, place.gid) == (20001, 100)
    place = await resolve(spawner(STATE), settings(**{**REQUEST, "uid": 1000, "gid": "request"}))
    assert (place.uid, place.gid) == (1000, 20002)
    place = await resolve(docker(STATE, extra_create_kwargs={"user": "1234"}), settings(**REQUEST))
    assert (place.uid, place.gid) == (1234, 20002)
    local = spawner(KeyError("must not be asked"), SimpleLocalProcessSpawner)
    assert (await resolve(local, settings(**REQUEST))).uid is not None


async def test_the_hooks_deadline_holds_and_nothing_is_logged_of_the_state(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def hangs() -> None:
        await asyncio.sleep(60)

    AnsibleBootstrap.clear_instance()
    asked = SimpleNamespace(
        user=User({"user_attributes": {"uidNumber": ["20001", "x"], "secret": ["hunter2"]}}),
        name="",
        _log_name="alice",
        log=logging.getLogger("test.identity"),
        config=Config(
            {
                "AnsibleBootstrap": {
                    "state_dir": str(tmp_path),
                    "storage_root": "/v",
                    "uid": "request",
                    "place": lambda asked: {"directory": "/v/alice"},
                }
            }
        ),
        progress=None,
    )
    asked.config.AnsibleBootstrap.timeout = 0.2
    with caplog.at_level(logging.DEBUG), pytest.raises(BootstrapError) as caught:
        await pre_spawn_hook(asked)
    assert caught.value.reason == "unresolved"
    assert "hunter2" not in caplog.text
    asked.user.get_auth_state = hangs
    with pytest.raises(BootstrapError) as caught:
        await pre_spawn_hook(asked)
    assert caught.value.reason == "timeout"
    AnsibleBootstrap.clear_instance()
