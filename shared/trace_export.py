"""Export of a service's traces by OTLP, where `OTEL_*` variables ask for it; OpenTelemetry is not imported otherwise.

The variables are OpenTelemetry's own, read by its SDK: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/.
What is wrong with them is logged, and the service serves without traces.
"""

import importlib
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import structlog

from hotslot.rpc.server_facts import installed_version

log = structlog.get_logger(__name__)

EXPORTER, PROTOCOLS = "OTEL_TRACES_EXPORTER", ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
DISABLED = "OTEL_SDK_DISABLED"
OTLP, NONE = "otlp", "none"
GRPC = "grpc"
EXPORTERS: Mapping[str, str] = {
    GRPC: "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
}
"""Modules of the exporters by protocol; only the first is installed by the extra `traces`."""
LAST_EXPORT_S = 3.0
"""Longest time that the end of a process waits for its last spans to be sent."""


def wants_traces(environment: Mapping[str, str]) -> bool:
    """Tell whether variables ask for traces: an endpoint or the exporter is named, and nothing turns it off."""
    if _of(environment, DISABLED).lower() == "true" or _of(environment, EXPORTER) == NONE:
        return False
    return bool(_of(environment, EXPORTER)) or any(_of(environment, name) for name in ENDPOINTS)


@contextmanager
def exported_traces(service: str, environment: Mapping[str, str]) -> Iterator[None]:
    """Record and export the traces of this process until the block is left, where its variables ask for that.

    `service` is its name where OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have none.
    """
    provider = _set_up(service, environment) if wants_traces(environment) else None
    try:
        yield
    finally:
        if provider is not None:
            # A collector that is away must not keep the process from ending.
            ending = threading.Thread(target=provider.shutdown, name="last traces", daemon=True)
            ending.start()
            ending.join(LAST_EXPORT_S)


def _set_up(service: str, environment: Mapping[str, str]) -> Any:
    """The provider of the process's traces, or None with a warning that says why there is none."""
    exporter, protocol = _of(environment, EXPORTER), next(filter(None, (_of(environment, p) for p in PROTOCOLS)), GRPC)
    if exporter not in ("", OTLP):
        log.warning("traces_not_exported", why=f"{EXPORTER}: found {exporter!r}, expected {OTLP} or {NONE}")
        return None
    if protocol not in EXPORTERS:
        log.warning(
            "traces_not_exported", why=f"{PROTOCOLS[-1]}: found {protocol!r}, expected {' or '.join(EXPORTERS)}"
        )
        return None
    try:
        provider = _provider(service, protocol)
    except ImportError as exc:
        why = f"OTEL_ variables ask for traces by {protocol}, and {exc.name} is not installed; install hotslot[traces]"
        log.warning("traces_not_exported", why=why if protocol == GRPC else f"{why} and the exporter of {protocol}")
        return None
    except Exception as exc:  # noqa: BLE001 (what a library makes of wrong variables must not keep a service from serving)
        log.warning("traces_not_exported", why=f"the SDK refused its OTEL_ variables: {type(exc).__name__}: {exc}")
        return None
    log.info("traces_exported", protocol=protocol, service=provider.resource.attributes.get("service.name"))
    return provider


def _provider(service: str, protocol: str) -> Any:
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    span_exporter = importlib.import_module(EXPORTERS[protocol]).OTLPSpanExporter()
    own = {"service.version": installed_version(), "service.instance.id": str(uuid.uuid4())}
    resource = Resource({"service.name": f"hotslot-{service}", **own}).merge(_named(Resource.create()))
    # Its sampler is OTEL_TRACES_SAMPLER's, which by default goes by the parent and records what has none.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(span_exporter))
    trace.set_tracer_provider(provider)
    return provider


def _named(resource: Any) -> Any:
    """The resource that variables describe, without the name that the SDK makes up."""
    attributes = dict(resource.attributes)
    if str(attributes.get("service.name", "")).startswith("unknown_service"):
        del attributes["service.name"]
    return type(resource)(attributes, resource.schema_url)


def _of(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name, "").strip()
