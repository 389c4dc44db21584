"""Whatever a program has started ends, in time, whatever it does against that: with a cgroup, and where there is none."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.storage import _ending, _scripts, _supervise
from ansible_bootstrap.storage._ending import make_group
from ansible_bootstrap.storage._scripts import Options
from tests.unit.storage.conftest import MakeUser

PYTHON = "/usr/bin/python3"
"""One that every user can run."""

HEAD = f"#!{PYTHON} -SE\nimport ctypes, os, signal, sys, time\nend = time.monotonic() + 25\n"
"""What is run here ends by itself, so a failure does not take the machine down."""

CHAINS = """#!/usr/bin/perl
use POSIX ();
my $end = time + 25;
for (1 .. {chains}) {{
    next if fork;
    while (time < $end) {{  # each forks the next in a session of its own, and ends
        POSIX::setsid();
        POSIX::_exit(0) if fork;
    }}
    POSIX::_exit(0);
}}
select undef, undef, undef, {sleep};
"""


@pytest.fixture(params=["cgroup", "freezer", "none"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By which means it is ended: ``cgroup.kill``, what there was before Linux 5.14, or without a cgroup."""
    if request.param == "none":
        monkeypatch.setattr(_supervise, "make_group", lambda _: None)
    else:
        group = make_group()
        if group is None:
            pytest.skip("there is no cgroup of version 2 here, or we may not make one")
        group.remove()
    if request.param == "freezer":
        monkeypatch.setattr(_ending, "_KILL", "cgroup.there_is_no_such_file")
    return str(request.param)


@pytest.fixture
def alice(make_user: MakeUser) -> dict[str, Any]:
    """A user with a uid of its own, whatever else runs on the machine."""
    own = os.geteuid() or 30_000 + os.getpid() % 30_000
    return make_user("alice", home=True, uid=own, gid=own or os.getegid())


@pytest.fixture
def script(root: Path) -> Callable[[str], str]:
    def script(text: str) -> str:
        path = root.parent / "script"
        path.write_text(text if text.startswith("#!") else HEAD + text)
        path.chmod(0o755)
        return str(path)

    return script


def one(root: Path, user: Any, path: str, timeout: float = 10) -> dict[str, Any]:
    (result,) = _scripts.run([user], str(root), 1000, Options(path=path, timeout=timeout), check=False).users
    return dict(result)


def state(pid: int | str) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    return "X"


def of_user(uid: int, states: str = "RSDTtI") -> list[int]:
    """The user's processes in one of these states: by default those that live."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            status = Path(f"/proc/{name}/status").read_text()
            if f"\nUid:\t{uid}\t" in status and state(name) in states:
                found.append(int(name))
    return found


class Others:
    """Other users of the machine: they start a process now and then."""

    def __init__(self) -> None:
        self.slowest = 0.0
        self.processes = 0
        """The most that there were."""
        self.refused: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        while not self._over.wait(0.05):
            begin = time.monotonic()
            try:
                subprocess.run(["/bin/true"], check=True)
            except OSError as error:
                self.refused.append(str(error))
            self.slowest = max(self.slowest, time.monotonic() - begin)
            self.processes = max(self.processes, len(os.listdir("/proc")))

    def __enter__(self) -> Others:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def behind() -> Iterator[None]:
    """Have the priority of a run, as it steps back behind the hub."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, 10)
    yield
    os.setpriority(os.PRIO_PROCESS, 0, before)


@pytest.mark.root
@pytest.mark.usefixtures("behind", "way")
@pytest.mark.parametrize(("chains", "hangs"), [(2, False), (4, True), (24, False)])
def test_chains_that_fork_and_exit_do_not_outrun_it(
    root: Path, alice: dict[str, Any], script: Callable[[str], str], chains: int, hangs: bool
) -> None:
    path = script(CHAINS.format(chains=chains, sleep=20 if hangs else 0.3))
    before = len(os.listdir("/proc"))
    begin = time.monotonic()
    with Others() as others:
        result = one(root, alice, path, timeout=2 if hangs else 10)
        assert time.monotonic() - begin < 8
        assert of_user(alice["uid"]) == []
    assert others.refused == [] and others.slowest < 4
    assert others.processes - before < 2000, "they are not reaped as they end"
    if hangs:
        assert "was ended with all its processes" in result["msg"]
    else:
        assert result["changed"], result
        assert "had left processes behind, which were ended" in result["notes"][0]


STUBBORN = {
    "a session and a subreaper of its own": """
        for _ in range(20):
            if os.fork() == 0:
                os.setsid()
                libc.prctl(36, 1, 0, 0, 0)
                os.fork() and os.fork()
                stay()
        stay()
    """,
    "pid namespace": """
        if libc.unshare(0x10000000 | 0x20000000):  # of users, so that anybody may, and of processes
            print("no namespaces here")
            libc.unshare(0)
        for _ in range(3):
            if os.fork() == 0:
                os.fork()
                os.setsid()
                stay()
        stay()
    """,
    "idle": "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)); os.fork(); stay()",
    "batch": "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)); os.nice(19); os.fork(); stay()",
    "stopped": "os.fork(); os.fork(); os.setsid() if os.getpid() != os.getpgrp() else 0; os.kill(os.getpid(), signal.SIGSTOP)",
    "its first thread has ended": """
        import threading
        threading.Thread(target=stay).start()
        libc.syscall(60 if os.uname().machine == "x86_64" else 93, 0)  # exit(2) of this thread alone
    """,
}
STAY = """
libc = ctypes.CDLL(None)
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
def stay():
    while time.monotonic() < end:
        time.sleep(0.1)
    os._exit(0)
if os.fork():
    time.sleep(0.5)
    os._exit(0)
"""


@pytest.mark.parametrize("kind", STUBBORN)
@pytest.mark.usefixtures("way")
def test_whatever_resists_is_ended(
    root: Path, alice: dict[str, Any], script: Callable[[str], str], kind: str
) -> None:
    path = script(STAY + textwrap.dedent(STUBBORN[kind]))
    begin = time.monotonic()
    result = one(root, alice, path)
    assert time.monotonic() - begin < 4
    assert result["changed"], result
    assert "had left processes behind" in result["notes"][0]
    assert running(path) == []


def running(path: str) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if path.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(int(name))
    return found


TRACER = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
path, options, uid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if uid != os.geteuid():
    os.setgroups([]), os.setresgid(uid, uid, uid), os.setresuid(uid, uid, uid)
end = time.monotonic() + 25
traced = set()
print("ready", flush=True)
while time.monotonic() < end:
    time.sleep(0.01)
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                mine = path.encode() in file.read() and int(name) != os.getpid()
            threads = os.listdir(f"/proc/{name}/task") if mine else ()
        except OSError:
            continue
        for thread in set(threads) - traced:
            if libc.ptrace(0x4206, int(thread), None, ctypes.c_long(options)) == 0:  # PTRACE_SEIZE
                traced.add(thread)
                print(thread, flush=True)
"""
"""Traces whatever runs the script, and never waits for it."""

TRACE_EXIT = 0x40

HELD = {
    "processes": "os.fork(); os.fork()",
    "a parent whose first thread has ended": """
        import threading
        if os.fork() == 0 and os.fork():
            threading.Thread(target=time.sleep, args=[25]).start()
            time.sleep(0.7)  # meanwhile it is traced
            ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)
    """,
}


@pytest.fixture
def tracer() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def trace(path: str, uid: int, options: int = 0) -> subprocess.Popen[str]:
        command = [PYTHON, "-SEc", TRACER, path, str(options), str(uid)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout and started[-1].stdout.readline() == "ready\n"
        return started[-1]

    yield trace
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.root
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("status", [0, 3, -9])
def test_a_program_that_another_process_traces_has_ended_when_it_ends(
    root: Path, alice: dict[str, Any], script: Callable[[str], str], tracer: Callable[..., Any], status: int
) -> None:
    path = script(f"time.sleep(1)\nos.kill(os.getpid(), {-status}) if {status} < 0 else os._exit({status})\n")
    other = tracer(path, alice["uid"])
    begin = time.monotonic()
    result = one(root, alice, path)
    assert time.monotonic() - begin < 4
    pid = int(other.stdout.readline())  # it was traced
    assert state(pid) == "Z"
    if status == 0:
        assert result["changed"], result
    else:
        said = "was killed by SIGKILL" if status < 0 else f"exited with status {status}"
        assert said in result["msg"]


@pytest.mark.root
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("options", [0, TRACE_EXIT])
@pytest.mark.parametrize("kind", HELD)
def test_what_a_tracer_holds_runs_no_more(
    root: Path,
    alice: dict[str, Any],
    script: Callable[[str], str],
    tracer: Callable[..., Any],
    options: int,
    kind: str,
) -> None:
    """With PTRACE_O_TRACEEXIT a killed process stops just before its end, and its children are not ours yet."""
    path = script(f"{textwrap.dedent(HELD[kind])}\nwhile time.monotonic() < end: time.sleep(0.1)\n")
    tracer(path, alice["uid"], options)
    begin = time.monotonic()
    result = one(root, alice, path, timeout=2)
    assert time.monotonic() - begin < 5
    assert "did not finish within 2 s and was ended with all its processes" in result["msg"]
    assert [pid for pid in running(path) if state(pid) not in "ZXt" and pid in of_script(path)] == []


@pytest.mark.root
@pytest.mark.usefixtures("way")
def test_the_children_of_what_sleeps_beyond_sigkill_are_ended(
    root: Path, alice: dict[str, Any], script: Callable[[str], str], hold: Callable[[Path], None]
) -> None:
    held = root / "alice/held"
    held.mkdir()
    os.chown(held, alice["uid"], alice["gid"])
    hold(held)
    stays = "while time.monotonic() < end: time.sleep(0.1)"
    path = script(f"if os.fork() == 0:\n    os.fork() and os.mkdir('held/x')\n    {stays}\ntime.sleep(0.5)\n")
    assert "processes of the script cannot be killed" in one(root, alice, path)["msg"]
    assert [pid for pid in running(path) if state(pid) not in "ZXD"] == []


def of_script(path: str) -> list[int]:
    """Those that run it; not the tracer, which has its path as an argument too."""
    return [pid for pid in running(path) if b"ptrace" not in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.root
def test_a_traced_program_of_unknown_status_is_not_taken_for_done(
    root: Path,
    alice: dict[str, Any],
    script: Callable[[str], str],
    tracer: Callable[..., Any],
    monkeypatch: Any,
) -> None:
    """As in a container without CAP_SYS_PTRACE, where the kernel says 0 instead of the status."""
    path = script("time.sleep(0.5); os._exit(3)\n")
    tracer(path, alice["uid"])
    real = os.readlink

    def readlink(name: Any, **how: Any) -> str:
        if str(name).endswith("/exe"):
            raise PermissionError(13, "Permission denied", name)
        return real(name, **how)

    monkeypatch.setattr(os, "readlink", readlink)
    result = one(root, alice, path)
    assert "while a process of the user's traced it" in result["msg"]


@pytest.mark.root
def test_what_a_killed_supervisor_left_is_ended_by_the_next_that_makes_a_group() -> None:
    first = make_group()
    if first is None:
        pytest.skip("there is no cgroup of version 2 here, or we may not make one")
    left = subprocess.Popen(["sleep", "25"], preexec_fn=first.enter)
    second = make_group()
    assert second and left.poll() is None, "the first one's maker lives"
    os.close(first._lock)  # as the kernel does when it ends
    third = make_group()
    assert third and left.wait(5) == -signal.SIGKILL
    for group in (second, third):
        group.remove()
    wait_until(lambda: not _ending._sweep(os.path.dirname(first._path)) and not os.path.exists(first._path))


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.root
def test_a_script_cannot_take_all_processes_of_the_machine(
    root: Path, alice: dict[str, Any], script: Callable[[str], str]
) -> None:
    path = script("""
n = 0
try:
    while n < 3000:
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        n += 1
except BlockingIOError:
    print(n, "is all")
sys.exit(4)
""")
    result = one(root, alice, path, timeout=20)
    said = re.search(r"status 4: (\d+) is all", result["msg"])
    # Some processes of that user that were counted may have ended since.
    assert said and int(said[1]) <= _supervise.MOST + 50, result
