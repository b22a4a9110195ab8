"""One generation as a span of the worker that serves it, with its stages below; nothing where no trace is recorded."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from hotslot.contract.generation import Finished, Started
from hotslot.generation_attributes import AnswerAttributes, model_of, operation_of, request_attributes, span_name
from hotslot.tracing import TracedSpan, begin_span, error_type_of, is_traced, span
from worker_service.engine.handle import SequenceGroup
from worker_service.front.engine_spans import EngineSpans, EngineStay
from worker_service.front.settling import SettledRequest


class TracedServing:
    """A generation from the time that its versions are known to its end; it is current in its stages only."""

    def __init__(self, settled: SettledRequest, base_model: str, engine: EngineSpans | None) -> None:
        self._settled = settled
        self._engine = engine
        self._answer = AnswerAttributes()
        self._stay: EngineStay | None = None
        self._span = _begin(settled, base_model)

    def __enter__(self) -> "TracedServing":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._stay is not None and self._engine is not None:
            self._engine.left(self._stay)
        if error is not None:
            self._span.fail(error_type_of(error))
        if self._span:
            self._span.set(self._answer.attributes())
            first = self._answer.finished.get(0)
            if first is not None:
                self._span.set({"hotslot.time_to_first_token": first.timings.time_to_first_token_s})
        self._span.end()

    @contextmanager
    def stage(self, name: str) -> Iterator[TracedSpan]:
        """A stage, which the block must not leave for its reader."""
        with span(f"hotslot.{name}", parent=self._span) as begun:
            yield begun

    def started(self, started: Started) -> None:
        """It is known by what it is served."""
        self._answer.add(started)

    def submitted(self, group: SequenceGroup, now_s: float) -> None:
        """Its sequences are the engine's."""
        if self._span:
            settled = self._settled
            self._stay = EngineStay(self._span, group.sequence_ids, settled.digests, settled.accepted_s, now_s)

    def finished(self, finished: Finished) -> None:
        """A choice has ended."""
        self._answer.add(finished)


def _begin(settled: SettledRequest, base_model: str) -> TracedSpan:
    if not is_traced():
        return TracedSpan()
    request = settled.request
    model = ",".join(item.selection.reference.short for item in settled.chosen) or model_of(request, base_model)
    return begin_span(span_name(operation_of(request), model), request_attributes(request, model))
