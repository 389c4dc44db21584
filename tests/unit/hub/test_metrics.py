"""The hub's metrics: what they count, that they stay few, and that Prometheus likes their names."""

from __future__ import annotations

import re
import subprocess
from typing import Any, get_args

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ansible_bootstrap.errors import REASONS
from ansible_bootstrap.hub.metrics import MAX_HOSTS, OPERATIONS, metrics_of
from ansible_bootstrap.protocol import Outcome
from ansible_bootstrap.run_record import RunOutcome, RunRecord

LABELS = {"operation", "outcome", "reason", "storage_host", "role", "way", "le"}


def outcome(name: str, **more: Any) -> Outcome:
    reason = more.get("reason")
    return Outcome(key=name, name=name, status="failed" if reason else "ok", **more)


def run(*outcomes: Outcome, **more: Any) -> RunRecord:
    given = {"run": "r1", "operation": "bootstrap", "storage_host": "localhost", "started": 0.0, **more}
    return RunRecord(**{"users": len(outcomes), "outcomes": list(outcomes), **given})


class Scrape:
    """A hub's metrics and a way to read them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = metrics_of(self.registry)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"ansible_bootstrap_{name}", labels)

    def hosts(self, name: str) -> dict[str, float]:
        return {
            sample.labels["storage_host"]: sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == f"ansible_bootstrap_{name}"
        }

    @property
    def text(self) -> str:
        return generate_latest(self.registry).decode()


@pytest.fixture
def scrape() -> Scrape:
    return Scrape()


def test_users_are_counted_by_outcome(scrape: Scrape) -> None:
    scrape.metrics.record(run(outcome("alice"), outcome("bob"), outcome("carol", reason="role_failed")))
    scrape.metrics.record(run(outcome("alice"), operation="cleanup"))
    of = {"operation": "bootstrap"}
    assert scrape.value("users_total", **of, outcome="ok", reason="") == 2
    assert scrape.value("users_total", **of, outcome="failed", reason="role_failed") == 1
    assert scrape.value("users_total", **of, outcome="failed", reason="timeout") == 0
    assert scrape.value("users_total", operation="cleanup", outcome="ok", reason="") == 1
    assert scrape.value("batch_users_sum", **of) == 3


def test_every_reason_is_there_before_it_happens(scrape: Scrape) -> None:
    """An increase from nothing to one is none for Prometheus."""
    for operation in OPERATIONS:
        for reason in REASONS:
            labels = {"operation": operation, "outcome": "failed", "reason": reason}
            assert scrape.value("users_total", **labels) == 0
    assert set(scrape.hosts("runs_total")) == {"localhost", "other"}
    metrics_of(scrape.registry, ["storage0"])
    assert set(scrape.hosts("runs_total")) == {"localhost", "storage0", "other"}
    scrape.metrics.record(run(outcome("alice"), storage_host="storage1"))
    for state in get_args(RunOutcome):
        labels = {"operation": "bootstrap", "outcome": state, "storage_host": "storage1"}
        assert scrape.value("runs_total", **labels) == (state == "ok")


def test_a_run_that_all_went_away_from_is_nobodys_failure(scrape: Scrape) -> None:
    left = outcome("bob", reason="apply_failed")
    scrape.metrics.record(run(outcome("alice"), left, error="nobody waits", abandoned=True))
    of = {"operation": "bootstrap"}
    assert scrape.value("users_total", **of, outcome="ok", reason="") == 1
    assert scrape.value("users_total", **of, outcome="failed", reason="apply_failed") == 0
    assert scrape.value("runs_total", **of, outcome="abandoned", storage_host="localhost") == 1


def test_durations_and_fetches_add_up(scrape: Scrape) -> None:
    scrape.metrics.record(run(outcome("alice"), seconds=2.0, roles={"user_dir": 0.4, "x": 1.5}, fetched=2))
    scrape.metrics.record(run(outcome("alice"), seconds=400.0, roles={"y": 0.5}))
    assert scrape.value("run_duration_seconds_sum", operation="bootstrap") == 402
    assert scrape.value("run_duration_seconds_bucket", operation="bootstrap", le="2.5") == 1
    assert scrape.value("run_duration_seconds_bucket", operation="bootstrap", le="600.0") == 2
    assert scrape.value("role_duration_seconds_sum", role="user_dir") == 0.4
    assert scrape.value("role_duration_seconds_sum", role="site") == 2
    assert scrape.value("fetches_total") == 2


def test_users_let_through_without_a_role_are_counted_by_role(scrape: Scrape) -> None:
    scrape.metrics.record(run(outcome("alice", continued=("tutorials", "my_datasets")), outcome("bob")))
    assert scrape.value("continued_total", role="tutorials") == 1
    assert scrape.value("continued_total", role="site") == 1


def test_hooks_are_counted_by_their_way_and_no_other(scrape: Scrape) -> None:
    for way in ("run", "cancelled", "observed", "nowhere", "failed", "known", "known", "something new"):
        scrape.metrics.hook(way, 0.002)
    assert scrape.value("hook_duration_seconds_count", way="known") == 2
    assert scrape.value("hook_duration_seconds_count", way="failed") == 2
    for way in ("run", "cancelled", "observed", "nowhere"):
        assert scrape.value("hook_duration_seconds_count", way=way) == 1
    assert scrape.value("hook_duration_seconds_bucket", way="known", le="0.001") == 0
    assert scrape.value("hook_duration_seconds_bucket", way="known", le="0.0025") == 2
    assert scrape.value("hook_duration_seconds_count", way="something new") is None
    scrape.metrics.login()
    assert scrape.value("logins_prepared_total") == 1


def test_the_queue_is_as_it_is_when_it_is_read_and_hosts_vanish_with_their_users(scrape: Scrape) -> None:
    assert scrape.hosts("queue_users") == {}
    waiting = {"storage1": (7, 3.5), "storage2": (1, 0.5)}
    scrape.metrics.watch(lambda: waiting, lambda: 4)
    assert scrape.hosts("queue_users") == {"storage1": 7, "storage2": 1}
    assert scrape.hosts("queue_oldest_seconds") == {"storage1": 3.5, "storage2": 0.5}
    assert scrape.value("cleanups_waiting") == 4
    del waiting["storage1"]
    assert scrape.hosts("queue_users") == {"storage2": 1}


def test_a_queue_that_cannot_be_read_takes_no_other_metric_along(
    scrape: Scrape, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> dict[str, tuple[int, float]]:
        raise RuntimeError("not now")

    scrape.metrics.watch(broken, lambda: 4)
    assert scrape.hosts("queue_users") == {}
    assert scrape.value("cleanups_waiting") == 4
    assert "ansible_bootstrap_fetches_total" in scrape.text
    assert len(caplog.records) == 1


def test_made_twice_it_is_the_same_numbers_and_the_last_queue(scrape: Scrape) -> None:
    scrape.metrics.watch(lambda: {"old": (1, 1.0)}, lambda: 0)
    again = metrics_of(scrape.registry)
    again.watch(lambda: {"new": (2, 2.0)}, lambda: 0)
    again.login()
    scrape.metrics.login()
    assert scrape.value("logins_prepared_total") == 2
    assert scrape.hosts("queue_users") == {"new": 2}


def test_the_series_do_not_grow_with_users_roles_or_hosts(scrape: Scrape) -> None:
    scrape.metrics.watch(
        lambda: {f"w{number}": (2, 500.0 - number) for number in range(MAX_HOSTS)}, lambda: 0
    )
    for number in range(MAX_HOSTS + 50):
        users = [outcome(f"user{number}"), outcome("bad", reason="timeout", continued=(f"role{number}",))]
        scrape.metrics.record(run(*users, storage_host=f"host{number}", roles={f"role{number}": 1.0}))
    assert len(scrape.hosts("runs_total")) == MAX_HOSTS + 1
    labels = {"operation": "bootstrap", "outcome": "partial", "storage_host": "other"}
    assert scrape.value("runs_total", **labels) == 51  # localhost was the first
    assert scrape.hosts("queue_users") == {"other": 2 * MAX_HOSTS}
    assert scrape.hosts("queue_oldest_seconds") == {"other": 500}
    text = scrape.text
    assert "user7" not in text and "role7" not in text
    assert set(re.findall(r'[{,](\w+)="', text)) == LABELS


def families(scrape: Scrape) -> list[Any]:
    scrape.metrics.watch(lambda: {"storage1": (1, 1.0)}, lambda: 0)
    scrape.metrics.record(run(outcome("alice"), roles={"user_dir": 1.0}))
    return list(scrape.registry.collect())


def test_names_keep_to_the_conventions_of_prometheus(scrape: Scrape) -> None:
    """Ref: https://prometheus.io/docs/practices/naming/."""
    for family in families(scrape):
        assert re.fullmatch(r"ansible_bootstrap_[a-z]+(_[a-z]+)*", family.name)
        assert family.documentation.endswith("."), family.name
        assert not re.search(r"_(ms|minutes|milliseconds|count|sum|bucket|total)$", family.name)
        if "duration" in family.name or "oldest" in family.name:
            assert family.name.endswith("_seconds")
        if family.type == "counter":
            assert f"{family.name}_total" in {sample.name for sample in family.samples}


def test_promtool_finds_nothing_to_say(scrape: Scrape, needs: Any) -> None:
    needs(programs=("promtool",))
    families(scrape)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=scrape.text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
