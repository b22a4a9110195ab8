"""A scrape: what sources read, put into the families of the table, as Prometheus's text."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from shared.metrics.numbers import Labels, Measured, Spread
from shared.metrics.table import MetricKind, MetricRow

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
INFINITY = "+Inf"

Readings = Callable[[], Iterable[Measured]]
"""Reads the numbers of one part; called on the event loop, and never waits."""


def exposition(rows: Sequence[MetricRow], sources: Iterable[Readings]) -> bytes:
    """Text of all rows, those without values included; what several parts read for the same labels adds up.

    A reading for a row that is not there is an error of ours.
    """
    found: dict[str, dict[Labels, float | Spread]] = {row.name: {} for row in rows}
    for source in sources:
        for reading in source():
            values = found[reading.name]
            before = values.get(reading.labels)
            values[reading.labels] = reading.value if before is None else _sum(before, reading.value)
    return generate_latest(_Families([_family(row, found[row.name]) for row in rows]))


class _Families:
    """Collector of what was read."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _family(row: MetricRow, values: Mapping[Labels, float | Spread]) -> Metric:
    if row.kind is MetricKind.HISTOGRAM:
        histogram = HistogramMetricFamily(row.name, row.help, labels=row.labels)
        for labels, value in values.items():
            assert isinstance(value, Spread), row.name
            histogram.add_metric(labels, _buckets(row.bounds, value.counts), value.total)
        return histogram
    kind = CounterMetricFamily if row.kind is MetricKind.COUNTER else GaugeMetricFamily
    family = kind(row.name, row.help, labels=row.labels)
    for labels, value in values.items():
        assert not isinstance(value, Spread), row.name
        family.add_metric(labels, value)
    return family


def _sum(one: float | Spread, other: float | Spread) -> float | Spread:
    if isinstance(one, Spread) and isinstance(other, Spread):
        counts = tuple(a + b for a, b in zip(one.counts, other.counts, strict=True))
        return Spread(counts, one.total + other.total)
    assert not isinstance(one, Spread)
    assert not isinstance(other, Spread)
    return one + other


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Cumulative counts by upper bound."""
    buckets, sum_so_far = [], 0
    for bound, count in zip((*map(repr, bounds), INFINITY), counts, strict=True):
        sum_so_far += count
        buckets.append((bound, float(sum_so_far)))
    return buckets


def families_of(text: str) -> Iterator[tuple[str, str]]:
    """The families of a text that `exposition` made, each with its name."""
    for block in text.split("# HELP ")[1:]:
        yield block.split(" ", 1)[0], f"# HELP {block}"


def beside(own: bytes, other: bytes) -> bytes:
    """One text of two; of families that both have, which no text may have twice, the first is kept."""
    names = {name for name, _ in families_of(own.decode())}
    others = (block for name, block in families_of(other.decode()) if name not in names)
    return own + "".join(others).encode()
