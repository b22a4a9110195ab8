"""Plain numbers that parts of a process keep of what they do; a scrape reads them.

Each belongs to a row of the table, by its name: a number without one cannot be made. Any thread may add, except to
those of one writer, which take no lock.
"""

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from shared.metrics.table import TABLE, MetricKind

OTHER = "other"
"""Label of everything beyond the bound of a label's values."""
MAX_ADAPTERS = 1_000
MAX_MODELS = 100
"""Bound of the models that histograms tell apart: each takes more than forty lines of a scrape."""

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Spread:
    """Numbers of values by bucket, the infinite one last, and the values' sum."""

    counts: tuple[int, ...]
    total: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Value of a metric at a scrape."""

    name: str
    value: float | Spread
    labels: Labels = ()


class Tally:
    """A counter's values, by labels."""

    def __init__(self, name: str, starting: Iterable[Labels] = (), *, one_writer: bool = False) -> None:
        """`starting` are labels that are shown before anything is counted."""
        row = TABLE[name]
        assert row.kind is MetricKind.COUNTER, name
        self._name = name
        self._counts: dict[Labels, float] = dict.fromkeys(starting, 0.0)
        if not row.labels:
            self._counts[()] = 0.0
        self._num_labels = len(row.labels)
        self._lock = _lock(one_writer)

    def add(self, *labels: str, by: float = 1) -> None:
        """Count something."""
        assert len(labels) == self._num_labels, (self._name, labels)
        with self._lock:
            self._counts[labels] = self._counts.get(labels, 0.0) + by

    def value(self, *labels: str) -> float:
        """Count so far."""
        return self._counts.get(labels, 0.0)

    def readings(self) -> Iterator[Measured]:
        """Values now."""
        with self._lock:
            counts = list(self._counts.items())
        for labels, count in counts:
            yield Measured(self._name, count, labels)


class Spreads:
    """A histogram's values, by labels."""

    def __init__(self, name: str, starting: Iterable[Labels] = (), *, one_writer: bool = False) -> None:
        """As for `Tally`."""
        row = TABLE[name]
        assert row.kind is MetricKind.HISTOGRAM, name
        self._name = name
        self._bounds = row.bounds
        self._num_labels = len(row.labels)
        self._counts: dict[Labels, list[float]] = {}
        """By labels the counts of the buckets, and behind them the sum."""
        for labels in [*starting, *([()] if not row.labels else [])]:
            self._counts[labels] = self._empty()
        self._lock = _lock(one_writer)

    def add(self, value: float, *labels: str) -> None:
        """Count a value."""
        assert len(labels) == self._num_labels, (self._name, labels)
        place = bisect_left(self._bounds, value)
        with self._lock:
            counts = self._counts.get(labels)
            if counts is None:
                counts = self._counts[labels] = self._empty()
            counts[place] += 1
            counts[-1] += value

    def readings(self) -> Iterator[Measured]:
        """Values now."""
        with self._lock:
            found = [(labels, list(counts)) for labels, counts in list(self._counts.items())]
        for labels, counts in found:
            yield spread_reading(self._name, counts, labels)

    def _empty(self) -> list[float]:
        return [0.0] * (len(self._bounds) + 2)


def _lock(one_writer: bool) -> AbstractContextManager[object]:
    """A lock between writers; a single one needs none, since a reader copies what there is in one operation."""
    return nullcontext() if one_writer else threading.Lock()


def spread_reading(name: str, counts: list[float], labels: Labels = ()) -> Measured:
    """Values of a histogram whose buckets are counted in a list, with the sum as its last element."""
    return Measured(name, Spread(tuple(map(int, counts[:-1])), counts[-1]), labels)


class BoundedLabels:
    """Label sets that may be shown: the first so many, and one for all the others."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[Labels, Labels] = {}

    def __call__(self, *labels: str) -> Labels:
        """The labels, or as many times `other`."""
        known = self._known.get(labels)
        if known is None:
            if len(self._known) >= self._most:
                return (OTHER,) * len(labels)
            known = self._known[labels] = labels
        return known


def states(name: str, values: Mapping[str, float]) -> Iterator[Measured]:
    """Readings of a gauge with one label, by its values."""
    for label, value in values.items():
        yield Measured(name, value, (label,))
