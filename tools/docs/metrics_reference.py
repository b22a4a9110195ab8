"""Reference of the metrics: every row of their table, by the process that exports it."""

from shared.metrics.table import EVERY, GATEWAY, STORE, WORKER, MetricRow, rows_of
from tools.docs.markdown import code, prose, table

SECTIONS = {STORE: "Store", WORKER: "Worker", GATEWAY: "Gateway"}


def page() -> str:
    """The page."""
    shared = [row for row in rows_of(STORE) if row.services == EVERY]
    parts = [_HEAD, "## Every process\n", _table(shared)]
    for service, heading in SECTIONS.items():
        parts += [f"## {heading}\n", _table([row for row in rows_of(service) if row.services != EVERY])]
    return "\n".join(parts)


def _table(rows: list[MetricRow]) -> str:
    heads = ("metric", "type", "labels", "unit", "meaning")
    return table(heads, [(code(row.name), row.kind.value, labels_of(row), row.unit, prose(row.help)) for row in rows])


def labels_of(row: MetricRow) -> str:
    """Labels of a metric in words."""
    return ", ".join(map(code, row.labels))


_HEAD = """# Metrics

Everything that `/metrics` tells, made of `shared/metrics/table.py`; [Observing](../observing.md) says how to ask, and
what to look at. A histogram has the series `_bucket`, `_sum` and `_count`. Of adapters the first 1,000 names have
series of their own, in histograms the first 100 models; all later ones share the label `other`. The label `tenant` is
empty unless `HOTSLOT_METRICS_TENANTS` is true.
"""
