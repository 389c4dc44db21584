"""Our modules run in a fork of Ansible's worker where nothing speaks against it, and nobody can tell but by the clock."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

STARTED = "EXEC /bin/sh -c"
"""What Ansible says (-vvv) when it starts an interpreter for a module."""

OWNER = (20_000, 20_000) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.fixture
def module(site, playbook):
    """Run the module user_dir as a task; return its result, and whether an interpreter was started for it."""

    def run(
        *options: str, users: int = 2, root: Path = site.root, arguments: Any = None, **keywords: Any
    ) -> tuple[Any, bool]:
        uid, gid = OWNER
        batch = [
            {"name": f"u{number}", "directory": f"{root}/u{number}", "uid": uid, "gid": gid}
            for number in range(users - 1)
        ]
        batch.append({"name": "mallory", "directory": "/etc", "uid": uid, "gid": gid})
        given = {"users": batch, "root": str(root), **(arguments or {})}
        task = {"name": "T", "ansible_bootstrap.jupyterhub.user_dir": given, "register": "said", **keywords}
        told = site.path / "told.json"
        tell = {
            "name": "Tell",
            "ansible.builtin.copy": {"content": "{{ said | to_json }}", "dest": str(told), "mode": "0600"},
            "check_mode": False,
            "no_log": True,
        }
        plays = [
            {
                "name": "P",
                "hosts": "localhost",
                "gather_facts": False,
                "tasks": [
                    {"ignore_errors": True, **task},
                    {"name": "Mark", "ansible.builtin.debug": {"msg": "MARK"}},
                    tell,
                ],
            }
        ]
        file = site.path / "play.yml"
        file.write_text(yaml.safe_dump(plays))
        play = playbook("-vvv", *options, play=str(file))
        assert play.status == 0, play.output
        return json.loads(told.read_text()), STARTED in play.output.partition("MARK")[0]

    return run


def another_way_to_this_interpreter(path: Path) -> str:
    """Make Ansible start it: it is not the path that the worker runs by."""
    link = path / "python-elsewhere"
    if not link.exists():
        link.symlink_to(os.path.realpath(sys.executable))
    return f"-eansible_python_interpreter={link}"


@pytest.mark.parametrize("options", [(), ("--check", "--diff")], ids=["converge", "predict"])
def test_the_result_is_the_same_both_ways(site, module, options):
    results = {}
    for started in (False, True):
        root = site.path / f"root-{started}"
        root.mkdir(mode=0o755)
        extra = (another_way_to_this_interpreter(site.path),) if started else ()
        result, has_started = module(*options, *extra, root=root)
        assert has_started == started
        results[started] = json.loads(json.dumps(result).replace(str(root), "ROOT"))
        assert (root / "u0").is_dir() == (options == ())
    assert results[False].pop("in_worker") and "in_worker" not in results[True]
    for result in results.values():  # What releases of ansible-core add of their own.
        for name in ("invocation", "ansible_parsed"):
            result.pop(name, None)
    assert results[False] == results[True]
    assert [user["failed"] for user in results[True]["users"]] == [False, True]
    assert ("diff" in results[True]) == bool(options)


@pytest.mark.parametrize("arguments", [{"no_such_option": 1}, {"uid_min": "many"}, {"mode": "rwx"}])
def test_wrong_arguments_are_refused_in_the_same_words(site, module, arguments):
    here, _ = module(arguments=arguments)
    there, _ = module(another_way_to_this_interpreter(site.path), arguments=arguments)
    assert here["failed"] and there["failed"]
    said = [re.sub(r"\([\w.]+\) module", "module", result["msg"]) for result in (here, there)]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "keywords",
    [
        {"environment": {"LANG": "C"}},
        {"become": True},
        {"async": 30, "poll": 1},
        {"delegate_to": "127.0.0.1"},
    ],
    ids=lambda keywords: next(iter(keywords)),
)
@pytest.mark.root
def test_what_asks_for_more_goes_ansibles_way(module, keywords):
    result, started = module(**keywords)
    assert started
    assert result["failed"]


def test_a_large_batch_needs_no_interpreter_either(module):
    assert module(users=500)[1] is False


@pytest.mark.parametrize(
    ("options", "sign"),
    [
        (("-b",), STARTED),
        (("-e", "ansible_become=true"), STARTED),
        (("-e", "ansible_connection=ssh", "-e", "ansible_port=1"), "UNREACHABLE"),
        (("-e", "ansible_connection=nearly_local"), "UNREACHABLE"),
    ],
    ids=["-b", "become by variable", "connection by variable", "connection of the site's own"],
)
@pytest.mark.root
def test_what_is_asked_for_from_outside_the_play_goes_ansibles_way(site, playbook, options, sign):
    plugins = site.path / "connection_plugins"
    plugins.mkdir()
    (plugins / "nearly_local.py").write_text(
        "from ansible.plugins.connection.local import DOCUMENTATION, Connection as Local\n"
        "class Connection(Local):\n"
        "    def exec_command(self, cmd, in_data=None, sudoable=True):\n"
        "        return 1, b'', b'elsewhere'\n"
    )
    user = {"name": "u0", "directory": f"{site.root}/u0", "uid": OWNER[0], "gid": OWNER[1]}
    arguments = {"users": [user], "root": str(site.root)}
    task = {"name": "T", "ansible_bootstrap.jupyterhub.user_dir": arguments}
    play = {"name": "P", "hosts": "localhost", "gather_facts": False, "tasks": [task]}
    (site.path / "play.yml").write_text(yaml.safe_dump([play]))
    assert sign in playbook("-vvv", *options, play=str(site.path / "play.yml")).output


def test_a_worker_with_threads_is_not_forked(site, module):
    """Whatever lock another thread holds at that moment would be held in the child for ever."""
    plugins = site.path / "filter_plugins"
    plugins.mkdir()
    (plugins / "thread.py").write_text(
        "import threading\n"
        "def begin(value):\n"
        "    threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "    return value\n"
        "class FilterModule:\n"
        "    def filters(self): return {'begin_a_thread': begin}\n"
    )
    result, started = module(arguments={"mode": "{{ '0700' | begin_a_thread }}"})
    assert started
    assert [user["failed"] for user in result["users"]] == [False, True]


def test_the_child_gets_nothing_of_the_workers_but_what_exec_would_leave_it(tmp_path):
    """And a module that fails is a module that failed."""
    code = f"""
        import json, os, signal
        from types import SimpleNamespace
        from ansible_collections.ansible_bootstrap.jupyterhub.plugins.plugin_utils import role_action

        secret = open("{tmp_path}/secret", "w+")
        pipe = os.pipe()
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

        def looks(given, check):
            numbers = [n for n in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{{n}}")]
            paths = {{os.readlink(f"/proc/self/fd/{{n}}") for n in numbers}}
            others = sorted(path for path in paths if not path.startswith(("/proc/", "/memfd:result")))
            handlers = [int(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGHUP)]
            return SimpleNamespace(as_result=lambda diff: {{"others": others, "handlers": handlers, "given": given}})

        def raises(given, check): raise ValueError("a fault")
        def dies(given, check): os.kill(os.getpid(), 9)

        print(json.dumps([
            role_action._in_a_child(SimpleNamespace(work=work), {{"asked": 1}}, check=False, diff=False)
            for work in (looks, raises, dies)
        ]))
        secret.write("x"), os.write(pipe[1], b"x"), os.read(pipe[0], 1)
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    looks, raises, dies = json.loads(done.stdout)
    assert looks == {"others": ["/dev/null"], "handlers": [0, 1], "given": {"asked": 1}}
    assert raises["failed"] and re.search(r"ValueError: a fault\n$", raises["msg"])
    assert dies["failed"] and "killed" in dies["msg"]
