"""Generations of a client as spans, where the application records traces."""

import time
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar

from hotslot.codec import from_proto
from hotslot.contract.generation import Completion, GenerationEvent, GenerationRequest
from hotslot.generation_attributes import AnswerAttributes, model_of, operation_of, request_attributes, span_name
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from hotslot.tracing import SpanKind, TracedSpan, begin_span, ended, is_traced

GenerationEvents = AsyncGenerator[GenerationEvent, None]

_HAS_SPAN: ContextVar[bool] = ContextVar("hotslot_generation_has_span", default=False)
"""True while a client asks another one for the events of a generation that has a span."""


def traced(events: GenerationEvents, message: pb.GenerateRequest, base_model: str = "") -> GenerationEvents:
    """Events of a generation, in a span where it has none yet."""
    return events if not is_traced() or _HAS_SPAN.get() else _in_span(events, _begin(message, base_model))


async def traced_answer(asking: Awaitable[Completion], message: pb.GenerateRequest) -> Completion:
    """A whole answer, in a span where traces are recorded."""
    if not is_traced():
        return await asking
    span, answer = _begin(message, ""), AnswerAttributes()
    with _answered(span, answer):
        with span.current():
            completion = await asking
        answer.add(completion.started)
        for choice in completion.choices:
            answer.add(choice.finished)
        return completion


def _begin(message: pb.GenerateRequest, base_model: str) -> TracedSpan:
    request = from_proto(GenerationRequest, message)
    model = model_of(request, base_model)
    name = span_name(operation_of(request), model)
    return begin_span(name, request_attributes(request, model), kind=SpanKind.CLIENT)


async def _in_span(events: GenerationEvents, span: TracedSpan) -> GenerationEvents:
    answer, began_s = AnswerAttributes(), time.monotonic()
    with _answered(span, answer):
        async with aclosing(events):
            # Calls are made for the first event; no context stays behind while the caller has one.
            token = _HAS_SPAN.set(True)
            try:
                with span.current():
                    event = await anext(events, None)
            finally:
                _HAS_SPAN.reset(token)
            span.set({"hotslot.time_to_first_token": time.monotonic() - began_s})
            while event is not None:
                answer.add(event)
                yield event
                event = await anext(events, None)


@contextmanager
def _answered(span: TracedSpan, answer: AnswerAttributes) -> Iterator[None]:
    """A block that ends the span of a generation, with what is known of its answer by then."""
    with ended(span):
        try:
            yield
        finally:
            span.set(answer.attributes())
