"""Sequences that grow beside each other keep their blocks side by side while there is room."""

import itertools

from tests.support.engine_bench import Bench, expected, small_limits


def runs(table: tuple[int, ...]) -> int:
    """How many stretches of memory a table of blocks is."""
    return 1 + sum(b != a + 1 for a, b in itertools.pairwise(table))


def test_sequences_that_grow_at_the_same_time_are_read_as_one_stretch_each() -> None:
    bench = Bench(small_limits(num_blocks=100, max_running=4, max_sequence_tokens=60))
    for number in range(1, 5):
        bench.submit(number, [number] * 6, max_tokens=30)
    bench.run()
    tables = [segment.block_table for step in bench.runner.steps for segment in step]
    assert max(runs(table) for table in tables) == 1


def test_blocks_taken_in_advance_are_given_up_before_anybody_is_preempted_or_has_to_wait() -> None:
    bench = Bench(small_limits(num_blocks=24, max_running=4, max_sequence_tokens=60))
    bench.submit(1, [1] * 4, max_tokens=50)
    bench.turns(2)
    assert bench.snapshot().free_blocks < 24 - 2, "nothing was taken in advance"
    bench.submit(2, [2] * 40, max_tokens=1)
    bench.submit(3, [3] * 32, max_tokens=1)
    bench.turns(1)
    assert bench.snapshot().running == 3
    bench.run()
    assert bench.snapshot().preemptions == 0
    assert bench.tokens(1) == expected([1] * 4, 50)
