"""Export of traces: on where variables ask for it, else without OpenTelemetry; wrong ones end no service."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping

import pytest
from structlog.testing import capture_logs

from shared.trace_export import LAST_EXPORT_S, exported_traces, wants_traces
from tests.support.otlp_collector import otlp_collector

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
START_S = 120


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({ENDPOINT: ""}, False),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_RESOURCE_ATTRIBUTES": "a=b", "OTEL_TRACES_SAMPLER": "always_on"}, False),
        ({ENDPOINT: "http://collector:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4317"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", ENDPOINT: "http://collector:4317"}, False),
        ({"OTEL_SDK_DISABLED": "TRUE", ENDPOINT: "http://collector:4317"}, False),
        ({"OTEL_SDK_DISABLED": "false", ENDPOINT: "http://collector:4317"}, True),
    ],
)
def test_an_endpoint_or_an_exporter_asks_for_traces(environment: Mapping[str, str], wanted: bool) -> None:
    assert wants_traces(environment) is wanted


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: found 'zipkin', expected otlp or none"),
        (
            {ENDPOINT: "x", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "found 'http/json', expected grpc or http/protobuf",
        ),
        (
            {ENDPOINT: "x", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
            "install hotslot[traces] and the exporter",
        ),
    ],
)
def test_what_cannot_be_exported_is_a_warning(environment: Mapping[str, str], why: str) -> None:
    with capture_logs() as logs, exported_traces("store", environment):
        pass
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("traces_not_exported", "warning")
    assert why in line["why"]


def run(code: str, **environment: str) -> str:
    """What a process of its own prints; one provider is a process's for good."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(
        command, env={**own, **environment}, capture_output=True, text=True, timeout=START_S, check=True
    )
    return done.stdout


EXPORT = """
    import os, time
    from shared.trace_export import exported_traces
    from hotslot.tracing import span
    with exported_traces("store", os.environ):
        with span("outer"), span("inner"):
            pass
        ending_s = time.monotonic()
    print(time.monotonic() - ending_s)
"""


def test_the_last_spans_are_sent_at_the_end_with_the_services_name() -> None:
    with otlp_collector() as collector:
        run(EXPORT, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
        assert {(each.service, each.name) for each in collector.received} == {
            ("hotslot-store", "outer"),
            ("hotslot-store", "inner"),
        }
        (resource,) = collector.resources
        assert resource["service.instance.id"]
        assert resource["service.version"]


def test_variables_name_the_service_and_sample() -> None:
    with otlp_collector() as collector:
        variables = {"OTEL_SERVICE_NAME": "mine", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"}
        run(EXPORT, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, **variables)
        assert collector.resources[0]["service.name"] == "mine"
        assert collector.resources[0]["deployment.environment.name"] == "test"
        num_received = len(collector.received)
        run(EXPORT, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_TRACES_SAMPLER="always_off")
        assert len(collector.received) == num_received


def test_a_collector_that_is_away_does_not_keep_a_process_from_ending() -> None:
    waited_s = float(run(EXPORT, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9").splitlines()[-1])
    assert waited_s < LAST_EXPORT_S + 2


def test_without_variables_neither_the_sdk_nor_spans_are_imported() -> None:
    code = """
        import sys
        import store_service.__main__, gateway_service.__main__, worker_service.__main__
        from shared.trace_export import exported_traces
        from hotslot.tracing import begin_span, is_traced, span
        with exported_traces("any", {}), span("work") as work:
            assert not work and not is_traced()
        unwanted = tuple(f"opentelemetry.{part}" for part in ("sdk", "exporter", "proto", "trace"))
        print([name for name in sys.modules if name.startswith(unwanted)])
    """
    assert run(code).splitlines()[-1] == "[]"
