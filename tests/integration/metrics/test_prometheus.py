"""A real Prometheus scrapes a fleet under load: all targets are up, all metrics there, no graph and no alert empty."""

import json
import math
import re
import subprocess

import pytest
import yaml

from shared.metrics.exposition import families_of
from shared.metrics.table import TABLE, MetricKind, rows_of
from tests.integration.metrics.conftest import ObservedFleet
from tests.support.prometheus import RULE_TESTS, RULES, Prometheus, Series, program
from tools.dashboards import DASHBOARDS, FOLDER, text_of
from tools.debian_programs import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

WINDOW = "20s"
QUERIES = [
    pytest.param(dashboard.name, panel.title, expression, id=f"{dashboard.name}-{panel.title}-{legend}")
    for dashboard in DASHBOARDS
    for panel in dashboard.panels
    for legend, expression in panel.queries
]
ZERO = {
    ("fleet", "Redis failures"),
    ("fleet", "Losses of Redis"),
    ("fleet", "Picks of no home"),
    ("fleet", "Requests sent on"),
    ("fleet", "HTTP requests under way"),
    ("fleet", "HTTP connections"),
    ("adapters", "Requests that wait for a load"),
    ("fleet", "Records of Redis that are not believed"),
    ("worker", "Kinds of steps that are captured"),
    ("worker", "Captured steps"),
    ("worker", "Steps that ran uncaptured"),
    ("worker", "Preemptions"),
    ("worker", "Recompilations"),
    ("worker", "Slow requests"),
    ("worker", "Engine silent"),
    ("worker", "Requests under way"),
    ("worker", "Prompt tokens found in the prefix cache"),
    ("store", "Imports"),
    ("store", "Imports under way"),
    ("store", "Admissions"),
    ("store", "Stages of admissions"),
    ("store", "Blobs brought back"),
    ("store", "Evictions"),
    ("store", "Bytes evicted"),
    ("store", "Rotten blobs put aside"),
    ("store", "Calls that wait"),
    ("store", "Calls that queues refused"),
    ("store", "Calls under way"),
    ("store", "Refused by quotas"),
    ("store", "Refused by bounds"),
    ("store", "Streams cut off"),
}
"""Panels that show zero, or a quantile of nothing, in a fleet that is well, or may at the moment of a query."""
RULE_LIST = [
    rule
    for path in sorted(RULES.glob("*.yaml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
COMPARISON = re.compile(r"(?P<query>.+) (==|>|<) (?P<threshold>[0-9.]+)")
QUIET = {
    "HotslotEngineSilent",
    "HotslotRequestsFail",
    "HotslotRecompiled",
    "HotslotLoadsFail",
    "HotslotRedisFails",
    "HotslotStoreBusy",
    "HotslotBlobRotten",
    "HotslotBlobsNotRestored",
}
"""Alerts whose query is zero, or has no series yet, in a fleet that is well."""
NO_SERIES = {"HotslotRequestsFail", "HotslotRedisFails"}
"""Those of them whose labels come with the first failure."""


def test_every_target_is_up(prometheus: Prometheus, loaded: ObservedFleet) -> None:
    instances = {target for targets in loaded.targets.values() for target in targets}
    assert prometheus.targets() == dict.fromkeys(instances, "up")


def test_every_documented_metric_is_there_and_no_other(prometheus: Prometheus) -> None:
    found = {name: entries[0]["type"] for name, entries in prometheus.metadata().items()}
    assert found == {row.name: row.kind.value for row in TABLE.values()}


@pytest.mark.parametrize("role", ["store", "worker", "gateway"])
def test_a_process_tells_the_metrics_of_its_rows(loaded: ObservedFleet, role: str) -> None:
    names = [name for name, _ in families_of(loaded.scrape(role))]
    own = {row.name for row in rows_of(role)}
    assert len(names) == len(set(names)), "no family twice"
    # The gateway is the sidecar of a worker here.
    assert set(names) == (own if role != "gateway" else own | {row.name for row in rows_of("worker")})


@pytest.mark.parametrize(("dashboard", "title", "expression"), QUERIES)
def test_every_graph_shows_something(prometheus: Prometheus, dashboard: str, title: str, expression: str) -> None:
    graph = expression.replace("$__rate_interval", WINDOW)
    # What a person sees is a stretch of time: now, nothing may be running.
    found = prometheus.query(f"max_over_time(({graph})[5m:2s])")
    assert found, "no series"
    assert (dashboard, title) in ZERO or any(is_something(series) for series in found), found


def is_something(series: Series) -> bool:
    return series.value != 0 and not math.isnan(series.value)


@pytest.mark.parametrize("rule", RULE_LIST, ids=lambda rule: rule["alert"])
def test_every_alert_asks_for_what_is_there(prometheus: Prometheus, rule: dict[str, str]) -> None:
    comparison = COMPARISON.fullmatch(rule["expr"].strip())
    assert comparison is not None, "a query, a comparison and a number"
    query = re.sub(r"\[\d+[mh]\]", f"[{WINDOW}]", comparison["query"])
    found = prometheus.query(query)
    assert found or rule["alert"] in NO_SERIES, "no series"
    assert rule["alert"] in QUIET or any(is_something(series) for series in found), found


def test_no_alert_fires_in_a_fleet_that_is_well(prometheus: Prometheus) -> None:
    assert prometheus.alerts() == [rule["alert"] for rule in RULE_LIST]
    firing = prometheus.query('ALERTS{alertstate="firing"}')
    assert firing == []


def test_the_alerts_pass_their_own_tests() -> None:
    (tests,) = RULE_TESTS.glob("*.yaml")
    run = subprocess.run(
        [program("promtool"), "test", "rules", str(tests)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    tested = {test["name"] for test in yaml.safe_load(tests.read_text())["tests"]}
    assert tested == {rule["alert"] for rule in RULE_LIST}


def test_the_dashboards_in_the_repository_are_those_of_the_table_of_panels() -> None:
    committed = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    assert committed == {f"{d.name}.json": text_of(d) for d in DASHBOARDS}, "python -m tools.dashboards writes them"


def test_graphs_and_alerts_name_documented_metrics_alone_and_graphs_leave_none_out() -> None:
    word = re.compile(r"(?:hotslot|gen_ai|grpc|process|vllm)[:_][a-z0-9_]+")
    named: set[str] = set()
    for dashboard in DASHBOARDS:
        named |= set(word.findall(json.dumps([query for panel in dashboard.panels for query in panel.queries])))
    asked = {name for rule in RULE_LIST for name in word.findall(rule["expr"])}
    series = {
        suffixed: row.name
        for row in TABLE.values()
        for suffixed in (
            [f"{row.name}{end}" for end in ("_bucket", "_sum", "_count")]
            if row.kind is MetricKind.HISTOGRAM
            else [row.name]
        )
    }
    labels = {label for row in TABLE.values() for label in row.labels}
    named, asked = named - labels, asked - labels
    assert named | asked <= series.keys()
    shown = {series[name] for name in named}
    assert {name for name in TABLE if name.startswith("hotslot_")} - shown == set()


def test_no_scrape_has_a_prompt_or_a_token(loaded: ObservedFleet) -> None:
    text = "".join(loaded.scrape(role) for role in ("store", "worker", "gateway"))
    assert "word word" not in text
    assert str(ROOT) not in text
