"""A user who is deleted in the hub and made again does not get the old user's files, unless the admin says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hub_fakes import FakeApply, until
from hub_process import Api, RunningHub

from ansible_bootstrap.cli import main as cli
from ansible_bootstrap.state.ledger import Ledger


async def _start(api: Api, name: str) -> int:
    """Start a server and stop it; return the status."""
    answer = await api.spawn(name)
    if answer.status_code == 201:
        await api.stop(name)
        await api.until(name, lambda servers: not servers)
    return int(answer.status_code)


async def _recorded(hub: RunningHub, *names: str) -> None:
    ledger = Ledger(hub.path / "state")
    await until(lambda: all(ledger.person(name) for name in names))


async def test_a_user_who_was_deleted_and_made_again(
    start_hub: Callable[..., RunningHub], own: FakeApply, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = start_hub(apply_command=own.command)
    async with hub.api() as api:
        await api.create("elder", "alice", "zoe")
        for name in ("elder", "alice", "zoe"):
            assert await _start(api, name) == 201
        await _recorded(hub, "elder", "alice", "zoe")
        (await api.client.delete("/users/alice")).raise_for_status()
        await api.create("alice")
        runs = len(own.runs)
        assert await _start(api, "alice") == 503
        assert len(own.runs) == runs
        assert "`ansible-bootstrap accept 'alice'`" in hub.log

        # The name of a renamed user belongs to another person, too; the renamed user is the same person.
        (await api.client.patch("/users/zoe", json={"name": "zora"})).raise_for_status()
        await api.create("zoe")
        assert await _start(api, "zoe") == 503
        assert await _start(api, "zora") == 201

        config = hub.path / "config.py"
        config.write_text(f"c.AnsibleBootstrap.state_dir = {str(hub.path / 'state')!r}\n")
        assert cli.main(["accept", "alice", "--config", str(config)]) == 0
        assert "1 had a record" in capsys.readouterr().out
        assert await _start(api, "alice") == 201
        assert await _start(api, "zoe") == 503


async def test_the_oldest_user_of_a_hub_is_no_exception(
    start_hub: Callable[..., RunningHub], own: FakeApply
) -> None:
    hub = start_hub(apply_command=own.command)
    async with hub.api() as api:
        await api.create("alice")
        assert await _start(api, "alice") == 201
        await _recorded(hub, "alice")
        await api.create("bob")
        (await api.client.delete("/users/alice")).raise_for_status()
        await api.create("alice")
        assert await _start(api, "alice") == 503


async def test_a_hub_whose_database_was_replaced_refuses_nobody(
    start_hub: Callable[..., RunningHub], own: FakeApply
) -> None:
    hub = start_hub(apply_command=own.command)
    async with hub.api() as api:
        await api.create("elder", "alice")
        assert await _start(api, "elder") == await _start(api, "alice") == 201
        await _recorded(hub, "elder", "alice")
    hub.terminate()
    hub.process.wait(20)
    (hub.path / "hub.sqlite").unlink()
    hub.restart()
    async with hub.api() as api:
        await api.create("alice", "elder")
        assert await _start(api, "alice") == await _start(api, "elder") == 201
    assert "the hub has a new database" in hub.log
