"""What a run takes from the hub: no processor that the hub could use, in whatever session it works."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_bootstrap.storage import _as_user
from ansible_bootstrap.storage._priority import keep_back, step_back

GROUP = Path("/proc/self/autogroup")
"""``/autogroup-123 nice 10``; not there where the kernel has no such groups."""

KEPT = GROUP.exists() and os.geteuid() == 0
"""Whether a group takes what it is told; from others than root the kernel takes it ten times a second, of all together."""


def said_by_a_child(work: Callable[[], str | None]) -> tuple[int, str]:
    """Return the nice value with which a child began, and after ``work`` ``its nice value, that of its session's group``.

    It begins with that of everybody, whatever the tests themselves run with, if it may.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with contextlib.suppress(PermissionError):
                os.setpriority(os.PRIO_PROCESS, 0, 0)
            start = os.nice(0)
            os.write(writer, f"{start} {work() or both()}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with open(reader) as answer:
        start_text, _, said = answer.read().partition(" ")
    return int(start_text), said


def both() -> str:
    return f"{os.nice(0)} {GROUP.read_text().split()[-1] if KEPT else ''}"


def expected(nice: int, group: int) -> str:
    return f"{nice} {group if KEPT else ''}"


def go_on_in_a_child() -> None:
    """Which leads no session."""
    if pid := os.fork():
        os.waitpid(pid, 0)
        os._exit(0)


def test_lowering_the_priority_lowers_the_session_begun_before() -> None:
    def work() -> None:
        os.setsid()
        step_back()

    start, said = said_by_a_child(work)
    assert said == expected(max(start, 10), max(start, 10))


def test_a_session_that_is_begun_later_stays_back() -> None:
    def work() -> None:
        os.setsid()
        step_back()
        go_on_in_a_child()
        os.setsid()
        keep_back()

    start, said = said_by_a_child(work)
    assert said == expected(max(start, 10), max(start, 10))


def test_the_session_of_somebody_else_is_left_alone() -> None:
    """An admin's terminal, where ``ansible-playbook`` is called by hand."""

    def work() -> None:
        os.setsid()
        go_on_in_a_child()
        step_back()

    start, said = said_by_a_child(work)
    assert said == expected(max(start, 10), 0)


def test_a_priority_that_is_lower_already_stays() -> None:
    def work() -> None:
        os.setsid()
        os.setpriority(os.PRIO_PROCESS, 0, 19)
        step_back()

    _, said = said_by_a_child(work)
    assert said == expected(19, 19)


def test_without_a_lowered_priority_nothing_is_lowered() -> None:
    def work() -> None:
        os.setsid()
        keep_back()

    start, said = said_by_a_child(work)
    assert said == expected(start, start)


@pytest.mark.parametrize("nice", [0, 10])
def test_a_child_that_works_for_a_user_has_the_priority_of_the_run(tmp_path: Path, nice: int) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    task = _as_user.Task(os.geteuid(), os.getegid(), directory, both)

    def work() -> str:
        os.nice(nice)
        return _as_user.run(task, 10).unwrap()

    start, said = said_by_a_child(work)
    os.close(directory)
    now = min(start + nice, 19)
    assert said == expected(now, now)
