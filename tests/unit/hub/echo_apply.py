"""A stand-in for the apply program that says back what it was asked, for many users; starts no Ansible.

Usage: ``python -S echo_apply.py CONTROL [--settings FILE]``. CONTROL is a JSON file, read anew by each run:

===============  ==================================================================
``fingerprint``  of the role ``user_dir`` (default ``"1"``)
``revised``      whether that covers all (default true)
``delay``        seconds between ``accepted`` and the outcomes
``hang_at``      a name: its outcome, and those after it, never come
``dies_at``      a name: the program ends there, without a last line
``fail``         names that fail
``hang``         storage hosts on which nothing is ever said
``down``         storage hosts on which nobody can be reached
===============  ==================================================================

It appends a JSON line to CONTROL.log for each request that begins, with all of the request, and one when it ends.
"""

import json
import sys
import time
from pathlib import Path

control_file = sys.argv[1]
control = json.loads(Path(control_file).read_text())
request = json.loads(sys.stdin.buffer.readline())
host = request["users"][0]["storage_host"] if request["users"] else "localhost"


def note(what):
    with Path(f"{control_file}.log").open("a") as log:
        log.write(json.dumps({"what": what, "host": host, **request}) + "\n")


def say(event, **more):
    sys.stdout.write(json.dumps({"event": event, **more}) + "\n")


note("begin")
role = {
    "role": "user_dir",
    "fingerprint": control.get("fingerprint", "1"),
    "revised": control.get("revised", True),
}
if request["operation"] == "describe":
    say("described", roles=[role])
    sys.exit(0)
if host in control.get("hang", []):
    note("hangs")
    sys.stdin.buffer.read()
    sys.exit(3)
say("accepted", run="echo", storage_host=host, roles=["user_dir"], fingerprints=[role])
sys.stdout.flush()
time.sleep(control.get("delay", 0))
failed = 0
for user in request["users"]:
    if user["name"] == control.get("dies_at"):
        sys.exit(3)
    if user["name"] == control.get("hang_at"):
        sys.stdout.flush()
        note("hangs")
        sys.stdin.buffer.read()
        sys.exit(3)
    outcome = {key: user[key] for key in ("key", "name", "storage_host")}
    outcome |= {"status": "ok", "run": "echo", "directory": user["directory"] or ""}
    down = host in control.get("down", [])
    if down or user["name"] in control.get("fail", []):
        failed += 1
        outcome |= {
            "status": "failed",
            "reason": "unreachable" if down else "role_failed",
            "message": "broken",
            "failed_role": "user_dir",
        }
    say("outcome", outcome=outcome)
note("end")
say("end", run="echo", ok=len(request["users"]) - failed, failed=failed)
