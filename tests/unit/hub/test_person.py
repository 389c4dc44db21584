"""A user who was deleted in the hub and made again is refused, whatever the ledger, the clock and the database do."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_fakes import Lines
from jupyterhub import orm

from ansible_bootstrap.errors import ApplyError, RefusedError
from ansible_bootstrap.hub.person import check_person
from ansible_bootstrap.state.bookkeeper import Bookkeeper
from ansible_bootstrap.state.ledger import FILE, Ledger


class Hub:
    """A hub's database, and the ledger beside it."""

    def __init__(self, path: Path, log: Lines) -> None:
        self.path = path
        self.books = Bookkeeper(Ledger(path / "state"), log.logger)
        self.core: Any = SimpleNamespace(
            config=SimpleNamespace(recreated_user="refuse", log=log.logger), books=self.books
        )
        self.replace("one")

    def replace(self, name: str) -> None:
        self.session = orm.new_session_factory(f"sqlite:///{self.path}/{name}.sqlite")()

    def add(self, *names: str, created: datetime | None = None) -> None:
        for name in names:
            self.session.add(orm.User(name=name, **({"created": created} if created else {})))
            self.session.commit()

    def delete(self, *names: str) -> None:
        for name in names:
            self.session.delete(orm.User.find(self.session, name))
            self.session.commit()

    def check(self, name: str) -> None:
        check_person(self.core, SimpleNamespace(name=name, orm_user=orm.User.find(self.session, name)))

    async def start(self, *names: str) -> None:
        for name in names:
            self.check(name)
        await self.books.written()

    async def refuses(self, name: str) -> bool:
        try:
            await self.start(name)
        except RefusedError:
            return True
        return False


@pytest.fixture
def hub(tmp_path: Path, log: Lines) -> Hub:
    return Hub(tmp_path, log)


async def recreate(hub: Hub) -> None:
    hub.add("elder", "alice")
    await hub.start("alice")
    hub.delete("alice")
    hub.add("alice")
    assert hub.session.query(orm.User.id).filter_by(name="alice").scalar() == 2, "the id is used again"


def exclusive(state: Path) -> Callable[[], None]:
    """As an admin's shell, or a backup, holds the file for a moment."""
    database = sqlite3.connect(state / FILE, isolation_level=None)
    database.executescript("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; DELETE FROM forgotten")
    return database.close


def a_directory(state: Path) -> Callable[[], None]:
    """As a container engine makes in the place of a file that is missing."""
    (state / FILE).rename(state / "kept")
    (state / FILE).mkdir()

    def back() -> None:
        (state / FILE).rmdir()
        (state / "kept").rename(state / FILE)

    return back


@pytest.mark.parametrize("trouble", [exclusive, a_directory])
async def test_while_the_ledger_cannot_be_read_nobody_is_let_in_nor_noted(
    hub: Hub, trouble: Callable[[Path], Callable[[], None]]
) -> None:
    await recreate(hub)
    hub.books._ledger._file._let_go()
    back = trouble(hub.path / "state")
    for name in ("alice", "elder"):
        with pytest.raises(ApplyError, match="try again"):
            hub.check(name)
    back()
    await hub.books.written()
    assert await hub.refuses("alice")
    assert not await hub.refuses("elder")


async def test_a_note_replaces_nobody_else(hub: Hub) -> None:
    hub.books.note_person("alice", "1 x")
    await hub.books.written()
    hub.books.note_person("alice", "2 y")
    await hub.books.written()
    assert hub.books.person("alice") == "1 x"
    hub.books.note_person("alice", "3 z", instead="1 x")
    await hub.books.written()
    assert hub.books.person("alice") == "3 z"


async def test_users_who_were_made_while_the_clock_was_ahead_are_refused_too(hub: Hub) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    hub.add("elder", "bob", "alice", created=now + timedelta(hours=1))
    await hub.start("alice")
    hub.delete("alice")
    hub.add("alice")
    assert await hub.refuses("alice")


async def test_a_database_that_was_replaced_refuses_nobody(hub: Hub) -> None:
    hub.add("elder", "alice", "bob", "carol")
    await hub.start("elder", "alice", "bob", "carol")
    hub.replace("two")
    hub.add("elder", "x", "y", "z")
    hub.delete("y")
    hub.add("alice", "bob", "carol")
    for _ in range(2):
        for name in ("elder", "alice", "bob", "carol"):
            assert not await hub.refuses(name), name


async def test_a_recreated_user_who_was_first_and_alone_is_refused_too(hub: Hub) -> None:
    hub.add("alice")
    await hub.start("alice")
    hub.add("bob")
    hub.delete("alice")
    hub.add("alice")
    assert await hub.refuses("alice")


async def test_the_name_of_a_renamed_user_belongs_to_another_person(hub: Hub) -> None:
    hub.add("zoe")
    await hub.start("zoe")
    orm.User.find(hub.session, "zoe").name = "zora"
    hub.add("zoe")
    assert await hub.refuses("zoe")
    assert not await hub.refuses("zora")
