"""What Prometheus is told, at the hub's ``/hub/metrics``: counts and durations, never who.

Every label has few values, so that the series do not grow with the users: names of users, directories and runs are
in the log and in the history. A site role is ``site``; a hub with more storage hosts than :data:`MAX_HOSTS` has the
rest as ``other``. ``examples/monitoring`` has alerts and a dashboard.

In ``mode = "observe"`` nothing is done, and the same numbers tell what would have become of the users.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Final, get_args
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ansible_bootstrap.errors import REASONS
from ansible_bootstrap.run_record import RunOutcome, RunRecord
from ansible_bootstrap.storage._plan import BUILT_IN_ROLES

NAMESPACE: Final = "ansible_bootstrap"

OPERATIONS: Final = ("bootstrap", "cleanup")

WAYS: Final = ("known", "run", "failed", "cancelled", "observed")
"""How a hook ended: the user had everything, waited for a run, was refused; the user gave up; it held nobody up."""

RUN_WAYS: Final = ("cold", "spare", "ansible", "worker")
"""How a run was done, see ``protocol.End``."""

SITE_ROLE: Final = "site"
MAX_HOSTS: Final = 200
OTHER_HOSTS: Final = "other"

RUN_BUCKETS: Final = (0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
ROLE_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
HOOK_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
BATCH_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)

_LOG: Final = logging.getLogger(__name__)

Waiting = Callable[[], dict[str, tuple[int, float]]]
"""How many works wait and the age of the oldest in seconds, by storage host."""


class Metrics:
    """The hub's numbers. All of one registry's are the same numbers, however often this is made.

    Args:
        registry: where they appear; the hub shows prometheus_client's default one.
        hosts: storage hosts that are known beforehand, so that their first run counts, too: Prometheus sees no
            increase in a series that begins with 1.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY, hosts: Iterable[str] = ("localhost",)) -> None:
        numbers = _NUMBERS.get(registry)
        if numbers is None:
            numbers = _NUMBERS[registry] = _Numbers(registry)
        self._numbers = numbers
        for host in hosts:
            numbers.hosts.label(host)

    def record(self, run: RunRecord) -> None:
        """Count a run that has ended, and its users."""
        numbers = self._numbers
        host = numbers.hosts.label(run.storage_host)
        numbers.runs.labels(run.operation, run.outcome, host).inc()
        numbers.run_duration.labels(run.operation).observe(run.seconds)
        numbers.batch_users.labels(run.operation).observe(run.users)
        for outcome in run.outcomes:
            if run.abandoned and outcome.reason == "apply_failed":
                continue  # They went away, and the run with them.
            numbers.users.labels(run.operation, outcome.status, outcome.reason or "").inc()
            for role in outcome.continued:
                numbers.continued.labels(_role(role)).inc()
        for role, seconds in run.roles.items():
            numbers.role_duration.labels(_role(role)).observe(seconds)
        numbers.fetches.inc(run.fetched)
        for way in set(run.way.split("+")) & set(RUN_WAYS):
            numbers.ways.labels(way).inc()

    def hook(self, way: str, seconds: float) -> None:
        """Count a hook that has ended, in one of :data:`WAYS`."""
        self._numbers.hook_duration.labels(way if way in WAYS else "failed").observe(seconds)

    def login(self) -> None:
        """Count a login for which the work was begun."""
        self._numbers.logins.inc()

    def watch(self, waiting: Waiting, cleanups: Callable[[], int]) -> None:
        """Ask these whenever the metrics are read; who watched before is asked no more."""
        self._numbers.queue.waiting = waiting
        self._numbers.queue.cleanups = cleanups


class _Hosts:
    """Bounds the label ``storage_host``, for a spawner's callable may return anything.

    Args:
        begin: called with each label before it is first used.
    """

    def __init__(self, begin: Callable[[str], None]) -> None:
        self._begin = begin
        self._known: set[str] = set()
        begin(OTHER_HOSTS)

    def label(self, host: str) -> str:
        if host not in self._known:
            if len(self._known) >= MAX_HOSTS:
                return OTHER_HOSTS
            self._known.add(host)
            self._begin(host)
        return host


class _Queue(Collector):
    """Reads the queue when it is asked for, so that a host nobody waits for any more has no series."""

    def __init__(self, hosts: _Hosts) -> None:
        self.waiting: Waiting = dict
        self.cleanups: Callable[[], int] = int
        self._hosts = hosts
        self._complained = False

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Return the names alone; else registering would read the queue."""
        return iter(self._families())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return what is so now; less if it cannot be told, for the hub's own metrics must not fail with ours."""
        users, age, cleanups = self._families()
        try:
            cleanups.add_metric([], self.cleanups())
            for label, (count, seconds) in self._waiting_by_label().items():
                users.add_metric([label], count)
                age.add_metric([label], seconds)
        except Exception:
            if not self._complained:
                self._complained = True
                _LOG.exception("ansible_bootstrap: the metrics of the queue cannot be read")
        yield from (users, age, cleanups)

    def _waiting_by_label(self) -> dict[str, tuple[int, float]]:
        found: dict[str, tuple[int, float]] = {}
        for host, (count, seconds) in self.waiting().items():
            label = self._hosts.label(host)
            others, oldest = found.get(label, (0, 0.0))
            found[label] = others + count, max(oldest, seconds)
        return found

    def _families(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
        by_host = ["storage_host"]
        return (
            GaugeMetricFamily(
                f"{NAMESPACE}_queue_users", "Users who wait for a run to take them.", labels=by_host
            ),
            GaugeMetricFamily(
                f"{NAMESPACE}_queue_oldest_seconds",
                "For how long the one who waits longest has waited for a run.",
                labels=by_host,
            ),
            GaugeMetricFamily(
                f"{NAMESPACE}_cleanups_waiting",
                "Clean-ups that wait for their time, or for the user's last server to stop.",
                labels=[],
            ),
        )


class _Numbers:
    """What one registry has; a name can be registered only once."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, namespace=NAMESPACE, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, namespace=NAMESPACE, registry=registry, buckets=buckets)

        self.users = counter(
            "users_total",
            "Users of runs that have ended, by what became of them; the reason is empty for those who are ok.",
            *("operation", "outcome", "reason"),
        )
        self.runs = counter(
            "runs_total",
            "Runs that have ended: ok, partial (some users failed), failed as a whole, or abandoned by all who waited.",
            *("operation", "outcome", "storage_host"),
        )
        self.run_duration = histogram("run_duration_seconds", "Duration of a run.", RUN_BUCKETS, "operation")
        self.batch_users = histogram("batch_users", "Users of one run.", BATCH_BUCKETS, "operation")
        self.role_duration = histogram(
            "role_duration_seconds", "Duration of a role for all users of a run.", ROLE_BUCKETS, "role"
        )
        self.continued = counter(
            "continued_total",
            "Users who were let through without a role that failed, as on_failure: continue says.",
            "role",
        )
        self.hook_duration = histogram(
            "hook_duration_seconds",
            "What a spawn waited in the hook: known users need no run.",
            HOOK_BUCKETS,
            "way",
        )
        self.logins = counter("logins_prepared_total", "Logins at which the work was begun.")
        self.fetches = counter("fetches_total", "Archives of tutorials that were downloaded.")
        self.ways = counter(
            "run_ways_total",
            "Runs by how they were done: Ansible started cold or ahead (spare); modules in its worker or as any other.",
            "way",
        )
        self.hosts = _Hosts(self._begin_host)
        self.queue = _Queue(self.hosts)
        registry.register(self.queue)
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Let what can be known exist before it happens, for the same reason as the hosts."""
        for operation in OPERATIONS:
            self.users.labels(operation, "ok", "")
            for reason in REASONS:
                self.users.labels(operation, "failed", reason)
            self.run_duration.labels(operation)
            self.batch_users.labels(operation)
        for role in (*BUILT_IN_ROLES, SITE_ROLE):
            self.role_duration.labels(role)
            self.continued.labels(role)
        for way in RUN_WAYS:
            self.ways.labels(way)
        for way in WAYS:
            self.hook_duration.labels(way)

    def _begin_host(self, host: str) -> None:
        for operation in OPERATIONS:
            for outcome in get_args(RunOutcome):
                self.runs.labels(operation, outcome, host)


def _role(name: str) -> str:
    return name if name in BUILT_IN_ROLES else SITE_ROLE


_NUMBERS: Final[WeakKeyDictionary[CollectorRegistry, _Numbers]] = WeakKeyDictionary()
