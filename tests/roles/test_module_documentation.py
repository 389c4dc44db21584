"""What ``ansible-doc`` says of a module, with what its fragment adds, is what the module takes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.storage import _report

NAME = "ansible_bootstrap.jupyterhub"
MODULES = ("user_dir", "mkhomedir", "tutorials", "script", "cleanup")


class TakenError(Exception):
    """The module has said what it takes."""


def taken(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The argument_spec with which the module would begin."""
    module = importlib.import_module(f"ansible_collections.{NAME}.plugins.modules.{name}")
    found: dict[str, Any] = {}

    def begin(argument_spec: dict[str, Any], **_: Any) -> None:
        found.update(argument_spec)
        raise TakenError

    monkeypatch.setattr(module, "AnsibleModule", begin)
    with pytest.raises(TakenError):
        module.main()
    return found


@pytest.fixture(scope="module")
def documented() -> dict[str, Any]:
    program = Path(sys.executable).parent / "ansible-doc"
    command = [str(program), "--json", "-t", "module", *(f"{NAME}.{name}" for name in MODULES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("name", MODULES)
def test_the_documentation_is_of_what_the_module_takes(
    name: str, documented: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    doc = documented[f"{NAME}.{name}"]["doc"]
    keys = ("type", "default", "required", "elements", "choices")

    def essence(option: dict[str, Any]) -> dict[str, Any]:
        return {key: option[key] for key in keys if option.get(key) not in (None, False)}

    said = {option: essence(description) for option, description in doc["options"].items()}
    assert said == {option: essence(spec) for option, spec in taken(name, monkeypatch).items()}
    assert all(description["description"] for description in doc["options"].values())
    assert {
        attribute: doc["attributes"][attribute]["support"] for attribute in ("check_mode", "diff_mode")
    } == {
        "check_mode": "full",
        "diff_mode": "full",
    }
    assert "worked for alone" in " ".join(doc["notes"])
    contains = documented[f"{NAME}.{name}"]["return"]["users"]["contains"]
    assert contains.keys() == _report.result("alice", None).keys()
