"""The engine's thread: commands in, events out, and an end that is noticed."""

import threading
from collections.abc import Callable
from queue import SimpleQueue

from hotslot.contract.generation import Sampling
from hotslot.errors import StepFailedError
from tests.support.fake_model import FakeRunner, next_token
from worker_service.engine.attempts import ModelLostError
from worker_service.engine.limits import EngineLimits
from worker_service.engine.loop import Engine
from worker_service.engine.messages import (
    EngineEvent,
    Inspect,
    SequenceFailed,
    SequenceFinished,
    SequenceId,
    StopRules,
    Submit,
    TokenReady,
)

LIMITS = EngineLimits(2, 4, 2, 4, 8, 4, 8, 24)


def submit(number: int, max_tokens: int) -> Submit:
    return Submit(SequenceId(number), (1, 2), (), Sampling(), StopRules(max_tokens), arrival_s=0.0)


def test_a_sequence_sent_from_another_thread_comes_back_as_events() -> None:
    arrived: SimpleQueue[EngineEvent] = SimpleQueue()

    def on_events(events: list[EngineEvent]) -> None:
        for event in events:
            arrived.put(event)

    engine = Engine(FakeRunner(LIMITS), LIMITS)
    engine.start(on_events)
    engine.send(submit(1, 2))
    events = [arrived.get(timeout=60) for _ in range(3)]
    engine.stop()
    assert [type(e) for e in events] == [TokenReady, TokenReady, SequenceFinished]
    first = events[0]
    assert isinstance(first, TokenReady)
    assert first.token.token_id == next_token([1, 2], [])


def test_a_bug_that_ends_the_thread_is_reported() -> None:
    died = threading.Event()
    on_death: Callable[[], None] = died.set
    engine = Engine(FakeRunner(LIMITS), LIMITS)
    engine.start(on_death=on_death)

    def raise_in_the_engine(snapshot: object) -> None:
        raise RuntimeError("a bug")

    engine.send(Inspect(raise_in_the_engine))
    assert died.wait(60)
    engine.stop()


def test_a_model_that_is_lost_ends_the_thread_once_its_step_was_told() -> None:
    heard: SimpleQueue[EngineEvent | str] = SimpleQueue()

    def on_events(events: list[EngineEvent]) -> None:
        for event in events:
            heard.put(event)

    runner = FakeRunner(LIMITS)
    runner.lost_by = ModelLostError("an unspecified launch failure")
    engine = Engine(runner, LIMITS)
    engine.start(on_events, on_death=lambda: heard.put("died"))
    engine.send(submit(1, 2))
    failed, death = heard.get(timeout=60), heard.get(timeout=60)
    engine.stop()
    assert isinstance(failed, SequenceFailed)
    assert isinstance(failed.error, StepFailedError)
    assert death == "died"
    assert runner.num_runs == 1
