"""Spans of what the engine did for requests, drawn after their end from times that the engine keeps anyway.

The stages of a sequence follow each other without a gap: queue (until its row), wait (until its adapters were being
copied) and activate (copied), prefill (until its first token), decode (until its end).
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hotslot.contract.generation import FinishReason
from hotslot.ids import Digest
from hotslot.tracing import Attributes, TracedSpan, begin_span
from worker_service.engine.kept_reports import KeptReports
from worker_service.engine.listener import ActivationReport, SequenceReport
from worker_service.engine.messages import SequenceId

LOOK_AGAIN_S = 0.25
PATIENCE_S = 30.0
"""Time after a request's end for which the engine's reports of it are waited for."""
MAX_ACTIVATIONS = 1024


@dataclass(frozen=True, slots=True)
class EngineStay:
    """A request's time in the engine, as the front knows it."""

    parent: TracedSpan
    sequence_ids: Sequence[SequenceId]
    """One for each choice."""
    digests: Sequence[Digest]
    accepted_s: float
    """On the engine's clock, as the next."""
    submitted_s: float


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a sequence, on the engine's clock."""

    name: str
    began_s: float
    ended_s: float


class EngineSpans:
    """Spans to be drawn. Belongs to one event loop."""

    def __init__(self, reports: KeptReports, clock: Callable[[], float]) -> None:
        """`clock` is the engine's."""
        self._reports = reports
        self._clock = clock
        self._stays: dict[SequenceId, EngineStay] = {}
        self._left_s: dict[SequenceId, float] = {}
        self._activations: OrderedDict[Digest, ActivationReport] = OrderedDict()
        self._look: asyncio.TimerHandle | None = None

    def left(self, stay: EngineStay) -> None:
        """Draw the spans of a request that has ended; where the engine has not, a moment later."""
        now_s = self._clock()
        for sequence_id in stay.sequence_ids:
            self._stays[sequence_id], self._left_s[sequence_id] = stay, now_s
        self.draw()

    def draw(self) -> None:
        """Draw the spans of all that the engine has told of."""
        for report in self._reports.take():
            if isinstance(report, ActivationReport):
                self._activations[report.digest] = report
                self._activations.move_to_end(report.digest)
                if len(self._activations) > MAX_ACTIVATIONS:
                    self._activations.popitem(last=False)
            elif (stay := self._stays.pop(report.sequence_id, None)) is not None:
                del self._left_s[report.sequence_id]
                self._draw(stay, report)
        now_s = self._clock()
        for sequence_id in [each for each, left_s in self._left_s.items() if now_s - left_s > PATIENCE_S]:
            del self._stays[sequence_id], self._left_s[sequence_id]
        if self._stays and self._look is None:
            self._look = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look_again)

    def close(self) -> None:
        """Draw what can be drawn, for the last time."""
        self.draw()
        if self._look is not None:
            self._look.cancel()

    def _look_again(self) -> None:
        self._look = None
        self.draw()

    def _draw(self, stay: EngineStay, report: SequenceReport) -> None:
        # Spans have times of day. Their difference to the clock's is asked for once, so that stages stay adjacent.
        offset_ns = time.time_ns() - round(self._clock() * 1e9)
        stages = list(stages_of(stay, report, [self._activations.get(digest) for digest in stay.digests]))
        for stage in stages:
            began_ns, ended_ns = round(stage.began_s * 1e9) + offset_ns, round(stage.ended_s * 1e9) + offset_ns
            attributes = _attributes(stage.name, stay, report)
            span = begin_span(f"hotslot.{stage.name}", attributes, parent=stay.parent, began_ns=began_ns)
            if stage is stages[-1] and not isinstance(report.outcome, FinishReason):
                span.fail(report.outcome)
            span.end(ended_ns)


def stages_of(
    stay: EngineStay, report: SequenceReport, activations: Sequence[ActivationReport | None]
) -> Iterator[Stage]:
    """Stages of a sequence, as far as it came, one behind the other; `activations` are the last of its adapters'."""
    began_s, arrival_s, ended_s = stay.submitted_s, stay.accepted_s, report.ended_s
    if report.queue_s is None:
        yield Stage("engine.queue", began_s, ended_s)
        return
    row_s = max(arrival_s + report.queue_s, began_s)
    yield Stage("engine.queue", began_s, row_s)
    ready_s = row_s
    if stay.digests:
        ready_s += report.slots_s or 0.0
        # Slices of a copy lie between steps; as one stretch they are the last part of the time until it was complete.
        copied = [each for each in activations if each is not None and row_s < each.ready_s <= ready_s]
        copy_s = min(sum(each.copy_s for each in copied), ready_s - row_s)
        yield Stage("load.wait", row_s, ready_s - copy_s)
        if copied:
            yield Stage("load.activate", ready_s - copy_s, ready_s)
    if report.time_to_first_token_s is None:
        yield Stage("engine.prefill", ready_s, max(ended_s, ready_s))
        return
    first_s = max(arrival_s + report.time_to_first_token_s, ready_s)
    yield Stage("engine.prefill", ready_s, first_s)
    yield Stage("engine.decode", first_s, max(ended_s, first_s))


def _attributes(stage: str, stay: EngineStay, report: SequenceReport) -> Attributes:
    choice = stay.sequence_ids.index(report.sequence_id)
    found: dict[str, str | int | Sequence[str]] = {"hotslot.choice": choice} if len(stay.sequence_ids) > 1 else {}
    match stage:
        case "engine.prefill":
            found |= {"hotslot.prompt_tokens": report.prompt_tokens, "hotslot.cached_tokens": report.cached_tokens}
        case "engine.decode":
            found |= {"hotslot.answer_tokens": report.answer_tokens, "hotslot.preemptions": report.num_preemptions}
        case "load.wait" | "load.activate":
            found |= {"hotslot.adapter.digest": tuple(stay.digests)}
    return found
