"""What a run takes from the hub: no processor that the hub could use, in whatever session it works."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_bootstrap.storage import _as_user
from ansible_bootstrap.storage._priority import keep_back, step_back

GROUP = Path("/proc/self/autogroup")
"""``/autogroup-123 nice 10``; not there where the kernel has no such groups."""


def said_by_a_child(work: Callable[[], None]) -> tuple[int, str]:
    """Return the child's nice value and that of its session's group after ``work``; empty where there are none."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os.write(writer, f"{os.nice(0)} {_group()}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with open(reader) as answer:
        nice, _, group = answer.read().partition(" ")
    return int(nice), group


def _group() -> str:
    return GROUP.read_text().split()[-1] if GROUP.exists() else ""


def expected(nice: int) -> str:
    return str(nice) if GROUP.exists() else ""


def test_who_steps_back_takes_the_session_that_they_have_begun_along() -> None:
    def work() -> None:
        os.setsid()
        step_back()

    assert said_by_a_child(work) == (10, expected(10))


def test_a_session_that_is_begun_later_stays_back() -> None:
    def work() -> None:
        os.setsid()
        step_back()
        if pid := os.fork():
            os.waitpid(pid, 0)
            os._exit(0)
        os.setsid()
        keep_back()

    assert said_by_a_child(work) == (10, expected(10))


def test_the_session_of_somebody_else_is_left_alone() -> None:
    """An admin's terminal, where ``ansible-playbook`` is called by hand."""
    assert said_by_a_child(step_back) == (10, _group())


def test_who_is_further_back_already_stays_there() -> None:
    def work() -> None:
        os.setsid()
        os.nice(15)
        step_back()

    assert said_by_a_child(work) == (15, expected(15))


def test_who_has_not_stepped_back_keeps_nothing_back() -> None:
    def work() -> None:
        os.setsid()
        keep_back()

    assert said_by_a_child(work) == (os.nice(0), expected(0))


@pytest.mark.parametrize("nice", [0, 10])
def test_a_child_that_works_for_a_user_has_the_priority_of_the_run(tmp_path: Path, nice: int) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    work = _as_user.Task(os.geteuid(), os.getegid(), directory, lambda: f"{os.nice(0)} {_group()}")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.nice(nice)
            os.write(writer, str(_as_user.run(work, 10).unwrap()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    os.close(directory)
    with open(reader) as answer:
        assert answer.read() == f"{nice} {expected(nice)}"
