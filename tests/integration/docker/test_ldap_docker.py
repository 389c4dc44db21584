"""Example 1 of JupyterHub's page "Bootstrapping your users", with real parts: users of an LDAP directory, who have
no account on the machine, log in at a hub that starts their servers with Docker, as uid 1000, on a volume.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from ldap_users import DOTTED, EARLY, USERS

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]  # Each notebook takes seconds of a core.


@pytest.fixture
def students(hub: Any) -> Any:
    from chain import Student

    students = [Student(hub, name) for name in USERS]
    yield students
    for student in students:
        student.leave()


def owner(path: Any) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


def test_without_the_hook_docker_makes_a_directory_in_which_nobody_can_write(docker_made: Any) -> None:
    assert (docker_made.directory.st_uid, docker_made.directory.st_gid) == (0, 0)
    assert docker_made.directory.st_mode & 0o777 == 0o755
    assert docker_made.saved.status_code == 403
    assert "Permission denied" in docker_made.saved.text, docker_made.saved.text
    status, said = docker_made.touched
    assert status == 1
    assert "Permission denied" in said
    assert docker_made.content == []


def test_the_pages_own_hook_makes_a_directory_that_docker_does_not_mount(pages_hook: Any) -> None:
    assert {DOTTED, "von-2eneumann"} <= set(pages_hook.beside)
    assert (pages_hook.directory.st_uid, pages_hook.directory.st_gid) == (0, 0)
    assert pages_hook.saved.status_code == 403
    assert "Permission denied" in pages_hook.saved.text


def test_ldap_users_log_in_write_come_back_and_find_what_they_wrote(hub: Any, students: list[Any]) -> None:
    assert students[0].log_in(with_password="another") == 403
    assert [student.log_in() for student in students] == [302] * 3

    with ThreadPoolExecutor(len(students)) as at_once:
        list(at_once.map(lambda student: student.start(), students))
    first = {student.name: hub.engine.container(student.slug) for student in students}
    for student in students:
        assert hub.engine.inside(student.slug, "id", "-u") == (0, "1000\n")
        assert owner(student.directory) == (1000, 100)
        assert "penguins" in student.opened("tutorials/welcome.ipynb")
        assert student.save("notes.txt", f"of {student.name}").status_code == 201
        assert owner(student.directory / "notes.txt") == (1000, 100)
        status, _ = hub.engine.inside(student.slug, "touch", "/home/jovyan/tutorials/by-hand")
        assert status == 0

    with ThreadPoolExecutor(len(students)) as at_once:
        list(at_once.map(lambda student: student.stop(), students))
        list(at_once.map(lambda student: student.start(), students))
    for student in students:
        assert hub.engine.container(student.slug) not in {"", first[student.name]}
        assert student.opened("notes.txt") == f"of {student.name}"
        assert (student.directory / "tutorials/by-hand").is_file()
        student.make_directory("scratch")
        assert student.save("scratch/big.tmp", "for now").status_code == 201
        assert student.save("scratch/kept.txt", "for ever").status_code == 201

    with ThreadPoolExecutor(len(students)) as at_once:
        list(at_once.map(lambda student: student.stop(), students))
    for student in students:
        scratch = student.directory / "scratch"
        hub.wait_for(lambda here=scratch: not (here / "big.tmp").exists(), "the clean-up")
        assert [path.name for path in scratch.iterdir()] == ["kept.txt"]


def test_a_directory_that_docker_made_is_repaired_at_the_next_start(hub: Any, docker_made: Any) -> None:
    from chain import Student

    student = Student(hub, EARLY)
    assert owner(student.directory) == (0, 0)
    assert student.log_in() == 302
    student.start()
    assert owner(student.directory) == (1000, 100)
    assert student.save("notes.txt", "at last").status_code == 201
    assert (student.directory / "notes.txt").read_text() == "at last"
    assert "penguins" in student.opened("tutorials/welcome.ipynb")
    student.stop()
    student.leave()
