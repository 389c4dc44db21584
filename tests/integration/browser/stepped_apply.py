"""A stand-in for the apply program that goes as far as it is let: a page can be looked at for as long as it takes.

Usage: ``python stepped_apply.py CONTROL [--settings FILE]``. CONTROL is a JSON file, read again and again:

===============  ==============================================================================
``steps``        ``{name: number}``: a run makes the least of its users' numbers, without any all of them.
                 The first role begins by itself, each step more begins one, the last gives the outcomes
``fail``         ``{name: outcome fields}``: these users fail
``more``         ``{name: outcome fields}``: these succeed with something to say
``fingerprints`` what it says of roles (default: one that is never done with, so that every spawn is a run)
===============  ==============================================================================

It appends one JSON line to CONTROL.log when a run begins.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROLES = ["user_dir", "tutorials"]
ALL = 99


def main() -> None:
    control_file = Path(sys.argv[1])

    def control() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(control_file.read_text())
        return found

    def emit(event: str, **more: Any) -> None:
        print(json.dumps({"event": event, **more}), flush=True)

    def watch_stdin() -> None:
        while sys.stdin.buffer.read1(1 << 16):
            pass
        os._exit(3)

    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=watch_stdin, daemon=True).start()
    names = [user["name"] for user in request["users"]]
    run = f"fake-{os.getpid()}"
    with Path(f"{control_file}.log").open("a") as log:
        about = {"what": "begin", "pid": os.getpid(), "operation": request["operation"], "users": names}
        log.write(json.dumps(about) + "\n")
    never = [{"role": "user_dir", "fingerprint": "1", "revised": False}]
    fingerprints = control().get("fingerprints", never)
    if request["operation"] == "describe":
        emit("described", roles=fingerprints)
        os._exit(0)
    roles = ROLES if request["operation"] == "bootstrap" else []
    emit("accepted", run=run, storage_host="localhost", roles=roles, fingerprints=fingerprints)
    for step, role in enumerate([*roles, None]):
        while step > min((control().get("steps", {}).get(name, ALL) for name in names), default=ALL):
            time.sleep(0.02)
        if role is not None:
            emit("role", role=role, users=len(names))
    told, failed = control(), 0
    for user in request["users"]:
        outcome = {"key": user["key"], "name": user["name"], "status": "ok", "run": run}
        outcome["storage_host"] = user["storage_host"]
        if user["name"] in told.get("fail", {}):
            outcome |= {"status": "failed", "reason": "role_failed", **told["fail"][user["name"]]}
            failed += 1
        else:
            outcome |= told.get("more", {}).get(user["name"], {})
        emit("outcome", outcome=outcome)
    emit("end", run=run, ok=len(names) - failed, failed=failed)
    os._exit(1 if failed else 0)


main()
