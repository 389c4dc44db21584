"""The child process: started bare, believed line by line, and always ended."""

from __future__ import annotations

import asyncio
import time

import pytest
from hub_fakes import FakeApply, Lines, is_alive, until

from ansible_bootstrap.dispatch import client as apply_client
from ansible_bootstrap.dispatch.client import ApplyClient, ApplyRun
from ansible_bootstrap.errors import AnsibleBootstrapError, ApplyError, DeadlineError, SettingsError
from ansible_bootstrap.protocol import End, Event, OutcomeEvent, Request

REQUEST = Request(
    operation="bootstrap",
    users=[{"name": name, "key": name, "storage_host": "localhost"} for name in ("alice", "bob")],
)


class Session:
    """One run and the events that came."""

    def __init__(self, command: list[str], log: Lines) -> None:
        async def argv() -> list[str]:
            return command

        self.events: list[Event] = []
        self.client = ApplyClient(argv, log.logger)

    async def start(self, limit: float = 20) -> ApplyRun:
        return await self.client.start(REQUEST, self.events.append, limit=limit)

    @property
    def outcomes(self) -> dict[str, str]:
        return {
            event.outcome.name: event.outcome.status
            for event in self.events
            if isinstance(event, OutcomeEvent)
        }


@pytest.fixture
def session(apply: FakeApply, log: Lines) -> Session:
    return Session(apply.command, log)


async def test_a_run_reports_each_user_and_leaves_nothing(session: Session, apply: FakeApply) -> None:
    apply.do(fail={"bob": {"message": "quota"}})
    run = await session.start()
    await run.finish()
    assert session.outcomes == {"alice": "ok", "bob": "failed"}
    await session.client.gone()
    assert not apply.alive()


async def test_events_come_while_the_run_goes_on(session: Session, apply: FakeApply) -> None:
    apply.do(behave="linger")
    run = await session.start()
    await until(lambda: session.events and isinstance(session.events[-1], End))
    assert len(session.outcomes) == 2
    assert apply.alive()
    run.stop(ApplyError("enough"))
    await run.finish()  # All outcomes and the last line had come: the stop is no failure.


async def test_nothing_of_the_hubs_environment_reaches_the_child(
    session: Session, apply: FakeApply, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JUPYTERHUB_CRYPT_KEY", "CONFIGPROXY_AUTH_TOKEN", "PYTHONPATH", "ANSIBLE_CONFIG"):
        monkeypatch.setenv(name, "secret")
    run = await session.start()
    await run.finish()
    # LC_CTYPE is what Python itself sets where there is no locale (PEP 538).
    assert set(apply.runs[0]["environment"]) - {"LC_CTYPE"} == {"PATH", "LANG", "HOME"}


@pytest.mark.parametrize("command", [["/no/such/program"], ["/etc/passwd"], ["/etc"], ["/etc/passwd/x"]])
async def test_a_command_that_cannot_start_says_which_setting_to_mend(command: list[str], log: Lines) -> None:
    with pytest.raises(ApplyError) as caught:
        await Session(command, log).start()
    assert command[0] in caught.value.details
    assert "c.AnsibleBootstrap.apply_command" in caught.value.details
    assert "/" not in caught.value.message


async def test_a_program_that_crashes_is_quoted_in_the_log(session: Session, apply: FakeApply) -> None:
    apply.do(behave="die")
    run = await session.start()
    with pytest.raises(ApplyError, match=r"exited with 70.*the disk of /srv/secret is gone"):
        await run.finish()


@pytest.mark.parametrize("behave", ["garbage", "overlong"])
async def test_nonsense_ends_the_run_at_once(session: Session, apply: FakeApply, behave: str) -> None:
    apply.do(behave=behave)
    begin = time.monotonic()
    run = await session.start()
    with pytest.raises(ApplyError, match="does not speak the protocol") as caught:
        await run.finish()
    assert time.monotonic() - begin < 3
    assert caught.value.details.isprintable()
    assert not apply.alive()


async def test_no_last_line_is_a_failure_though_the_status_is_0(session: Session, apply: FakeApply) -> None:
    apply.do(behave="no_end")
    run = await session.start()
    with pytest.raises(ApplyError, match="exited with 0 before its last line"):
        await run.finish()
    assert session.outcomes == {"alice": "ok", "bob": "ok"}  # These were believed when they came.


async def test_what_a_program_says_right_before_it_exits_is_told(log: Lines) -> None:
    """As sudo does where it may not become root: nothing else says why. The end of stdout is often seen first."""
    for _ in range(20):
        run = await Session(["/bin/sh", "-c", "echo the flag is set >&2; exit 1"], log).start()
        with pytest.raises(ApplyError, match="exited with 1 before its last line: the flag is set"):
            await run.finish()


async def test_a_refusal_keeps_its_reason(session: Session, apply: FakeApply) -> None:
    apply.do(behave="refuse")
    run = await session.start()
    with pytest.raises(SettingsError, match="storage_root is missing"):
        await run.finish()


async def test_the_limit_stops_a_run_that_hangs(session: Session, apply: FakeApply) -> None:
    apply.do(behave="hang")
    run = await session.start(limit=0.5)
    with pytest.raises(DeadlineError):
        await run.finish()
    assert not apply.alive()


async def test_a_program_that_ignores_sigterm_is_killed_after_2_s(session: Session, apply: FakeApply) -> None:
    apply.do(behave="hang", ignore_term=True)
    run = await session.start()
    await until(lambda: apply.runs)
    begin = time.monotonic()
    run.stop(ApplyError("enough"))
    assert time.monotonic() - begin < 1, "stop() waited"
    with pytest.raises(ApplyError, match="enough"):
        await run.finish()
    assert 1.5 < time.monotonic() - begin < 8
    assert not apply.alive()


async def test_an_orphan_that_holds_stdout_does_not_hold_the_run(session: Session, apply: FakeApply) -> None:
    apply.do(orphan=True)
    begin = time.monotonic()
    run = await session.start()
    await run.finish()
    assert time.monotonic() - begin < 5
    assert is_alive(apply.noted("orphan")[0]["orphan"]), "the test proves nothing"


async def test_a_process_that_we_may_not_kill_is_given_up(
    session: Session, apply: FakeApply, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an unprivileged hub with root's child: every signal is EPERM."""

    def refuse(*args: object) -> None:
        raise PermissionError

    monkeypatch.setattr(apply_client, "TERM_SECONDS", 0.2)
    monkeypatch.setattr(apply_client, "KILL_SECONDS", 0.2)
    apply.do(behave="hang", ignore_term=True)
    run = await session.start()
    await until(lambda: apply.runs)
    with monkeypatch.context() as patch:
        patch.setattr(apply_client.os, "killpg", refuse)
        patch.setattr("subprocess.Popen.send_signal", refuse)
        run.stop(ApplyError("enough"))
        with pytest.raises(AnsibleBootstrapError, match="enough"):
            await run.finish()
    assert any("may still be at work" in line for line in log.lines)


async def test_a_cancelled_run_takes_its_process_along(session: Session, apply: FakeApply) -> None:
    """As when the hub's loop ends: afterwards no timer of ours fires any more."""
    apply.do(behave="hang", ignore_term=True)
    run = await session.start()
    await until(lambda: apply.runs)
    task = asyncio.create_task(run.finish())
    await asyncio.sleep(0)
    begin = time.monotonic()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert time.monotonic() - begin < 5
    await until(lambda: not apply.alive(), 1)


async def test_the_log_is_escaped_and_bounded(
    session: Session, apply: FakeApply, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_client, "MAX_LOG_LINES", 3)
    apply.do(stderr=["\x1b[2Jfake\r[E 2026] all is lost", "y" * 100_000, "3", "4", "5"])
    run = await session.start()
    await run.finish()
    assert len(log.lines) == 4
    assert all(line.isprintable() and len(line) < 5000 for line in log.lines)
    assert "\\x1b[2Jfake\\r[E" in log.lines[0]
    assert "not logged" in log.lines[-1]
