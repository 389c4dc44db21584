"""kill -9 at each call that changes the disk: absent or whole, then completed, and the user's own untouched."""

from __future__ import annotations

import http.server
import json
import os
import signal
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ansible_bootstrap.storage import _homes, _tutorials
from tests.faults import killing
from tests.faults.conftest import small
from tests.unit.storage.conftest import MakeUser


@dataclass
class Story:
    """A run to be killed, and what must hold around it.

    Attributes:
        work: the run; returns the users' results.
        prepare: what there is before, below the empty storage root.
        shown: what must be absent (as it was) or whole, whenever one looks.
        own: what is the user's and must never change, times and all.
    """

    work: Callable[[], list[dict[str, Any]]]
    shown: list[Path]
    prepare: Callable[[], None] = lambda: None
    own: list[Path] = field(default_factory=list)


@pytest.fixture
def skeleton(root: Path) -> Path:
    made = root.parent / "skel"
    (made / "bin").mkdir(parents=True)
    (made / ".bashrc").write_text("set -o vi\n")
    (made / "bin/run").write_text("#!/bin/sh\necho hello\n")
    (made / "bin/run").chmod(0o775)
    (made / "link").symlink_to("bin/run")
    return made


@pytest.fixture
def archive(root: Path) -> Path:
    path = root.parent / "course.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("master/01.ipynb", '{"cells": []}')
        packed.writestr("master/data/a.csv", "1,2\n")
    return path


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def web(archive: Path) -> Iterator[str]:
    """A web server, in a process of its own, that has the archive."""
    server = http.server.HTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(archive.parent)))
    pid = os.fork()
    if pid == 0:
        server.serve_forever()
    server.server_close()
    yield f"http://127.0.0.1:{server.server_address[1]}/{archive.name}"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _ensure(root: Path, users: list[Any], **options: Any) -> list[dict[str, Any]]:
    return _homes.ensure(users, str(root), 1000, _homes.Options(**options), check=False).users


def _place(root: Path, users: list[Any], *sources: dict[str, Any]) -> list[dict[str, Any]]:
    return _tutorials.place(users, str(root), 1000, _tutorials.Options(list(sources)), check=False).users


def _fill_home(user: dict[str, Any]) -> None:
    """An old home, with something of the user's in it."""
    home = Path(user["directory"])
    (home / "work").mkdir(parents=True)
    (home / "work/thesis.txt").write_text("years of work\n")
    (home / ".profile").write_text("mine\n")
    os.link(home / ".profile", home / "twin")
    for path in (home, *home.rglob("*")):
        os.chown(path, user["uid"], user["gid"])
    os.utime(home / "work/thesis.txt", (1_000_000_000, 1_000_000_000))


def _stories(root: Path, make_user: MakeUser, skeleton: Path, archive: Path, web: str) -> dict[str, Story]:
    alice, bob = make_user("alice"), make_user("bob")
    deep = make_user("carol", directory=str(root / "students/2026/carol"))
    home, other = root / "alice", root / "bob"
    from_skeleton = {"skeleton": str(skeleton), "mode": "0750"}
    course = {"name": "course", "path": str(skeleton), "dest": "work/tutorials"}
    packed = {"name": "packed", "path": str(archive), "dest": "course", "strip_components": 1}
    new = partial(_ensure, root, [alice])
    own = [home / "work/thesis.txt", home / ".profile", home / "twin"]

    def both_roles() -> list[dict[str, Any]]:
        made = _ensure(root, [alice], skeleton=str(skeleton))
        return [*made, *_place(root, [alice], {**course, "dest": "tutorials"}, packed)]

    return {
        "home": Story(partial(_ensure, root, [alice], **from_skeleton), [home]),
        "empty home": Story(new, [home]),
        "two homes": Story(partial(_ensure, root, [alice, bob], **from_skeleton), [home, other]),
        "nested home": Story(partial(_ensure, root, [deep], **from_skeleton), [root / "students/2026/carol"]),
        "Docker's leftover": Story(
            partial(_ensure, root, [alice], **from_skeleton), [home], lambda: home.mkdir(0o755)
        ),
        "several directories": Story(
            partial(
                _ensure,
                root,
                [make_user("alice", also=[str(home / "in/side"), str(root / "work/alice")])],
                mode="0750",
            ),
            [home / "in/side", root / "work/alice"],
        ),
        "skeleton inside": Story(
            partial(_ensure, root, [make_user("alice", directory=str(home / "notebooks"))], **from_skeleton),
            [home / "notebooks"],
            lambda: _fill_home(alice),
            own,
        ),
        "above a named server's": Story(
            new, [home], lambda: (_ensure(root, [make_user("alice", directory=str(home / "gpu"))]), None)[1]
        ),
        "enforced mode": Story(
            partial(_ensure, root, [alice], mode="0700", enforce_mode=True),
            [],
            lambda: _fill_home(alice),
            own,
        ),
        "home and tutorials": Story(both_roles, [home / "tutorials", home / "course"]),
        "tutorial beside one's own": Story(
            partial(_place, root, [alice], course), [home / "work/tutorials"], lambda: _fill_home(alice), own
        ),
        "tutorial from a zip": Story(
            partial(_place, root, [alice, bob], packed),
            [home / "course", other / "course"],
            lambda: (_fill_home(alice), _fill_home(bob))[0],
            [*own, other / "work/thesis.txt"],
        ),
        "tutorial from the web": Story(
            partial(_place, root, [alice], {"name": "web", "url": web, "dest": "course"}),
            [home / "course"],
            lambda: _fill_home(alice),
            own,
        ),
        "tutorial where something is": Story(
            partial(_place, root, [alice], {**course, "dest": "work"}),
            [],
            lambda: _fill_home(alice),
            [home / "work", *own],
        ),
    }


NAMES = list(_stories(Path("/x"), lambda name, **_: {"directory": "/x/" + name}, Path("/x"), Path("/x"), ""))


def _leftovers(root: Path) -> list[str]:
    """What is ours and should be gone: stages, drafts, the cache's workshop, trees nobody wants."""
    state = root / ".ansible_bootstrap"
    found = [*root.rglob("*/.ansible_bootstrap-*"), *state.glob("stage/*"), *state.glob("cache/work/*")]
    found += list(state.rglob("*.new"))
    found += list(state.glob("cache/trees/*"))[1:]
    return [str(path.relative_to(root)) for path in found]


@pytest.mark.root
@pytest.mark.parametrize("only_child", [False, True], ids=["all", "child"])
@pytest.mark.parametrize("name", NAMES)
def test_killed_at_every_step(
    name: str,
    only_child: bool,
    root: Path,
    make_user: MakeUser,
    skeleton: Path,
    archive: Path,
    web: str,
    counted: Counter[str],
    request: pytest.FixtureRequest,
) -> None:
    story = _stories(root, make_user, skeleton, archive, web)[name]
    with small(root, "size=64m"):
        story.prepare()
        before = [killing.tree(path) for path in story.shown]
        steps = killing.run(story.work, 0).steps
        whole = [killing.tree(path) for path in story.shown]
        assert all(whole), "the work did nothing"
    assert steps > 2

    killed = 0
    tried = killing.chosen(steps, request.node.name)
    for at in (*tried, steps + 1):
        with small(root, "size=64m"):
            story.prepare()
            own = [killing.tree(path, times=path.is_file()) for path in story.own]
            run = killing.run(story.work, at, only_child=only_child)
            if only_child and not run.in_child:
                continue
            assert run.killed == (at <= steps), f"step {at} of {steps}"
            killed += run.killed
            shown = [killing.tree(path) for path in story.shown]
            for what, absent, complete in zip(shown, before, whole, strict=True):
                if what not in (absent, complete):
                    counted["partial"] += 1
                assert what in (absent, complete), f"partial after step {at} of {steps}"

            again = story.work()
            assert {user["failed"] for user in again} == {False}, f"killed at step {at} of {steps}: {again}"
            assert [killing.tree(path) for path in story.shown] == whole
            assert {user["changed"] for user in story.work()} == {False}
            assert _leftovers(root) == [], f"killed at step {at} of {steps}"
            assert _records_are_whole(root)
            kept = [killing.tree(path, times=path.is_file()) for path in story.own]
            counted["lost"] += sum(_lost(one, two) for one, two in zip(own, kept, strict=True))
            assert kept == own
    counted["steps"] += killed
    if not only_child:
        assert killed == len(tried)


def _lost(before: killing.Seen, after: killing.Seen) -> int:
    """Bytes of the files that are not as they were."""
    return sum(len(entry[3]) for name, entry in before.items() if after.get(name) != entry)


def _records_are_whole(root: Path) -> bool:
    records = list((root / ".ansible_bootstrap/records").glob("*.json"))
    return bool(records) and all("name" in json.loads(record.read_bytes()) for record in records)
