"""Calls of a server as parts of traces: each is a span below its caller's, and its handler's calls are below it."""

from contextlib import ExitStack
from typing import Any

import grpc
import structlog

from hotslot.rpc.attempts import told_attempts
from hotslot.rpc.traced_calls import STATUS_CODE, call_attributes, call_name
from hotslot.trace_context import CALLERS_TRACE, trace_context_of
from hotslot.tracing import SpanKind, TracedSpan, begin_span
from shared.call_notes import CallNotes, begin_notes

FAILURES = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Statuses that are a server's failure by the conventions; the others are their callers'."""


class TracedCall:
    """One call, from its metadata to its end. Belongs to the task that handles it."""

    def __init__(self, method: str, context: Any) -> None:
        metadata = tuple(context.invocation_metadata() or ())
        if told := told_attempts(metadata):
            context.set_trailing_metadata(told)
        given = trace_context_of(metadata)
        self._ending = ExitStack()
        self._ending.callback(CALLERS_TRACE.reset, CALLERS_TRACE.set(given))
        self._span: TracedSpan = begin_span(
            call_name(method), call_attributes(method), kind=SpanKind.SERVER, parent=given
        )
        self._ending.enter_context(self._span.current())
        self.notes: CallNotes = begin_notes(metadata)
        structlog.contextvars.bind_contextvars(**self.notes.ids)

    def ended(self, code: grpc.StatusCode, reason: str, tenant: str) -> None:
        """End it, with what is known of it by now."""
        span, notes = self._span, self.notes
        if span:
            span.set({STATUS_CODE: code.name, "hotslot.request.id": notes.request_id, "hotslot.tenant": tenant})
            if reason:
                span.set({"hotslot.reason": reason})
            if notes.digests:
                span.set({"hotslot.adapter.digest": notes.digests})
            if notes.forwarded_to:
                span.set({"hotslot.forwarded_to": notes.forwarded_to})
            if code in FAILURES:
                span.fail(code.name)
        self._ending.close()
        span.end()
