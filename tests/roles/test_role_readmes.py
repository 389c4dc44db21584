"""A role's README, defaults and argument_specs say the same. `python tests/roles/test_role_readmes.py` writes the READMEs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = Path(__file__).resolve().parents[2] / "roles"
NAMES = sorted(path.parent.parent.name for path in ROLES.glob("*/meta/argument_specs.yml"))


def _spec(role: str) -> dict[str, Any]:
    text = (ROLES / role / "meta/argument_specs.yml").read_text()
    return dict(yaml.safe_load(text)["argument_specs"]["main"])


def _defaults(role: str) -> dict[str, Any]:
    return yaml.safe_load((ROLES / role / "defaults/main.yml").read_text()) or {}


def readme(role: str) -> str:
    """The README that the specs make."""
    spec = _spec(role)
    lines = [f"# ansible_bootstrap.jupyterhub.{role}", "", f"{spec['short_description']}.", ""]
    lines += [*(_markdown(line) for line in spec["description"]), ""]
    lines += ["| Variable | Type | Default | Meaning |", "|---|---|---|---|"]
    for name, option in spec["options"].items():
        kind = f"{option['type']} of {option['elements']}" if "elements" in option else option["type"]
        default = "required" if option.get("required") else f"`{_as_yaml(option['default'])}`"
        lines.append(f"| `{name}` | {kind} | {default} | {_markdown(option['description'])} |")
    lines += ["", "This page is made from `meta/argument_specs.yml`.", ""]
    return "\n".join(lines)


def _as_yaml(value: object) -> str:
    if isinstance(value, str):
        return '"{}"'.format(value.replace("|", "\\|"))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _markdown(text: str) -> str:
    return re.sub(r"C\(([^)]*)\)", r"`\1`", text.strip())


@pytest.mark.parametrize("role", NAMES)
def test_defaults_specs_and_readme_agree(role: str) -> None:
    options, defaults = _spec(role)["options"], _defaults(role)
    assert all(name.startswith(f"{role}_") for name in options)
    assert defaults == {
        name: option["default"] for name, option in options.items() if not option.get("required")
    }
    assert (ROLES / role / "README.md").read_text() == readme(role)


if __name__ == "__main__":
    for each in NAMES:
        (ROLES / each / "README.md").write_text(readme(each))
