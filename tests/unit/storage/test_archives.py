from __future__ import annotations

import io
import os
import stat
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_bootstrap.storage._archives import Limits, unpack
from ansible_bootstrap.storage._errors import ArchiveError

Spec = tuple[str, str, str]
"""Kind, name, and content or target."""

GOOD: list[Spec] = [
    ("directory", "course/", ""),
    ("file", "course/01.ipynb", "{}"),
    ("script", "course/bin/run.sh", "#!/bin/sh\n"),
    ("link", "course/bin/first", "../01.ipynb"),
]

_TAR = {
    "file": (tarfile.REGTYPE, 0o640),
    "script": (tarfile.REGTYPE, 0o700),
    "setuid": (tarfile.REGTYPE, 0o4755),
    "directory": (tarfile.DIRTYPE, 0o2700),
    "link": (tarfile.SYMTYPE, 0o777),
    "hard link": (tarfile.LNKTYPE, 0o644),
    "device": (tarfile.CHRTYPE, 0o644),
    "FIFO": (tarfile.FIFOTYPE, 0o644),
}
_ZIP = {
    "file": stat.S_IFREG | 0o640,
    "script": stat.S_IFREG | 0o700,
    "setuid": stat.S_IFREG | 0o4755,
    "directory": stat.S_IFDIR | 0o700,
    "link": stat.S_IFLNK | 0o777,
    "device": stat.S_IFCHR | 0o644,
    "FIFO": stat.S_IFIFO | 0o644,
}


def make(kind: str, members: list[Spec]) -> bytes:
    packed = io.BytesIO()
    if kind == "zip":
        with warnings.catch_warnings(), zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            warnings.simplefilter("ignore")  # that a name is there twice is the point
            for what, name, content in members:
                info = zipfile.ZipInfo(name, (2020, 1, 2, 3, 4, 6))
                info.external_attr = _ZIP[what] << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, content)
    else:
        with tarfile.open(fileobj=packed, mode=f"w:{kind[4:]}") as tar:
            for what, name, content in members:
                entry = tarfile.TarInfo(name)
                entry.type, entry.mode = _TAR[what]
                entry.mtime = 1577934246
                if what in ("link", "hard link"):
                    entry.linkname = content
                elif what in ("file", "script", "setuid"):
                    entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content.encode()))
    return packed.getvalue()


KINDS = ["zip", "tar:", "tar:gz", "tar:bz2", "tar:xz"]


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    directory = tmp_path / "inside"
    directory.mkdir()
    monkeypatch.chdir(directory)
    yield directory
    outside = [path.name for path in tmp_path.iterdir()]
    assert set(outside) <= {"inside", "archive"}


def _unpack(tmp_path: Path, data: bytes, strip: int = 0, limits: Limits | None = None) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(data)
    fd = os.open(archive, os.O_RDONLY)
    try:
        unpack(fd, strip, limits or Limits())
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_archive_comes_out_whole(kind: str, inside: Path, tmp_path: Path) -> None:
    _unpack(tmp_path, make(kind, GOOD), strip=1)
    assert (inside / "01.ipynb").read_text() == "{}"
    assert stat.S_IMODE((inside / "01.ipynb").stat().st_mode) == 0o644
    assert stat.S_IMODE((inside / "bin").stat().st_mode) == 0o755
    assert stat.S_IMODE((inside / "bin/run.sh").stat().st_mode) == 0o755
    assert (inside / "bin/first").resolve() == inside / "01.ipynb"
    assert abs((inside / "01.ipynb").stat().st_mtime - 1577934246) < 86400


BAD: list[tuple[list[Spec], str]] = [
    ([("file", "../evil", "")], "has '..' in its name"),
    ([("file", "a/../../evil", "")], "has '..' in its name"),
    ([("file", "/tmp/evil", "")], "has an absolute name"),
    ([("file", "a\x1b[2Kb", "")], r"a\x1b[2Kb has a name that is not printable"),
    ([("file", "a\\..\\b", "")], "backslash"),
    ([("file", "/".join("a" * 60), "")], "too long"),
    ([("link", "l", "/etc/passwd")], "link to an absolute"),
    ([("link", "l", "../evil")], "leads out"),
    ([("link", "a/l", "../../evil")], "leads out"),
    ([("directory", "a/b/", ""), ("link", "a/b/t", "../.."), ("link", "x", "a/b/t/../evil")], "leads out"),
    ([("link", "l", "sub"), ("file", "l/evil", "")], "elsewhere in the archive"),
    ([("file", "l/f", ""), ("link", "l", "sub")], "is there twice"),
    ([("file", "f", "1"), ("file", "f", "2")], "is there twice"),
    ([("file", "f", "1"), ("file", "./f", "2")], "is there twice"),
    ([("file", "README", ""), ("file", "readme", "")], "only in case"),
    ([("file", "Data/a", ""), ("file", "data/b", "")], "only in case"),
    ([("file", "\u00e9", ""), ("file", "e\u0301", "")], "only in case"),
    ([("setuid", "su", "x")], "setuid"),
    ([("device", "null", "")], "neither file, directory nor link"),
    ([("FIFO", "pipe", "")], "neither file, directory nor link"),
    ([("directory", "only/", "")], "is empty"),
]


@pytest.mark.parametrize("kind", ["zip", "tar:gz"])
@pytest.mark.parametrize(("members", "says"), BAD)
def test_a_bad_member_refuses_the_whole_archive(
    kind: str, members: list[Spec], says: str, inside: Path, tmp_path: Path
) -> None:
    strip = 1 if says == "is empty" else 0
    with pytest.raises(ArchiveError) as caught:
        _unpack(tmp_path, make(kind, members), strip)
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_hard_link_is_refused(inside: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="hard link"):
        _unpack(tmp_path, make("tar:", [("file", "f", ""), ("hard link", "l", "/etc/passwd")]))


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_cut_short_anywhere_is_refused(kind: str, inside: Path, tmp_path: Path) -> None:
    whole = make(kind, [("file", "a", os.urandom(900).hex()), ("file", "b", "b" * 600)])
    end = len(whole.rstrip(b"\0")) if kind == "tar:" else len(whole)
    for place in range(0, end, max(1, end // 25)):
        for left in inside.iterdir():
            left.unlink()
        with pytest.raises(ArchiveError):
            _unpack(tmp_path, whole[:place])


def test_a_member_shorter_than_it_says_is_refused(inside: Path, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"x" * 1000)
    longer = packed.getvalue().replace((1000).to_bytes(4, "little"), (1001).to_bytes(4, "little"))
    with pytest.raises(ArchiveError, match="a is not whole"):
        _unpack(tmp_path, longer)


def test_damage_is_noticed(inside: Path, tmp_path: Path) -> None:
    plain = bytearray(make("tar:", [("file", "a", ""), ("file", "b", "")]))
    plain[512] ^= 1  # in the second header, where tarfile alone would stop and say nothing
    with pytest.raises(ArchiveError, match="damaged or cut short"):
        _unpack(tmp_path, bytes(plain))
    (inside / "a").unlink()
    whole = bytearray(make("tar:gz", [("file", "a", os.urandom(900).hex())]))
    whole[-6] ^= 1  # the checksum of the compressed file
    with pytest.raises(ArchiveError, match="damaged or cut short"):
        _unpack(tmp_path, bytes(whole))


@pytest.mark.parametrize("kind", ["zip", "tar:gz", "tar:xz"])
def test_bombs_are_stopped_by_what_comes_out(kind: str, inside: Path, tmp_path: Path) -> None:
    bomb = make(kind, [("file", "zeros", "\0" * 3_000_000)])
    with pytest.raises(ArchiveError, match="more than 1000000 bytes"):
        _unpack(tmp_path, bomb, limits=Limits(unpacked=1_000_000))
    (inside / "zeros").unlink()
    with pytest.raises(ArchiveError, match="more than 20 times its size"):
        _unpack(tmp_path, bomb, limits=Limits(ratio=20, ratio_from=1_000_000))
    many = make(kind, [("file", f"f{number}", "") for number in range(20)])
    (inside / "zeros").unlink()
    with pytest.raises(ArchiveError, match="more than 10 members"):
        _unpack(tmp_path, many, limits=Limits(members=10))


@pytest.mark.parametrize("kind", ["zip", "tar:gz"])
def test_directories_that_are_only_implied_count_as_members(kind: str, inside: Path, tmp_path: Path) -> None:
    deep = make(kind, [("file", f"{number}/" + "d/" * 40 + "f", "") for number in range(5)])
    with pytest.raises(ArchiveError, match="more than 100 members"):
        _unpack(tmp_path, deep, limits=Limits(members=100))
