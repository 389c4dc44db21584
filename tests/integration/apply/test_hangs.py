"""A user whose storage hangs costs the others of the batch seconds, and a disk that hangs is soon reported to all users on it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests import hanging
from tests.integration.conftest import GID, UID, ApplyProgram, Site

pytestmark = pytest.mark.root

NAMES = [f"u{number:02}" for number in range(20)]


@pytest.fixture
def course(site: Site) -> dict[str, Any]:
    (site.path / "course").mkdir()
    (site.path / "course/01.ipynb").write_text("{}")
    return {"tutorials_sources": [{"name": "course", "path": str(site.path / "course")}]}


def a_place_in(home: Path) -> Path:
    place = home / "course"
    place.mkdir()
    os.chown(place, UID, GID)
    return place


def test_nineteen_have_their_tutorials_in_seconds_and_the_twentieth_is_late(
    site: Site, apply_program: ApplyProgram, course: dict[str, Any]
) -> None:
    """Mounted in the home, without ``user_allow_other``, its server sleeps: root is not let in, the child hangs."""
    apply_program(NAMES, "user_dir")
    settings = site.settings(roles=["user_dir", "tutorials"], extra_vars=course)
    with hanging.fuse(a_place_in(site.root / "u07"), UID):
        started = time.monotonic()
        answer = apply_program(NAMES, settings=settings)
        seconds = time.monotonic() - started
    assert answer.ok == {*NAMES} - {"u07"}, answer
    assert seconds < 30, "it was waited for the child's timeout of 60 s"
    late = answer.outcomes["u07"]
    assert (late["reason"], late["failed_role"]) == ("timeout", "tutorials")
    assert "took much longer than the others of its batch" in late["message"]
    (site.root / "u07/course").rmdir()
    assert apply_program(NAMES, settings=settings).ok == {*NAMES}


def test_where_the_role_may_fail_the_late_user_goes_on(
    site: Site, apply_program: ApplyProgram, course: dict[str, Any]
) -> None:
    apply_program(NAMES, "user_dir")
    roles = [{"role": "tutorials", "on_failure": "continue"}]
    with hanging.fuse(a_place_in(site.root / "u07"), UID, reads=False):
        answer = apply_program(NAMES, settings=site.settings(roles=roles, extra_vars=course))
    assert answer.ok == {*NAMES}, answer
    assert [key for key, outcome in answer.outcomes.items() if outcome["continued"]] == ["u07"]


def test_alone_a_user_has_the_whole_timeout(
    site: Site, apply_program: ApplyProgram, course: dict[str, Any]
) -> None:
    apply_program(["u07"], "user_dir")
    extra = {**course, "tutorials_child_timeout": 5}
    with hanging.fuse(a_place_in(site.root / "u07"), UID):
        answer = apply_program(["u07"], settings=site.settings(roles=["tutorials"], extra_vars=extra))
    assert answer.outcomes["u07"]["reason"] == "timeout"
    assert "did not finish within 5 s" in answer.outcomes["u07"]["message"]


def test_a_home_that_holds_root_up_is_left_out_and_the_others_are_served(
    site: Site, apply_program: ApplyProgram
) -> None:
    """With ``user_allow_other`` root is let in, and held beyond SIGKILL."""
    apply_program(NAMES[:3], "user_dir")
    with hanging.fuse(site.root / "u01", UID, for_all=True):
        started = time.monotonic()
        answer = apply_program(NAMES, "user_dir")
        assert time.monotonic() - started < 40
    assert answer.ok == {*NAMES} - {"u01"}, answer
    assert answer.outcomes["u01"]["reason"] == "timeout"
    assert "this directory does not answer" in answer.outcomes["u01"]["message"]
    assert apply_program(NAMES, "user_dir").ok == {*NAMES}


def test_on_a_frozen_disk_everybody_is_told_soon_and_thawed_it_is_as_ever(
    site: Site, apply_program: ApplyProgram
) -> None:
    with hanging.ext4(site.path / "disk", site.root):
        apply_program(NAMES[:3], "user_dir")
        with hanging.frozen(site.root):
            started = time.monotonic()
            answer = apply_program(NAMES, "user_dir")
            assert time.monotonic() - started < 40
        assert {outcome["reason"] for outcome in answer.outcomes.values()} == {"unreachable"}, answer
        assert all(
            f"the storage {site.root} does not answer" in each["message"] for each in answer.outcomes.values()
        )
        assert apply_program(NAMES, "user_dir").ok == {*NAMES}
