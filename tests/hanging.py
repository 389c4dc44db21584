"""Storage that does not answer, for tests: a FUSE file system whose server sleeps, and a disk that is frozen.

As root. Whatever hangs is let go at the end, so that no process is left that cannot be killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

_NOSUID, _NODEV = 2, 4
_INIT = 26
_IN_HEADER = struct.Struct("=IIQQIIII")


@contextlib.contextmanager
def fuse(place: Path, uid: int, *, reads: bool = True, for_all: bool = False) -> Iterator[None]:
    """Mount at ``place`` what never answers, with the mount(2) that fusermount3, which is setuid, makes for a user.

    Args:
        place: a directory of that user's.
        uid: whose it is.
        reads: the server takes requests; whoever waits for the answer cannot be killed. Otherwise it is as if stopped.
        for_all: others are let in, root too (``allow_other``), as ``user_allow_other`` in /etc/fuse.conf lets users do.
    """
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={uid},group_id={uid}{',allow_other' if for_all else ''}"
    mount = ctypes.CDLL(None, use_errno=True).mount
    if mount(b"hangs", bytes(place), b"fuse", _NOSUID | _NODEV, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(place))
    server = os.fork()
    if server == 0:
        os.setresuid(uid, uid, uid)
        _serve(device, reads)
    os.close(device)
    try:
        yield
    finally:
        os.kill(server, signal.SIGKILL)  # closes the device, so that all waiting processes get an error
        os.waitpid(server, 0)
        subprocess.run(["umount", "-l", str(place)], check=False)


def _serve(device: int, reads: bool) -> None:
    """Greet the kernel, answer nothing else."""
    greeted = False
    while reads or not greeted:
        request = os.read(device, 1 << 18)
        _, opcode, unique, *_ = _IN_HEADER.unpack_from(request)
        if opcode == _INIT:
            body = struct.pack("=IIII HHI I HHI 28x", 7, 31, 0, 0, 12, 9, 1 << 17, 1, 0, 0, 0)
            os.write(device, struct.pack("=IiQ", 16 + len(body), 0, unique) + body)
            greeted = True
    signal.pause()


@contextlib.contextmanager
def ext4(image: Path, place: Path) -> Iterator[None]:
    """An ext4 file system of 64 MiB at ``place``."""
    image.touch()
    os.truncate(image, 64 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        place.chmod(0o755)
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextlib.contextmanager
def frozen(place: Path) -> Iterator[None]:
    """Until the end of the body a process that writes to this file system sleeps, beyond SIGKILL."""
    subprocess.run(["fsfreeze", "-f", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "-u", str(place)], check=True)
