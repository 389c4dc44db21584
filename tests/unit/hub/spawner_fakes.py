"""What the tests of places share: spawners without a hub, names of all sorts, and a name service that knows everybody."""

from __future__ import annotations

import pwd
import random
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub.spawner import Spawner
from traitlets.config import Config

from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.storage._names import NameRefusedError, check_hub_name

ROOT = "/volumes/jupyterhub"

_LETTERS = "abcxyzABCXYZ0189éßеλ李._-@+' \\|"


def random_names(seed: int, number: int = 200) -> list[str]:
    """So many different names that the hub accepts; half are plain."""
    chance = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < number:
        letters = "abcdefghijklmnopqrstuvwxyz0123456789" if len(found) % 2 else _LETTERS
        name = "".join(chance.choices(letters, k=chance.randint(1, 40)))
        try:
            found[check_hub_name(name)] = None
        except NameRefusedError:
            continue
    return list(found)


def user(name: str = "alice", *groups: str, **more: Any) -> Any:
    return SimpleNamespace(
        name=name,
        id=7,
        groups=[SimpleNamespace(name=group) for group in groups],
        url=f"/user/{name}/",
        settings={},
        spawners={},
        escaped_name=name,
        **more,
    )


def spawner(cls: type, name: str = "alice", *groups: str, server: str = "", **settings: Any) -> Any:
    """A spawner of that class and its settings, for the named server."""
    made = cls(user=user(name, *groups), config=Config({cls.__name__: settings}))
    if server:
        made.orm_spawner = SimpleNamespace(name=server, server=None)
    return made


def yarn_spawner() -> type:
    """Of a class that is not known; a stand-in where the package is not, for it brings gRPC and a Java archive along."""
    try:
        from yarnspawner import YarnSpawner
    except ImportError:
        methods = dict.fromkeys(("start", "stop", "poll"), lambda self: None)
        return type("YarnSpawner", (Spawner,), {"__module__": "yarnspawner.spawner", **methods})
    return YarnSpawner


def settings(**given: Any) -> AnsibleBootstrap:
    return AnsibleBootstrap(config=Config({"AnsibleBootstrap": {"storage_root": ROOT, "uid": 1000, **given}}))


def everybody_is_known(patch: pytest.MonkeyPatch, *but: str) -> None:
    """The name service knows every name but these, and each has a home and ids of its own."""

    def getpwnam(name: str) -> pwd.struct_passwd:
        if name in but:
            raise KeyError(f"getpwnam(): name not found: {name!r}")
        number = 2000 + sum(name.encode()) % 1000
        return pwd.struct_passwd((name, "x", number, number + 1, "", f"{ROOT}/of-{name}", "/bin/sh"))

    patch.setattr(pwd, "getpwnam", getpwnam)
