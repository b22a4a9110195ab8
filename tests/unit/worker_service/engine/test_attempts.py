"""A step that fails is run again in halves: who breaks it ends alone, and the others hear nothing of it."""

import math
from collections.abc import Sequence

import pytest

from tests.support.engine_bench import Bench, adapter, expected, small_limits
from tests.support.fake_model import NON_FINITE, POISON
from worker_service.engine.attempts import MOST_FAILURES
from worker_service.engine.messages import SequenceFailed


def bench_of(num_rows: int, **changes: int) -> Bench:
    """A bench over a fragile model, with room for so many rows in one step."""
    limits = {"max_running": num_rows, "num_blocks": 6 * num_rows, "max_step_tokens": 8 * num_rows, **changes}
    bench = Bench(small_limits(**limits))
    bench.runner.is_fragile = True
    return bench


def prompt_of(number: int, beginning: Sequence[int] = ()) -> list[int]:
    """A prompt whose answer has neither POISON nor NON_FINITE among its first tokens."""
    prompts = ([*beginning, number % 40, 3, salt, number // 40] for salt in range(40))
    return next(prompt for prompt in prompts if not {POISON, NON_FINITE} & set(expected(prompt, 6)))


@pytest.mark.parametrize("num_rows", [1, 2, 3, 8, 16, 33, 64])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_that_breaks_steps_costs_the_others_a_logarithm_of_runs_and_no_token(num_rows: int, place: float) -> None:
    bench = bench_of(num_rows)
    bad = round(place * (num_rows - 1))
    for number in range(num_rows):
        bench.submit(number, [1, POISON, 2] if number == bad else prompt_of(number), max_tokens=4)
    bench.run()
    assert bench.failed() == {bad: "StepFailedError"}
    for number in set(range(num_rows)) - {bad}:
        assert bench.tokens(number) == expected(prompt_of(number), 4)
    assert bench.runner.num_runs <= 4 + 2 * math.ceil(math.log2(num_rows)) + 1


def test_all_that_break_steps_end_and_cost_two_runs_each_at_most() -> None:
    bench = bench_of(16)
    for number in range(16):
        bench.submit(number, [number, POISON], max_tokens=4)
    bench.turns(1)
    bench.submit(99, prompt_of(5), max_tokens=4)
    bench.run()
    assert bench.failed() == dict.fromkeys(range(16), "StepFailedError")
    assert bench.tokens(99) == expected(prompt_of(5), 4)
    assert bench.runner.num_runs <= 2 * 16 + 16 // MOST_FAILURES + 2 + 4
    assert bench.core.lost is None


def test_sequences_that_run_go_on_when_a_new_one_breaks_their_step() -> None:
    bench = bench_of(4)
    for number in range(3):
        bench.submit(number, prompt_of(number), max_tokens=6)
    bench.turns(2)
    bench.submit(3, [4, 5, POISON])
    bench.run()
    assert bench.failed() == {3: "StepFailedError"}
    assert [bench.tokens(number) for number in range(3)] == [expected(prompt_of(n), 6) for n in range(3)]
    assert bench.snapshot().free_blocks == bench.core.limits.num_blocks


def test_commands_are_taken_between_the_halves() -> None:
    bench = bench_of(4)
    for number in range(3):
        bench.submit(number, prompt_of(number), max_tokens=4)
    bench.submit(3, [4, POISON])
    bench.turns(1)
    assert bench.events == [], "the whole step failed"
    bench.cancel(2)
    bench.cancel(3)
    bench.submit(4, prompt_of(4), max_tokens=4)
    bench.run()
    assert bench.failed() == {}
    assert {number: bench.tokens(number) for number in (0, 1, 2, 4)} == {
        **{number: expected(prompt_of(number), 4) for number in (0, 1, 4)},
        2: [],
    }
    assert bench.snapshot().free_blocks == bench.core.limits.num_blocks


def test_what_a_poisoned_sequence_shared_before_is_still_right() -> None:
    """The beginning was computed in steps that did not fail, so others may have it; what follows was not."""
    bench = bench_of(4, max_step_tokens=8)
    beginning = [7, 8, 9, 10, 11, 12, 13, 14]
    bench.submit(0, [*beginning, POISON, 1, 2, 3, 4])
    bench.submit(1, prompt_of(1))
    bench.run()
    bench.submit(2, prompt_of(2, beginning), max_tokens=2)
    bench.run()
    assert bench.failed() == {0: "StepFailedError"}
    assert bench.tokens(2) == expected(prompt_of(2, beginning), 2)
    assert bench.first(2).cached_tokens == 4, "one block was computed before the step that failed"


def test_who_has_logits_that_are_not_finite_ends_alone_and_leaves_nothing_to_find() -> None:
    bench = bench_of(2)
    weak = adapter(1)
    prompt = [NON_FINITE, 2, 3, 4, 5, 6, 7, 8, 9]
    bench.submit(0, prompt, weak)
    bench.submit(1, prompt_of(1), max_tokens=5)
    bench.run()
    assert bench.failed() == {0: "NonFiniteLogitsError"}
    (failed,) = (event for event in bench.events if isinstance(event, SequenceFailed))
    assert "after 9 tokens" in failed.error.message
    assert weak.digest in failed.error.message
    assert bench.tokens(1) == expected(prompt_of(1), 5)
    bench.runner.is_fragile = False
    bench.submit(2, prompt, weak, max_tokens=3)
    bench.run()
    assert bench.first(2).cached_tokens == 0
    assert bench.tokens(2) == expected(prompt, 3, weak)


def test_prompt_scores_that_are_not_finite_end_their_sequence_alone() -> None:
    bench = bench_of(2)
    bench.submit(0, [3, NON_FINITE, 5, 6], prompt_logprobs=True)
    bench.submit(1, [3, 4, 5, 6], prompt_logprobs=True, max_tokens=1)
    bench.run()
    assert bench.failed() == {0: "NonFiniteLogitsError"}
    assert len(bench.first(1).prompt_logprobs) == 3


def test_a_model_that_computes_nothing_any_more_is_lost_and_its_step_is_told_so() -> None:
    bench = bench_of(16)
    for number in range(16):
        bench.submit(number, prompt_of(number), max_tokens=4)
    bench.turns(2)
    bench.runner.is_lost = True
    runs_before = bench.runner.num_runs
    bench.turns(MOST_FAILURES)
    assert bench.core.lost is not None
    assert bench.failed() == dict.fromkeys(range(16), "StepFailedError")
    assert bench.runner.num_runs - runs_before == MOST_FAILURES + 1


def test_single_failures_between_steps_that_work_never_add_up_to_a_loss() -> None:
    bench = bench_of(2)
    for round_ in range(3 * MOST_FAILURES):
        bench.submit(2 * round_, [1, POISON])
        bench.submit(2 * round_ + 1, prompt_of(round_), max_tokens=1)
        bench.run()
    assert bench.core.lost is None
    assert [] not in bench.runner.steps, "nothing had to be tried"
    assert len(bench.failed()) == 3 * MOST_FAILURES
