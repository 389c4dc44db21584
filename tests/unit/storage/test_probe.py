"""What a look tells about a file system, for the ones that no machine of ours has; the real ones are in
``tests/faults/test_squashed.py``.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ansible_bootstrap.storage import _files, _mounts, _names, _probe
from ansible_bootstrap.storage._errors import StorageError
from ansible_bootstrap.storage._mounts import Mount


def mount(filesystem: str, options: str = "rw") -> Mount:
    return Mount("0:40", "/home", filesystem, frozenset(options.split(",")))


def made(uid: int, mode: int = 0o700) -> os.stat_result:
    return os.stat_result((0o040000 | mode, 1, 1, 2, uid, 0, 0, 0, 0, 0))


def pretend_device(path: Path, filesystem: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have mountinfo say that the device of a path is such a file system."""
    device = path.stat().st_dev
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 254:999 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        f"36 22 {os.major(device)}:{os.minor(device)} / /mnt/two\\040words rw,noexec - {filesystem} //nas/h rw,uid=0\n"
    )
    monkeypatch.setattr(_mounts, "MOUNTINFO", str(table))


def test_the_table_of_mounts_is_understood(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: Path
) -> None:
    pretend_device(root, "cifs", monkeypatch, tmp_path)
    (_, found) = _mounts.mounts().values()
    assert (found.point, found.filesystem) == ("/mnt/two words", "cifs")
    assert found.options == {"rw", "noexec", "uid=0"}


@pytest.mark.root
@pytest.mark.parametrize(
    ("status", "filesystem", "kind"),
    [
        (made(0), "ext4", None),
        (made(0), "nfs4", None),
        (made(0, 0o2700), "nfs4", None),
        (made(65534), "nfs4", "root squashed"),
        (made(2**32 - 2), "nfs", "root squashed"),
        (made(1000), "nfs4", "all squashed"),
        (made(0, 0o777), "cifs", "no owners"),
        (made(1000, 0o755), "vfat", "no owners"),
        (made(0), "cifs", None),  # with the Unix extensions it keeps owners
        (made(0, 0o777), "fuse.rclone", "no owners"),
    ],
)
def test_what_root_has_made_tells_the_kind(status: os.stat_result, filesystem: str, kind: str | None) -> None:
    assert _mounts.kind_by_owner(status, mount(filesystem)) == kind


@pytest.mark.root
@pytest.mark.parametrize(
    ("filesystem", "options", "kind"),
    [
        ("nfs4", "rw,sec=sys", "root squashed"),
        ("nfs4", "rw,sec=krb5p", "tickets"),
        ("afs", "rw", "tickets"),
        ("autofs", "rw,indirect", "autofs map"),
        ("ext4", "rw", "refused"),
    ],
)
def test_a_server_that_lets_root_write_nothing_is_told_by_a_look(
    filesystem: str, options: str, kind: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the kernel asks an NFS server itself (ACCESS), which knows no root."""
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    monkeypatch.setattr(_mounts, "mount_of", lambda _: mount(filesystem, options))
    directory = os.open(root, os.O_RDONLY)
    try:
        assert _mounts.kind_by_look(directory) == kind
        with pytest.raises(StorageError) as refusal:
            _mounts.refuse_what_takes_no_records(directory, str(root), _names.STATE_DIRECTORY)
        assert _mounts.sentence(kind, str(root), mount(filesystem), root.stat()) == str(refusal.value)
    finally:
        os.close(directory)


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_no_chmod_is_advised_where_the_mount_gives_the_modes(
    mode: int, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root.chmod(mode)
    pretend_device(root, "cifs", monkeypatch, tmp_path)
    with pytest.raises(StorageError) as refusal:
        _files.open_root(str(root))
    assert "chmod go-w" not in str(refusal.value)
    assert (
        f"which keeps no owners: each file has the owner and the mode that the mount gives it (here uid {os.geteuid()}, mode {mode:04o})"
        in str(refusal.value)
    )
    assert "dir_mode=0700,file_mode=0600" in str(refusal.value)


@pytest.mark.root
def test_a_root_of_nobodys_on_a_file_server_is_a_squashed_root(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    os.chown(root, 65534, 65534)
    pretend_device(root, "nfs4", monkeypatch, tmp_path)
    with pytest.raises(StorageError, match=f"root is squashed on {root}") as refusal:
        _files.open_root(str(root))
    assert "`chown" not in str(refusal.value)


@pytest.mark.parametrize("above", [False, True])
def test_what_fstab_mounts_and_is_not_mounted(
    above: bool, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    point = root.parent if above else root
    table = tmp_path / "fstab"
    table.write_text(f"# {point}\nnas:/other /srv/other nfs4 rw 0 0\nnas:/home {point} nfs4 rw 0 0\n")
    monkeypatch.setattr(_probe, "_FSTAB", str(table))
    answer = _probe.probe(str(root), None, None)
    assert answer["about"]["kind"] == "not mounted"
    assert answer["findings"][0]["mend"] == f"mount {point}"
    assert list(root.iterdir()) == []


@pytest.mark.root
@pytest.mark.parametrize("known", [True, False])
def test_a_root_in_which_a_user_may_work_is_plain_and_nothing_stays(
    known: bool, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where no table tells what is mounted."""
    if not known:
        monkeypatch.setattr(_mounts, "MOUNTINFO", str(tmp_path / "missing"))
    answer = _probe.probe(str(root), 20001, 20002)
    assert (answer["about"]["kind"], answer["findings"]) == ("plain", [])
    assert list(root.iterdir()) == []


@pytest.mark.root
@pytest.mark.parametrize(("number", "kind"), [(errno.EPERM, "no owners"), (errno.EINVAL, "unmapped")])
def test_a_directory_that_cannot_be_given_away_tells_the_kind(
    number: int, kind: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fchown", refuse)
    assert _probe.probe(str(root), 20001, 20002)["about"]["kind"] == kind
    assert list(root.iterdir()) == []


def test_what_a_probe_makes_is_nobodys_home() -> None:
    with pytest.raises(ValueError, match="is not a user's directory"):
        _names.check_directory(f"/home/{_names.PROBE_DIRECTORY}")


def test_a_look_writes_nothing(root: Path) -> None:
    before = root.stat()
    assert _probe.probe(str(root), None, None, check=True)["about"]["kind"] == "plain"
    assert root.stat() == before


@pytest.mark.root
def test_nothing_is_tried_where_another_account_chooses_the_place(root: Path) -> None:
    victim, theirs = root / "victim", root / "theirs"
    victim.mkdir(mode=0o700)
    theirs.mkdir()
    (theirs / "root").symlink_to(victim)
    for path in (theirs, theirs / "root"):
        os.lchown(path, 1500, 1500)
    before = victim.stat().st_mtime_ns
    assert _probe.probe(str(theirs / "root"), None, None)["about"]["kind"] == "not root's"
    assert victim.stat().st_mtime_ns == before, "something was made there and removed"


def test_every_kind_has_a_sentence_and_a_way_out() -> None:
    for kind in _mounts.KINDS:
        what, mend = _mounts.explain(kind, "/home", mount("nfs4"), made(1000))
        assert what and mend and "{" not in what + mend
        assert "chmod go-w" not in what + mend
