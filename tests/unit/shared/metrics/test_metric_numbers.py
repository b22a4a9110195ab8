"""Numbers of a process, and the text of a scrape that is made of them."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from shared.metrics.calls import REFUSALS, ServerCalls
from shared.metrics.exposition import beside, exposition, families_of
from shared.metrics.numbers import OTHER, BoundedLabels, Measured, Spreads, Tally
from shared.metrics.table import EVERY, TABLE, MetricKind, rows_of
from shared.server.counters import MEANINGS, Counters

QUEUES = "hotslot_queue_wait_seconds"
QUEUE_REFUSALS = "hotslot_queue_refusals_total"


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Values of a text as another parser reads it."""
    families = text_string_to_metric_families(text.decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


@given(st.lists(st.floats(0, 100, allow_nan=False), max_size=40))
def test_buckets_hold_every_value_up_to_their_bound(values: list[float]) -> None:
    spreads = Spreads(QUEUES)
    for value in values:
        spreads.add(value, "a")
    found = samples(exposition([TABLE[QUEUES]], [spreads.readings]))
    for bound in TABLE[QUEUES].bounds:
        expected = sum(value <= bound for value in values)
        assert found.get((f"{QUEUES}_bucket", (("le", repr(bound)), ("queue", "a"))), 0) == expected
    assert found.get((f"{QUEUES}_count", (("queue", "a"),)), 0) == len(values)
    assert found.get((f"{QUEUES}_sum", (("queue", "a"),)), 0) == pytest.approx(sum(values))


def test_what_several_parts_count_for_the_same_labels_adds_up() -> None:
    one, other = Tally(QUEUE_REFUSALS), Tally(QUEUE_REFUSALS)
    one.add("a", "busy")
    other.add("a", "busy", by=2)
    other.add("a", "late")
    found = samples(exposition([TABLE[QUEUE_REFUSALS]], [one.readings, other.readings]))
    assert found[QUEUE_REFUSALS, (("queue", "a"), ("why", "busy"))] == 3
    assert found[QUEUE_REFUSALS, (("queue", "a"), ("why", "late"))] == 1


def test_threads_lose_no_count() -> None:
    tally, spreads = Tally("hotslot_content_bytes_total"), Spreads("hotslot_event_loop_lag_seconds")

    def add() -> None:
        for _ in range(2_000):
            tally.add("in", by=3)
            spreads.add(0.5)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tally.value("in") == 24_000
    (reading,) = spreads.readings()
    assert sum(reading.value.counts) == 8_000  # type: ignore[union-attr]


def test_label_sets_beyond_the_bound_are_one() -> None:
    bounded = BoundedLabels(2)
    assert [bounded("a", "1"), bounded("b", "1"), bounded("c", "1")] == [("a", "1"), ("b", "1"), (OTHER, OTHER)]
    assert (bounded("a", "1"), bounded("d", "1")) == (("a", "1"), (OTHER, OTHER))


def test_a_number_that_no_row_of_the_table_is_for_cannot_be_made_or_told() -> None:
    with pytest.raises(KeyError):
        Tally("hotslot_invented_total")
    with pytest.raises(AssertionError):
        Spreads(QUEUE_REFUSALS)
    with pytest.raises(AssertionError):
        Tally(QUEUE_REFUSALS).add("one label of two")
    with pytest.raises(KeyError):
        exposition(rows_of("gateway"), [lambda: [Measured("hotslot_slots", 1, ("free",))]])


def test_families_without_values_are_in_the_text_all_the_same() -> None:
    for service in EVERY:
        text = exposition(rows_of(service), []).decode()
        assert [name for name, _ in families_of(text)] == [row.name for row in rows_of(service)]
        assert {f.name for f in text_string_to_metric_families(text)} == {
            row.name.removesuffix("_total") if row.kind is MetricKind.COUNTER else row.name for row in rows_of(service)
        }


def test_two_texts_are_one_that_has_no_family_twice() -> None:
    own = exposition(rows_of("gateway"), [lambda: [Measured("process_open_fds", 1)]])
    other = exposition(
        rows_of("worker"), [lambda: [Measured("process_open_fds", 2), Measured("vllm:num_requests_running", 3)]]
    )
    both = beside(own, other)
    names = [name for name, _ in families_of(both.decode())]
    assert sorted(names) == sorted({row.name for service in ("gateway", "worker") for row in rows_of(service)})
    found = samples(both)
    assert (found["process_open_fds", ()], found["vllm:num_requests_running", ()]) == (1, 3)


def test_refusals_and_cut_streams_are_told_by_their_kind() -> None:
    counters = Counters()
    calls = ServerCalls(counters)
    for name in MEANINGS:
        counters.add(name, "some", 2)
    found = samples(exposition(rows_of("store"), [calls.readings]))
    told = {name: value for (name, labels), value in found.items() if ("some" in dict(labels).values())}
    assert told == dict.fromkeys(REFUSALS.values(), 2)
