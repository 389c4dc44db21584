"""Fixtures of the storage library's tests; no Ansible is started.

root        a storage root, reachable by every user of the machine
make_user   the record of a user below it; as root each has a uid of their own, else all are ours
as_user     run a function in a process of another user (root only)
victim      a file and a directory of root's outside the storage root; unchanged after the test
small_disk  a file system of 256 KiB (root only)
in_process  what the worker of a batch does is done in the test's own process, where it can be patched
hold        hold the kernel's lock of a directory, as a process does that lists it into memory that never comes (root only)
default_acl gives a directory an ACL that it hands on; returns the uid that it lets in
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import shutil
import signal
import stat
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.storage import _as_user, _worker

FIRST_UID = 20001


@pytest.fixture
def root() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="ansible_bootstrap_", dir="/tmp"))
    made.chmod(0o755)
    yield made / "storage"
    shutil.rmtree(made)


@pytest.fixture(autouse=True)
def _make_root(request: pytest.FixtureRequest) -> None:
    if "root" in request.fixturenames:
        request.getfixturevalue("root").mkdir(mode=0o755)


MakeUser = Callable[..., dict[str, Any]]


@pytest.fixture
def make_user(root: Path) -> MakeUser:
    known: list[str] = []

    def make(name: str, *, home: bool = False, **fields: Any) -> dict[str, Any]:
        if name not in known:
            known.append(name)
        own = os.geteuid()
        number = FIRST_UID + known.index(name) if own == 0 else own
        user = {
            "name": name,
            "directory": str(root / name),
            "uid": number,
            "gid": number if own == 0 else os.getegid(),
            **fields,
        }
        if home:
            os.mkdir(user["directory"], 0o755)
            os.chown(user["directory"], user["uid"], user["gid"])
        return user

    return make


@pytest.fixture
def as_user() -> Callable[..., Any]:
    def run(uid: int, work: Callable[[], Any], timeout: float = 10) -> Any:
        directory = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        try:
            return _as_user.run(_as_user.Task(uid, uid, directory, work), timeout).unwrap()
        finally:
            os.close(directory)

    return run


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A directory of root's with a file in it."""
    made = tmp_path / "victim"
    made.mkdir(mode=0o755)
    secret = made / "secret"
    secret.write_text("secret\n")
    secret.chmod(0o600)
    before = [_fingerprint(path) for path in (made, secret)]
    yield made
    assert [_fingerprint(path) for path in (made, secret)] == before
    assert secret.read_text() == "secret\n"
    assert os.listdir(made) == ["secret"]


def _fingerprint(path: Path) -> tuple[int, ...]:
    status = path.lstat()
    return status.st_ino, status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), status.st_nlink


@pytest.fixture
def small_disk(root: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=0755", "tmpfs", str(root)], check=True)
    yield root
    subprocess.run(["umount", str(root)], check=True)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    umask = os.umask(0o022)
    monkeypatch.setattr(_worker, "apart", lambda work: _worker.Ended(work()))
    yield
    os.umask(umask)


@pytest.fixture
def hold() -> Iterator[Callable[[Path | int], None]]:
    """Until the test's end a process that changes the directory sleeps beyond SIGKILL.

    A user does so with a file of a FUSE server of their own; userfaultfd(2), which needs root, is the shorter way.
    """
    if platform.machine() != "x86_64":
        pytest.skip("the numbers of system calls are those of x86_64")
    holders: list[int] = []

    def hold(directory: Path | int) -> None:
        listed = os.open(directory, os.O_RDONLY) if isinstance(directory, Path) else os.dup(directory)
        holders.append(os.fork())
        if holders[-1] == 0:
            libc = ctypes.CDLL(None)
            libc.mmap.restype = ctypes.c_void_p
            memory = libc.mmap(None, 1 << 16, 3, 0x22, -1, ctypes.c_long(0))
            faults = libc.syscall(323, os.O_CLOEXEC)
            fcntl.ioctl(faults, 0xC018AA3F, struct.pack("=QQQ", 0xAA, 0, 0))  # UFFDIO_API
            fcntl.ioctl(faults, 0xC020AA00, struct.pack("=QQQQ", memory, 1 << 16, 1, 0))  # UFFDIO_REGISTER
            libc.syscall(217, listed, ctypes.c_void_p(memory), 1 << 16)  # getdents64
            os._exit(1)
        os.close(listed)
        wait = Path(f"/proc/{holders[-1]}/wchan")
        until = time.monotonic() + 10
        while wait.read_text() != "handle_userfault":
            assert time.monotonic() < until and os.waitpid(holders[-1], os.WNOHANG) == (0, 0)
            time.sleep(0.01)

    yield hold
    for holder in holders:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)


STRANGER = 20099
_EVERYBODYS = 0xFFFFFFFF
_ACL = [
    (0x01, 7, _EVERYBODYS),  # user::rwx
    (0x02, 7, STRANGER),  # user:20099:rwx
    (0x04, 5, _EVERYBODYS),  # group::r-x
    (0x10, 7, _EVERYBODYS),  # mask::rwx
    (0x20, 5, _EVERYBODYS),  # other::r-x
]


@pytest.fixture
def default_acl() -> Callable[[Path], int]:
    def give(directory: Path) -> int:
        entries = b"".join(struct.pack("<HHI", *entry) for entry in _ACL)
        try:
            os.setxattr(directory, "system.posix_acl_default", struct.pack("<I", 2) + entries)
        except OSError as error:
            pytest.skip(f"no ACLs here: {error}")
        return STRANGER

    return give
