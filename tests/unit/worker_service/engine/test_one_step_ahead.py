"""An engine one step ahead of its model answers as one that waits for it, whatever fails, ends or gives way."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from hotslot.contract.generation import FinishReason, Sampling
from tests.support.engine_bench import expected, small_limits
from tests.support.fake_model import FakeRunner
from tests.support.stream_runner import StreamRunner
from tests.unit.worker_service.engine.test_core_properties import EngineMachine
from worker_service.engine.core import EngineCore
from worker_service.engine.messages import (
    ModelRunner,
    SequenceFinished,
    SequenceId,
    StopRules,
    Submit,
    TokenReady,
)

PROMPT = (1, 2, 3)


class AheadMachine(EngineMachine):
    """The same schedules, on a device that runs what it was given when it likes."""

    def device(self) -> ModelRunner:
        self.streams = StreamRunner(self.runner)
        return self.streams

    @rule(count=st.integers(1, 6), seed=st.integers(0, 7))
    def let_the_device_run(self, count: int, seed: int) -> None:
        self.streams.device.random = Random(seed)
        self.streams.device.run_some(count)
        assert self.runner.mix_up is None, self.runner.mix_up

    @invariant()
    def nothing_is_read_while_it_is_written(self) -> None:
        assert self.streams.device.race is None, self.streams.device.race

    @precondition(lambda self: any(e.tokens for e in self.live.values()))
    @rule()
    def break_a_launch(self) -> None:
        self.streams.fail_next_launch = True


TestAheadMachine = AheadMachine.TestCase
TestAheadMachine.settings = settings(max_examples=25, stateful_step_count=40, deadline=None, print_blob=True)


class Ahead:
    """A core over a device that runs nothing before it has to."""

    def __init__(self) -> None:
        self.limits = small_limits(num_blocks=24)
        self.device = StreamRunner(FakeRunner(self.limits))
        self.core = EngineCore(self.device, self.limits, lambda: 0.0)
        self.tokens: list[int] = []
        self.reason: FinishReason | None = None

    def submit(self, stop: StopRules, sampling: Sampling = Sampling()) -> None:  # noqa: B008 (frozen)
        self.core.handle(Submit(SequenceId(1), PROMPT, (), sampling, stop, 0.0))

    def finish(self, each_turn: Callable[[], None] = lambda: None) -> None:
        for _ in range(60):
            if self.core.idle:
                return
            for event in self.core.turn():
                match event:
                    case TokenReady(token=token):
                        self.tokens.append(token.token_id)
                    case SequenceFinished(reason=reason):
                        self.reason = reason
            each_turn()
        raise AssertionError("the engine never is idle")


@pytest.fixture
def ahead() -> Ahead:
    return Ahead()


def test_tokens_feed_the_next_step_before_they_are_known(ahead: Ahead) -> None:
    ahead.submit(StopRules(8))
    ahead.finish()
    assert ahead.tokens == expected(PROMPT, 8)
    assert ahead.device.num_fed == 7, "every token but the first was computed from one that was not known"
    assert len(ahead.device.model.steps) == 8, "no step is computed for what comes after the last token"


def test_an_end_of_sequence_is_known_one_step_late_and_what_was_computed_meanwhile_is_dropped(ahead: Ahead) -> None:
    answer = expected(PROMPT, 8)
    last = next(index for index in range(1, 8) if answer[index] not in answer[:index])
    ahead.submit(StopRules(8, stop_token_ids=frozenset({answer[last]})))
    ahead.finish()
    assert ahead.tokens == answer[: last + 1]
    assert ahead.reason is FinishReason.STOP
    assert len(ahead.device.model.steps) == last + 2
    assert not ahead.core._scheduler.kv.blocks.users


@pytest.mark.parametrize(
    "sampling", [Sampling(presence_penalty=1.0), Sampling(logit_bias={3: 1.0})], ids=["penalty", "bias"]
)
def test_sequences_whose_tokens_the_host_needs_are_not_run_ahead(ahead: Ahead, sampling: Sampling) -> None:
    ahead.submit(StopRules(5), sampling)
    ahead.finish()
    assert ahead.tokens == expected(PROMPT, 5)
    assert ahead.device.num_fed == 0


def test_a_sequence_is_run_ahead_from_its_least_length_on(ahead: Ahead) -> None:
    ahead.submit(StopRules(6, min_tokens=3))
    ahead.finish()
    assert ahead.tokens == expected(PROMPT, 6)
    assert ahead.device.num_fed == 2
