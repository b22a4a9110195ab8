"""A collector of OpenTelemetry traces, for tests: a gRPC server of the official protos on a socket."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(frozen=True)
class CollectedSpan:
    """One span, with the name of the service that sent it."""

    service: str
    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    began_ns: int
    ended_ns: int
    attributes: Mapping[str, Any]
    is_failed: bool

    @property
    def duration_s(self) -> float:
        return (self.ended_ns - self.began_ns) / 1e9


@dataclass
class Trace:
    """Spans of one trace."""

    spans: list[CollectedSpan] = field(default_factory=list)

    def named(self, name: str, service: str = "") -> list[CollectedSpan]:
        found = [span for span in self.spans if span.name == name and service in ("", span.service)]
        return sorted(found, key=lambda span: span.began_ns)

    def one(self, name: str, service: str = "") -> CollectedSpan:
        (found,) = self.named(name, service)
        return found

    def parent(self, span: CollectedSpan) -> CollectedSpan | None:
        return next((each for each in self.spans if each.span_id == span.parent_id), None)

    def children(self, span: CollectedSpan) -> list[CollectedSpan]:
        return sorted((x for x in self.spans if x.parent_id == span.span_id), key=lambda each: each.began_ns)

    def shown(self, span: CollectedSpan | None = None, depth: int = 0) -> str:
        """The tree, for messages."""
        below = self.children(span) if span is not None else [x for x in self.spans if self.parent(x) is None]
        lines = [f"{'  ' * depth}{x.service}: {x.name} {x.duration_s * 1e3:.1f} ms\n" for x in below]
        return "".join(line + self.shown(each, depth + 1) for line, each in zip(lines, below, strict=True))


class Collector(pb_grpc.TraceServiceServicer):
    """Servicer of the OTLP trace service."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.received: list[CollectedSpan] = []
        self.resources: list[Mapping[str, Any]] = []

    def Export(
        self, request: pb.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> pb.ExportTraceServiceResponse:
        """Take spans."""
        for resource in request.resource_spans:
            about = _attributes(resource.resource.attributes)
            self.resources.append(about)
            for scope in resource.scope_spans:
                self.received.extend(_span(str(about.get("service.name", "")), each) for each in scope.spans)
        return pb.ExportTraceServiceResponse()

    def trace(self, trace_id: str) -> Trace:
        return Trace([span for span in tuple(self.received) if span.trace_id == trace_id])


@contextmanager
def otlp_collector() -> Iterator[Collector]:
    """A collector on a free port, until the block is left."""
    collector, server = Collector(), grpc.server(ThreadPoolExecutor(4))
    pb_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


def _span(service: str, span: trace_pb2.Span) -> CollectedSpan:
    return CollectedSpan(
        service,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _attributes(span.attributes),
        span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: common_pb2.AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind) if kind else None
