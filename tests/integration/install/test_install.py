"""The package and the collection are one: installed anywhere, the playbook is found without configuration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[3]
COLLECTION = "ansible_collections/ansible_bootstrap/jupyterhub"
OWNER = {"bootstrap_uid": 20_000, "bootstrap_gid": 20_000} if os.geteuid() == 0 else {}


def run(*command: object, cwd: Path, stdin: str | None = None, **environment: str) -> str:
    """Run a command in an environment with nothing in it."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        input=stdin or "",
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), "LC_ALL": "C.UTF-8", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def pip(python: Path, *words: object) -> None:
    # With this process's environment, which may say where packages come from, and its pip: the venv needs none.
    # What is never imported here is not compiled.
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
    command += ["--disable-pip-version-check", *words]
    subprocess.run(command, check=True, capture_output=True)


def build(what: str, to: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "build", what, "--outdir", to, CHECKOUT], check=True, capture_output=True
    )
    return next(to.iterdir())


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("--wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of an empty environment."""
    venv.create(tmp_path / "venv", symlinks=True)
    return tmp_path / "venv/bin/python"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An admin's home, with a role where Ansible looks by itself."""
    tasks = tmp_path / "home/.ansible/roles/greet/tasks"
    tasks.mkdir(parents=True)
    (tasks / "main.yml").write_text(
        yaml.safe_dump([{"name": "Greet", "ansible.builtin.debug": {"msg": "hello {{ username }}"}}])
    )
    return tmp_path / "home"


def bootstrap(python: Path, home: Path, play: object, cwd: Path | None = None, **more: Any) -> str:
    variables = {
        "username": "alice",
        "bootstrap_root": str(home),
        "bootstrap_roles": ["greet"],
        **OWNER,
        **more,
    }
    words = ("ansible-playbook", play, "-e", json.dumps(variables))
    return run(python.parent / words[0], *words[1:], cwd=cwd or home, HOME=str(home))


def test_everything_behind_the_symlinks_is_in_the_wheel(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    for part in ("plugins", "roles", "playbooks", "meta"):
        files = [
            path
            for path in (CHECKOUT / part).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        ]
        missing = {f"{COLLECTION}/{path.relative_to(CHECKOUT)}" for path in files} - inside
        assert not missing
    assert f"{COLLECTION}/galaxy.yml" in inside
    names = {path.name for path in (CHECKOUT / "plugins/module_utils").glob("*.py")}
    assert {f"ansible_bootstrap/storage/{name}" for name in names} <= inside
    assert not [name for name in inside if name.startswith("tests") or name.endswith(".pyc")]


def test_the_wheel_in_an_empty_environment(wheel, python, home, tmp_path):
    pip(python, wheel)
    assert "hello alice" in bootstrap(python, home, "ansible_bootstrap.jupyterhub.bootstrap")

    settings = tmp_path / "settings.json"
    owner = {"uid": 20_000, "gid": 20_000} if OWNER else {}
    roles_path = [str(home / ".ansible/roles")]
    settings.write_text(
        json.dumps({"storage_root": str(home), "roles": ["greet"], "roles_path": roles_path, **owner})
    )
    settings.chmod(0o600)
    program = subprocess.Popen(
        [python, "-I", "-m", "ansible_bootstrap.apply", "--settings", settings],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    program.stdin.write('{"operation": "bootstrap", "users": [{"name": "alice"}]}\n')
    program.stdin.flush()
    said = program.stdout.read()
    assert program.wait() == 0, said
    assert '"status": "ok"' in said
    program.stdin.close()
    program.stdout.close()

    # the apply program's machine needs no hub
    assert "False" in run(
        python, "-c", "import importlib.util as u; print(bool(u.find_spec('jupyterhub')))", cwd=home
    )
    documented = run(
        python.parent / "ansible-doc", "-t", "module", "ansible_bootstrap.jupyterhub.batch", cwd=home
    )
    assert "orders the roles" in documented


@pytest.mark.slow
def test_a_checkout_with_nothing_but_ansible_then_an_editable_install(python, home):
    pip(python, "ansible-core>=2.19,<2.22")
    assert "hello alice" in bootstrap(python, home, "playbooks/bootstrap.yml", cwd=CHECKOUT)
    pip(python, "--editable", CHECKOUT)
    assert "hello alice" in bootstrap(python, home, "ansible_bootstrap.jupyterhub.bootstrap")


def test_the_sdist_makes_the_same_wheel(wheel, tmp_path):
    sdist = build("--sdist", tmp_path / "sdist")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path / "wheel", sdist], check=True
    )
    again = next((tmp_path / "wheel").iterdir())
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())
