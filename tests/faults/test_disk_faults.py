"""A disk that is full, read-only, broken or used up: the cause is named, nobody else is harmed, later all is well."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.storage import _homes, _tutorials
from ansible_bootstrap.storage._state import identity
from tests.faults import killing
from tests.faults.conftest import mounted, small
from tests.unit.storage.conftest import MakeUser

Users = list[dict[str, Any]]


class Work:
    """The two roles for alice, whose storage fails, beside bob's, who needs nothing any more."""

    def __init__(self, root: Path, make_user: MakeUser) -> None:
        self.root = root
        self.alice, self.bob = make_user("alice"), make_user("bob")
        self.course = root.parent / "course"
        self.course.mkdir()
        for number in range(10):
            (self.course / f"{number}.txt").write_bytes(b"x" * 20_000)

    def home(self, *users: Any) -> Users:
        options = _homes.Options(skeleton=str(self.course))
        return _homes.ensure(list(users), str(self.root), 1000, options, check=False).users

    def tutorial(self, *users: Any) -> Users:
        options = _tutorials.Options([{"name": "course", "path": str(self.course)}])
        return _tutorials.place(list(users), str(self.root), 1000, options, check=False).users

    def prepare(self) -> None:
        """Bob has everything already, alice a small home for the tutorial."""
        self.home(self.bob)
        self.tutorial(self.bob)
        self.bobs = killing.tree(self.root / "bob", times=True)

    def fails_for_alice(self, role: str, says: str) -> None:
        """Alice's failure names the cause and shows nothing; bob is served."""
        place = self.root / "alice" / ("course" if role == "tutorial" else "")
        alice, bob = getattr(self, role)(self.alice, self.bob)
        assert says in alice["msg"], alice
        assert not alice["changed"]
        assert not bob["failed"], bob
        assert not bob["changed"]
        assert not place.exists()
        assert killing.tree(self.root / "bob", times=True) == self.bobs

    def completes(self, role: str) -> None:
        """With the fault gone, alice gets what the others have, and nothing of ours is left lying about."""
        (alice,) = getattr(self, role)(self.alice)
        assert alice["changed"], alice
        assert not getattr(self, role)(self.alice)[0]["changed"]
        made = self.root / "alice" / ("course" if role == "tutorial" else "")
        assert sorted(os.listdir(made)) == sorted(os.listdir(self.course))
        assert {path.stat().st_size for path in made.iterdir()} == {20_000}
        assert list(self.root.glob("*/.ansible_bootstrap-*")) == []
        assert os.listdir(self.root / ".ansible_bootstrap/stage") == []


@pytest.fixture
def work(root: Path, make_user: MakeUser) -> Work:
    return Work(root, make_user)


def _small_home(work: Work) -> None:
    """Alice's home without a skeleton, for what happens to her tutorial."""
    _homes.ensure([work.alice], str(work.root), 1000, _homes.Options(), check=False)


@pytest.mark.root
@pytest.mark.parametrize("role", ["home", "tutorial"])
@pytest.mark.parametrize(("limit", "gone"), [("size=720k", "size=4m"), ("nr_inodes=45", "nr_inodes=200")])
def test_no_space_and_no_inodes(work: Work, role: str, limit: str, gone: str) -> None:
    with small(work.root, limit):
        work.prepare()
        if role == "tutorial":
            _small_home(work)
        fill = work.root / "others"
        fill.mkdir()
        with contextlib.suppress(OSError):  # somebody else's files, up to a little before the brim
            for number in range(40):
                (fill / str(number)).write_bytes(b"x" * 8192)
        for number in range(8):
            (fill / str(number)).unlink(missing_ok=True)
        for _ in range(2):  # again and again: what fails does not add up
            work.fails_for_alice(role, "no space is left on the file system")
        subprocess.run(["mount", "-o", f"remount,{gone}", str(work.root)], check=True)
        work.completes(role)


@pytest.mark.root
@pytest.mark.parametrize("role", ["home", "tutorial"])
def test_a_full_disk_does_not_affect_complete_users(work: Work, role: str) -> None:
    with small(work.root, "size=4m"):
        work.prepare()
        if role == "tutorial":
            _small_home(work)
        with contextlib.suppress(OSError), (work.root / "full").open("wb") as full:
            while True:
                full.write(b"x" * 4096)
        work.fails_for_alice(role, "no space is left on the file system")
        (work.root / "full").unlink()
        work.completes(role)


@pytest.mark.root
@pytest.mark.parametrize("role", ["home", "tutorial"])
def test_a_file_system_that_became_read_only(work: Work, role: str) -> None:
    with small(work.root, "size=4m"):
        work.prepare()
        if role == "tutorial":
            _small_home(work)
        before = killing.tree(work.root, times=True)
        subprocess.run(["mount", "-o", "remount,ro", str(work.root)], check=True)
        for user in getattr(work, role)(work.alice, work.bob):
            assert "the file system is read-only" in user["msg"]
        assert killing.tree(work.root, times=True) == before
        subprocess.run(["mount", "-o", "remount,rw", str(work.root)], check=True)
        work.completes(role)


@pytest.fixture
def failing_disk(work: Work, needs: Callable[..., None]) -> Iterator[Path]:
    """ext4 in a file that can be cut off: what lies behind the cut cannot be read any more."""
    needs(root=True, programs=("mkfs.ext4", "losetup"))
    image = work.root.parent / "disk.img"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0", str(image)], check=True)
    with mounted(work.root, "-o", "loop,errors=continue", str(image)):
        work.root.chmod(0o755)
        yield image


@pytest.mark.root
@pytest.mark.parametrize("role", ["home", "tutorial"])
def test_a_disk_that_cannot_be_read(work: Work, role: str, failing_disk: Path) -> None:
    """What is to be copied lies on broken sectors: no home and no tutorial with holes in it."""
    sources = work.course
    work.course = work.root / "sources"
    subprocess.run(["cp", "-r", str(sources), str(work.course)], check=True)
    work.prepare()
    if role == "tutorial":
        _small_home(work)
    subprocess.run(["sync", "-f", str(work.root)], check=True)
    broken = work.course / "5.txt"
    extent = subprocess.run(
        ["filefrag", "-v", "-b4096", str(broken)], capture_output=True, text=True, check=True
    )
    block = int(extent.stdout.split("\n")[3].split()[3].rstrip(".:"))
    content = failing_disk.read_bytes()
    os.posix_fadvise(fd := os.open(broken, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    os.truncate(failing_disk, block * 4096)
    subprocess.run(["blockdev", "--flushbufs", _device(work.root)], check=True)
    try:
        work.fails_for_alice(role, "the disk reported an input/output error")
    finally:
        with failing_disk.open("r+b") as file:  # the sectors are back, with what was on them
            file.seek(block * 4096)
            file.write(content[block * 4096 :])
    work.completes(role)


def _device(place: Path) -> str:
    found = subprocess.run(
        ["findmnt", "-no", "SOURCE", str(place)], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


@pytest.mark.root
@pytest.mark.parametrize("role", ["home", "tutorial"])
@pytest.mark.parametrize("call", ["syncfs", "copy_file_range", "write"])
def test_a_disk_that_cannot_be_written(
    work: Work, role: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel would say it, at that call: sectors that cannot be written are only found much later."""
    if role == "tutorial":
        _small_home(work)

    def broken(*arguments: Any) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        if call == "syncfs":
            for module in (_homes, _tutorials):
                patch.setattr(module, "sync", broken)
        elif call == "write":  # of a record; what children write to their parent is not on the disk
            patch.setattr("ansible_bootstrap.storage._state.write_draft", broken)
        else:
            patch.setattr(os, call, broken)
        (alice,) = getattr(work, role)(work.alice)
        assert "the disk reported an input/output error" in alice["msg"]
    (alice,) = getattr(work, role)(work.alice)
    assert not alice["failed"], alice
    assert not getattr(work, role)(work.alice)[0]["changed"]
    assert list(work.root.glob("*/.ansible_bootstrap-*")) == []


@pytest.mark.root
@pytest.mark.parametrize("role", ["home", "tutorial"])
def test_a_quota_that_is_used_up(work: Work, role: str, needs: Callable[..., None]) -> None:
    needs(root=True, programs=("mkfs.btrfs",))
    if "\tbtrfs" not in Path("/proc/filesystems").read_text():
        pytest.skip("needs btrfs in the kernel")
    image = work.root.parent / "disk.img"
    with image.open("wb") as file:
        file.truncate(256 << 20)
    subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True)
    with mounted(work.root, "-o", "loop", str(image)):
        work.root.chmod(0o755)
        work.prepare()
        if role == "tutorial":
            _small_home(work)
        subprocess.run(["sync", "-f", str(work.root)], check=True)
        for command in (["quota", "enable"], ["qgroup", "limit", "-e", "100K"]):
            subprocess.run(["btrfs", *command, str(work.root)], check=True, capture_output=True)
        alice, bob = getattr(work, role)(work.alice, work.bob)
        assert "the disk quota is used up" in alice["msg"], alice
        assert not bob["failed"], bob
        subprocess.run(["btrfs", "quota", "disable", str(work.root)], check=True)
        work.completes(role)


@pytest.mark.parametrize("role", ["home", "tutorial"])
@pytest.mark.parametrize("spare", [0, 3, 6, 9, 12, 15, 20, 30])
def test_too_many_open_files(work: Work, role: str, spare: int) -> None:
    """Whatever number of descriptors is left, it is enough or the limit is named, and it leaves no trace."""
    if role == "tutorial":
        _small_home(work)

    def starved() -> None:
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        for fd in range(3, highest + 1):
            with contextlib.suppress(OSError):
                os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (4 + spare, 4 + spare))
        users = [work.alice, work.bob] if role == "home" and os.geteuid() == 0 else [work.alice]
        for user in getattr(work, role)(*users):
            if user["failed"] and "too many files are open" not in user["msg"]:
                raise AssertionError(user)

    assert killing.run(starved, 0).killed is False
    (alice,) = getattr(work, role)(work.alice)
    assert not alice["failed"], alice
    assert not getattr(work, role)(work.alice)[0]["changed"]
    assert list(work.root.glob("*/.ansible_bootstrap-*")) == []
    assert os.listdir(work.root / ".ansible_bootstrap/stage") == []


def test_a_record_that_the_power_emptied_is_no_record(work: Work) -> None:
    work.home(work.alice)
    record = work.root / f".ansible_bootstrap/records/{identity(['alice'])}.json"
    for content in (b"", b"\0" * 64):
        record.write_bytes(content)
        (alice,) = work.home(work.alice)
        assert (alice["changed"], alice["failed"]) == (False, False)
        assert b"alice" in record.read_bytes()
    record.write_bytes(b'{"name": "al')
    (alice,) = work.home(work.alice)
    assert "is damaged: look at it, then remove it" in alice["msg"]
