"""Grafana dashboards as JSON, from a table of panels: `python -m tools.dashboards` writes deploy/grafana/*.json."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "deploy" / "grafana"
RATE = "$__rate_interval"
"""Grafana's window of a rate."""
WIDTH, PANEL_WIDTH, PANEL_HEIGHT = 24, 8, 8
S, BYTES, BYTES_PER_S, SHARE, PER_S, COUNT = "s", "bytes", "Bps", "percentunit", "ops", "short"


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    """Pairs of a legend and an expression."""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page of panels."""

    name: str
    title: str
    panels: tuple[Panel, ...]


def rate(metric: str, *by: str, **where: str) -> str:
    """Sum of a counter's rates, by labels."""
    labels = ",".join(f'{name}="{value}"' for name, value in where.items())
    selector = f"{metric}{{{labels}}}" if labels else metric
    return f"sum{_by(by)}(rate({selector}[{RATE}]))"


def quantile(part: float, metric: str, *by: str) -> str:
    """Quantile of a histogram, by labels."""
    return f"histogram_quantile({part}, {rate(f'{metric}_bucket', 'le', *by)})"


def mean(metric: str) -> str:
    """Mean of a histogram's values."""
    return f"{rate(f'{metric}_sum')} / {rate(f'{metric}_count')}"


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)}) " if labels else ""


def graph(title: str, unit: str, expression: str, legend: str = "") -> Panel:
    """A graph of one expression."""
    return Panel(title, unit, ((legend or title, expression),))


def quantiles(title: str, metric: str, *by: str) -> Panel:
    """Median and slowest hundredth of a histogram of seconds."""
    named = "".join(f" {{{{{label}}}}}" for label in by)
    return Panel(title, S, tuple((f"p{part * 100:g}{named}", quantile(part, metric, *by)) for part in (0.5, 0.99)))


ERRORS = 'sum(rate(hotslot_requests_total{code!~"OK|CANCELLED"}[$__rate_interval]))'
FLEET = Dashboard(
    "fleet",
    "hotslot: fleet",
    (
        graph("Processes that answer", COUNT, 'sum by (job, role) (up{job="hotslot"})', "{{role}}"),
        graph("Workers by state", COUNT, "sum by (state) (hotslot_worker_state)", "{{state}}"),
        graph("Requests", PER_S, rate("hotslot_requests_total", "code"), "{{code}}"),
        graph("Requests that fail", SHARE, f"({ERRORS} or vector(0)) / {rate('hotslot_requests_total')}"),
        quantiles("First token", "gen_ai_server_time_to_first_token_seconds"),
        quantiles("Further tokens", "gen_ai_server_time_per_output_token_seconds"),
        quantiles("Requests to their end", "gen_ai_server_request_duration_seconds"),
        graph("Generated tokens", PER_S, rate("hotslot_generated_tokens_total")),
        graph("Sequences", COUNT, "sum by (state) (hotslot_sequences)", "{{state}}"),
        graph("First place of requests", PER_S, rate("hotslot_routing_decisions_total", "outcome"), "{{outcome}}"),
        graph("Requests sent on", PER_S, rate("hotslot_forwards_total", "result"), "{{result}}"),
        graph("Picks of workers", PER_S, rate("hotslot_placement_decisions_total", "outcome"), "{{outcome}}"),
        graph("Picks of no home", PER_S, rate("hotslot_placement_spills_total")),
        graph("Homes of the versions picked for", COUNT, mean("hotslot_placement_replicas")),
        quantiles("Redis", "hotslot_redis_seconds", "command"),
        graph("Redis failures", PER_S, f"{rate('hotslot_redis_errors_total', 'why')} or vector(0)", "{{why}}"),
        graph(
            "Records of Redis that are not believed",
            PER_S,
            f"{rate('hotslot_redis_records_refused_total', 'why')} or vector(0)",
            "{{why}}",
        ),
        graph("Heartbeats", PER_S, rate("hotslot_heartbeats_total", "outcome"), "{{outcome}}"),
        graph("Losses of Redis", PER_S, rate("hotslot_lease_losses_total")),
        graph("Workers that reach Redis", COUNT, "sum(hotslot_fleet_connected)"),
        quantiles("Calls to other services", "grpc_client_call_duration_seconds", "grpc_method"),
        graph(
            "Attempts of such calls", PER_S, rate("grpc_client_attempt_started_total", "grpc_method"), "{{grpc_method}}"
        ),
        graph("HTTP requests", PER_S, rate("hotslot_http_requests_total", "route", "code"), "{{route}} {{code}}"),
        quantiles("HTTP requests to their end", "hotslot_http_request_seconds", "route"),
        graph("HTTP requests under way", COUNT, "sum(hotslot_http_requests_running)"),
        graph("HTTP connections", COUNT, "sum(hotslot_http_connections)"),
        graph("Scrapes of workers by gateways", PER_S, rate("hotslot_worker_scrapes_total", "outcome"), "{{outcome}}"),
        graph("Versions", COUNT, "count by (service, version) (hotslot_build_info)", "{{service}} {{version}}"),
    ),
)
BUSIEST = f"topk(20, {rate('hotslot_requests_total', 'adapter')})"
ADAPTERS = Dashboard(
    "adapters",
    "hotslot: adapters",
    (
        graph("Requests of the busiest adapters", PER_S, BUSIEST, "{{adapter}}"),
        quantiles("First token by model", "gen_ai_server_time_to_first_token_seconds", "gen_ai_request_model"),
        graph("Versions by tier", COUNT, "sum by (tier) (hotslot_adapters_resident)", "{{tier}}"),
        graph("Slots", COUNT, "sum by (state) (hotslot_slots)", "{{state}}"),
        graph("Workers that have an adapter", COUNT, "sum by (adapter_name, level) (vllm:lora_adapter_loaded)",
              "{{adapter_name}} {{level}}"),
        quantiles("Stages of a load", "hotslot_adapter_load_seconds", "stage"),
        graph("Loads", PER_S, rate("hotslot_adapter_loads_total", "outcome"), "{{outcome}}"),
        graph("Weights fetched", BYTES_PER_S, rate("hotslot_adapter_fetched_bytes_total")),
        graph("Activations", PER_S, rate("hotslot_adapter_activations_total", "ahead"), "ahead {{ahead}}"),
        graph("Evictions", PER_S, rate("hotslot_adapter_evictions_total", "tier"), "{{tier}}"),
        graph("Requests that wait for a load", COUNT, "sum(hotslot_loading_requests)"),
        graph("Host memory of adapters", SHARE,
              "hotslot_host_cache_used_bytes / hotslot_host_cache_limit_bytes", "{{instance}}"),
        quantiles("Wait for slots in a row", "hotslot_sequence_slots_seconds"),
    ),
)  # fmt: skip
HITS = f"{rate('hotslot_prefix_cache_hits_total')} / {rate('hotslot_prefix_cache_queries_total')}"
KV_USE = 'sum by (instance) (hotslot_kv_blocks{state="held"}) / sum by (instance) (hotslot_kv_blocks)'
WORKER = Dashboard(
    "worker",
    "hotslot: workers",
    (
        quantiles("Steps", "hotslot_step_seconds", "bucket"),
        quantiles("Time between steps", "hotslot_step_gap_seconds"),
        graph("Rows of a step", COUNT, mean("hotslot_step_rows")),
        graph("Longest stall since the start", S, "hotslot_longest_stall_seconds", "{{instance}}"),
        graph("Sequences", COUNT, "sum by (instance, state) (hotslot_sequences)", "{{instance}} {{state}}"),
        graph("Rows taken", SHARE, 'sum by (instance) (hotslot_sequences{state="running"}) / '
              "sum by (instance) (hotslot_max_sequences)", "{{instance}}"),
        quantiles("Wait for a row", "hotslot_sequence_queue_seconds"),
        graph("KV blocks held", SHARE, KV_USE, "{{instance}}"),
        graph("Prompt tokens found in the prefix cache", SHARE, HITS),
        graph("Prompt tokens computed", PER_S, rate("hotslot_prompt_tokens_computed_total")),
        graph("Preemptions", PER_S, rate("hotslot_preemptions_total")),
        graph("Recompilations", COUNT, "sum by (instance) (hotslot_recompiles_total)", "{{instance}}"),
        graph("Ends of sequences", PER_S, rate("hotslot_sequences_total", "outcome"), "{{outcome}}"),
        graph("Requests under way", COUNT, "sum by (instance) (hotslot_requests_running)", "{{instance}}"),
        graph("Slow requests", PER_S, rate("hotslot_slow_requests_total")),
        graph("Engine silent", COUNT, "sum by (instance) (hotslot_engine_silent)", "{{instance}}"),
        quantiles("Lag of the event loop", "hotslot_event_loop_lag_seconds", "instance"),
        graph("Memory", BYTES, "process_resident_memory_bytes", "{{instance}}"),
        graph("Kinds of steps that are captured", COUNT, "hotslot_step_graphs", "{{instance}}"),
        graph("Captured steps", PER_S, rate("hotslot_captured_steps_total", "instance"), "{{instance}}"),
        graph("Steps that ran uncaptured", PER_S,
              f"{rate('hotslot_uncaptured_steps_total', 'why')} or vector(0)", "{{why}}"),
        graph("Processor", COUNT, rate("process_cpu_seconds_total", "instance"), "{{instance}}"),
        graph("Open files", SHARE, "process_open_fds / process_max_fds", "{{instance}}"),
        graph("Time of a scrape", S, quantile(0.99, "hotslot_scrape_seconds", "instance"), "{{instance}}"),
    ),
)  # fmt: skip
BLOB_HITS = f"{rate('hotslot_blob_opens_total', result='hit')} / {rate('hotslot_blob_opens_total')}"
STORE = Dashboard(
    "store",
    "hotslot: store",
    (
        graph("Calls", PER_S, rate("grpc_server_call_started_total", "grpc_method"), "{{grpc_method}}"),
        quantiles("Calls to their end", "grpc_server_call_duration_seconds", "grpc_method"),
        graph("Calls that fail", PER_S, rate("hotslot_call_errors_total", "reason"), "{{reason}}"),
        graph("Refused by quotas", PER_S, f"{rate('hotslot_quota_refusals_total', 'quota')} or vector(0)", "{{quota}}"),
        graph("Refused by bounds", PER_S, f"{rate('hotslot_bound_refusals_total', 'bound')} or vector(0)", "{{bound}}"),
        graph("Streams cut off", PER_S, f"{rate('hotslot_streams_cut_off_total', 'why')} or vector(0)", "{{why}}"),
        graph("Calls under way", COUNT, "sum by (instance) (hotslot_calls_running)", "{{instance}}"),
        graph("Bytes sent by calls", BYTES_PER_S,
              rate("grpc_server_call_sent_total_compressed_message_size_bytes_sum", "grpc_method"), "{{grpc_method}}"),
        graph("Bytes received by calls", BYTES_PER_S,
              rate("grpc_server_call_rcvd_total_compressed_message_size_bytes_sum", "grpc_method"), "{{grpc_method}}"),
        graph("Admissions", PER_S, rate("hotslot_admissions_total", "outcome"), "{{outcome}}"),
        quantiles("Stages of admissions", "hotslot_admission_seconds", "stage"),
        graph("Imports", PER_S, rate("hotslot_imports_total", "outcome"), "{{outcome}}"),
        graph("Imports under way", COUNT, "sum(hotslot_imports_running)"),
        graph("Content", BYTES_PER_S, rate("hotslot_content_bytes_total", "direction"), "{{direction}}"),
        graph("Blobs on the disk", BYTES, "sum by (instance) (hotslot_blob_disk_bytes)", "{{instance}}"),
        graph("Bound of blobs on the disk", BYTES, "sum by (instance) (hotslot_blob_limit_bytes)", "{{instance}}"),
        graph("Number of blobs", COUNT, "sum by (instance) (hotslot_blobs)", "{{instance}}"),
        graph("Free disk", BYTES, "min by (instance) (hotslot_disk_free_bytes)", "{{instance}}"),
        graph("Blobs found on the disk", SHARE, BLOB_HITS),
        graph("Blobs brought back", PER_S, rate("hotslot_blob_restores_total", "outcome"), "{{outcome}}"),
        graph("Evictions", PER_S, rate("hotslot_blob_evictions_total")),
        graph("Bytes evicted", BYTES_PER_S, rate("hotslot_blob_evicted_bytes_total")),
        graph("Rotten blobs put aside", COUNT, "sum(hotslot_blobs_quarantined_total)"),
        quantiles("Catalog", "hotslot_catalog_seconds", "queue"),
        quantiles("Wait in queues", "hotslot_queue_wait_seconds", "queue"),
        graph("Calls that wait", COUNT, "sum by (queue) (hotslot_queue_waiting)", "{{queue}}"),
        graph("Calls that queues refused", PER_S, rate("hotslot_queue_refusals_total", "queue", "why"),
              "{{queue}} {{why}}"),
    ),
)  # fmt: skip
DASHBOARDS = (FLEET, ADAPTERS, WORKER, STORE)


def document(dashboard: Dashboard) -> dict[str, Any]:
    """Grafana's JSON of a dashboard, for import."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    panels = []
    for index, panel in enumerate(dashboard.panels):
        row, column = divmod(index, WIDTH // PANEL_WIDTH)
        place = {"x": column * PANEL_WIDTH, "y": row * PANEL_HEIGHT, "w": PANEL_WIDTH, "h": PANEL_HEIGHT}
        targets = [
            {"refId": chr(ord("A") + number), "datasource": source, "expr": expression, "legendFormat": legend}
            for number, (legend, expression) in enumerate(panel.queries)
        ]
        panels.append(
            {
                "id": index + 1,
                "type": "timeseries",
                "title": panel.title,
                "datasource": source,
                "gridPos": place,
                "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
                "targets": targets,
            }
        )
    variable = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return {
        "uid": f"hotslot-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["hotslot"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [variable]},
        "panels": panels,
    }


def text_of(dashboard: Dashboard) -> str:
    """Text of a dashboard's file."""
    return json.dumps(document(dashboard), indent=1) + "\n"


def main() -> int:
    """Write all of them."""
    for dashboard in DASHBOARDS:
        (FOLDER / f"{dashboard.name}.json").write_text(text_of(dashboard), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
