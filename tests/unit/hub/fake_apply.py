"""A stand-in for the apply program: speaks protocol.py, starts no Ansible, misbehaves on demand.

Usage: ``python fake_apply.py CONTROL [--settings FILE]``. CONTROL is a JSON file, read anew by each run:

===============  ==============================================================================
``delay``        seconds of work before the outcomes
``roles``        names announced before that (default ``["user_dir", "tutorials"]``)
``fingerprints`` what it says of roles (default: one that is never done with, so that every spawn is a run)
``fail``         ``{name: outcome fields}``: these users fail
``more``         ``{name: outcome fields}``: these succeed with something to say
``silent``       names that get no outcome
``behave``       ``ok``, ``die``, ``garbage``, ``overlong``, ``refuse``, ``no_end``, ``hang``, ``linger``
``ignore_term``  whether SIGTERM and the end of stdin are ignored
``orphan``       whether a child in a session of its own keeps stdout open for 30 s
``stderr``       lines for the log
``cleanup``      the same for clean-ups, which otherwise succeed at once
===============  ==============================================================================

It appends one JSON line to CONTROL.log when a run begins (with pid, environment and users) and ends. With ``--spare`` it
says so in a line of its own and waits for its request; the end of stdin is then a good end. A spare minds ``spare``:
``die`` (at once), ``crash`` (when it is asked) or ``chatter`` (speaks before it is asked).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any


def main() -> None:
    control_file = Path(sys.argv[1])
    control: dict[str, Any] = json.loads(control_file.read_text())
    if control.get("ignore_term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.argv[-1] == "--spare":
        with Path(f"{control_file}.log").open("a") as log:
            log.write(json.dumps({"what": "spare", "pid": os.getpid(), "argv": sys.argv[2:]}) + "\n")
        if control.get("spare") == "die":
            print("the disk of /srv/secret is gone", file=sys.stderr, flush=True)
            os._exit(70)
        if control.get("spare") == "chatter":
            print(json.dumps({"event": "end", "run": "x", "ok": 0, "failed": 0}), flush=True)
    line = sys.stdin.buffer.readline()
    if not line:
        os._exit(0)
    control = json.loads(control_file.read_text())
    if sys.argv[-1] == "--spare" and control.get("spare") == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    request = json.loads(line)
    users = request["users"]
    if request["operation"] == "cleanup":
        control = control.get("cleanup", {})

    about = {"operation": request["operation"]}

    def note(what: str, **more: Any) -> None:
        with Path(f"{control_file}.log").open("a") as log:
            log.write(
                json.dumps({"what": what, "pid": os.getpid(), "time": time.time(), **about, **more}) + "\n"
            )

    def emit(event: str, **more: Any) -> None:
        print(json.dumps({"event": event, **more}), flush=True)

    def watch_stdin() -> None:
        while sys.stdin.buffer.read1(1 << 16):
            pass
        if not control.get("ignore_term"):
            os._exit(3)

    note(
        "begin",
        check=request["check"],
        users=[user["name"] for user in users],
        directories=[user.get("directory") for user in users],
        done=request["done"],
        environment=dict(os.environ),
        argv=sys.argv[2:],
    )
    threading.Thread(target=watch_stdin, daemon=True).start()
    fingerprints = control.get("fingerprints", [{"role": "user_dir", "fingerprint": "1", "revised": False}])
    if request["operation"] == "describe":
        emit("described", roles=fingerprints)
        os._exit(0)
    if request["operation"] == "probe":
        emit("probed", storage_host=users[0]["storage_host"], findings=control.get("findings", []))
        os._exit(0)
    if control.get("orphan"):
        orphan = subprocess.Popen(["sleep", "30"], start_new_session=True)
        note("orphan", orphan=orphan.pid)
    for line in control.get("stderr", []):
        print(line, file=sys.stderr, flush=True)
    behave = control.get("behave", "ok")
    if behave == "refuse":
        emit("refused", reason="settings", message="storage_root is missing")
        os._exit(2)
    run = f"fake-{os.getpid()}"
    roles = control.get("roles", ["user_dir", "tutorials"])
    host = users[0]["storage_host"] if users else "localhost"
    emit("accepted", run=run, storage_host=host, roles=roles, fingerprints=fingerprints)
    for role in roles:
        emit("role", role=role, users=len(users))
    time.sleep(control.get("delay", 0))
    if behave == "die":
        print("Traceback: the disk of /srv/secret is gone", file=sys.stderr, flush=True)
        os._exit(70)
    if behave == "garbage":
        print("Welcome to storage.example.org!\x1b[2J", flush=True)
    if behave == "overlong":
        print("x" * (2 << 20), flush=True)
    if behave in {"hang", "garbage", "overlong"}:
        time.sleep(60)
    ok = 0
    for user in users:
        name = user["name"]
        if name in control.get("silent", []):
            continue
        outcome = {
            "key": user["key"],
            "name": name,
            "status": "ok",
            "run": run,
            "storage_host": user["storage_host"],
        }
        if name in control.get("fail", {}):
            outcome |= {"status": "failed", "reason": "role_failed", **control["fail"][name]}
        else:
            outcome |= control.get("more", {}).get(name, {})
            ok += 1
        emit("outcome", outcome=outcome)
    note("outcomes")
    if behave != "no_end":
        emit("end", run=run, ok=ok, failed=len(users) - ok)
    if behave == "linger":
        time.sleep(60)
    note("end")
    os._exit(0 if ok == len(users) else 1)


main()
