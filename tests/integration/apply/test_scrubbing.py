"""Nothing of the caller's surroundings reaches a run, and nothing secret is left lying about."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path

from ansible_bootstrap.apply.descendants import descendants

SECRET = "tok3n-of-the-hub"


def test_a_hostile_environment_and_directory_change_nothing(site, apply_program):
    trap, sprung = site.path / "trap", site.told / "sprung"
    (trap / "ansible").mkdir(parents=True)
    (trap / "args").write_text(f"-e @{sprung}")
    evil = f"import pathlib; pathlib.Path({str(sprung)!r}).touch()\n"
    for name in (
        "sitecustomize.py",
        "usercustomize.py",
        "json.py",
        "ansible/__init__.py",
        "ansible_bootstrap.py",
        "yaml.py",
    ):
        (trap / name).write_text(evil)
    (trap / "ansible.cfg").write_text(
        textwrap.dedent(f"""\
        [defaults]
        callback_plugins = {trap}
        stdout_callback = evil
        roles_path = {trap}
        [privilege_escalation]
        become = true
        """)
    )
    for program in ("ansible-playbook", "python3", "sh"):
        (trap / program).write_text(f"#!/bin/sh\ntouch {sprung}\n")
        (trap / program).chmod(0o755)
    site.role(
        "dump",
        {
            "name": "Dump",
            "ansible.builtin.shell": {
                "cmd": f"env > {site.told}/env; pwd > {site.told}/pwd; umask > {site.told}/umask"
            },
        },
    )
    answer = apply_program(
        ["alice"],
        {"role": "dump", "as": "root"},
        popen={
            "cwd": trap,
            "env": {
                "PATH": f"{trap}:{os.environ['PATH']}",
                "PYTHONPATH": str(trap),
                "PYTHONHOME": "/nowhere",
                "PYTHONSTARTUP": str(trap / "json.py"),
                "LD_LIBRARY_PATH": str(trap),
                "LD_PRELOAD_32": str(trap),
                "HOME": str(trap),
                "TMPDIR": str(trap),
                "ANSIBLE_CONFIG": str(trap / "ansible.cfg"),
                "ANSIBLE_ROLES_PATH": str(trap),
                "ANSIBLE_CHECK_MODE_MARKERS": "True",
                "ANSIBLE_STRATEGY": "evil",
                "ANSIBLE_LIBRARY": str(trap),
                "ANSIBLE_BOOTSTRAP_OUTCOMES": str(sprung),
                "BASH_ENV": str(trap / "sh"),
                "ENV": str(trap / "sh"),
                "RUNNER_ARGS": "x",
                "JUPYTERHUB_API_TOKEN": SECRET,
            },
        },
    )
    assert (answer.status, answer.ok) == (0, {"alice"}), answer
    assert not sprung.exists()
    seen = dict(line.partition("=")[::2] for line in (site.told / "env").read_text().splitlines())
    assert str(trap) not in json.dumps(seen)
    assert SECRET not in json.dumps(seen)
    assert not {name for name in seen if name.startswith(("JUPYTERHUB", "LD_", "BASH_ENV"))}
    assert (site.told / "umask").read_text().strip() == "0077"


def test_the_callers_secrets_are_nowhere_during_a_run(site, apply_program):
    waiting, released = site.told / "waiting", site.told / "go"
    pause = f"touch {waiting}; until [ -e {released} ]; do sleep 0.05; done"
    site.role("pause", {"name": "Pause", "ansible.builtin.command": {"argv": ["sh", "-c", pause]}})
    settings = site.settings(roles=["pause"], extra_vars={"site_password": "admins-own"})
    running = apply_program.start(
        ["alice"], settings=settings, popen={"env": {**os.environ, "JUPYTERHUB_API_TOKEN": SECRET}}
    )
    directory = running.directory
    running.wait_for(waiting.exists)

    everything = b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
    assert b"alice" in everything, "looked in the wrong place"
    assert SECRET.encode() not in everything
    family = descendants(running.process.pid)
    started = {
        pid
        for pid in family
        if _read(f"/proc/{pid}/cmdline") != _read(f"/proc/{running.process.pid}/cmdline")
    }
    environments = b"".join(_read(f"/proc/{pid}/environ") for pid in started)
    assert SECRET.encode() not in environments
    arguments = b"".join(_read(f"/proc/{pid}/cmdline") for pid in family | {running.process.pid})
    assert b"ansible-playbook" in arguments
    for secret in (SECRET, "admins-own", "alice"):
        assert secret.encode() not in arguments, "ps shows it"
    for path in [directory, *directory.rglob("*")]:
        assert path.is_symlink() or path.stat().st_mode & 0o077 == 0, f"{path} can be read by others"

    released.touch()
    answer = running.answer()
    assert answer.status == 0, answer
    assert SECRET not in json.dumps(answer.events) + answer.log


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def test_no_events_are_kept_and_ansible_polls_seldom(site, apply_program):
    poll = "{{ lookup('ansible.builtin.config', 'DEFAULT_INTERNAL_POLL_INTERVAL') }}"
    listing = f"ls $AWX_ISOLATED_DATA_DIR/job_events > {site.told}/events; echo $RUNNER_OMIT_EVENTS > {site.told}/omit"
    site.role(
        "look",
        {"name": "Say", "ansible.builtin.debug": {"msg": "hello"}},
        {"name": "Wait", "ansible.builtin.command": {"argv": ["sleep", "1"]}},
        {"name": "Look", "ansible.builtin.shell": {"cmd": f"{listing}; echo {poll} > {site.told}/poll"}},
    )
    answer = apply_program(["alice"], {"role": "look", "as": "root"})
    assert answer.ok == {"alice"}, answer.outcomes["alice"]["message"]
    kept = [name for name in (site.told / "events").read_text().split() if not name.endswith("-partial.json")]
    assert kept == []
    assert (site.told / "omit").read_text() == "True\n"
    assert (site.told / "poll").read_text() == "0.005\n"


def test_a_descriptor_above_the_callers_limit_is_closed(site, apply_program):
    """A limit can be lowered below what is open already."""
    site.role("slow", {"name": "Wait", "ansible.builtin.command": {"argv": ["sleep", "300"]}})
    shell = 'ulimit -S -n "$(ulimit -H -n)"; exec 15000</etc/passwd; ulimit -S -n 256; exec "$@"'
    settings = site.settings(roles=["slow"])
    running = apply_program.start(["alice"], settings=settings, prefix=("bash", "-c", shell, "sh"))
    running.wait_for(lambda: running.events())
    files = os.listdir(f"/proc/{running.process.pid}/fd")
    assert "15000" not in files, files
    running.stop()
    assert running.answer().status == 3
