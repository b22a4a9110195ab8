"""Who computes what in the next step."""

import pytest

from hotslot.ids import Digest
from tests.support.engine_bench import Bench, adapter, expected, small_limits
from tests.support.fake_model import FakeAdapter
from worker_service.engine.limits import EnginePolicy
from worker_service.engine.messages import Activate, SequenceFailed


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_a_sequence_that_loses_its_blocks_is_recomputed_without_losing_a_token(prefix_cache: bool) -> None:
    bench = Bench(small_limits(), EnginePolicy(prefix_cache=prefix_cache))
    first, second = list(range(10)), list(range(20, 30))
    bench.submit(1, first, max_tokens=10)
    bench.submit(2, second, max_tokens=10)
    bench.turns(60)
    assert bench.snapshot().preemptions > 0, "both sequences fit at once, so nothing was preempted"
    assert bench.tokens(1) == expected(first, 10)
    assert bench.tokens(2) == expected(second, 10)


def test_a_long_prompt_is_cut_into_chunks_while_others_go_on_generating() -> None:
    bench = Bench(small_limits(num_blocks=20))
    bench.submit(1, [1], max_tokens=12)
    bench.turns(1)
    bench.submit(2, list(range(20)), max_tokens=1)
    bench.turns(3)
    assert [len(step) for step in bench.runner.steps[1:]] == [2, 2, 2]
    assert [len(s.token_ids) for step in bench.runner.steps[1:] for s in step] == [1, 7, 1, 7, 1, 6]
    assert len(bench.tokens(1)) == 4


def test_a_sequence_waiting_for_slots_is_passed_over_only_so_often() -> None:
    bench = Bench(small_limits(num_slots=1))
    bench.submit(1, [1], adapter(1), max_tokens=3)
    bench.turns(1)
    bench.submit(2, [2], adapter(2), max_tokens=1)
    for number in range(3, 12):
        bench.submit(number, [number], adapter(1), max_tokens=3)
    bench.turns(60)
    order = bench.finished()
    assert sorted(order) == list(range(1, 12))
    assert order.index(2) <= 4, f"the sequence with the other adapter came after {order}"


def test_higher_priority_gets_a_row_first() -> None:
    bench = Bench(small_limits(max_running=1))
    bench.submit(1, [1], max_tokens=2)
    bench.turns(1)
    bench.submit(2, [2], max_tokens=1)
    bench.submit(3, [3], max_tokens=1, priority=5)
    bench.turns(6)
    assert bench.finished() == [1, 3, 2]


def test_a_sequence_past_its_deadline_fails_and_frees_its_row() -> None:
    bench = Bench(small_limits(max_running=1))
    bench.submit(1, [1], max_tokens=20, deadline_s=3.0)
    bench.submit(2, [2], max_tokens=1)
    bench.turns(6)
    failed = [e for e in bench.events if isinstance(e, SequenceFailed)]
    assert [(e.sequence_id, type(e.error).__name__) for e in failed] == [(1, "RequestDeadlineError")]
    assert bench.finished() == [2]


def test_a_mix_that_never_fits_is_told_from_one_that_does_not_fit_now() -> None:
    bench = Bench(small_limits())
    bench.core.handle(Activate(adapter(9), True, lambda outcome: None))
    bench.submit(1, [1], adapter(1), adapter(2))
    bench.submit(2, [2], adapter(1, max_rank=8), adapter(2))
    bench.run()
    assert bench.failed() == {1: "SlotsFullError", 2: "InvalidRequestError"}


def test_a_failing_copy_fails_only_the_sequences_that_wait_for_it() -> None:
    bench = Bench(small_limits())
    broken = FakeAdapter(Digest(f"sha256:{9:064x}"), broken=True)
    bench.submit(1, [1], broken)
    bench.submit(2, [2], adapter(1), max_tokens=2)
    bench.turns(8)
    assert [e.sequence_id for e in bench.events if isinstance(e, SequenceFailed)] == [1]
    assert bench.tokens(2) == expected([2], 2, adapter(1))


def test_a_failing_step_fails_its_sequences_and_the_engine_goes_on() -> None:
    bench = Bench(small_limits())
    bench.submit(1, [1])
    bench.runner.fail_next_step = True
    bench.turns(1)
    bench.submit(2, [2], max_tokens=1)
    bench.turns(2)
    assert [e.sequence_id for e in bench.events if isinstance(e, SequenceFailed)] == [1]
    assert bench.finished() == [2]
