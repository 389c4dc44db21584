"""What a site role costs a user and task: as the user, as root the way stock Ansible works, and with mitogen.

One batch, our playbook, a role of four stock tasks (directory, template, link, command): with ``as: user``, with
``as: root`` under Ansible's own strategy ``free``, and, if it is installed, the latter under ``mitogen_free``. CPU is
that of the whole process tree. A run of ``user_dir`` alone is taken off. Rounds alternate; figures are medians.

    python -m benchmarks.site_role                    as root; writes benchmarks/results/site_role.md
    python -m benchmarks.site_role --users 20 --rounds 1
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe, owner

RESULTS = Path(__file__).parent / "results" / "site_role.md"
GOAL = 0.10
PR_SET_CHILD_SUBREAPER = 36
TASKS = """\
- ansible.builtin.file: {path: "{{ user_dir }}/.config", state: directory, mode: "0755"}
- ansible.builtin.template: {src: condarc.j2, dest: "{{ user_dir }}/.condarc", mode: "0644"}
- ansible.builtin.file: {src: /srv, dest: "{{ user_dir }}/shared", state: link}
- ansible.builtin.command: {argv: [touch, "{{ user_dir }}/done"], creates: "{{ user_dir }}/done"}
"""
COUNT = TASKS.count("ansible.builtin.")


def run(users: int, rights: str, mitogen: str) -> tuple[float, float]:
    """Bootstrap a batch; return seconds by the clock and of CPU."""
    top = Path(tempfile.mkdtemp(prefix="site-role-", dir="/tmp"))
    top.chmod(0o755)
    for path, text in {"tasks/main.yml": TASKS, "templates/condarc.j2": "for {{ username }}"}.items():
        file = top / "roles/dots" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (top / "volumes").mkdir()
    uid, gid = owner()
    variables = {
        "bootstrap_root": str(top / "volumes"),
        "bootstrap_uid": uid,
        "bootstrap_gid": gid,
        "bootstrap_batch": [{"name": f"u{number}"} for number in range(users)],
        "bootstrap_roles": ["user_dir", *([{"role": "dots", "as": rights}] if rights else [])],
    }
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(top),
        "ANSIBLE_ROLES_PATH": str(top / "roles"),
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_FORKS": str(2 * (os.cpu_count() or 1)),
    }
    play = "ansible_bootstrap.jupyterhub.bootstrap"
    if mitogen:
        # The strategy is the play's: a copy of the playbooks names the other one.
        shutil.copytree(Path(__file__).parents[1] / "playbooks", top / "playbooks")
        each = top / "playbooks/each_user.yml"
        each.write_text(each.read_text().replace("ansible.builtin.free", "mitogen_free"))
        environment["ANSIBLE_STRATEGY_PLUGINS"] = mitogen
        play = str(top / "playbooks/bootstrap.yml")
    before, began = _children(), time.monotonic()
    command = [Path(sys.executable).parent / "ansible-playbook", play, "-e", json.dumps(variables)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=top)
    seconds = time.monotonic() - began
    try:
        while True:  # what the playbook has left, and then ends
            os.wait()
    except ChildProcessError:
        pass
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr)
    shutil.rmtree(top)
    return seconds, _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ways = {"nothing": ("", ""), "as the user": ("user", ""), "as root, stock": ("root", "")}
    if found := importlib.util.find_spec("ansible_mitogen"):
        ways["as root, mitogen_free"] = ("root", str(Path(str(found.origin)).parent / "plugins/strategy"))
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, (rights, mitogen) in ways.items():
            measured[name].append(run(given.users, rights, mitogen))
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in measured.items()
    }
    wall, cpu = medians.pop("nothing")
    packages = ["ansible-core", *(["mitogen"] if found else [])]
    lines = [
        f"# A site role of {COUNT} stock tasks for {given.users} users, {given.rounds} rounds",
        "",
        describe(*packages),
        "",
        f"`user_dir` alone took {wall:.1f} s ({cpu:.1f} s of CPU) and is taken off. "
        f"Goal: {GOAL:.2f} s of CPU a user and task.",
        "",
        "| way | seconds | CPU seconds | CPU a user and task |",
        "|---|---|---|---|",
    ]
    for name, (seconds, used) in medians.items():
        each = (used - cpu) / given.users / COUNT
        lines.append(f"| {name} | {seconds - wall:.1f} | {used - cpu:.1f} | {each:.3f} |")
    text = "\n".join(lines) + "\n"
    given.results.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
