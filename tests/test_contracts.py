"""What the project promises about itself: names that agree, imports that are absent, examples that exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_bootstrap import config, errors
from ansible_bootstrap.cli import main as cli
from ansible_bootstrap.settings import ApplySettings
from ansible_bootstrap.storage._plan import BUILT_IN_ROLES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ansible_bootstrap"
README = ROOT / "README.md"
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if (path / "tasks").is_dir())


def imports(path: Path) -> set[str]:
    """The top-level names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


# Absences


def test_what_runs_on_storage_hosts_is_standard_library_only() -> None:
    for path in (ROOT / "plugins/module_utils").glob("*.py"):
        foreign = imports(path) - set(sys.stdlib_module_names)
        assert not foreign, f"{path.name} imports {foreign}"


@pytest.mark.parametrize("module", ["ansible_bootstrap.apply", "ansible_bootstrap.protocol"])
def test_the_apply_program_starts_without_the_hubs_libraries(module: str) -> None:
    code = f"import {module}, sys; print(sorted({{'jupyterhub', 'traitlets', 'tornado'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_built_in_roles_touch_storage_through_their_module_alone() -> None:
    for role in ROLES:
        (task,) = load(ROOT / "roles" / role / "tasks/main.yml")
        assert f"ansible_bootstrap.jupyterhub.{role}" in task, f"{role} does something beside its module"


# Agreements


def test_every_built_in_role_has_a_module_of_its_name_and_is_protected_from_shadows() -> None:
    for role in ROLES:
        assert (ROOT / "plugins/modules" / f"{role}.py").is_file()
        assert role in BUILT_IN_ROLES


def test_the_hubs_settings_for_the_apply_side_are_the_apply_sides() -> None:
    assert set(ApplySettings.model_fields) == config.APPLY_SIDE


def test_every_setting_has_help_and_stands_in_the_readme() -> None:
    text = README.read_text()
    for name, trait in config.AnsibleBootstrap.class_own_traits(config=True).items():
        assert len(trait.help.strip()) > 20, f"{name} has no help"
        assert f"`{name}`" in text, f"the README does not have {name}"


def test_every_command_and_option_stands_in_the_readme() -> None:
    text = README.read_text()
    parser = cli.make_parser()
    (commands,) = (action for action in parser._actions if hasattr(action, "choices") and action.choices)
    for name, command in commands.choices.items():
        assert f"ansible-bootstrap {name}" in text
        for action in command._actions:
            for option in action.option_strings:
                if option.startswith("--") and option != "--help":
                    assert option in text, f"the README does not have {name} {option}"


def test_every_reason_has_a_class_and_stands_in_the_readme() -> None:
    assert set(errors.BY_REASON) == set(errors.REASONS)
    for reason in errors.REASONS:
        assert f"`{reason}`" in README.read_text()


def test_no_message_for_students_has_a_path_or_a_technical_word() -> None:
    for cls in errors.BY_REASON.values():
        assert re.search(r"/|ansible|\brole|uid|error|exception", cls.message, re.IGNORECASE) is None


def test_the_collections_version_is_the_packages() -> None:
    from ansible_bootstrap import __version__

    assert load(ROOT / "galaxy.yml")["version"] == __version__


def test_the_collection_is_found_through_tracked_symlinks() -> None:
    links = ROOT / "ansible_collections/ansible_bootstrap/jupyterhub"
    for name in ("galaxy.yml", "meta", "playbooks", "plugins", "roles"):
        assert (links / name).is_symlink()
        assert (links / name).resolve() == ROOT / name


def test_every_test_file_has_a_name_of_its_own() -> None:
    """Pytest imports them by that name, and finds two of one name only when both are collected."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})


# Sizes


def test_architecture_stays_a_page_that_is_read() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) <= 100
