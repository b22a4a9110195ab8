"""Spans by OpenTelemetry's API, where the process has set that up, and nothing where it has not.

The API is never imported for the sake of a process that has not imported it: an application that records traces has
done so, a service does when `OTEL_*` variables ask for traces (`shared/trace_export.py`).
"""

import asyncio
import sys
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from hotslot.errors import HotslotError
from hotslot.trace_context import CALLERS_TRACE, TraceContext

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer, TracerProvider

_API = "opentelemetry.trace"
SCOPE = "hotslot"
"""Name of the spans' instrumentation scope."""
CANCELLED = "cancelled"

T = TypeVar("T")
Value = str | bool | int | float | Sequence[str] | Sequence[float]
Attributes = Mapping[str, Value]


class SpanKind(StrEnum):
    """Kinds of spans."""

    INTERNAL = "INTERNAL"
    CLIENT = "CLIENT"
    SERVER = "SERVER"


@dataclass(frozen=True, slots=True)
class TracedSpan:
    """A span, or nothing where no trace is recorded."""

    span: "Span | None" = None

    def __bool__(self) -> bool:
        """True if what is set will be seen."""
        return self.span is not None and self.span.is_recording()

    @property
    def context(self) -> TraceContext | None:
        """Place in the trace, for calls that are made in it."""
        return _context_of(self.span) if self.span is not None else None

    def set(self, attributes: Attributes) -> None:
        """Set attributes."""
        if self.span is not None:
            self.span.set_attributes(attributes)

    def fail(self, error_type: str) -> None:
        """Mark it as failed, by a word of few; messages stay out, since they may quote a request."""
        if self.span is not None:
            from opentelemetry.trace import StatusCode

            self.span.set_attribute("error.type", error_type)
            self.span.set_status(StatusCode.ERROR)

    def end(self, at_ns: int | None = None) -> None:
        """End it, now or at a time since 1970."""
        if self.span is not None:
            self.span.end(at_ns)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Spans that begin in the block are its children; no block may be left by another task than entered it."""
        if self.span is None:
            yield
            return
        from opentelemetry.trace import use_span

        with use_span(self.span, record_exception=False, set_status_on_exception=False):
            yield


NO_SPAN = TracedSpan()


def is_traced() -> bool:
    """Tell whether this process records traces."""
    return _tracer() is not None


def begin_span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: TracedSpan | TraceContext | None = None,
    began_ns: int | None = None,
) -> TracedSpan:
    """A span that its caller ends; below the current one where no parent is named, and a trace's first without one."""
    tracer = _tracer()
    if tracer is None:
        return NO_SPAN
    from opentelemetry.trace import SpanKind as ApiSpanKind

    span = tracer.start_span(
        name,
        context=_below(parent),
        kind=ApiSpanKind[kind.value],
        attributes=attributes,
        start_time=began_ns,
        record_exception=False,
        set_status_on_exception=False,
    )
    return TracedSpan(span)


@contextmanager
def ended(begun: TracedSpan) -> Iterator[None]:
    """A block that ends a span; one that raises failed."""
    try:
        yield
    except BaseException as exc:
        begun.fail(error_type_of(exc))
        raise
    finally:
        begun.end()


@contextmanager
def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: TracedSpan | TraceContext | None = None,
) -> Iterator[TracedSpan]:
    """A span around a block, and current in it; a block that raises failed."""
    begun = begin_span(name, attributes, kind=kind, parent=parent)
    if begun is NO_SPAN:
        yield begun
        return
    with ended(begun), begun.current():
        yield begun


@contextmanager
def span_inside(
    name: str, attributes: Attributes | None = None, *, kind: SpanKind = SpanKind.INTERNAL
) -> Iterator[TracedSpan]:
    """A span around a block where one of this process is current, and nothing for what a process does by itself."""
    if not is_inside():
        yield NO_SPAN
        return
    with span(name, attributes, kind=kind) as begun:
        yield begun


def inside(name: str, attributes: Attributes, events: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Events in a span that ends with them; calls that are made for the first one are below it."""
    return events if _tracer() is None else _inside(begin_span(name, attributes), events)


async def _inside(begun: TracedSpan, events: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    with ended(begun):
        async with aclosing(events):
            with begun.current():
                first = await anext(events, None)
            if first is not None:
                yield first
                async for event in events:
                    yield event


def is_inside() -> bool:
    """Tell whether a span of this process is current."""
    return _tracer() is not None and _current() is not None


def current_span() -> TracedSpan:
    """The span that is current."""
    return TracedSpan(_current()) if _tracer() is not None else NO_SPAN


def context_to_carry() -> TraceContext | None:
    """Trace context of calls that are made now: of the current span, else the one that the handled call came with."""
    found = _current() if _tracer() is not None else None
    return _context_of(found) if found is not None else CALLERS_TRACE.get()


def error_type_of(error: BaseException) -> str:
    """Word for an error: its reason or class, or that the work was called off."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return CANCELLED
    return error.reason if isinstance(error, HotslotError) else type(error).__name__


def _tracer() -> "Tracer | None":
    if _API not in sys.modules:
        return None
    # Also waits for an import that another thread has begun.
    from opentelemetry import trace

    provider = trace.get_tracer_provider()
    is_set_up = not isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider)
    return _tracer_of(provider) if is_set_up else None


@lru_cache(maxsize=1)
def _tracer_of(provider: "TracerProvider") -> "Tracer":
    return provider.get_tracer(SCOPE)


def _current() -> "Span | None":
    from opentelemetry.trace import get_current_span

    found = get_current_span()
    return found if found.get_span_context().is_valid else None


def _below(parent: TracedSpan | TraceContext | None) -> "Context | None":
    from opentelemetry import trace

    if parent is None or (isinstance(parent, TracedSpan) and parent.span is None):
        return None
    if isinstance(parent, TraceContext):
        return trace.set_span_in_context(trace.NonRecordingSpan(_remote(parent)))
    return trace.set_span_in_context(parent.span)  # type: ignore[arg-type]  # asked above


def _remote(context: TraceContext) -> Any:
    from opentelemetry.trace import SpanContext, TraceFlags, TraceState

    return SpanContext(
        int(context.trace_id, 16),
        int(context.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(context.flags),
        trace_state=TraceState(context.state),
    )


def _context_of(found: "Span") -> TraceContext | None:
    context = found.get_span_context()
    if not context.is_valid:
        return None
    state = tuple(context.trace_state.items())
    return TraceContext(f"{context.trace_id:032x}", f"{context.span_id:016x}", int(context.trace_flags), state)
