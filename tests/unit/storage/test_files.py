from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_bootstrap.storage import _files
from ansible_bootstrap.storage._descriptors import DIRECTORY, opened
from ansible_bootstrap.storage._errors import StorageError
from ansible_bootstrap.storage._state import Lock


def test_a_storage_root_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="mount it, or create it with `install -d -m 755"):
        _files.open_root(str(tmp_path / "unmounted"))
    assert not (tmp_path / "unmounted").exists()


def test_a_storage_root_that_others_can_write_is_refused(root: Path) -> None:
    root.chmod(0o775)
    with pytest.raises(StorageError, match="chmod go-w"):
        _files.open_root(str(root))


@pytest.mark.root
def test_a_storage_root_of_somebody_else_is_refused(root: Path) -> None:
    os.chown(root, 20001, 20001)
    with pytest.raises(StorageError, match="belongs to uid 20001"):
        _files.open_root(str(root))


def test_the_admins_own_link_to_the_root_is_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    os.close(_files.open_root(str(tmp_path / "link")))


def test_below_the_root_no_link_is_followed(root: Path, victim: Path) -> None:
    (root / "students").symlink_to(victim)
    opened = _files.open_root(str(root))
    with pytest.raises(StorageError, match="students, below the storage root, is not a directory"):
        _files.open_parent(opened, ("students", "alice"), make=True)
    os.close(opened)


@pytest.mark.parametrize("without_renameat2", [False, True])
def test_a_directory_is_never_renamed_over_something(
    root: Path, without_renameat2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if without_renameat2:

        def refuse(*_: object) -> None:
            raise OSError(22, "Invalid argument")

        monkeypatch.setattr(_files, "_renameat2", refuse)
    (root / "new").mkdir()
    (root / "old").mkdir()
    (root / "link").symlink_to("nowhere")
    (root / "file").write_text("mine")
    opened = _files.open_root(str(root))
    for taken in ("old", "link", "file"):
        with pytest.raises(FileExistsError):
            _files.rename_directory(opened, "new", opened, taken)
    _files.rename_directory(opened, "new", opened, "free")
    os.close(opened)
    assert sorted(os.listdir(root)) == ["file", "free", "link", "old"]


def test_a_small_file_is_replaced_whole_and_private(root: Path) -> None:
    opened = _files.open_root(str(root))
    (root / ".note.new").write_text("left by a run that was killed, and longer than what comes now")
    _files.write_small(opened, "note", b"one")
    _files.write_small(opened, "note", b"two")
    assert _files.read_small(opened, "note") == b"two"
    assert _files.read_small(opened, "other") is None
    os.close(opened)
    assert os.listdir(root) == ["note"]
    assert (root / "note").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "use",
    [
        lambda directory: _files.read_small(directory, "name"),
        lambda directory: _files.write_draft(directory, "name", b"x"),
        lambda directory: Lock(directory, "name"),
    ],
)
def test_a_link_in_place_of_a_file_of_ours_is_not_followed(
    root: Path, victim: Path, use: Callable[[int], object]
) -> None:
    for name in ("name", ".name.new"):
        (root / name).symlink_to(victim / "secret")
    with opened(str(root), DIRECTORY) as directory, pytest.raises(OSError, match="symbolic links"):
        use(directory)
