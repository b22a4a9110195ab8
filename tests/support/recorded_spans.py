"""Traces that a test's own process records, as an application that has OpenTelemetry set up does."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer


class RecordedSpans:
    """Spans that have ended, in the order of their ends."""

    def __init__(self, exporter: InMemorySpanExporter, tracer: Tracer) -> None:
        self._exporter = exporter
        self.tracer = tracer

    def all(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]


@contextmanager
def recording_spans() -> Iterator[RecordedSpans]:
    """Spans of this process are kept, until the block is left."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with _set_up(provider):
        yield RecordedSpans(exporter, provider.get_tracer("test"))


@contextmanager
def exporting_spans(endpoint: str, service: str) -> Iterator[Tracer]:
    """Spans of this process go to a collector, until the block is left."""
    provider = TracerProvider(resource=Resource({"service.name": service}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint, insecure=True)))
    with _set_up(provider):
        yield provider.get_tracer("test")
    provider.shutdown()


@contextmanager
def _set_up(provider: TracerProvider) -> Iterator[None]:
    # A process can set its provider once; other tests of this one are not to be recorded.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_TRACER_PROVIDER", provider)
        yield
