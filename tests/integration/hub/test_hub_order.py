"""What is prepared is what is mounted, whatever hooks and classes a site has, and wherever its configuration has them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_fakes import FakeApply, until
from hub_process import RunningHub

ORDER = """
def moves(spawner):
    if spawner.user.name == "mover":
        spawner.home_dir = f"{path}/storage/red/mover"
    note("late", spawner)

def then(spawner):
    if spawner.user.name == "thener":
        spawner.home_dir = f"{path}/storage/blue/thener"
    note("then", spawner)

def broken(spawner):
    raise RuntimeError("the site's hook fails")

class Own(SimpleLocalProcessSpawner):
    def run_pre_spawn_hook(self):
        note("own class", self)

    async def start(self):
        if self.user.name == "starter":
            self.home_dir = f"{path}/storage/green/starter"
        return await super().start()

c.JupyterHub.spawner_class = Own
c.Own.pre_spawn_hook = broken
setup(c, then=then)
"""
LATE = ORDER.replace("class Own", "class Unused").replace(
    "c.JupyterHub.spawner_class = Own\nc.Own.pre_spawn_hook = broken",
    "c.SimpleLocalProcessSpawner.pre_spawn_hook = moves",
)
UNKNOWN = """
from jupyterhub.spawner import Spawner
c.JupyterHub.spawner_class = type("Own", (Spawner,), dict.fromkeys(("start", "stop", "poll"), lambda self: None))
"""
VOLUMES = """
c.JupyterHub.spawner_class = "simple"
c.AnsibleBootstrap.place = {"volumes": {"home": "/volumes/home"}}
"""
FILE = """
c.JupyterHub.spawner_class = "simple"
(path / "part.py").write_text("from ansible_bootstrap import setup\\nc = get_config()\\nsetup(c)")
load_subconfig(str(path / "part.py"))
"""


@pytest.fixture
def begin(start_hub: Callable[..., RunningHub], own: FakeApply) -> Callable[..., RunningHub]:
    return lambda **options: start_hub(apply_command=own.command, **options)


def prepared(apply: FakeApply) -> list[str]:
    return [Path(directory).parent.name for run in apply.runs for directory in run["directories"]]


async def test_a_hook_that_is_set_after_setup_runs_first_and_says_where(
    begin: Callable[..., RunningHub], own: FakeApply
) -> None:
    hub = begin(more=LATE)
    async with hub.api() as api:
        await api.create("mover", "thener")
        assert (await api.spawn("mover")).status_code == 201
        assert prepared(own) == ["red"], "and nothing was made at another place"
        assert hub.hooks == ["late mover", "then mover"]
        assert (await api.spawn("thener")).status_code == 201
        assert prepared(own) == ["red", "storage", "blue"], "the hook for afterwards moved it"


async def test_a_class_with_hooks_and_a_start_of_its_own(
    begin: Callable[..., RunningHub], own: FakeApply
) -> None:
    hub = begin(more=ORDER)
    async with hub.api() as api:
        await api.create("plain", "starter")
        assert (await api.spawn("plain")).status_code == 201
        assert hub.hooks == ["own class plain", "then plain"]
        answer = await api.spawn("starter")
        assert answer.status_code == 503
        assert "configured where your storage is" in answer.json()["message"]
        assert "/storage/starter' on localhost" in hub.log and "was prepared, and the server has" in hub.log
        assert f"{hub.path}/storage/green/starter" in hub.log
        assert (await api.user("starter"))["servers"] == {}, "the wrong directory is not served"


async def test_a_file_of_its_own_drops_no_hook(begin: Callable[..., RunningHub], own: FakeApply) -> None:
    hub = begin(bootstrapped=True, more=FILE)
    async with hub.api() as api:
        await api.create("alice")
        assert (await api.spawn("alice")).status_code == 201
        assert prepared(own) == ["storage"]
        assert hub.hooks == ["chained alice"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"storage_root": "/volumes"}, "/etc/ansible-bootstrap/settings.yml"),
        ({"storage_rot": "/volumes"}, "did you mean 'storage_root'?"),
        ({"timeout": "soon"}, "timeout"),
    ],
)
def test_a_hub_with_settings_that_cannot_be_used_does_not_start(
    tmp_path: Path, own: FakeApply, settings: dict[str, Any], said: str
) -> None:
    path = tmp_path / "hub"
    path.mkdir()
    hub = RunningHub(path, apply_command=own.command, **settings)
    try:
        assert hub.process.wait(30) == 1
        assert "the hub does not start" in hub.log and said in hub.log
        assert "Traceback" not in hub.log
    finally:
        hub.kill()


async def test_a_hub_that_only_observes_starts_all_the_same(
    begin: Callable[..., RunningHub], own: FakeApply
) -> None:
    hub = begin(mode="observe", storage_rot="/volumes")
    async with hub.api() as api:
        await api.create("alice")
        assert (await api.spawn("alice")).status_code == 201
    assert "did you mean 'storage_root'?" in hub.log


async def test_one_line_says_what_will_be_done(begin: Callable[..., RunningHub]) -> None:
    hub = begin()
    (line,) = [line for line in hub.log.splitlines() if "ansible_bootstrap 0." in line]
    assert "mode enforce, places from SimpleLocalProcessSpawner" in line and sys.executable in line
    assert "unknown class" not in hub.log


async def test_what_the_probe_of_the_storage_host_finds_is_said_once_the_hub_is_up(
    begin: Callable[..., RunningHub], own: FakeApply
) -> None:
    own.do(findings=[{"level": "error", "what": "root is squashed here", "mend": "no_root_squash"}])
    hub = begin(more='c.AnsibleBootstrap.storage_host = "localhost"')
    await until(lambda: "root is squashed here" in hub.log)
    async with hub.api() as api:
        await api.create("alice")
        assert (await api.spawn("alice")).status_code == 201
    (line,) = [line for line in hub.log.splitlines() if "squashed" in line]
    assert line.startswith("[E ") and line.endswith(
        "ansible_bootstrap: root is squashed here: no_root_squash"
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (UNKNOWN, "Own is a spawner of an unknown class, so no server will start"),
        (VOLUMES, "place has volumes, which jupyterhub.spawner.SimpleLocalProcessSpawner does not have"),
    ],
    ids=["class", "volumes"],
)
async def test_what_lets_no_server_start_is_named_at_the_start(
    begin: Callable[..., RunningHub], more: str, said: str
) -> None:
    assert said in begin(more=more).log
