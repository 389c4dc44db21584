"""The lines of the log that are searched for: one for each run and user, and never one more."""

from __future__ import annotations

import logging
import shlex

import pytest
from hub_fakes import Lines

from ansible_bootstrap.dispatch.run_log import log_run, log_user
from ansible_bootstrap.protocol import Outcome
from ansible_bootstrap.run_record import RunRecord


def record(**fields: object) -> RunRecord:
    return RunRecord(
        **{"run": "r1", "operation": "bootstrap", "storage_host": "s1", "started": 0.0, "users": 2, **fields}
    )  # type: ignore[arg-type]


def test_a_run_is_one_line(log: Lines) -> None:
    run = record(seconds=1.234, roles={"user_dir": 0.307, "tutorials": 0.8}, fetched=1, way="spare+worker")
    run.outcomes = [
        Outcome(key="alice", name="alice", status="ok", changed=("user_dir",)),
        Outcome(key="bob", name="bob", status="failed", reason="role_failed"),
    ]
    log_run(log.logger, run)
    assert log.lines == [
        "ansible_bootstrap: run=r1 operation=bootstrap storage_host=s1 check=false abandoned=false users=2 ok=1 failed=1 changed=1"
        " seconds=1.23 roles=user_dir:0.31,tutorials:0.80 fetched=1 way=spare+worker"
    ]
    assert log.records[0].levelno == logging.INFO


def test_a_user_is_one_line(log: Lines) -> None:
    for fields in (
        {"status": "ok", "changed": ("user_dir", "tutorials"), "seconds": 0.5},
        {"status": "failed", "reason": "role_failed", "failed_role": "tutorials", "message": "/secret"},
    ):
        log_user(log.logger, record(), Outcome(key="alice", name="alice", **fields))
    assert log.lines == [
        "ansible_bootstrap: run=r1 operation=bootstrap user=alice outcome=ok reason=- failed_role=- seconds=0.50"
        " changed=user_dir,tutorials notes=-",
        "ansible_bootstrap: run=r1 operation=bootstrap user=alice outcome=failed reason=role_failed"
        " failed_role=tutorials seconds=0.00 changed=- notes=-",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a\nb user=root",
        'x" outcome=ok',
        "a b",
        "\x1b[2J",
        "é\u202e\u2028",
        "\udcff",
        "a\x00b",
        "n" * 5000,
        "=",
        "%s",
    ],
)
def test_nothing_hostile_makes_another_line_or_key(log: Lines, text: str) -> None:
    outcome = Outcome.model_construct(
        key="k",
        name=text,
        status="failed",
        changed=(text,),
        notes=(text, text),
        reason=None,
        failed_role=text,
        seconds=0.0,
    )
    log_user(log.logger, record(), outcome)
    log_run(log.logger, record(run=text, storage_host=text, roles={text: 1.0}))
    for line in log.lines:
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 5000
    keys = [[item.partition("=")[0] for item in shlex.split(line)[1:]] for line in log.lines]
    assert keys[0] == [
        "run",
        "operation",
        "user",
        "outcome",
        "reason",
        "failed_role",
        "seconds",
        "changed",
        "notes",
    ]
    assert len(keys[1]) == len(set(keys[1])) == 13
