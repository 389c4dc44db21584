"""One line in the log for each run and for each of its users, to be searched: ``key=value``.

A value that is not plain is quoted as JSON, so that no name, role or note makes a second line or a false key;
``-`` stands for none. Messages are left out: they quote what roles printed, and are in the error of the spawn and in
the history.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Final

from ansible_bootstrap.protocol import Outcome
from ansible_bootstrap.run_record import RunRecord

MAX_VALUE: Final = 300
"""Longest value, in characters; the rest of it is dropped."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9_.:,@/+-]+")


def log_run(log: logging.Logger, record: RunRecord) -> None:
    """Write the line of a run that has ended."""
    changed = sum(bool(outcome.changed) for outcome in record.outcomes)
    roles = ",".join(f"{role}:{seconds:.2f}" for role, seconds in record.roles.items())
    _write(
        log,
        run=record.run,
        operation=record.operation,
        storage_host=record.storage_host,
        check=str(record.check).lower(),
        abandoned=str(record.abandoned).lower(),
        users=str(record.users),
        ok=str(len(record.outcomes) - record.failed),
        failed=str(record.failed),
        changed=str(changed),
        seconds=f"{record.seconds:.2f}",
        roles=roles,
        fetched=str(record.fetched),
        way=record.way,
    )


def log_user(log: logging.Logger, record: RunRecord, outcome: Outcome) -> None:
    """Write the line of a user who has an outcome."""
    _write(
        log,
        run=record.run,
        operation=record.operation,
        user=outcome.name,
        outcome=outcome.status,
        reason=outcome.reason or "",
        failed_role=outcome.failed_role or "",
        seconds=f"{outcome.seconds:.2f}",
        changed=",".join(outcome.changed),
        notes="; ".join(outcome.notes),
    )


def _write(log: logging.Logger, **values: str) -> None:
    if log.isEnabledFor(logging.INFO):
        log.info("ansible_bootstrap: %s", " ".join(f"{key}={_value(value)}" for key, value in values.items()))


def _value(text: str) -> str:
    text = text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}…"
    return text or "-" if not text or _PLAIN.fullmatch(text) else json.dumps(text)
