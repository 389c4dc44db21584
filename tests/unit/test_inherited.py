"""What the apply program takes for stdin, stdout and stderr of a caller before the boundary."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import sys
from pathlib import Path

import pytest

CALL = [sys.executable, "-I", "-m", "ansible_bootstrap.apply"]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_file_is_refused_and_not_written_to(tmp_path: Path, number: int) -> None:
    file = tmp_path / "file"
    file.touch()
    with file.open("r+") as opened:
        pipes: list[int] = [subprocess.PIPE] * 3
        pipes[number] = opened.fileno()
        stdin, stdout, stderr = pipes
        ended = subprocess.run(
            CALL,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            timeout=30,
            check=False,
        )
    assert ended.returncode == 2
    assert file.read_bytes() == b""
    assert not ended.stdout
    assert number == 2 or b"must be pipes, sockets, terminals or /dev/null" in ended.stderr


def test_what_callers_have_is_taken() -> None:
    code = "from ansible_bootstrap.apply.inherited import unfit_descriptors; import sys; sys.exit(len(unfit_descriptors()))"
    terminal = pty.openpty()
    ends = socket.socketpair()
    pipe = os.pipe()
    for descriptor in (terminal[1], ends[0].fileno(), pipe[1], subprocess.DEVNULL):
        command = [sys.executable, "-c", code]
        ended = subprocess.run(
            command, stdin=descriptor, stdout=descriptor, stderr=descriptor, timeout=30, check=False
        )
        assert ended.returncode == 0
    for number in (*terminal, *pipe):
        os.close(number)
