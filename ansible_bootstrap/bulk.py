"""Bootstrap many users at once without a hub: what ``ansible-bootstrap run`` does.

Users of one storage host go through it in batches, one run after another; different storage hosts
do not wait for one another.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from .apply_client import ApplyClient
from .config import AnsibleBootstrap
from .errors import AnsibleBootstrapError, ApplyError, UnresolvedError
from .history import History, RunRecord
from .protocol import Event, Outcome, OutcomeEvent, Request, User, parse_users
from .threads import in_thread

RUN_LIMIT: Final = 3600.0
"""Seconds that one run of ``batch_size`` users may take; nobody waits at a page for it."""

_LOG = logging.getLogger(__name__)


async def bootstrap_all(
    settings: AnsibleBootstrap,
    records: Sequence[dict[str, Any]],
    *,
    check: bool = False,
    diff: bool = False,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Bootstrap everybody and return one outcome each, in the order asked.

    Args:
        settings: the hub's configuration.
        records: at least a name each; one that is malformed costs only itself.
        check: predict only.
        diff: log what differs.
        on_outcome: called with each outcome as it comes.

    Raises:
        SettingsError: nobody can be bootstrapped with these settings.
    """
    settings.check()
    if settings.place is not None and not all(record.get("directory") for record in records):
        raise UnresolvedError(
            "c.AnsibleBootstrap.place needs a spawner: name each user's directory in the roster's column directory"
        )
    users, refused = parse_users(list(records))
    outcomes = {outcome.key: outcome for outcome in refused}
    for outcome in refused:
        on_outcome(outcome)

    def take(outcome: Outcome) -> None:
        if outcome.key not in outcomes:
            outcomes[outcome.key] = outcome
            on_outcome(outcome)

    hosts: dict[str, list[User]] = {}
    for user in users:
        hosts.setdefault(user.storage_host or _default_host(settings), []).append(user)
    client = ApplyClient(lambda: in_thread(settings.apply_argv, timeout=10), _LOG)
    history = History(settings.state_dir, settings.history_days)

    async def bootstrap_host(host: str, theirs: list[User]) -> None:
        for begin in range(0, len(theirs), settings.batch_size):
            batch = theirs[begin : begin + settings.batch_size]
            request = Request(
                operation="bootstrap",
                users=[user.model_copy(update={"storage_host": host}).model_dump() for user in batch],
                check=check,
                diff=diff,
            )
            began = time.time()
            error = await _one_run(client, request, take)
            for user in batch:  # Only those without an outcome are taken: silence is never success.
                take(_failed(user, host, error))
            _keep(history, [outcomes[user.key] for user in batch], host, began, check)

    async with asyncio.TaskGroup() as group:
        for host, theirs in hosts.items():
            group.create_task(bootstrap_host(host, theirs))
    return [outcomes[key] for key in _keys(records, outcomes)]


async def _one_run(
    client: ApplyClient, request: Request, take: Callable[[Outcome], None]
) -> AnsibleBootstrapError:
    """Run one batch; return why somebody who got no outcome got none."""

    def on_event(event: Event) -> None:
        if isinstance(event, OutcomeEvent):
            take(event.outcome)

    try:
        run = await client.start(request, on_event, limit=RUN_LIMIT)
        await run.finish()
    except AnsibleBootstrapError as error:
        return error
    return ApplyError("the run ended without an outcome for this user")


def _keep(history: History, outcomes: list[Outcome], host: str, began: float, check: bool) -> None:
    """Note the run for ``ansible-bootstrap status``; that it cannot be noted fails nobody."""
    record = RunRecord(
        run=next((outcome.run for outcome in outcomes if outcome.run), ""),
        operation="bootstrap",
        storage_host=host,
        started=began,
        users=len(outcomes),
        seconds=time.time() - began,
        check=check,
        outcomes=outcomes,
    )
    try:
        history.record(record)
    except (AnsibleBootstrapError, OSError, sqlite3.Error) as error:
        _LOG.warning("the history cannot be written: %s", error)


def _failed(user: User, host: str, error: AnsibleBootstrapError) -> Outcome:
    return Outcome(
        key=user.key,
        name=user.name,
        status="failed",
        reason=error.reason,
        message=error.details or error.message,
        storage_host=host,
    )


def _default_host(settings: AnsibleBootstrap) -> str:
    host = settings.storage_host
    if isinstance(host, str):
        return host
    raise UnresolvedError(
        "c.AnsibleBootstrap.storage_host is a callable and needs a spawner: name each user's host in the "
        "roster's column storage_host"
    )


def _keys(records: Sequence[dict[str, Any]], outcomes: dict[str, Outcome]) -> Iterator[str]:
    """Yield the keys in the order of the records, then what has no place there."""
    asked = [str(record.get("key") or record.get("name")) for record in records]
    first = [key for key in dict.fromkeys(asked) if key in outcomes]
    yield from first
    yield from (key for key in outcomes if key not in set(first))
