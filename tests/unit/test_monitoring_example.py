"""The example ``monitoring``: its alerts and its dashboard speak of metrics that there are."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from ansible_bootstrap.hub.metrics import metrics_of
from ansible_bootstrap.run_record import RunRecord

EXAMPLE = Path(__file__).parents[2] / "examples/monitoring"
OF_PROMETHEUS = {"instance", "job"}
"""Labels that Prometheus adds."""

COLUMNS = 24


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((EXAMPLE / "alerts.yml").read_text())["groups"]
    return list(group["rules"])


def dashboard() -> dict[str, Any]:
    return dict(json.loads((EXAMPLE / "dashboard.json").read_text()))


def targets() -> Iterator[tuple[str, str]]:
    """Yield each query of the dashboard, as Grafana sends it, and its legend."""
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")
            yield query, target["legendFormat"]


QUERIES = [(rule["expr"], " ".join(rule["annotations"].values())) for rule in alerts()] + list(targets())


def samples() -> dict[str, dict[str, set[str]]]:
    """Return the values of each label of each metric, of a hub that has seen something."""
    registry = CollectorRegistry()
    metrics = metrics_of(registry)
    metrics.watch(lambda: {"storage1": (1, 1.0)}, lambda: 0)
    metrics.record(RunRecord("r1", "bootstrap", "storage1", started=0.0, users=0))
    found: dict[str, dict[str, set[str]]] = {}
    for family in registry.collect():
        for sample in family.samples:
            values = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                values.setdefault(label, set()).add(value)
    return found


SAMPLES = samples()


@pytest.mark.parametrize("query", [query for query, _ in QUERIES])
def test_every_metric_label_and_value_exists(query: str) -> None:
    names = re.findall(r"ansible_bootstrap_\w+", query)
    assert names, "about something else"
    known = {label for name in names for label in SAMPLES[name]}
    for grouped in re.findall(r"by \(([^)]*)\)", query):
        assert set(re.split(r",\s*", grouped)) <= known | OF_PROMETHEUS
    for name, matchers in re.findall(r"(ansible_bootstrap_\w+)\{([^}]*)\}", query):
        for label, value in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
            if label not in OF_PROMETHEUS:
                assert set(value.split("|")) <= SAMPLES[name][label], f"{name}: no {label} {value}"


@pytest.mark.parametrize(("query", "text"), QUERIES)
def test_what_a_text_names_is_what_the_query_groups_by(query: str, text: str) -> None:
    grouped = {label for labels in re.findall(r"by \(([^)]*)\)", query) for label in labels.split(", ")}
    assert set(re.findall(r"\{\{ ?(?:\$labels\.)?([a-z_]+)", text)) - {"value"} <= grouped


def test_every_metric_is_looked_at_somewhere() -> None:
    text = " ".join(query for query, _ in QUERIES)
    for name in SAMPLES:
        family = re.sub(r"_(bucket|sum|count|created)$", "", name)
        assert re.search(rf"{family}(_total|_bucket|_count)?\b", text), f"nobody looks at {name}"


def test_every_alert_says_what_to_do_and_has_a_test_that_sees_it_fire() -> None:
    tests = (EXAMPLE / "alerts_test.yml").read_text()
    readme = (EXAMPLE / "README.md").read_text()
    for rule in alerts():
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert f'alertname="{rule["alert"]}"' in tests
        assert f"`{rule['alert']}`" in readme


def test_panels_do_not_overlap_and_have_names_of_their_own() -> None:
    panels = dashboard()["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS
        cells = set(
            itertools.product(
                range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
            )
        )
        assert not cells & taken, panel["title"]
        taken |= cells
    for what in ("id", "title"):
        assert len({panel[what] for panel in panels}) == len(panels)


def test_every_query_goes_to_the_data_source_that_was_chosen() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["instance"]["datasource"] == chosen
    for panel in dashboard()["panels"]:
        assert panel["datasource"] == chosen
        for target in panel["targets"]:
            assert target["datasource"] == chosen
            assert target["expr"].count("ansible_bootstrap_") == target["expr"].count('instance=~"$instance"')


def promtool(*args: str | Path) -> str:
    done = subprocess.run(["promtool", *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_configuration_and_each_alert_fires_when_it_should(
    tmp_path: Path, needs: Any
) -> None:
    needs(programs=("promtool",))
    shutil.copytree(EXAMPLE, tmp_path / "example")
    config = tmp_path / "example/prometheus.yml"
    config.write_text(config.read_text().replace("/etc/jupyterhub", str(tmp_path)))
    (tmp_path / "prometheus.token").write_text("secret")
    promtool("check", "config", config)
    promtool("test", "rules", tmp_path / "example/alerts_test.yml")


def test_prometheus_understands_every_query_of_the_dashboard(tmp_path: Path, needs: Any) -> None:
    needs(programs=("promtool",))
    rules = [{"record": f"dashboard:{place}", "expr": query} for place, (query, _) in enumerate(targets())]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", file)
