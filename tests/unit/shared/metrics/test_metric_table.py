"""The table of metrics follows Prometheus's rules, and its page has every row."""

import re

from shared.metrics.table import EVERY, TABLE, MetricKind
from tools.docs.metrics_reference import page

OURS = re.compile(r"hotslot_[a-z0-9]+(_[a-z0-9]+)*")
FOREIGN = re.compile(r"(gen_ai|grpc|process|vllm:)[a-z0-9_]+")


def test_names_units_and_labels_are_those_of_the_field() -> None:
    for row in TABLE.values():
        assert OURS.fullmatch(row.name) or FOREIGN.fullmatch(row.name), row.name
        assert row.name.endswith("_total") == (row.kind is MetricKind.COUNTER), row.name
        assert bool(row.bounds) == (row.kind is MetricKind.HISTOGRAM), row.name
        assert list(row.bounds) == sorted(set(row.bounds)), row.name
        assert row.services, row.name
        assert set(row.services) <= set(EVERY), row.name
        assert not any(name == "le" or name.startswith("__") for name in row.labels), row.name
        assert not any(word in row.name for word in ("_ms", "_milliseconds", "_mib", "_percent")), row.name


def test_every_metric_has_a_sentence() -> None:
    assert [row.name for row in TABLE.values() if not re.fullmatch(r"[A-Z0-9(].*\.", row.help)] == []


def test_the_page_has_every_row_and_no_other() -> None:
    shown = re.findall(r"^\| `([^`]+)` \| (counter|gauge|histogram) \|", page(), re.MULTILINE)
    expected = [(row.name, row.kind.value) for row in TABLE.values()]
    assert set(shown) == set(expected)
