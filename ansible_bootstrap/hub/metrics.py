"""The metrics for Prometheus, at the hub's ``/hub/metrics``: counts and durations, and no user's name.

Every label has few values, so the number of series does not grow with the users. Names of users, directories and runs
are in the log and in the history. Every site role has the label ``site``. Beyond :data:`MAX_HOSTS` storage hosts, the
rest have the label ``other``. ``examples/monitoring`` has alerts and a dashboard.

In ``mode = "observe"`` nothing is changed, and the metrics count what would have happened.
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

WAYS: Final = ("known", "run", "failed", "cancelled", "observed", "nowhere")
"""How a hook ended: the user was complete, a run made the user ready, the spawn failed, the user gave up, (``mode =
"observe"``) nobody waited, or nothing was to be prepared."""

RUN_WAYS: Final = ("cold", "spare", "ansible", "worker", "server")
"""The words of ``protocol.End.way``."""

SITE_ROLE: Final = "site"
MAX_HOSTS: Final = 200
OTHER_HOSTS: Final = "other"

RUN_BUCKETS: Final = (0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
ROLE_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
HOOK_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
BATCH_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)

_LOG: Final = logging.getLogger(__name__)

Waiting = Callable[[], dict[str, tuple[int, float]]]
"""Returns by storage host how many jobs wait, and for how many seconds the oldest has."""


class Metrics:
    """The hub's metrics. A registry can have them only once: see :func:`metrics_of`.

    What can be known beforehand (reasons, built-in roles, ways) has its series from the start, at zero: Prometheus sees
    no increase in a series that begins with 1.

    Args:
        registry: where they appear.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, namespace=NAMESPACE, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, namespace=NAMESPACE, registry=registry, buckets=buckets)

        self._users = counter(
            "users_total",
            "Users of runs that have ended, by outcome; the reason is empty for users who are ok.",
            *("operation", "outcome", "reason"),
        )
        self._runs = counter(
            "runs_total",
            "Runs that have ended: ok, partial (some users failed), failed as a whole, or abandoned by all who waited.",
            *("operation", "outcome", "storage_host"),
        )
        self._run_duration = histogram("run_duration_seconds", "Duration of a run.", RUN_BUCKETS, "operation")
        self._batch_users = histogram("batch_users", "Users of one run.", BATCH_BUCKETS, "operation")
        self._role_duration = histogram(
            "role_duration_seconds", "Duration of a role for all users of a run.", ROLE_BUCKETS, "role"
        )
        self._continued = counter(
            "continued_total",
            "Users whose server started although a role failed (on_failure: continue).",
            "role",
        )
        self._hook_duration = histogram(
            "hook_duration_seconds", "How long a spawn waited in the hook.", HOOK_BUCKETS, "way"
        )
        self._logins = counter("logins_prepared_total", "Logins at which the work was begun.")
        self._fetches = counter("fetches_total", "Archives of tutorials that were downloaded.")
        self._ways = counter(
            "run_ways_total",
            "Runs by how they were done: Ansible cold or ahead (spare); modules in its worker, our server or as usual.",
            "way",
        )
        self._queue = _Queue(self.label)
        registry.register(self._queue)
        self._hosts: set[str] = set()
        self._begin_host(OTHER_HOSTS)
        for operation in OPERATIONS:
            self._users.labels(operation, "ok", "")
            for reason in REASONS:
                self._users.labels(operation, "failed", reason)
            self._run_duration.labels(operation)
            self._batch_users.labels(operation)
        for role in (*BUILT_IN_ROLES, SITE_ROLE):
            self._role_duration.labels(role)
            self._continued.labels(role)
        for way in RUN_WAYS:
            self._ways.labels(way)
        for way in WAYS:
            self._hook_duration.labels(way)

    def label(self, host: str) -> str:
        """Return the label of a storage host: a spawner's callable may name any number of them."""
        if host not in self._hosts:
            if len(self._hosts) >= MAX_HOSTS:
                return OTHER_HOSTS
            self._hosts.add(host)
            self._begin_host(host)
        return host

    def _begin_host(self, label: str) -> None:
        for operation in OPERATIONS:
            for outcome in get_args(RunOutcome):
                self._runs.labels(operation, outcome, label)

    def record(self, run: RunRecord) -> None:
        """Count a run that has ended, and its users."""
        self._runs.labels(run.operation, run.outcome, self.label(run.storage_host)).inc()
        self._run_duration.labels(run.operation).observe(run.seconds)
        self._batch_users.labels(run.operation).observe(run.users)
        for outcome in run.outcomes:
            if run.abandoned and outcome.reason == "apply_failed":
                continue  # The user gave up, and so did the run.
            self._users.labels(run.operation, outcome.status, outcome.reason or "").inc()
            for role in outcome.continued:
                self._continued.labels(_role(role)).inc()
        for role, seconds in run.roles.items():
            self._role_duration.labels(_role(role)).observe(seconds)
        self._fetches.inc(run.fetched)
        for way in set(run.way.split("+")) & set(RUN_WAYS):
            self._ways.labels(way).inc()

    def hook(self, way: str, seconds: float) -> None:
        """Count a hook that has ended, in one of :data:`WAYS`."""
        self._hook_duration.labels(way if way in WAYS else "failed").observe(seconds)

    def login(self) -> None:
        """Count a login for which the work was begun."""
        self._logins.inc()

    def watch(self, waiting: Waiting, cleanups: Callable[[], int]) -> None:
        """Call these whenever the metrics are read, in place of those that were given before."""
        self._queue.waiting, self._queue.cleanups = waiting, cleanups


class _Queue(Collector):
    """Reads the queue when the metrics are read, so a host for which nobody waits any more has no series."""

    def __init__(self, label: Callable[[str], str]) -> None:
        self.waiting: Waiting = dict
        self.cleanups: Callable[[], int] = int
        self._label = label
        self._complained = False

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Return the names alone; else registering would read the queue."""
        return iter(self._families())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return the present numbers; less if the queue cannot be read, for the hub's own metrics must not fail."""
        users, age, cleanups = self._families()
        try:
            cleanups.add_metric([], self.cleanups())
            found: dict[str, tuple[int, float]] = {}
            for host, (count, seconds) in self.waiting().items():
                others, oldest = found.get(label := self._label(host), (0, 0.0))
                found[label] = others + count, max(oldest, seconds)
            for label, (count, seconds) in found.items():
                users.add_metric([label], count)
                age.add_metric([label], seconds)
        except Exception:
            if not self._complained:
                self._complained = True
                _LOG.exception("ansible_bootstrap: the metrics of the queue cannot be read")
        yield from (users, age, cleanups)

    def _families(self) -> list[GaugeMetricFamily]:
        return [
            GaugeMetricFamily(f"{NAMESPACE}_{name}", text, labels=labels)
            for name, text, labels in (
                ("queue_users", "Users who wait for a run to take them.", ["storage_host"]),
                ("queue_oldest_seconds", "How long the oldest of them has waited.", ["storage_host"]),
                (
                    "cleanups_waiting",
                    "Clean-ups that wait for their time or for the last server to stop.",
                    [],
                ),
            )
        ]


def _role(name: str) -> str:
    return name if name in BUILT_IN_ROLES else SITE_ROLE


_MADE: Final[WeakKeyDictionary[CollectorRegistry, Metrics]] = WeakKeyDictionary()


def metrics_of(registry: CollectorRegistry = REGISTRY, hosts: Iterable[str] = ("localhost",)) -> Metrics:
    """Return the one :class:`Metrics` of a registry.

    Args:
        registry: where they appear; the hub shows prometheus_client's default one.
        hosts: storage hosts that are known beforehand, so that their series begin at zero.
    """
    if registry not in _MADE:
        _MADE[registry] = Metrics(registry)
    for host in hosts:
        _MADE[registry].label(host)
    return _MADE[registry]
