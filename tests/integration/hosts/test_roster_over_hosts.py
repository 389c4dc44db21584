"""``ansible-bootstrap run --roster`` over several storage hosts, some of which are in trouble."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COMMAND = Path(sys.executable).parent / "ansible-bootstrap"
UID, GID = 20_001, 100


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Begin the command for a roster of names and storage hosts, with as many slots."""

    def start(hosts: Any, roster: list[tuple[str, str]], max_runs: int) -> subprocess.Popen[str]:
        (tmp_path / "config.py").write_text(
            f"c = get_config()\nc.AnsibleBootstrap.state_dir = {str(tmp_path / 'state')!r}\n"
            f"c.AnsibleBootstrap.storage_root = '/volumes'\nc.AnsibleBootstrap.inventory = {str(hosts.impatient)!r}\n"
            f"c.AnsibleBootstrap.uid = {UID}\nc.AnsibleBootstrap.gid = {GID}\n"
            f"c.AnsibleBootstrap.max_runs = {max_runs}\n"
        )
        rows = [f"{name},{host},/volumes/{name}" for name, host in roster]
        (tmp_path / "class.csv").write_text("\n".join(["name,storage_host,directory", *rows]) + "\n")
        argv = [*hosts.controller, COMMAND, "run", "--roster", "class.csv", "--config", "config.py", "--json"]
        return subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)


def test_disks_that_hang_cost_only_their_own_users(three_hosts: Any, start: Any) -> None:
    """As many as there are slots, and listed first."""
    one, two, three = three_hosts
    users = {host.name: [f"{host.name}-u{number}" for number in range(3)] for host in three_hosts}
    roster = [(name, host) for host, names in users.items() for name in names]
    with one.disk_frozen(), two.disk_frozen():
        command = start(three_hosts, roster, 2)
        homes = [three.path(f"/volumes/{name}") for name in users["store3"]]
        wait_for(lambda: all(home.exists() for home in homes))
        assert command.poll() is None
    out, err = command.communicate(timeout=200)
    status = {outcome["name"]: outcome["status"] for outcome in json.loads(out)}
    assert all(status.pop(name) == "ok" for name in users["store3"]), err
    assert len(status) == 6
    assert command.returncode == (0 if set(status.values()) == {"ok"} else 1)


def test_a_storage_host_that_is_down_ends_nobody_elses_roster(
    storage_hosts: Any, start: Any, tmp_path: Path
) -> None:
    with storage_hosts["store1"].down():
        lost = [(f"lost{number}", "store1") for number in range(1500)]
        command = start(storage_hosts, [*lost, ("rosa", "store2")], 4)
        out, err = command.communicate(timeout=200)
    reasons: dict[str, Any] = {outcome["name"]: outcome.get("reason") for outcome in json.loads(out)}
    assert reasons.pop("rosa") is None, err
    assert set(reasons.values()) == {"unreachable"} and len(reasons) == 1500
    assert command.returncode == 1
    assert "store1 is down" in err
