"""Spans of the engine's work: adjacent stages from what the engine keeps, drawn when the request has ended."""

import asyncio
import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from hotslot.contract.generation import FinishReason
from hotslot.ids import Digest, TenantId
from hotslot.tracing import NO_SPAN, begin_span
from tests.support.engine_bench import Bench, adapter, small_limits
from tests.support.recorded_spans import RecordedSpans, recording_spans
from tests.support.waiting import until
from worker_service.engine.kept_reports import MAX_KEPT, KeptReports
from worker_service.engine.listener import ActivationReport, SequenceReport
from worker_service.engine.messages import SequenceId
from worker_service.front import engine_spans
from worker_service.front.engine_spans import EngineSpans, EngineStay, stages_of

DIGEST = Digest("sha256:" + "a" * 64)
ID = SequenceId(1)
ENDS = [FinishReason.LENGTH, "cancelled", "RequestDeadlineError"]


@pytest.fixture
def recorded() -> Iterator[RecordedSpans]:
    with recording_spans() as spans:
        yield spans


def report(
    *,
    queue_s: float | None = 0.2,
    slots_s: float | None = 0.3,
    first_s: float | None = 0.9,
    ended_s: float = 12.0,
    outcome: FinishReason | str = FinishReason.LENGTH,
    sequence_id: SequenceId = ID,
) -> SequenceReport:
    return SequenceReport(
        sequence_id, TenantId("acme"), ((DIGEST, 1.0),), outcome, queue_s, slots_s, first_s, None, 5, 0, 3, 0, ended_s
    )


def stay(*, digests: tuple[Digest, ...] = (DIGEST,)) -> EngineStay:
    return EngineStay(NO_SPAN, (ID,), digests, accepted_s=10.0, submitted_s=10.1)


def test_a_cold_sequence_waits_is_copied_and_is_computed() -> None:
    copied = ActivationReport(DIGEST, 1, 100, False, 0.1, 0.2, ready_s=10.45)
    stages = list(stages_of(stay(), report(), [copied]))
    assert [(each.name, round(each.began_s, 6), round(each.ended_s, 6)) for each in stages] == [
        ("engine.queue", 10.1, 10.2),
        ("load.wait", 10.2, 10.3),
        ("load.activate", 10.3, 10.5),
        ("engine.prefill", 10.5, 10.9),
        ("engine.decode", 10.9, 12.0),
    ]


def test_a_copy_of_another_time_is_none_of_its_stages() -> None:
    for ready_s in (9.0, 10.2, 10.6):
        copied = ActivationReport(DIGEST, 1, 100, False, 0.1, 0.2, ready_s=ready_s)
        assert "load.activate" not in [each.name for each in stages_of(stay(), report(), [copied])]


@given(
    queue_s=st.none() | st.floats(0, 10),
    slots_s=st.none() | st.floats(0, 10),
    first_s=st.none() | st.floats(0, 30),
    ended_s=st.floats(10, 60),
    copies=st.lists(st.tuples(st.floats(0, 30), st.floats(0, 30)), max_size=3),
    has_adapters=st.booleans(),
)
def test_stages_are_adjacent_whatever_the_engine_tells(
    queue_s: float | None,
    slots_s: float | None,
    first_s: float | None,
    ended_s: float,
    copies: list[tuple[float, float]],
    has_adapters: bool,
) -> None:
    told = report(queue_s=queue_s, slots_s=slots_s, first_s=first_s, ended_s=max(ended_s, 10.1))
    activations = [ActivationReport(DIGEST, 1, 1, False, 0.0, copy_s, ready_s=at_s) for copy_s, at_s in copies]
    stages = list(stages_of(stay(digests=(DIGEST,) if has_adapters else ()), told, activations))
    assert stages[0].began_s == 10.1
    for before, after in itertools.pairwise(stages):
        assert before.ended_s == pytest.approx(after.began_s)
    assert all(each.ended_s >= each.began_s for each in stages)
    if not has_adapters:
        assert not [each for each in stages if each.name.startswith("load")]


def times(spans: tuple[ReadableSpan, ...]) -> list[tuple[str, int]]:
    found = sorted(spans, key=lambda each: each.start_time or 0)
    return [(each.name, ((each.end_time or 0) - (each.start_time or 0)) // 1_000_000) for each in found]


async def test_the_engines_own_reports_become_spans_below_the_requests(recorded: RecordedSpans) -> None:
    kept = KeptReports()
    bench = Bench(small_limits(max_running=1), listener=kept)
    bench.submit(1, [1] * 9, adapter(1), max_tokens=3)
    bench.run()
    request = begin_span("request")
    spans = EngineSpans(kept, lambda: bench.now_s)
    spans.left(EngineStay(request, (SequenceId(1),), (adapter(1).digest,), 0.0, 0.0))
    request.end()
    drawn = tuple(each for each in recorded.all() if each.name != "request")
    assert {each.parent.span_id for each in drawn if each.parent is not None} == {
        each.context.span_id for each in recorded.named("request") if each.context is not None
    }
    assert times(drawn) == [
        ("hotslot.engine.queue", 1000),
        ("hotslot.load.wait", 0),
        ("hotslot.engine.prefill", 1000),
        ("hotslot.engine.decode", 2000),
    ]
    (decode,) = recorded.named("hotslot.engine.decode")
    assert decode.attributes is not None
    assert decode.attributes["hotslot.answer_tokens"] == 3


async def test_what_ends_later_is_drawn_later_and_says_how_it_ended(
    recorded: RecordedSpans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_spans, "LOOK_AGAIN_S", 0.01)
    kept, loop = KeptReports(), asyncio.get_running_loop()
    spans = EngineSpans(kept, loop.time)
    request = begin_span("request")
    spans.left(EngineStay(request, (ID,), (), loop.time(), loop.time()))
    assert not recorded.all()
    kept.ended(report(queue_s=None, slots_s=None, first_s=None, ended_s=loop.time(), outcome="cancelled"))
    await until(lambda: bool(recorded.named("hotslot.engine.queue")))
    (queue,) = recorded.named("hotslot.engine.queue")
    assert (queue.attributes or {})["error.type"] == "cancelled"
    assert queue.status.status_code is StatusCode.ERROR
    spans.close()


async def test_reports_that_never_come_are_not_waited_for_for_ever(recorded: RecordedSpans) -> None:
    kept, now_s = KeptReports(), [0.0]
    spans = EngineSpans(kept, lambda: now_s[0])
    spans.left(EngineStay(begin_span("request"), (ID,), (), 0.0, 0.0))
    now_s[0] = engine_spans.PATIENCE_S + 1
    spans.draw()
    kept.ended(report())
    spans.draw()
    assert not recorded.all()
    assert spans._stays == {}
    spans.close()


def test_reports_that_nobody_takes_are_bounded_and_steps_are_heard_by_the_other_alone() -> None:
    class Other:
        def __init__(self) -> None:
            self.heard: list[object] = []

        def stepped(self, report: object) -> None:
            self.heard.append(report)

        ended = activated = evicted = stepped

    other = Other()
    kept = KeptReports(other)
    assert kept.stepped == other.stepped
    assert kept.evicted == other.evicted
    for number in range(MAX_KEPT + 5):
        kept.ended(report(sequence_id=SequenceId(number)))
    assert len(other.heard) == MAX_KEPT + 5
    taken = list(kept.take())
    assert len(taken) == MAX_KEPT
    assert isinstance(taken[0], SequenceReport)
    assert taken[0].sequence_id == 5
    assert not list(kept.take())
