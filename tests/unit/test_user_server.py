"""The server that works as users, without Ansible around it."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ansible
import pytest

SERVE = (
    "import sys; sys.path += sys.argv[3:]; "
    "from ansible_collections.ansible_bootstrap.jupyterhub.plugins.plugin_utils.user_server import serve; "
    "serve(int(sys.argv[1]), int(sys.argv[2]))"
)


class Server:
    """A server of ours for a playbook that is a sleeping process."""

    def __init__(self, path: Path) -> None:
        self.path = str(path / "socket")
        self.playbook = subprocess.Popen(["sleep", "600"])
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self.path)
            listener.listen(8)
            pidfd = os.pidfd_open(self.playbook.pid)
            roots = [str(Path(ansible.__file__).parents[1]), str(Path(__file__).parents[2])]
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-c", SERVE, str(listener.fileno()), str(pidfd), *roots],
                pass_fds=(listener.fileno(), pidfd),
            )
            os.close(pidfd)

    def send(self, command: str | None, text: str = "", **more: Any) -> tuple[socket.socket, int]:
        """Ask for a command; return the client and the descriptor of what it prints."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect(self.path)
        request = {
            "uid": os.geteuid(),
            "gid": os.getegid(),
            "groups": [],
            "directory": "/",
            "environment": {"PATH": os.environ["PATH"]},
            "command": command,
        }
        files = [os.memfd_create(name) for name in ("request", "in", "out", "err")]
        os.write(files[0], json.dumps(request | more).encode())
        os.write(files[1], text.encode())
        for file in files[:2]:
            os.lseek(file, 0, os.SEEK_SET)
        socket.send_fds(client, [b"?"], files)
        return client, files[2]

    def run(self, command: str | None, **more: Any) -> tuple[int, str]:
        """Return the exit status and what was printed."""
        client, out = self.send(command, **more)
        client.settimeout(20)
        with client:
            status = int(client.recv(64))
        return status, os.pread(out, 1 << 16, 0).decode()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.playbook.kill()
    made.playbook.wait()
    assert made.process.wait(20) == 0, "it ends with the playbook"


def children(server: Server) -> list[int]:
    said = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    return [int(pid) for pid in said.split()]


def until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_a_command_prints_and_how_it_ends(server: Server) -> None:
    assert server.run("echo $0 here; pwd; exit 3") == (3, "/bin/sh here\n/\n")
    assert server.run("kill -9 $$") == (-signal.SIGKILL, "")


def test_a_client_that_hangs_up_ends_its_child_and_holds_nobody_up(server: Server) -> None:
    client, _ = server.send("trap '' TERM; sleep 600")
    until(lambda: children(server))
    (pid,) = children(server)
    client.close()
    assert server.run("echo hi") == (0, "hi\n")
    until(lambda: pid not in children(server))


def test_no_object_of_the_servers_closes_a_descriptor_of_a_modules(server: Server) -> None:
    """Selectors are in cycles: a collection in the child would find the server's, with the sockets of all clients."""
    others = [server.send("sleep 600")[0] for _ in range(4)]
    text = "import gc, os; some = [os.open('/', 0) for _ in range(30)]; gc.collect(); print(*map(os.isatty, some))"
    for _ in range(3):
        status, said = server.run(None, text=text + "; [os.fstat(each) for each in some]")
        assert (status, said) == (0, " ".join(["False"] * 30) + "\n")
    for client in others:
        client.close()


def test_a_client_that_hangs_up_at_once_leaves_no_child(server: Server) -> None:
    for _ in range(20):
        server.send("sleep 600")[0].close()
    until(lambda: not children(server))
    assert server.run("echo hi") == (0, "hi\n")


def test_without_descriptors_a_client_is_told_and_the_others_are_served(server: Server) -> None:
    assert server.run("echo hi") == (0, "hi\n")
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir(f"/proc/{server.process.pid}/fd")}
    free = [number for number in range(1024) if number not in used]
    resource.prlimit(
        server.process.pid, resource.RLIMIT_NOFILE, (free[3], limits[1])
    )  # A request needs five.
    client, _ = server.send("echo hi")
    client.settimeout(20)
    with client:
        assert client.recv(64) == b""
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
    assert server.run("echo hi") == (0, "hi\n")


@pytest.mark.root
def test_a_home_that_cannot_be_entered_is_no_failure_of_the_command(server: Server, tmp_path: Path) -> None:
    home = tmp_path / "closed/home"
    home.mkdir(parents=True)
    home.parent.chmod(0o700)
    assert server.run("pwd", uid=20001, gid=20001, directory=str(home)) == (0, "/\n")
