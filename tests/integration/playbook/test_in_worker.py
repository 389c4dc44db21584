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
    assert results[False] == results[True]
    assert [user["failed"] for user in results[True]["users"]] == [False, True]
    assert ("diff" in results[True]) == bool(options)


@pytest.mark.parametrize("arguments", [{"no_such_option": 1}, {"uid_min": "many"}, {"mode": "rwx"}])
def test_wrong_arguments_are_refused_in_the_same_words(site, module, arguments):
    here, _ = module(arguments=arguments)
    there, _ = module(another_way_to_this_interpreter(site.path), arguments=arguments)
    assert here["failed"] and there["failed"]
    assert here["msg"] == there["msg"]


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
    assert module(users=50)[1] is False
    assert module(users=500)[1] is False


HIDE = """
import importlib, inspect, sys, types
import ansible.plugins.action as actions
from ansible.plugins.callback import CallbackBase

MODULE, OLD = {module!r}, {old!r}
if MODULE == actions.__name__:
    source = inspect.getsource(actions).replace(OLD, "another_" + OLD.lstrip("_"))
    source = source.replace("exec_command(cmd, another_in_data=", "exec_command(cmd, in_data=")
    exec(compile(source, actions.__file__, "exec"), vars(actions))
    sys.modules.pop("ansible.plugins.action.normal", None)
else:
    whole = importlib.import_module(MODULE)
    rest = {{name: value for name, value in vars(whole).items() if name != OLD}}
    sys.modules[MODULE] = types.ModuleType(MODULE)
    vars(sys.modules[MODULE]).update(rest)
    parent, _, name = MODULE.rpartition(".")
    setattr(importlib.import_module(parent), name, sys.modules[MODULE])

class CallbackModule(CallbackBase):
    CALLBACK_VERSION, CALLBACK_TYPE, CALLBACK_NAME = 2.0, "notification", "hide"
"""


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("ansible.plugins.action", "_compute_environment_string"),
        ("ansible.plugins.action", "_configure_module"),
        ("ansible.plugins.action", "_is_pipelining_enabled"),
        ("ansible.plugins.action", "_low_level_execute_command"),
        ("ansible.plugins.action", "in_data"),
        ("ansible.executor.module_common", "_BuiltModule"),
        ("ansible.module_utils.common.json", "get_module_encoder"),
        ("ansible.module_utils.common.json", "Direction"),
    ],
)
def test_a_release_of_ansible_with_other_names_runs_its_own_way(site, module, where, name):
    """What is replaced has no promise; a release that calls it otherwise must cost time and nothing else."""
    plugins = site.path / "callback_plugins"
    plugins.mkdir()
    (plugins / "hide.py").write_text(HIDE.format(module=where, old=name))
    result, started = module()
    assert started
    assert [user["failed"] for user in result["users"]] == [False, True]
    assert (site.root / "u0").is_dir()


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


def test_the_module_gets_nothing_of_the_workers_but_what_exec_would_leave_it(tmp_path):
    """And a module that fails is a module that failed."""
    code = f"""
        import importlib.util, json, os, signal, sys
        spec = importlib.util.spec_from_file_location("in_worker", "{CHECKOUT}/plugins/plugin_utils/in_worker.py")
        in_worker = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(in_worker)
        secret = open("{tmp_path}/secret", "w+")
        pipe = os.pipe()
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        sys.path.insert(0, "{tmp_path}")
        print(json.dumps([in_worker._run(name, b"asked", "{tmp_path}") for name in ("looks", "raises", "dies")]))
        secret.write("x"), os.write(pipe[1], b"x"), os.read(pipe[0], 1)
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    """
    (tmp_path / "looks.py").write_text(
        textwrap.dedent("""
        import json, os, signal, sys
        def main():
            descriptors = {n: os.readlink(f"/proc/self/fd/{n}") for n in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{n}")}
            print(json.dumps({
                "others": sorted({path for number, path in descriptors.items() if number > 2 and not path.startswith("/proc/")}),
                "stdin": sys.stdin.read(), "cwd": os.getcwd(),
                "TERM": signal.getsignal(signal.SIGTERM), "HUP": signal.getsignal(signal.SIGHUP),
            }))
            sys.exit(3)
        """)
    )
    (tmp_path / "raises.py").write_text("def main(): raise ValueError('a fault')\n")
    (tmp_path / "dies.py").write_text("def main(): __import__('os').kill(__import__('os').getpid(), 9)\n")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    looks, raises, dies = json.loads(done.stdout)
    assert looks[0] == 3
    assert json.loads(looks[1]) == {
        "others": ["/dev/null"],
        "stdin": "asked",
        "cwd": str(tmp_path),
        "TERM": 0,
        "HUP": 1,
    }
    assert raises[0] == 1 and re.search(r"ValueError: a fault\n$", raises[2])
    assert dies == [-9, "", ""]
