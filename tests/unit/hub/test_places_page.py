"""docs/places.md: its configurations are loaded, and say where it says that jane.doe's storage is."""

from __future__ import annotations

import importlib.metadata
import pwd
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import kubespawner.spawner
import pytest
from spawner_fakes import yarn_spawner
from traitlets.config import Config

from ansible_bootstrap.config import AnsibleBootstrap
from ansible_bootstrap.places.offline import Detached
from ansible_bootstrap.places.resolve import PLACE_FIELDS

PAGE = (Path(__file__).parents[3] / "docs" / "places.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
async def test_a_configuration_of_the_page_says_what_it_says(
    block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubespawner.spawner, "load_config", lambda **given: None)
    monkeypatch.setattr(
        pwd,
        "getpwnam",
        lambda name: pwd.struct_passwd((name, "x", 1500, 1500, "", f"/home/{name}", "/bin/sh")),
    )
    monkeypatch.setitem(sys.modules, "yarnspawner", SimpleNamespace(YarnSpawner=yarn_spawner()))
    c = Config()
    exec(compile(block, "docs/places.md", "exec"), {"c": c})
    settings = AnsibleBootstrap(config=c)
    if c.AnsibleBootstrap:
        settings.check()
    said = re.search(r"^# jane\.doe: (.*)$", block, re.M)
    if said:
        place = await Detached(settings).place("jane.doe")
        assert ", ".join((str(place.directory), *place.also)) == said[1]


def test_most_families_say_what_is_chosen_on_the_page() -> None:
    assert sum("# jane.doe: " in block for block in BLOCKS) >= 9


def test_the_page_has_every_field_and_was_tested_with_what_it_says() -> None:
    table = PAGE.partition("A dict may have these keys")[2].partition("A function")[0]
    assert set(
        re.findall(r"`(\w+)`(?=[,|` ])", "".join(re.findall(r"^\|(.*?)\|", table, re.M)) + " ")
    ) == set(PLACE_FIELDS)
    for package, version in re.findall(r"\| ([\w-]*spawner) ([\d.]+) \|", PAGE):
        if package == "jupyterhub-yarnspawner":
            continue
        assert importlib.metadata.version(package).partition(".")[0] == version.partition(".")[0], package
