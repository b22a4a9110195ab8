"""Numbers of what the engine did, counted on its thread into lists that are there from the start.

A step costs a search in a dozen bounds and three additions: no lock, no dictionary, nothing that stays allocated. A
scrape reads from another thread, and may see a step's count without its time; the next scrape has both.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from hotslot.contract.generation import FinishReason
from hotslot.ids import Digest
from shared.metrics.numbers import Measured, Spreads, Tally, spread_reading
from shared.metrics.table import LAGS_S, ROWS, STEPS_S
from worker_service.engine.listener import ActivationReport, SequenceReport, StepReport

LOAD_STAGES = "hotslot_adapter_load_seconds"


class EngineNumbers:
    """Listener of the engine that counts."""

    def __init__(self, buckets: Sequence[int]) -> None:
        """`buckets` are the numbers of tokens that were compiled for."""
        self._buckets = tuple(sorted(set(buckets)))
        self._steps = [[0.0] * (len(STEPS_S) + 2) for _ in range(len(self._buckets) + 1)]
        """By bucket, and behind them for steps that are larger than all, the counts and the sum."""
        self._gaps = [0.0] * (len(LAGS_S) + 2)
        self._rows = [0.0] * (len(ROWS) + 2)
        self._num_prompt_tokens = 0
        ends = [(reason.value,) for reason in FinishReason if reason is not FinishReason.UNSPECIFIED]
        self._ends = Tally("hotslot_sequences_total", ends, one_writer=True)
        self._queues = Spreads("hotslot_sequence_queue_seconds", one_writer=True)
        self._waits = Spreads("hotslot_sequence_slots_seconds", one_writer=True)
        self._stages = Spreads(LOAD_STAGES, [("wait",), ("activate",)], one_writer=True)
        self._activations = Tally("hotslot_adapter_activations_total", [("true",), ("false",)], one_writer=True)
        self._evictions = Tally("hotslot_adapter_evictions_total", [("slot",)], one_writer=True)

    def stepped(self, report: StepReport) -> None:
        """Count a step."""
        duration_s, gap_s = report.duration_s, report.gap_s
        counts = self._steps[bisect_left(self._buckets, report.num_tokens)]
        counts[bisect_left(STEPS_S, duration_s)] += 1
        counts[-1] += duration_s
        counts = self._rows
        counts[bisect_left(ROWS, report.num_rows)] += 1
        counts[-1] += report.num_rows
        if gap_s is not None:
            counts = self._gaps
            counts[bisect_left(LAGS_S, gap_s)] += 1
            counts[-1] += gap_s
        self._num_prompt_tokens += report.num_prompt_tokens

    def ended(self, report: SequenceReport) -> None:
        """Count a sequence."""
        outcome = report.outcome
        self._ends.add(outcome.value if isinstance(outcome, FinishReason) else outcome)
        if report.queue_s is not None:
            self._queues.add(report.queue_s)
        if report.slots_s is not None and report.mix:
            self._waits.add(report.slots_s)

    def activated(self, report: ActivationReport) -> None:
        """Count an adapter."""
        self._activations.add(str(report.ahead).lower())
        self._stages.add(report.wait_s, "wait")
        self._stages.add(report.copy_s, "activate")

    def evicted(self, digest: Digest) -> None:
        """Count an adapter that left."""
        self._evictions.add("slot")

    def readings(self) -> Iterator[Measured]:
        """Values now; called by another thread."""
        for bucket, counts in zip((*map(str, self._buckets), "larger"), self._steps, strict=True):
            yield spread_reading("hotslot_step_seconds", list(counts), (bucket,))
        yield spread_reading("hotslot_step_gap_seconds", list(self._gaps))
        yield spread_reading("hotslot_step_rows", list(self._rows))
        yield Measured("hotslot_prompt_tokens_computed_total", self._num_prompt_tokens)
        for numbers in (self._ends, self._queues, self._waits, self._stages, self._activations, self._evictions):
            yield from numbers.readings()
