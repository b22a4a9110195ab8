"""What a listener hears of steps, sequences and activations, and what the snapshot adds up."""

from dataclasses import dataclass, field

from hotslot.contract.generation import FinishReason
from hotslot.ids import Digest, TenantId
from tests.support.engine_bench import Bench, adapter, small_limits
from tests.support.fake_model import FakeAdapter
from worker_service.engine.listener import ActivationReport, SequenceReport, StepReport


@dataclass
class Recorder:
    """A listener that remembers."""

    steps: list[StepReport] = field(default_factory=list)
    sequences: list[SequenceReport] = field(default_factory=list)
    activations: list[ActivationReport] = field(default_factory=list)
    evictions: list[Digest] = field(default_factory=list)

    def stepped(self, report: StepReport) -> None:
        self.steps.append(report)

    def ended(self, report: SequenceReport) -> None:
        self.sequences.append(report)

    def activated(self, report: ActivationReport) -> None:
        self.activations.append(report)

    def evicted(self, digest: Digest) -> None:
        self.evictions.append(digest)


def heard(**limits: int) -> tuple[Bench, Recorder]:
    recorder = Recorder()
    return Bench(small_limits(**limits), listener=recorder), recorder


def test_a_sequence_is_reported_with_its_times_and_tokens() -> None:
    bench, recorder = heard(max_running=1)
    bench.submit(1, [1] * 9, adapter(1), max_tokens=3, tenant=TenantId("acme"))
    bench.turns(1)
    bench.submit(2, [2], max_tokens=2)
    bench.run()
    first, second = recorder.sequences
    assert (first.tenant, first.mix, first.outcome) == ("acme", ((adapter(1).digest, 1.0),), FinishReason.LENGTH)
    assert (first.queue_s, first.slots_s, first.time_to_first_token_s) == (1.0, 0.0, 2.0)
    assert first.time_per_token_s == 1.0
    assert (first.prompt_tokens, first.cached_tokens, first.answer_tokens) == (9, 0, 3)
    assert second.queue_s is not None
    assert second.queue_s == 4.0


def test_what_ends_early_is_reported_with_the_reason() -> None:
    bench, recorder = heard(max_running=1, max_waiting=1)
    bench.submit(1, [1], max_tokens=20)
    bench.submit(2, [1], deadline_s=2.5)
    bench.submit(3, [1])
    bench.turns(1)
    bench.cancel(1)
    bench.submit(4, [1], FakeAdapter(adapter(4).digest, broken=True))
    bench.turns(4)
    assert {report.outcome for report in recorder.sequences[:2]} == {"QueueFullError", "cancelled"}
    assert "EngineFailedError" in {report.outcome for report in recorder.sequences}
    refused = recorder.sequences[0]
    assert (refused.queue_s, refused.slots_s, refused.time_to_first_token_s) == (None, None, None)


def test_steps_are_reported_with_what_they_computed_and_the_gap_before_them() -> None:
    bench, recorder = heard()
    bench.submit(1, [1] * 10, max_tokens=3)
    bench.turns(6)
    assert [(s.num_rows, s.num_tokens, s.num_prompt_tokens) for s in recorder.steps] == [
        (1, 8, 8),
        (1, 2, 2),
        (1, 1, 0),
        (1, 1, 0),
    ]
    assert [s.gap_s for s in recorder.steps] == [None, 1.0, 1.0, 1.0]
    assert bench.snapshot().longest_stall_s == 1.0


def test_activations_say_whether_somebody_waited_and_whose_slots_they_took() -> None:
    bench, recorder = heard(max_running=1)
    bench.submit(1, [1], adapter(1), max_tokens=8)
    bench.turns(1)
    bench.submit(2, [1], adapter(2), max_tokens=1)
    bench.turns(4)
    assert [(a.digest, a.ahead, a.num_slots) for a in recorder.activations] == [
        (adapter(1).digest, False, 1),
        (adapter(2).digest, True, 1),
    ]
    assert recorder.evictions == []
    bench.run()
    bench.submit(3, [1], adapter(3), max_tokens=1)
    bench.run()
    assert recorder.evictions == [adapter(1).digest]
    assert bench.snapshot().activations == 3
