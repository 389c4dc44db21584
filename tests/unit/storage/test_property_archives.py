"""Whatever archive somebody builds, a tree comes out that can harm nobody, or nothing does."""

from __future__ import annotations

import random
import stat
import warnings

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz import targets

PART = st.sampled_from(
    ["a", "b", "A", "..", ".", "", "é", "e\u0301", "x" * 255, "𝔘" * 63, "\x1b", "a\\b", "C:"]
)
NAME = st.lists(PART, min_size=1, max_size=4).map("/".join)
MODE = st.sampled_from(
    [
        *(stat.S_IFREG | mode for mode in (0o644, 0o755, 0o4755, 0o2755, 0)),
        *(stat.S_IFDIR | 0o755, stat.S_IFDIR | 0o7777),
        *(stat.S_IFLNK | 0o777,) * 3,
        *(stat.S_IFIFO | 0o644, stat.S_IFCHR | 0o666, stat.S_IFBLK | 0o666, stat.S_IFSOCK | 0o600),
    ]
)
CONTENT = (
    NAME | st.sampled_from(["/etc/passwd", "../../..", "a/../..", "\0", "𝔘" * 1999]) | st.text(max_size=200)
)
MEMBERS = st.lists(st.tuples(NAME, MODE, CONTENT), max_size=6)
LINK, FILE, DIRECTORY = stat.S_IFLNK | 0o777, stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


@pytest.mark.parametrize("kind", ["zip", "tar-gnu", "tar-pax", "gz-pax"])
@settings(deadline=None)
@given(members=MEMBERS)
@example(members=[("a", LINK, "b"), ("b", LINK, "a")])
@example(members=[("a", LINK, "a//a")])
@example(members=[("a/b/l", LINK, "../.."), ("m", LINK, "a/b/l/..")])
@example(members=[("a/l", LINK, ".."), ("a/l/x", FILE, "through a link")])
@example(members=[("/".join(["𝔘" * 63] * 25), FILE, "longer than the kernel takes")])
@example(members=[("l", LINK, "𝔘" * 1999)])
def test_only_a_harmless_tree_comes_out(kind: str, members: list[tuple[str, int, str]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name twice is one of the things tried
        try:
            data = targets._packed(kind, members)
        except (ValueError, OSError, RuntimeError):  # what cannot be written need not be read
            return
    targets.archive(data)


@settings(deadline=None)
@given(st.sampled_from(targets.SEEDS["archive"]), st.integers(0, 2**32))
def test_damage_is_refused_or_harmless(data: bytes, seed: int) -> None:
    targets.archive(targets.mutate(data, random.Random(seed), targets.SEEDS["archive"]))


def test_a_zip_that_points_before_its_beginning_is_damaged() -> None:
    """Found by the fuzzer: the offset of a member led to a place that the system refuses to seek to."""
    data = bytearray(targets.SEEDS["archive"][0])
    end = data.rindex(b"PK\5\6")
    offset = int.from_bytes(data[end + 16 : end + 20], "little")
    data[end + 16 : end + 20] = (offset + 4096).to_bytes(
        4, "little"
    )  # zipfile takes it for something put before
    targets.archive(bytes(data))
