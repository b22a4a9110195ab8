"""What the engine did, as its metrics tell it: steps by bucket, sequences, activations, evictions."""

from collections.abc import Iterable

from shared.metrics.exposition import exposition
from shared.metrics.numbers import Measured, Spread
from shared.metrics.table import WORKER, rows_of
from tests.support.engine_bench import Bench, adapter, small_limits
from worker_service.engine.numbers import EngineNumbers


def values(readings: Iterable[Measured]) -> dict[tuple[str, ...], float | Spread]:
    return {(reading.name, *reading.labels): reading.value for reading in readings}


def count(value: float | Spread) -> int:
    assert isinstance(value, Spread)
    return sum(value.counts)


def ran(**limits: int) -> tuple[Bench, EngineNumbers]:
    numbers = EngineNumbers([1, 4])
    return Bench(small_limits(**limits), listener=numbers), numbers


def test_steps_are_counted_by_the_bucket_that_takes_their_tokens() -> None:
    bench, numbers = ran(max_running=2)
    bench.submit(1, [1, 2, 3], adapter(1), max_tokens=3)
    bench.run()
    found = values(numbers.readings())
    steps = {bucket: count(found["hotslot_step_seconds", bucket]) for bucket in ("1", "4", "larger")}
    assert steps == {"1": 2, "4": 1, "larger": 0}
    rows, gaps = found[("hotslot_step_rows",)], found[("hotslot_step_gap_seconds",)]
    assert (count(rows), count(gaps)) == (3, 2)
    assert isinstance(rows, Spread)
    assert rows.total == 3
    assert found[("hotslot_prompt_tokens_computed_total",)] == 3


def test_sequences_and_adapters_are_counted() -> None:
    bench, numbers = ran(max_running=1, max_waiting=1, num_slots=1)
    bench.submit(1, [1], adapter(1), max_tokens=2)
    bench.submit(2, [1])
    bench.submit(3, [1])
    bench.run()
    bench.submit(4, [1], adapter(2), max_tokens=1)
    bench.run()
    found = values(numbers.readings())
    assert found["hotslot_sequences_total", "length"] == 3
    assert found["hotslot_sequences_total", "QueueFullError"] == 1
    assert count(found[("hotslot_sequence_queue_seconds",)]) == 3
    assert count(found[("hotslot_sequence_slots_seconds",)]) == 2
    assert count(found["hotslot_adapter_load_seconds", "activate"]) == 2
    assert {found["hotslot_adapter_activations_total", ahead] for ahead in ("true", "false")} == {1}
    assert found["hotslot_adapter_evictions_total", "slot"] == 1


def test_all_of_it_is_in_a_scrape() -> None:
    _, numbers = ran()
    text = exposition(rows_of(WORKER), [numbers.readings]).decode()
    assert 'hotslot_step_seconds_count{bucket="4"} 0.0' in text
