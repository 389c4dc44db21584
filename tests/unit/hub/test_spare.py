"""The spare program: there when it is needed, thrown away when it is not, and never a reason to fail."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from hub_fakes import FakeApply, Lines, is_alive, until

from ansible_bootstrap.dispatch.client import ApplyClient
from ansible_bootstrap.dispatch.dispatcher import Dispatcher
from ansible_bootstrap.errors import ApplyError
from ansible_bootstrap.place import Place
from ansible_bootstrap.protocol import Event, OutcomeEvent, Request

REQUEST = Request(
    operation="bootstrap", users=[{"name": "alice", "key": "alice", "storage_host": "localhost"}]
)


class Hub:
    """A client that keeps a spare, and what came of its runs."""

    def __init__(self, apply: FakeApply, log: Lines) -> None:
        self.apply = apply
        self.argv = apply.command
        self.fails = False
        self.events: list[Event] = []
        self.client = ApplyClient(self._argv, log.logger, spare=True, wanted=lambda: list(self.argv))

    async def _argv(self) -> list[str]:
        if self.fails:
            raise ApplyError("the settings cannot be written")
        return self.argv

    async def ready(self, number: int = 1) -> int:
        """Wait until as many spares have been started; return the last one's pid."""
        await until(lambda: len(self.apply.noted("spare")) >= number)
        return int(self.apply.noted("spare")[number - 1]["pid"])

    async def run(self, operation: str = "bootstrap") -> int:
        """Run for alice to the end; return the pid of the program that did it."""
        request = REQUEST.model_copy(update={"operation": operation})
        run = await self.client.start(request, self.events.append, limit=20)
        await run.finish()
        return int(self.apply.noted("begin")[-1]["pid"])

    @property
    def ok(self) -> int:
        return sum(isinstance(event, OutcomeEvent) and event.outcome.status == "ok" for event in self.events)


@pytest.fixture
async def hub(apply: FakeApply, log: Lines) -> Any:
    hub = Hub(apply, log)
    yield hub
    hub.client.close()
    await until(lambda: not any(is_alive(note["pid"]) for note in apply.noted("spare")))


async def test_the_spare_serves_the_run_and_another_takes_its_place(hub: Hub) -> None:
    hub.client.prepare()
    first = await hub.ready(1)
    assert await hub.run() == first
    second = await hub.ready(2)
    assert await hub.run() == second != first
    assert hub.ok == 2
    assert [note["argv"] for note in hub.apply.noted("spare")[:2]] == [["--spare"]] * 2


async def test_without_a_spare_a_run_starts_its_own_and_asks_for_a_spare(hub: Hub) -> None:
    cold = await hub.run()
    spare = await hub.ready()
    assert spare != cold
    assert await hub.run() == spare


async def test_by_default_there_is_none(apply: FakeApply, log: Lines) -> None:
    hub = Hub(apply, log)
    hub.client = ApplyClient(hub._argv, log.logger)
    hub.client.prepare()
    await hub.run()
    await hub.run()
    hub.client.close()
    assert hub.ok == 2 and not apply.noted("spare")


async def test_asked_for_twice_there_is_one(hub: Hub) -> None:
    for _ in range(3):
        hub.client.prepare()
    first = await hub.ready()
    assert await hub.run() == first
    await hub.ready(2)
    assert len(hub.apply.noted("spare")) == 2


async def test_a_spare_of_another_command_line_is_thrown_away(hub: Hub) -> None:
    hub.client.prepare()
    spare = await hub.ready()
    hub.argv = [*hub.apply.command, "--settings", "/elsewhere"]
    assert await hub.run() != spare
    await until(lambda: not is_alive(spare))
    assert await hub.ready(2) == await hub.run()
    assert hub.apply.noted("spare")[1]["argv"] == ["--settings", "/elsewhere", "--spare"]


async def test_a_spare_that_crashes_is_logged_and_the_next_run_starts_its_own(hub: Hub, log: Lines) -> None:
    hub.apply.do(spare="die")
    hub.client.prepare()
    await until(lambda: any("ended while it waited" in line for line in log.lines))
    assert any("the disk of /srv/secret is gone" in line for line in log.lines)
    assert len(hub.apply.noted("spare")) == 1, "one that dies is not started again and again"
    hub.apply.do()
    await hub.run()
    assert hub.ok == 1
    assert await hub.ready(2) == await hub.run()


async def test_a_spare_that_is_killed_at_the_last_moment_is_not_used(hub: Hub) -> None:
    """The event loop has not heard of its end yet."""
    hub.client.prepare()
    spare = await hub.ready()
    await until(lambda: hub.client._spare and hub.client._spare._run)
    os.kill(spare, 9)
    while is_alive(spare):
        pass  # without giving the loop a turn
    assert await hub.run() != spare
    assert hub.ok == 1


async def test_a_spare_that_crashes_when_it_is_asked_costs_nobody_the_spawn(hub: Hub, log: Lines) -> None:
    hub.apply.do(spare="crash")
    hub.client.prepare()
    await hub.ready()
    dispatcher = Dispatcher(hub.client, log.logger)
    place = Place("alice", storage_host="localhost")
    outcome = await dispatcher.wait(place, timeout=20, on_progress=lambda text, share: None)
    assert outcome.status == "ok"
    assert any("the run is started again" in line for line in log.lines)
    assert [note["argv"] for note in hub.apply.runs] == [[]], "it was no spare"
    await dispatcher.close()


async def test_a_spare_that_speaks_before_it_is_asked_is_not_believed(hub: Hub, log: Lines) -> None:
    hub.apply.do(spare="chatter")
    hub.client.prepare()
    spare = await hub.ready()
    await until(lambda: not is_alive(spare))
    await until(lambda: any("speaks before it is asked" in line for line in log.lines))
    hub.apply.do()
    await hub.run()
    assert hub.ok == 1


async def test_a_description_does_not_take_the_spare(hub: Hub) -> None:
    hub.client.prepare()
    spare = await hub.ready()
    events: list[Event] = []
    run = await hub.client.start(Request(operation="describe", users=[]), events.append, limit=20)
    await until(lambda: events)
    await run.finish()
    assert await hub.run() == spare


async def test_no_spare_is_no_failure_of_anything(hub: Hub, log: Lines) -> None:
    hub.fails = True
    hub.client.prepare()
    await until(lambda: any("no spare program was started" in line for line in log.lines))
    hub.fails = False
    await hub.run()
    assert hub.ok == 1


async def test_closing_ends_the_spare_quietly_and_starts_none_any_more(hub: Hub, log: Lines) -> None:
    hub.client.prepare()
    spare = await hub.ready()
    hub.client.close()
    await until(lambda: not is_alive(spare))
    hub.client.prepare()
    await hub.run()
    assert len(hub.apply.noted("spare")) == 1
    assert not log.lines


async def test_closing_while_it_is_being_started(hub: Hub) -> None:
    hub.client.prepare()
    await asyncio.sleep(0)
    hub.client.close()
    await hub.run()
    await until(lambda: not any(is_alive(note["pid"]) for note in hub.apply.noted("spare")))


async def test_a_run_that_comes_while_its_spare_is_started_takes_that(hub: Hub) -> None:
    hub.client.prepare()
    await asyncio.sleep(0)
    pid = await hub.run()
    assert pid in {note["pid"] for note in hub.apply.noted("spare")}


async def test_a_request_larger_than_a_pipe_arrives_whole(hub: Hub) -> None:
    hub.client.prepare()
    await hub.ready()
    names = [f"u{number}" for number in range(400)]
    users = [
        {"name": n, "key": n, "storage_host": "localhost", "directory": f"/{'x' * 500}/{n}"} for n in names
    ]
    run = await hub.client.start(Request(operation="bootstrap", users=users), hub.events.append, limit=20)
    await run.finish()
    assert hub.ok == 400


async def test_a_hub_with_more_than_a_thousand_descriptors_uses_its_spare(hub: Hub) -> None:
    """A class that waits has one connection each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    held = [os.open("/", os.O_RDONLY) for _ in range(1100)]
    try:
        hub.client.prepare()
        assert await hub.ready() == await hub.run()
    finally:
        for number in held:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_run_is_over_with_its_last_line_and_the_next_may_begin(hub: Hub) -> None:
    hub.apply.do(behave="linger")
    run = await hub.client.start(REQUEST, hub.events.append, limit=20)
    await run.finish()
    assert hub.apply.alive(), "it waited for the program to leave"
    run.stop(ApplyError("enough"))


async def test_a_spare_that_is_killed_in_its_run_is_told_of(hub: Hub) -> None:
    hub.apply.do(delay=20)
    hub.client.prepare()
    spare = await hub.ready()
    run = await hub.client.start(REQUEST, hub.events.append, limit=20)
    await until(lambda: hub.apply.runs)
    os.kill(spare, 9)
    with pytest.raises(ApplyError, match="before its last line"):
        await run.finish()


async def test_stopping_a_run_on_a_spare_is_stopping_a_run(hub: Hub) -> None:
    hub.apply.do(behave="hang")
    hub.client.prepare()
    spare = await hub.ready()
    run = await hub.client.start(REQUEST, hub.events.append, limit=0.3)
    with pytest.raises(Exception, match="stopped after"):
        await run.finish()
    assert not is_alive(spare)


def test_with_the_hub_killed_the_spare_is_gone(apply: FakeApply) -> None:
    code = f"""
        import asyncio, logging
        from ansible_bootstrap.dispatch.client import ApplyClient
        async def argv(): return {apply.command!r}
        async def main():
            ApplyClient(argv, logging.getLogger(), spare=True).prepare()
            await asyncio.sleep(600)
        asyncio.run(main())
    """
    hub = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    try:
        asyncio.run(_until_sync(lambda: apply.noted("spare")))
        spare = apply.noted("spare")[0]["pid"]
        assert is_alive(spare)
    finally:
        hub.kill()
        hub.wait()
    asyncio.run(_until_sync(lambda: not is_alive(spare)))


async def _until_sync(condition: Any) -> None:
    await until(condition, 20)
