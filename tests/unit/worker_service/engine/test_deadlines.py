"""Deadlines: what cannot be met is refused before anything is spent on it."""

from tests.support.engine_bench import Bench, small_limits
from worker_service.engine.deadlines import MIN_ENTRIES, Deadlines
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import SequenceId


class SlowBench(Bench):
    """Only steps take time: a second of the bench's clock each."""

    def __init__(self, bounds: EngineLimits) -> None:
        super().__init__(bounds)
        self.tick_s = 0.0
        self.runner.on_step = self._pass

    def _pass(self) -> None:
        self.now_s += 1.0


def warmed(**changes: int) -> SlowBench:
    """One that has measured its pace."""
    bench = SlowBench(small_limits(num_blocks=40, max_running=1, **changes))
    for number in range(1, 17):
        bench.submit(number, [number] * 8, max_tokens=2)
    bench.run()
    bench.events.clear()
    return bench


def test_a_prompt_that_takes_longer_than_is_left_is_refused_at_once() -> None:
    bench = warmed()
    steps = len(bench.runner.steps)
    bench.submit(100, [50] * 20, deadline_s=bench.now_s + 1.5)
    bench.submit(101, [51] * 20, deadline_s=bench.now_s + 10)
    bench.turns(1)
    assert bench.failed() == {100: "RequestDeadlineError"}
    assert all(segment.history[0] != 50 for step in bench.runner.steps[steps:] for segment in step)


def test_a_place_too_far_back_in_the_queue_is_refused_at_once() -> None:
    bench = warmed()
    for number in range(100, 120):
        bench.submit(number, [50], max_tokens=2)
    bench.turns(1)
    bench.submit(200, [50], deadline_s=bench.now_s + 3)
    bench.submit(201, [50], deadline_s=bench.now_s + 100)
    bench.turns(1)
    assert bench.failed() == {200: "RequestDeadlineError"}


def test_one_that_waited_too_long_fails_before_it_gets_a_row() -> None:
    bench = warmed()
    bench.submit(100, [50], max_tokens=12)
    bench.turns(1)
    deadline_s = bench.now_s + 8
    bench.submit(101, [51] * 20, deadline_s=deadline_s)
    while 101 not in bench.failed():
        bench.turns(1)
    assert bench.now_s < deadline_s
    assert all(segment.history[0] != 51 for step in bench.runner.steps for segment in step)


def test_what_the_prefix_cache_has_is_not_held_against_a_deadline() -> None:
    bench = warmed(max_sequence_tokens=100)
    beginning = [50] * 80
    bench.submit(100, [*beginning, 1], max_tokens=1)
    bench.run()
    bench.submit(101, [*beginning, 2], max_tokens=1, deadline_s=bench.now_s + 3)
    bench.submit(102, [51] * 81, max_tokens=1, deadline_s=bench.now_s + 3)
    bench.run()
    assert bench.finished() == [100, 101]
    assert bench.failed() == {102: "RequestDeadlineError"}


def test_a_beginning_that_is_computed_while_a_sequence_waits_is_not_held_against_it() -> None:
    bench = warmed(max_sequence_tokens=100)
    beginning = [50] * 80
    bench.submit(100, [*beginning, 1], max_tokens=1)
    bench.turns(1)
    bench.submit(101, [*beginning, 2], max_tokens=1, deadline_s=bench.now_s + 17)
    bench.submit(102, [51] * 81, max_tokens=1, deadline_s=bench.now_s + 17)
    bench.run()
    assert bench.finished() == [100, 101]
    assert bench.failed() == {102: "RequestDeadlineError"}


def test_looking_for_a_prompt_takes_no_blocks_and_keeps_none_from_giving_way() -> None:
    bench = warmed(max_sequence_tokens=100)
    bench.submit(100, [50] * 40, max_tokens=1)
    bench.run()
    before = bench.snapshot()
    bench.submit(101, [50] * 40, max_tokens=1, deadline_s=bench.now_s + 100)
    after = bench.snapshot()
    assert (after.free_blocks, after.kept_blocks) == (before.free_blocks, before.kept_blocks)


def test_without_measurements_nothing_is_refused() -> None:
    bench = SlowBench(small_limits())
    bench.submit(1, [1] * 20, max_tokens=1, deadline_s=0.5)
    bench.turns(1)
    assert bench.failed() == {}
    bench.turns(1)
    assert bench.failed() == {1: "RequestDeadlineError"}


def test_a_running_sequence_may_use_all_of_its_time() -> None:
    bench = warmed()
    bench.submit(100, [50] * 8, max_tokens=12, deadline_s=bench.now_s + 6)
    bench.run()
    assert bench.failed() == {100: "RequestDeadlineError"}
    assert len(bench.tokens(100)) >= 5
    assert bench.snapshot().running == 0


def test_deadlines_of_ended_sequences_do_not_pile_up() -> None:
    live: set[SequenceId] = set()
    deadlines = Deadlines(live.__contains__)
    for number in range(20_000):
        live.add(SequenceId(number))
        deadlines.add(1e6 - number, SequenceId(number))
        live.discard(SequenceId(number - 10))
    assert len(deadlines) <= MIN_ENTRIES + 1
    assert set(deadlines.due(1e6)) >= live
    assert len(deadlines) == 0
