"""Storage hosts on one machine, as real as it gets.

=================  ===========================================================================
``storage_hosts``  two of them, ``store1`` and ``store2``, for the session; :class:`StorageHosts`
``three_hosts``    three others, for one test
=================  ===========================================================================

Each has a network namespace, a root (an overlay of this machine's), a disk mounted on ``/volumes``
and an sshd of its own. The control node is a namespace too: what runs there is prefixed with
:attr:`StorageHosts.controller`. Everything is found again by the namespaces' names, which hold
this process's id, so sessions side by side do not meet and all of it goes at the end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_bootstrap.apply.runner import _SSH_ARGS as SSH_ARGS

_SSHD = """\
Port 22
HostKey {home}/host_key
PidFile {home}/sshd.pid
AuthorizedKeysFile {top}/id.pub
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
"""

# The upper side of an overlay must lie on another superblock than its lower: a tmpfs.
_START = """set -e
home=$1 top=$2 name=$3
mount -t tmpfs -o size=64m,mode=755 tmpfs "$home/rt"; cd "$home/rt"; mkdir up work root
mount -t overlay overlay -o lowerdir=/,upperdir=up,workdir=work root
for part in proc sys dev; do mount --rbind /$part root/$part; done
mount -t tmpfs tmpfs root/run; mount -t tmpfs tmpfs root/tmp; mkdir -p root/run/sshd root/volumes "root$top"
mount --bind "$top" "root$top"
mount -o loop "$home/disk.img" root/volumes
exec chroot root unshare --uts sh -c "hostname $name; exec $(command -v sshd) -D -e -f $home/sshd_config"
"""


def _run(*command: object) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


class StorageHost:
    """One of them."""

    def __init__(self, hosts: StorageHosts, number: int) -> None:
        self.name = f"store{number}"
        self.address = f"10.77.0.{10 + number}"
        self.namespace = f"{hosts.prefix}s{number}"
        self.link = f"v{number}"
        self.home = hosts.top / self.name
        self._hosts = hosts
        (self.home / "rt").mkdir(parents=True)
        _run("ip", "netns", "add", self.namespace)
        _run("ip", "-n", self.namespace, "link", "set", "lo", "up")
        peer = ("type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        _run("ip", "link", "add", self.link, "netns", hosts.control, *peer)
        _run("ip", "-n", hosts.control, "link", "set", self.link, "master", "br0", "up")
        _run("ip", "-n", self.namespace, "addr", "add", f"{self.address}/16", "dev", "eth0")
        _run("ip", "-n", self.namespace, "link", "set", "eth0", "up")
        disk = self.home / "disk.img"
        with disk.open("wb") as file:
            file.truncate(64 << 20)
        _run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", disk)
        self.new_key()
        (self.home / "sshd_config").write_text(_SSHD.format(home=self.home, top=hosts.top))
        inside = ("unshare", "--mount", "--propagation", "private", "bash", "-c", _START)
        with (self.home / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "nsenter",
                    f"--net=/run/netns/{self.namespace}",
                    *inside,
                    "up",
                    self.home,
                    hosts.top,
                    self.name,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 10
        while "Server listening" not in (self.home / "log").read_text():
            assert self._process.poll() is None and time.monotonic() < deadline, (
                self.home / "log"
            ).read_text()
            time.sleep(0.02)

    def new_key(self) -> str:
        """Give the host another key; sshd uses it from its next start on, or after :meth:`reload`."""
        key = self.home / "host_key"
        key.unlink(missing_ok=True)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
        return f"{self.address} {' '.join((self.home / 'host_key.pub').read_text().split()[:2])}\n"

    def reload(self) -> None:
        """Have sshd read its configuration and key again."""
        before = (self.home / "log").read_text().count("Server listening")
        os.kill(self._process.pid, signal.SIGHUP)
        deadline = time.monotonic() + 10
        while (self.home / "log").read_text().count("Server listening") == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def path(self, inside: str) -> Path:
        """Return where a path of the host's is found from here."""
        return Path(f"/proc/{self._process.pid}/root{inside}")

    def pids(self) -> list[int]:
        return [int(pid) for pid in _run("ip", "netns", "pids", self.namespace).split()]

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Its cable is out."""
        _run("ip", "-n", self._hosts.control, "link", "set", self.link, "down")
        try:
            yield
        finally:
            _run("ip", "-n", self._hosts.control, "link", "set", self.link, "up")

    @contextlib.contextmanager
    def black_holed(self) -> Iterator[None]:
        """It gets no packet, and nobody says so."""
        rule = ("ip", "netns", "exec", self.namespace, "iptables")
        _run(*rule, "-A", "INPUT", "-j", "DROP")
        try:
            yield
        finally:
            _run(*rule, "-F", "INPUT")

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Its kernel answers, its processes do not."""
        pids = self.pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    @contextlib.contextmanager
    def disk_frozen(self) -> Iterator[None]:
        """Its disk takes no writes and says nothing."""
        _run("fsfreeze", "-f", self.path("/volumes"))
        try:
            yield
        finally:
            _run("fsfreeze", "-u", self.path("/volumes"))

    @contextlib.contextmanager
    def another_key(self) -> Iterator[None]:
        """Somebody else answers at its address."""
        kept = (self.home / "host_key").read_bytes()
        self.new_key()
        self.reload()
        try:
            yield
        finally:
            (self.home / "host_key").write_bytes(kept)
            self.reload()


class StorageHosts:
    """The control node's side: where to run, and what an admin ships."""

    def __init__(self, top: Path, count: int = 2) -> None:
        self.top = top
        self.count = count
        self.prefix = f"ab{os.getpid()}{'n' * (count - 2)}"
        self.control = f"{self.prefix}c"
        self.controller = ("nsenter", f"--net=/run/netns/{self.control}")
        """The prefix of a command that runs on the control node."""
        self.inventory = top / "inventory.ini"
        self.impatient = top / "impatient.ini"
        """The same hosts, given up by ssh sooner: the apply program's own options with shorter limits."""
        self.hosts: dict[str, StorageHost] = {}

    def up(self) -> None:
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.top / "id")
        _run("ip", "netns", "add", self.control)
        _run("ip", "-n", self.control, "link", "set", "lo", "up")
        _run("ip", "-n", self.control, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", self.control, "addr", "add", "10.77.0.1/16", "dev", "br0")
        _run("ip", "-n", self.control, "link", "set", "br0", "up")
        for number in range(1, self.count + 1):
            host = StorageHost(self, number)
            self.hosts[host.name] = host
        keys = [
            f"{host.address} {' '.join((host.home / 'host_key.pub').read_text().split()[:2])}"
            for host in self
        ]
        (self.top / "known_hosts").write_text("\n".join(keys) + "\n")
        lines = [f"{host.name} ansible_host={host.address} from_host={host.name}" for host in self]
        self.inventory.write_text(
            "[storage]\n"
            + "\n".join(lines)
            + f"\n[storage:vars]\nansible_user=root\nansible_ssh_private_key_file={self.top}/id\n"
            f"ansible_python_interpreter=/usr/bin/python3\n"
            f"ansible_ssh_common_args=-o UserKnownHostsFile={self.top}/known_hosts\n"
        )
        assert "ServerAliveInterval=5" in SSH_ARGS
        arguments = SSH_ARGS.replace("ServerAliveInterval=5", "ServerAliveInterval=1")
        self.impatient.write_text(
            f"{self.inventory.read_text()}ansible_timeout=3\nansible_ssh_args={arguments}\n"
        )

    def __iter__(self) -> Iterator[StorageHost]:
        return iter(self.hosts.values())

    def __getitem__(self, name: str) -> StorageHost:
        return self.hosts[name]

    def remove(self) -> None:
        for line in _run("ip", "netns", "list").splitlines():
            namespace = line.split()[0] if line.strip() else ""
            if namespace.startswith(self.prefix):
                for pid in _run("ip", "netns", "pids", namespace).split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                _run("ip", "netns", "del", namespace)
        for host in self:
            host._process.wait()


@contextlib.contextmanager
def _up(needs: Callable[..., None], count: int) -> Iterator[StorageHosts]:
    programs = ("fsfreeze", "ip", "iptables", "mkfs.ext4", "nsenter", "sshd", "ssh-keygen", "unshare")
    needs(root=True, programs=programs)
    top = Path(tempfile.mkdtemp(prefix="ab-hosts-", dir="/tmp"))
    hosts = StorageHosts(top, count)
    try:
        hosts.up()
        yield hosts
    finally:
        hosts.remove()
        shutil.rmtree(top)


@pytest.fixture(scope="session")
def storage_hosts(needs: Callable[..., None]) -> Iterator[StorageHosts]:
    with _up(needs, 2) as hosts:
        yield hosts


@pytest.fixture
def three_hosts(needs: Callable[..., None]) -> Iterator[StorageHosts]:
    with _up(needs, 3) as hosts:
        yield hosts


@pytest.fixture
def store(storage_hosts: StorageHosts) -> StorageHost:
    return storage_hosts["store1"]
