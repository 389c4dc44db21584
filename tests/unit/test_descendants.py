"""Every process that this one has caused, however it tried to slip away."""

from __future__ import annotations

import subprocess
import sys
import textwrap

SLIPPERY = """
import os, signal, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
os.setsid()
if os.fork():
    os._exit(0)
os.setsid()
print(os.getpid(), flush=True)
time.sleep(600)
"""


def in_a_process_of_its_own(code: str) -> subprocess.CompletedProcess[str]:
    """Being a subreaper is for life, so it is not for the process of the tests."""
    program = (
        "import os, subprocess, sys, time\nfrom ansible_bootstrap.apply.descendants import *\n"
        "from ansible_bootstrap.storage._ending import *\n" + textwrap.dedent(code)
    )
    command = [sys.executable, "-c", program, SLIPPERY]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)


def test_orphans_of_other_sessions_are_found_and_ended():
    done = in_a_process_of_its_own("""
        become_subreaper()
        slippery = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
        pid = int(slippery.stdout.readline())
        slippery.wait()
        polite = subprocess.Popen(["sh", "-c", "sleep 600 & wait"])
        assert {pid, polite.pid} <= descendants()
        begin = time.monotonic()
        end_descendants(grace=0.2)
        print(time.monotonic() - begin, sorted(descendants()))
    """)
    seconds, _, left = done.stdout.partition(" ")
    assert left.strip() == "[]" and 0.2 <= float(seconds) < 2


def test_nothing_to_end_takes_no_time():
    done = in_a_process_of_its_own("""
        begin = time.monotonic()
        end_descendants()
        print(time.monotonic() - begin)
    """)
    assert float(done.stdout) < 0.9  # the grace is 1 s


def test_what_ends_when_asked_is_not_killed(tmp_path):
    polite = f"trap 'echo bye > {tmp_path}/bye; exit' TERM; echo ready; while :; do sleep 0.05; done"
    in_a_process_of_its_own(f"""
        child = subprocess.Popen(["sh", "-c", {polite!r}], stdout=subprocess.PIPE)
        child.stdout.readline()
        end_descendants(grace=5)
    """)
    assert (tmp_path / "bye").read_text() == "bye\n"
