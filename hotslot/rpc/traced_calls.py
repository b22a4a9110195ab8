"""Spans of calls, by OpenTelemetry's conventions for gRPC (https://opentelemetry.io/docs/specs/semconv/rpc/grpc/)."""

import time
from functools import partial
from typing import Any

import grpc

from hotslot.tracing import NO_SPAN, Attributes, SpanKind, TracedSpan, begin_span, is_inside

STATUS_CODE = "rpc.response.status_code"


def call_name(method: str) -> str:
    """Name of a method's spans, and the method as the conventions have it: without the first slash."""
    return method.removeprefix("/")


def call_attributes(method: str) -> Attributes:
    """Attributes of every span of a call."""
    return {"rpc.system.name": "grpc", "rpc.method": call_name(method)}


def begin_call_span(endpoint: str, method: str) -> TracedSpan:
    """Span of a call that is about to be made, where it is part of a trace; what a process does by itself is none."""
    if not is_inside():
        return NO_SPAN
    host, _, port = endpoint.rpartition(":")
    server: Attributes = {"server.address": host, "server.port": int(port)} if port.isdecimal() else {}
    attributes = {**call_attributes(method), **(server or {"server.address": endpoint})}
    return begin_span(call_name(method), attributes, kind=SpanKind.CLIENT)


def end_with(call: Any, span: TracedSpan) -> None:
    """End a span when its call ends, a call of gRPC for asyncio."""
    if span.span is not None:
        call.add_done_callback(partial(_end, span))


def _end(span: TracedSpan, call: Any) -> None:
    ended_ns = time.time_ns()
    code = _code_of(call).name
    span.set({STATUS_CODE: code})
    if code != grpc.StatusCode.OK.name:
        span.fail(code)
    span.end(ended_ns)


def _code_of(call: Any) -> grpc.StatusCode:
    """Status of a call that has ended, which gRPC has at hand, though it says so in a coroutine."""
    asking = call.code()
    try:
        asking.send(None)
    except StopIteration as told:
        code: grpc.StatusCode = told.value
        return code
    asking.close()
    return grpc.StatusCode.UNKNOWN
