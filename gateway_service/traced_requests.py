"""HTTP requests as parts of traces, by OpenTelemetry's conventions (https://opentelemetry.io/docs/specs/semconv/http/)."""

from collections.abc import Iterable
from contextlib import ExitStack

from starlette.types import Scope

from hotslot.trace_context import CALLERS_TRACE, trace_context_of
from hotslot.tracing import NO_SPAN, SpanKind, begin_span

UNTRACED = ("/health", "/health/live", "/metrics")
"""Paths that are asked for all the time."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
OTHER_METHOD = "_OTHER"


class TracedRequest:
    """One request, from its headers to its end. Belongs to the task that handles it."""

    def __init__(self, scope: Scope, headers: Iterable[tuple[str, str]]) -> None:
        given = trace_context_of(headers)
        self._ending = ExitStack()
        self._ending.callback(CALLERS_TRACE.reset, CALLERS_TRACE.set(given))
        self._method = scope["method"] if scope["method"] in METHODS else OTHER_METHOD
        attributes = {
            "http.request.method": self._method,
            "url.path": scope["path"][:200],
            "url.scheme": str(scope.get("scheme", "http")),
        }
        is_traced = scope["path"] not in UNTRACED
        name = self._method if self._method != OTHER_METHOD else "HTTP"
        self._span = begin_span(name, attributes, kind=SpanKind.SERVER, parent=given) if is_traced else NO_SPAN
        self._ending.enter_context(self._span.current())

    def ended(self, scope: Scope, route: str | None) -> None:
        """End it; `route` is the path that was served, None where there is none."""
        span, state = self._span, scope["state"]
        if span.span is not None and span:
            status = int(state.get("status", 0))
            span.set({"hotslot.request.id": state["request_id"], "hotslot.tenant": str(state.get("tenant", ""))})
            if route is not None:
                span.set({"http.route": route})
                span.span.update_name(f"{self._method} {route}")
            if status:
                span.set({"http.response.status_code": status})
            if state.get("ended"):
                span.set({"hotslot.reason": state["ended"]})
            if state.get("served") is not None:
                span.set({"hotslot.adapter.digest": tuple(adapter.digest for adapter in state["served"].adapters)})
            if status >= 500:
                span.fail(str(status))
        self._ending.close()
        span.end()
