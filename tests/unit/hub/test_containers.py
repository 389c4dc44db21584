"""What a container or service that is about to run really mounts: the spawners are the real ones, the daemon is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from dockerspawner import DockerSpawner, SwarmSpawner
from hub_fakes import Lines
from spawner_fakes import ROOT, settings, spawner
from wrapspawner import WrapSpawner

from ansible_bootstrap import BootstrapError
from ansible_bootstrap.hub import bootstrapped, spawns
from ansible_bootstrap.places.resolve import resolve

VOLUMES = {f"{ROOT}/{{username}}/": "/home/jovyan", f"{ROOT}/work/{{username}}": "/work"}
WORK = {"Type": "bind", "Source": f"{ROOT}/work/alice", "Destination": "/work", "RW": True}


def bind(source: str, target: str = "/home/jovyan", writable: bool = True) -> dict[str, Any]:
    return {"Type": "bind", "Source": source, "Destination": target, "Mode": "", "RW": writable}


class _Daemon:
    """Has one container or service, of an earlier start, and notes what it is asked."""

    mounted: Any = None
    answers: Any = None

    async def docker(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self.asked = [*getattr(self, "asked", []), method]
        if self.answers is not None and method.startswith("inspect_") and self.asked.count(method) > 1:
            raise self.answers
        if method == "tasks":
            return [{"Status": {"State": "running"}}]
        spec = {"TaskTemplate": {"ContainerSpec": {"Mounts": self.mounted}}}
        described = {"Mounts": self.mounted} if "container" in method else {"Spec": spec}
        return {"Id": "1", "ID": "1", "Config": {"Env": []}, **described}

    async def get_ip_and_port(self) -> tuple[str, int]:
        return "127.0.0.1", 8888

    def get_env(self) -> dict[str, str]:
        return {}  # Needs a hub.


class Kept(_Daemon, DockerSpawner):
    pass


class Swarm(_Daemon, SwarmSpawner):
    pass


async def prepared(
    monkeypatch: pytest.MonkeyPatch, cls: Any, log: Lines, place: Any = None, **given: Any
) -> Any:
    """A spawner of that class, for which what its settings mount has been prepared."""
    config = settings(place=place)
    monkeypatch.setattr(spawns, "core_of", lambda spawner: SimpleNamespace(config=config))
    asked = spawner(bootstrapped(cls))
    for name, value in given.items():
        setattr(asked, name, value)
    asked.log = log.logger
    spawn = spawns.spawn_of(asked)
    spawn.place, spawn.ready = await resolve(asked, config), 1.0
    return asked


@pytest.mark.parametrize(
    ("mounted", "named"),
    [
        ([bind(f"{ROOT}/alice"), WORK], ""),
        ([bind(f"{ROOT}/alice/", "/elsewhere"), bind("/etc", writable=False), WORK], ""),
        ([bind("/old/alice"), WORK], f"{ROOT}/alice was prepared, and the container jupyter-alice has /old/alice at"),
        ([bind(f"{ROOT}/alice", writable=False), WORK], f"has {ROOT}/alice (read-only) at /home/jovyan"),
        ([bind(f"{ROOT}/alice")], f"{ROOT}/work/alice was prepared, and the container jupyter-alice has nothing at /work"),
        ([{"Type": "tmpfs", "Source": "", "Destination": "/tmp", "RW": True}], "has nothing at /home/jovyan"),
    ],
)  # fmt: skip
async def test_a_kept_container_with_other_mounts_never_runs_and_one_question_tells(
    mounted: Any, named: str, monkeypatch: pytest.MonkeyPatch, log: Lines
) -> None:
    asked = await prepared(
        monkeypatch, Kept, log, volumes=VOLUMES, notebook_dir="/home/jovyan", pull_policy="skip"
    )
    asked.mounted = mounted
    if not named:
        await asked.start()
        assert asked.asked == ["inspect_container", "inspect_container", "start"]
        return
    with pytest.raises(BootstrapError) as caught:
        await asked.start()
    assert "start" not in asked.asked
    assert caught.value.reason == "unresolved"
    (line,) = [line for line in log.lines if "was prepared" in line]
    assert named in line and "docker rm jupyter-alice" in line and "c.DockerSpawner.remove = True" in line
    assert spawns.spawn_of(asked).ready is None


async def test_a_daemon_that_does_not_answer_takes_no_server_away(
    monkeypatch: pytest.MonkeyPatch, log: Lines
) -> None:
    asked = await prepared(monkeypatch, Kept, log, volumes=VOLUMES, pull_policy="skip")
    asked.mounted, asked.answers = [bind("/old/alice")], TimeoutError()
    assert await asked.start() == ("127.0.0.1", 8888)
    assert "start" in asked.asked
    assert any("cannot be told" in line for line in log.lines)


async def test_a_path_that_only_the_admin_names_is_not_looked_for_among_the_mounts(
    monkeypatch: pytest.MonkeyPatch, log: Lines
) -> None:
    """The storage host may have the export elsewhere than the machines with the containers."""
    asked = await prepared(
        monkeypatch, Kept, log, "/export/{username}", volumes={"/mnt/{username}": "/home/jovyan"}
    )
    asked.mounted = [bind("/mnt/alice")]
    await asked.start()
    assert asked.asked[-1] == "start"


async def test_a_service_is_asked_by_its_specification(monkeypatch: pytest.MonkeyPatch, log: Lines) -> None:
    """``extra_container_spec`` may have mounts, which replace those of ``volumes``."""
    asked = await prepared(monkeypatch, Swarm, log, volumes=VOLUMES, cmd=["lab"])
    asked.mounted = [
        {"Type": "bind", "Source": f"{ROOT}/alice", "Target": "/home/jovyan"},
        {"Type": "bind", "Source": f"{ROOT}/work/alice", "Target": "/work"},
    ]
    await asked.start()
    spawns.spawn_of(asked).checked = False
    asked.mounted = [{"Type": "bind", "Source": "/old/alice", "Target": "/home/jovyan"}, asked.mounted[1]]
    with pytest.raises(BootstrapError):
        await asked.start()
    (line,) = [line for line in log.lines if "was prepared" in line]
    assert "the service jupyter-alice has /old/alice at /home/jovyan: its class, or a setting beside" in line


async def test_the_container_of_a_wrappers_child_is_asked_after_the_start(
    monkeypatch: pytest.MonkeyPatch, log: Lines
) -> None:
    asked = await prepared(monkeypatch, WrapSpawner, log, child_class=Kept, child_config={"volumes": VOLUMES})
    monkeypatch.setattr(Kept, "mounted", [bind("/old/alice"), WORK])
    with pytest.raises(BootstrapError):
        await asked.start()
    assert any("has /old/alice at /home/jovyan" in line for line in log.lines)
