"""``ansible-bootstrap doctor`` with the real apply program: of the README's quick start and of what ``init`` writes, nothing is said."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli import command
from tests.integration.conftest import SOMEBODY

ROOT = Path(__file__).parents[3]
COMMAND = str(Path(sys.executable).parent / "ansible-bootstrap")

pytestmark = pytest.mark.root


def doctor(config: Path, *args: str, before: tuple[str, ...] = ()) -> tuple[int, Any]:
    args = ("doctor", "--json", "--config", str(config), *args)
    if before:
        argv = [*before, COMMAND, *args]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    else:
        done = command.run(*args, cwd=config.parent)
    assert done.stdout, done.stderr
    said = json.loads(done.stdout)
    findings = [
        finding for finding in said["findings"] if finding["check"] != "container"
    ]  # This machine may be one.
    return done.returncode if findings else 0, {**said, "findings": findings}


@pytest.fixture
def site() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="site-", dir="/tmp"))  # pytest's own are closed to other accounts
    path.chmod(0o755)
    (path / "homes").mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


def quick_start(site: Path, block: int = 0) -> Path:
    text = (ROOT / "README.md").read_text().partition("### 1. As a hook")[2]
    blocks = re.findall(r"^```python\n(.*?)^```", text.partition("### 2.")[0], re.M | re.S)
    assert len(blocks) == 2 and '"/volumes/jupyterhub"' in blocks[block]
    config = site / "jupyterhub_config.py"
    config.write_text(
        f"c.AnsibleBootstrap.state_dir = '{site}/state'\n"
        # Nobody asks a server of the network in a test.
        + blocks[block]
        .replace("/volumes/jupyterhub", f"{site}/homes")
        .replace('"url": "https://example.org/course.zip"', f'"path": "{ROOT}/examples"')
    )
    return config


def test_of_the_quick_start_nothing_is_said(site: Path) -> None:
    status, said = doctor(quick_start(site), "alice")
    assert (status, said["findings"]) == (0, [])
    assert [(user["directory"], user["uid"]) for user in said["users"]] == [(f"{site}/homes/alice", 1000)]
    assert set(said["about"]["hosts"]) == {"localhost"}


def test_of_the_quick_start_without_containers_nothing_is_said(
    site: Path, unprivileged: tuple[str, ...]
) -> None:
    """For a hub under an account of its own, which owns the storage root."""
    for path in (site, site / "homes"):
        os.chown(path, SOMEBODY, SOMEBODY)
    status, said = doctor(quick_start(site, block=1), "alice", before=unprivileged)
    assert (status, said["findings"]) == (0, [])
    assert [(user["directory"], user["uid"]) for user in said["users"]] == [(f"{site}/homes/alice", SOMEBODY)]


def test_a_storage_root_that_does_not_exist_is_named_with_what_makes_it(site: Path) -> None:
    config = quick_start(site)
    (site / "homes").rmdir()
    status, said = doctor(config)
    assert status == 2
    (finding,) = said["findings"]
    assert finding["check"] == "storage"
    assert f"{site}/homes" in finding["what"] + finding["mend"]


def test_of_what_init_writes_nothing_is_said(site: Path) -> None:
    options = ["--spawner", "simple", "--storage-root", f"{site}/homes", "--directory", str(site)]
    assert command.run("init", *options, cwd=site).returncode == 0
    config = site / "jupyterhub_config.py"
    config.write_text(f"c.AnsibleBootstrap.state_dir = '{site}/state'\n{config.read_text()}")
    status, said = doctor(config)
    assert (status, said["findings"]) == (0, [])


def test_behind_sudo_the_program_that_is_not_there_is_named(site: Path) -> None:
    options = ["--spawner", "docker", "--boundary", "sudo", "--directory", str(site)]
    assert command.run("init", *options, cwd=site).returncode == 0
    config = site / "jupyterhub_config.py"
    text = config.read_text().replace("/opt/ansible-bootstrap/bin/python", f"{site}/no/python")
    config.write_text(f"c.AnsibleBootstrap.state_dir = '{site}/state'\n{text}")
    status, said = doctor(config, "alice")
    assert status == 2
    (finding,) = said["findings"]
    assert finding["check"] == "apply program"
    assert f"{site}/no/python" in finding["what"]
    assert "docs/boundary.md" in finding["mend"]
