"""The fake model on a device that takes its time: what the engine launches and copies runs later, in any order that
the device's streams and events allow.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from tests.support.fake_model import FakeRunner
from tests.support.stream_order import StreamOrder
from worker_service.engine.messages import AdapterWeights, Computed, Segment


@dataclass(eq=False)
class FakeEvent:
    """Happens when all that was given to its stream before has run."""

    has_happened: bool = False

    def happen(self) -> None:
        self.has_happened = True


@dataclass(eq=False)
class FakeStream:
    """What was given to it and has not run yet, in order."""

    queue: list[Callable[[], object] | FakeEvent] = field(default_factory=list)

    def record_event(self) -> FakeEvent:
        event = FakeEvent()
        self.queue.append(event.happen)
        return event

    def wait_event(self, event: FakeEvent) -> None:
        self.queue.append(event)

    @property
    def can_run(self) -> bool:
        """False while it is empty, or waits for an event that has not happened."""
        while self.queue and isinstance(self.queue[0], FakeEvent) and self.queue[0].has_happened:
            self.queue.pop(0)
        return bool(self.queue) and not isinstance(self.queue[0], FakeEvent)

    def run_one(self) -> None:
        entry = self.queue.pop(0)
        assert not isinstance(entry, FakeEvent)
        entry()


@dataclass(eq=False)
class LaunchedFake:
    """A step's results once it has run."""

    results: list[Computed] | None = None
    error: Exception | None = None

    @property
    def has_run(self) -> bool:
        return self.results is not None or self.error is not None


class StreamRunner:
    """A ModelRunner one step ahead, over a FakeRunner that finds whatever is out of order."""

    depth = 1
    recompiles = 0

    def __init__(self, model: FakeRunner) -> None:
        self.model = model
        self.random = Random(0)
        self.steps, self.copies = FakeStream(), FakeStream()
        self.order = StreamOrder(self.steps, self.copies)
        self.fail_next_launch = False
        self.num_fed = 0
        """Tokens that a step took from the one before it."""
        self._launched: list[LaunchedFake] = []

    def write_slots(self, slots: Sequence[int], weights: AdapterWeights) -> Iterator[None]:
        for part, slot in enumerate(slots):
            self._copy(lambda slot=slot: self.model.slots.pop(slot, None))  # type: ignore[misc]
            yield
            if getattr(weights, "broken", False):
                raise RuntimeError("the copy broke")
            written = (weights.digest, part, len(slots))
            self._copy(lambda slot=slot, written=written: self.model.slots.update({slot: written}))  # type: ignore[misc]

    def _copy(self, run: Callable[[], object]) -> None:
        self.order.before_copy()
        self.copies.queue.append(run)
        self.order.after_copy()

    def launch(self, segments: Sequence[Segment]) -> None:
        if self.fail_next_launch:
            self.fail_next_launch = False
            self.model.num_broke_alone += len(segments) == 1
            raise RuntimeError("the launch broke")
        assert len(self._launched) <= self.depth, "further ahead than the runner said"
        launched, before = LaunchedFake(), self._launched[-1] if self._launched else None
        # The history grows while the step waits for the device.
        kept = [replace(segment, history=tuple(segment.history)) for segment in segments]
        self.order.before_step()
        self.steps.queue.append(lambda: self._run(kept, launched, before))
        self.order.after_step()
        self._launched.append(launched)

    def _run(self, segments: Sequence[Segment], launched: LaunchedFake, before: LaunchedFake | None) -> None:
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
        while not launched.has_run:
            assert self.run_some(1), "streams wait for each other"
        if launched.error is not None:
            raise launched.error
        assert launched.results is not None
        return launched.results

    def run_some(self, count: int) -> bool:
        """Let the device run so much of what it may; tells whether there was anything."""
        for _ in range(count):
            streams = [stream for stream in (self.steps, self.copies) if stream.can_run]
            if not streams:
                return False
            self.random.choice(streams).run_one()
        return True
