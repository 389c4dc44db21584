"""docs/places.md and the spawners' pages: what they paste is loaded, and says what they say.

Of each page the configurations are executed and asked where jane.doe's storage is, as ``ansible-bootstrap run`` asks;
each row of *What is refused* is added to one and has to give its sentence; files are read and commands parsed.
"""

from __future__ import annotations

import importlib.metadata
import pwd
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import kubespawner.spawner
import pytest
import systemdspawner
import yaml
from spawner_fakes import yarn_spawner
from traitlets.config import Config

from ansible_bootstrap.cli.main import make_parser
from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.errors import UnresolvedError
from ansible_bootstrap.places.offline import WAY_OUT, Detached
from ansible_bootstrap.places.resolve import PLACE_FIELDS
from ansible_bootstrap.settings import make_settings

DOCS = Path(__file__).parents[3] / "docs"
NAMES = ("places", "dockerspawner", "kubernetes", "slurm", "tljh-and-systemdspawner")
PAGES = {name: (DOCS / f"{name}.md").read_text() for name in NAMES}


def fenced(kind: str, page: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGES[page], re.M | re.S)


BLOCKS = [(name, block) for name in NAMES for block in fenced("python", name)]
REFUSED = [
    (name, row[1], row[2])
    for name in NAMES
    for row in re.finditer(
        r"^\| (.*?) \| (.*) \|$", PAGES[name].partition("## What is refused")[2].partition("\n## ")[0], re.M
    )
    if "the reason" not in row[2]
]
PACKAGES = {"KubeSpawner": "jupyterhub-kubespawner", "SystemdSpawner": "jupyterhub-systemdspawner"}


class Machine:
    """It has an account for everybody but nemo, and The Littlest JupyterHub, whose package is on no index."""

    def __init__(self, patch: pytest.MonkeyPatch, directory: Path) -> None:
        self.directory = directory
        self.missing = {"nemo", "jupyter-nemo"}
        patch.setattr(kubespawner.spawner, "load_config", lambda **given: None)
        patch.setattr("ansible_bootstrap.hub.install._running_hub", lambda: None)
        patch.setattr(pwd, "getpwnam", self._account)
        patch.setitem(sys.modules, "yarnspawner", SimpleNamespace(YarnSpawner=yarn_spawner()))
        for name in ("tljh", "tljh.normalize", "tljh.user", "tljh.user_creating_spawner"):
            module: Any = ModuleType(name)
            module.ensure_user = self.missing.discard
            module.generate_system_username = lambda name: name
            patch.setitem(sys.modules, name, module)

    def _account(self, name: str) -> pwd.struct_passwd:
        if name in self.missing:
            raise KeyError(name)
        return pwd.struct_passwd((name, "x", 1500, 1500, "", f"/home/{name}", "/bin/sh"))

    def load(self, page: str, block: str, more: str = "") -> AnsibleBootstrap:
        """Execute a block, with the page's files for those that it names, and a further line."""
        for number, text in enumerate(fenced("yaml", page)):
            file = self.directory / f"{number}.yml"
            file.write_text(text)
            block = block.replace(re.search(r"^# ([\w./-]+)", text)[1], str(file))
        c = Config()
        if "tljh" in block:
            made = {"__module__": "tljh.user_creating_spawner"}
            c.JupyterHub.spawner_class = type("UserCreatingSpawner", (systemdspawner.SystemdSpawner,), made)
        exec(compile(f"{block}\n{more}", f"docs/{page}.md", "exec"), {"c": c})
        settings = AnsibleBootstrap(config=c)
        if c.AnsibleBootstrap:
            settings.check()
        return settings


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


async def says(settings: AnsibleBootstrap) -> str:
    place = await Detached(settings).place("jane.doe")
    return ", ".join((str(place.directory), *place.also))


@pytest.mark.parametrize(
    ("page", "block"), BLOCKS, ids=[f"{name}-{place}" for place, (name, _) in enumerate(BLOCKS)]
)
async def test_a_configuration_of_a_page_says_what_it_says(machine: Machine, page: str, block: str) -> None:
    machine.missing |= {"jupyter-jane.doe"} if "tljh" in block else set()
    settings = machine.load(page, block)
    hook = settings.config.get("Spawner", {}).get("pre_spawn_hook")
    if hook:
        with pytest.raises(UnresolvedError, match="pre_spawn_hook make it"):
            await says(settings)
        await hook(SimpleNamespace(user=SimpleNamespace(name="jane.doe")))
    said = re.search(r"^# jane\.doe: (.*)$", block, re.M)
    if said:
        assert await says(settings) == said[1]
    assert page == "places" or (said and "\nsetup(c)" in block), "it can be pasted as it is"


@pytest.mark.parametrize(("page", "case", "reason"), REFUSED, ids=range(len(REFUSED)))
async def test_what_a_page_says_is_refused_is_refused_with_its_sentence(
    machine: Machine, page: str, case: str, reason: str
) -> None:
    blocks = [
        block for block in fenced("python", page) if "SystemdSpawner" not in case or '"systemd"' in block
    ]
    line = re.match(r"`(.*?)`", case)
    detached = Detached(machine.load(page, blocks[0], line[1] if line else ""))
    with pytest.raises(UnresolvedError) as refused:
        await detached.place("jane.doe" if line else "nemo")
    sentence = ".*".join(re.escape(part.strip()) for part in reason.split("…"))
    assert re.fullmatch(f"{sentence}; {re.escape(WAY_OUT)}", refused.value.details), refused.value.details


def test_pages_say_enough() -> None:
    assert sum("# jane.doe: " in block for _, block in BLOCKS) >= 16
    assert {page for page, _, _ in REFUSED} == {*NAMES} - {"places"}
    for name, text in PAGES.items():
        assert name == "places" or (f"({name}.md" in PAGES["places"] and len(text.splitlines()) <= 120)


@pytest.mark.parametrize(
    "kind", ["TorqueSpawner", "MoabSpawner", "PBSSpawner", "GridengineSpawner", "CondorSpawner", "LsfSpawner"]
)
async def test_other_batch_systems_are_asked_as_slurm_is(machine: Machine, kind: str) -> None:
    assert kind in PAGES["slurm"]
    for block in fenced("python", "slurm"):
        there = block.replace("SlurmSpawner", kind)
        assert await says(machine.load("slurm", there)) == await says(machine.load("slurm", block))


def test_files_are_what_they_are_called_and_commands_are_there() -> None:
    for name in NAMES:
        for text in fenced("yaml", name):
            if text.startswith("# /etc/ansible-bootstrap/settings.yml"):
                make_settings(yaml.safe_load(text), name)
        for line in "".join(fenced("console", name)).splitlines():
            words = shlex.split(line, comments=True)
            at = next((place for place, word in enumerate(words) if word.endswith("ansible-bootstrap")), None)
            if at is not None:
                make_parser().parse_args(words[at + 1 :])


def test_the_page_has_every_field_and_all_were_tested_with_what_they_say() -> None:
    table = PAGES["places"].partition("A dict may have these keys")[2].partition("A function")[0]
    assert set(
        re.findall(r"`(\w+)`(?=[,|` ])", "".join(re.findall(r"^\|(.*?)\|", table, re.M)) + " ")
    ) == set(PLACE_FIELDS)
    for text in PAGES.values():
        for package, version in re.findall(r"([\w-]*spawner) (\d[\d.]+\d)", text, re.IGNORECASE):
            if package == "jupyterhub-yarnspawner":
                continue
            installed = importlib.metadata.version(PACKAGES.get(package, package.lower()))
            assert installed.partition(".")[0] == version.partition(".")[0], package
