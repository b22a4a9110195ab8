"""The fake model on a device that takes its time: what the engine launches and copies runs later, in any order that
the device's streams and events allow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hotslot.ids import Digest
from tests.support.fake_model import FakeRunner
from tests.support.races import RacyDevice, RacyEvent
from worker_service.engine.graph_counts import NO_GRAPHS
from worker_service.engine.messages import PENDING, AdapterWeights, Computed, Segment, SliceState
from worker_service.model.streams import SlotReads


@dataclass(eq=False)
class LaunchedFake:
    """A step's results once it has run."""

    segments: list[Segment]
    event: RacyEvent | None = None
    results: list[Computed] | None = None
    error: Exception | None = None


class StreamRunner:
    """A ModelRunner one step ahead, over a FakeRunner that finds whatever is out of order."""

    depth = 1
    recompiles = 0
    graphs = NO_GRAPHS

    def __init__(self, model: FakeRunner) -> None:
        self.model = model
        self.device = RacyDevice()
        self.steps, self.copies = self.device.stream("steps"), self.device.stream("copies")
        self.reads = SlotReads(self.steps)
        self.fail_next_launch = False
        self.num_launches = 0
        self.num_fed = 0
        """Tokens that a step took from the one before it."""
        self._launched: list[LaunchedFake] = []

    def write_slots(self, slots: Sequence[int], weights: AdapterWeights) -> Iterator[SliceState]:
        self.reads.before_copy(self.copies, slots)
        for part, slot in enumerate(slots):
            self.copies.give(lambda slot=slot: self._write(slot, None))  # type: ignore[misc]
            yield None
            if getattr(weights, "broken", False):
                raise RuntimeError("the copy broke")
            written = (weights.digest, part, len(slots))
            self.copies.give(lambda slot=slot, written=written: self._write(slot, written))  # type: ignore[misc]
        event = self.copies.record_event()
        while not event.query():
            yield PENDING

    def _write(self, slot: int, written: tuple[Digest, int, int] | None) -> None:
        self.device.touch(("slot", slot), "a copy", is_write=True)
        self.model.slots.pop(slot, None)
        if written is not None:
            self.model.slots[slot] = written

    def launch(self, segments: Sequence[Segment]) -> None:
        self.num_launches += 1
        if self.fail_next_launch:
            self.fail_next_launch = False
            self.model.num_broke_alone += len(segments) == 1
            raise RuntimeError("the launch broke")
        assert len(self._launched) <= self.depth, "further ahead than the runner said"
        # The history grows while the step waits for the device.
        kept = [replace(segment, history=tuple(segment.history)) for segment in segments]
        launched, before = LaunchedFake(kept), self._launched[-1] if self._launched else None
        for segment in segments:
            self._check_feeding(segment, before)
        if any(s.sampling is not None and s.sampling.logit_bias for s in segments) and any(
            s.fed_by is not None for s in segments
        ):
            self.model.mix_up = AssertionError("a step that the host computes is fed by one that it does not know")
            raise self.model.mix_up
        self.steps.give(lambda: self._run(kept, launched, before))
        self.reads.launched({slot for segment in segments for slot, _ in segment.gates})
        launched.event = self.steps.record_event()
        self._launched.append(launched)

    def _run(self, segments: Sequence[Segment], launched: LaunchedFake, before: LaunchedFake | None) -> None:
        for segment in segments:
            self._touch(segment)
        if before is not None and before.error is not None:
            # It reads what the other left half-way, and leaves nothing right itself.
            for segment in segments:
                for place in self.model._places(segment)[segment.start :]:
                    self.model.cache[place] = b"nothing"
            launched.error = RuntimeError("launched after a step that failed")
            return
        try:
            launched.results = self.model.run([self._fed(segment, before) for segment in segments])
        except Exception as exc:  # noqa: BLE001 (raised by `collect`)
            launched.error = exc

    def _touch(self, segment: Segment) -> None:
        """Note the slots and blocks that a step reads, and the blocks that it writes to."""
        block_tokens = self.model.limits.block_tokens
        first, end = segment.start // block_tokens, segment.start + len(segment.token_ids)
        for slot, _ in segment.gates:
            self.device.touch(("slot", slot), "a step", is_write=False)
        for index, block in enumerate(segment.block_table[: -(-end // block_tokens)]):
            self.device.touch(("block", block), "a step", is_write=index >= first)

    def _check_feeding(self, segment: Segment, before: LaunchedFake | None) -> None:
        """A token comes from the step launched before, and from the segment that it follows."""
        if segment.fed_by is None:
            return
        feeding = before.segments[segment.fed_by] if before is not None else None
        if feeding is None or feeding.start + len(feeding.token_ids) != segment.start:
            self.model.mix_up = AssertionError(f"fed by {feeding}, at {segment.start}")
            raise self.model.mix_up

    def _fed(self, segment: Segment, before: LaunchedFake | None) -> Segment:
        if segment.fed_by is None:
            return segment
        assert before is not None
        assert before.results is not None
        token = before.results[segment.fed_by].token
        token_id = token.token_id if token is not None else 0
        self.num_fed += 1
        return replace(segment, token_ids=(token_id,), history=(*segment.history, token_id))

    def collect(self) -> list[Computed]:
        launched = self._launched.pop(0)
        assert launched.event is not None
        self.device.wait_for(launched.event)
        if launched.error is not None:
            raise launched.error
        assert launched.results is not None
        return launched.results
