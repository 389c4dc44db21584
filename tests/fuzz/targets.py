"""What must hold for any bytes whatever: the targets of the fuzzer and of the property tests.

Each takes bytes from a stranger and returns quietly, or raises what only a fault of ours can raise.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from ansible_bootstrap.errors import RefusedError
from ansible_bootstrap.protocol import parse_request, parse_users
from ansible_bootstrap.storage import _users
from ansible_bootstrap.storage._archives import Limits, unpack
from ansible_bootstrap.storage._errors import ArchiveError

SMALL = Limits(unpacked=1 << 20, members=200, ratio=50, ratio_from=1 << 18)


def request(data: bytes) -> None:
    """A request is refused by a sentence, or is what it says and stays so when written and read again."""
    try:
        parsed = parse_request(data)
    except RefusedError as error:
        assert str(error.details or error.message).isprintable()
        assert len(error.details) < 2000
        return
    users(parsed.users)
    try:
        line = json.dumps(parsed.model_dump(), allow_nan=False).encode() + b"\n"
    except ValueError:  # 1e999 in a user's record; users() has just shown that the record is refused
        return
    assert parse_request(line) == parsed


def users(raw: list[object]) -> None:
    """Each record has one answer; what the hub's side lets through, the storage host's side lets through."""
    good, refused = parse_users(raw)
    assert len(good) + len(refused) == len(raw)
    answers = [user.key for user in good] + [outcome.key for outcome in refused]
    assert len(set(answers)) == len(answers)
    for outcome in refused:
        assert outcome.message
        assert outcome.message.isprintable()
    records = [user.model_dump(mode="json") for user in good]
    assert parse_users(records) == (good, [])
    for record in records:
        _users.parse_user(record)
    there, failures = _users.parse_users(raw, "localhost")
    assert len(there) + len(failures) == len(raw)


def archive(data: bytes) -> None:
    """An archive is refused by a sentence, or leaves a tree without anything that could harm."""
    top = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    back = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        inside = top / "inside"
        inside.mkdir()
        os.chdir(inside)
        (top / "archive").write_bytes(data)
        with (top / "archive").open("rb") as file:
            try:
                unpack(file.fileno(), 0, SMALL)
            except ArchiveError as error:
                assert str(error).isprintable()
                assert len(str(error)) < 1000
            else:
                assert any(inside.iterdir()), "an empty tree passed for content"
                _check_tree(inside)
        assert sorted(os.listdir(top)) == ["archive", "inside"], "something came out beside the tree"
    finally:
        os.fchdir(back)
        os.close(back)
        shutil.rmtree(top)


def _check_tree(inside: Path) -> None:
    size = 0
    for path in inside.rglob("*"):
        status = path.lstat()
        mode = stat.S_IMODE(status.st_mode)
        assert path.name.isprintable()
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(path)
            assert not target.startswith("/")
            assert Path(os.path.normpath(path.parent / target)).is_relative_to(inside)
            try:
                end = path.resolve(strict=True)  # without it, "a -> a//a" is said to lead to /a
            except FileNotFoundError:
                end = path.resolve()
            except (OSError, RuntimeError):  # round in circles, or too long: leads nowhere
                continue
            assert end.is_relative_to(inside), f"{path} leads to {end}"
        elif stat.S_ISDIR(status.st_mode):
            assert mode == 0o755
        else:
            assert stat.S_ISREG(status.st_mode)
            assert mode in (0o644, 0o755)
            assert status.st_nlink == 1
            size += status.st_size
    assert size <= SMALL.unpacked


TARGETS: dict[str, Callable[[bytes], None]] = {"request": request, "archive": archive}


def _packed(kind: str, members: list[tuple[str, int, str]]) -> bytes:
    data = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(data, "w") as packed:
            for name, mode, content in members:
                info = zipfile.ZipInfo(name)
                info.external_attr = mode << 16
                packed.writestr(info, content)
    else:
        kinds = {stat.S_IFREG: tarfile.REGTYPE, stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE}
        form = tarfile.PAX_FORMAT if kind.endswith("pax") else tarfile.GNU_FORMAT
        mode = "w:" if kind.startswith("tar") else f"w:{kind.split('-', maxsplit=1)[0]}"
        with tarfile.open(fileobj=data, mode=mode, format=form) as packed:
            for name, bits, content in members:
                entry = tarfile.TarInfo(name)
                entry.mode = stat.S_IMODE(bits)
                entry.type = kinds.get(stat.S_IFMT(bits), tarfile.FIFOTYPE)
                if stat.S_ISLNK(bits):
                    entry.linkname = content
                else:
                    entry.size = len(content.encode())
                packed.addfile(entry, io.BytesIO(content.encode()))
    return data.getvalue()


_MEMBERS = [
    ("a/", stat.S_IFDIR | 0o755, ""),
    ("a/b.txt", stat.S_IFREG | 0o644, "some text " * 20),
    ("a/run", stat.S_IFREG | 0o755, "#!/bin/sh"),
    ("a/link", stat.S_IFLNK | 0o777, "../a/b.txt"),
    ("é" * 60 + ".txt", stat.S_IFREG | 0o644, "x"),
]

SEEDS: dict[str, list[bytes]] = {
    "request": [
        b'{"operation": "bootstrap", "users": [{"name": "alice"}]}\n',
        b'{"operation": "cleanup", "check": true, "diff": false, "users": [{"name": "A b", "key": "A b/gpu", '
        b'"directory": "/v/a", "uid": 1000, "gid": 100, "storage_host": "localhost", "groups": ["x"]}, 3]}\n',
        b'{"operation": "describe"}\n',
        b'{"operation": "bootstrap", "users": [{"name": "\\ud800", "key": "#1", "groups": [1e999, NaN]}]}\n',
    ],
    "archive": [
        _packed(kind, _MEMBERS) for kind in ("zip", "tar-gnu", "tar-pax", "gz-pax", "bz2-gnu", "xz-pax")
    ],
}


def mutate(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Return the bytes a little changed: what a fuzzer without coverage can do."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = rng.randrange(len(changed) + 1)
        kind = rng.randrange(7)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(changed):
            changed[place] = rng.choice(b'\x00\x01\x7f\x80\xff/\\.."{}[]:,0159-' + b"\n")
        elif kind == 2:
            del changed[place : place + rng.choice((1, 2, 8, 64, 512))]
        elif kind == 3:
            changed[place:place] = rng.randbytes(rng.choice((1, 2, 8)))
        elif kind == 4:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            changed[place:place] = other[start : start + rng.choice((4, 30, 512))]
        elif kind == 5 and len(changed) > 8:
            size = rng.choice((1, 2, 4, 8, 12))
            changed[place : place + size] = rng.choice((b"\xff", b"\x00", b"7", b"\x80")) * size
        elif len(changed) > 1024:
            start = rng.randrange(len(changed))
            changed[place:place] = changed[start : start + 512]
    return bytes(changed[: 1 << 16])
