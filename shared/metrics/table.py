"""Table of all metrics: name, type, labels, unit, help, and the processes that export them.

Nothing exports a metric that is not here, and a process exports each one that is here for it, with or without values;
`tools/docs/metrics_reference.py` makes a page of it. Names of other projects are theirs: `gen_ai_` of OpenTelemetry
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/), `grpc_` of gRPC's proposal A66, `vllm:` of the
endpoint pickers of inference gateways, `process_` of Prometheus.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

STORE, WORKER, GATEWAY = "store", "worker", "gateway"
EVERY = (STORE, WORKER, GATEWAY)
SERVERS = (STORE, WORKER)
CALLERS = (WORKER, GATEWAY)

LATENCIES_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LAGS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
STEPS_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.4, 1.0)
REQUESTS_S = tuple(0.01 * 2**power for power in range(14))
FIRST_TOKENS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
NEXT_TOKENS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
# fmt: off
CALLS_S = (
    0.0, 1e-5, 5e-5, 0.0001, 0.0003, 0.0006, 0.0008, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.013,
    0.016, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0,
    2.0, 5.0, 10.0, 20.0, 50.0, 100.0,
)
# fmt: on
MESSAGE_BYTES = (0, *(float(2**power) for power in (10, 11, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32)))
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
HOMES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0)


class MetricKind(StrEnum):
    """Types of Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric."""

    name: str
    kind: MetricKind
    services: tuple[str, ...]
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets, without the infinite one."""

    @property
    def unit(self) -> str:
        """Unit of its values; empty where they are counts or states."""
        base = self.name.removesuffix("_total")
        return next((unit for unit in ("seconds", "bytes") if base.endswith(f"_{unit}")), "")


def _counter(services: tuple[str, ...], name: str, text: str, *labels: str) -> MetricRow:
    assert name.endswith("_total"), name
    return MetricRow(name, MetricKind.COUNTER, services, text, labels)


def _gauge(services: tuple[str, ...], name: str, text: str, *labels: str) -> MetricRow:
    return MetricRow(name, MetricKind.GAUGE, services, text, labels)


def _histogram(
    services: tuple[str, ...], name: str, text: str, *labels: str, bounds: tuple[float, ...] = LATENCIES_S
) -> MetricRow:
    return MetricRow(name, MetricKind.HISTOGRAM, services, text, labels, bounds)


def _process() -> Iterator[MetricRow]:
    yield _gauge(EVERY, "hotslot_build_info", "1, with versions as labels.", "service", "version", "python", "grpc")
    yield _histogram(
        EVERY,
        "hotslot_event_loop_lag_seconds",
        "Time by which the event loop was late for a timer of 0.1 s.",
        bounds=LAGS_S,
    )
    yield _histogram(EVERY, "hotslot_scrape_seconds", "Time that the making of a whole scrape took.", bounds=LAGS_S)
    yield _counter(EVERY, "process_cpu_seconds_total", "Processor time of the process.")
    yield _gauge(EVERY, "process_resident_memory_bytes", "Memory of the process.")
    yield _gauge(EVERY, "process_virtual_memory_bytes", "Address space of the process.")
    yield _gauge(EVERY, "process_start_time_seconds", "Start of the process, in seconds since 1970.")
    yield _gauge(EVERY, "process_open_fds", "Open files and sockets of the process.")
    yield _gauge(EVERY, "process_max_fds", "Most files and sockets that the process may open.")


def _rpc() -> Iterator[MetricRow]:
    call, ended = "grpc_server_call", ("grpc_method", "grpc_status")
    size = "compressed_message_size_bytes"
    yield _counter(SERVERS, f"{call}_started_total", "Calls that began.", "grpc_method")
    yield _histogram(SERVERS, f"{call}_duration_seconds", "Durations of calls that ended.", *ended, bounds=CALLS_S)
    yield _histogram(SERVERS, f"{call}_sent_total_{size}", "Bytes sent by call.", *ended, bounds=MESSAGE_BYTES)
    yield _histogram(SERVERS, f"{call}_rcvd_total_{size}", "Bytes received by call.", *ended, bounds=MESSAGE_BYTES)
    yield _counter(SERVERS, "hotslot_call_errors_total", "Calls that failed, by their reason.", "grpc_method", "reason")
    yield _counter(SERVERS, "hotslot_quota_refusals_total", "Calls that a quota of their tenant refused.", "quota")
    yield _counter(SERVERS, "hotslot_bound_refusals_total", "Calls that a bound of the process refused.", "bound")
    yield _counter(SERVERS, "hotslot_streams_cut_off_total", "Streams whose caller was idle or too slow.", "why")
    yield _gauge(SERVERS, "hotslot_calls_running", "Calls under way.")
    called, attempt = ("grpc_method", "grpc_target"), "grpc_client_attempt"
    own = (*called, "grpc_status")
    text = "Attempts of calls to other services; of those that gRPC repeats by itself, as many as servers tell."
    yield _counter(CALLERS, f"{attempt}_started_total", text, *called)
    text = "Durations of the attempts that ended their calls, with those that gRPC repeated before them."
    yield _histogram(CALLERS, f"{attempt}_duration_seconds", text, *own, bounds=CALLS_S)
    yield _histogram(CALLERS, f"{attempt}_sent_total_{size}", "Bytes sent by attempt.", *own, bounds=MESSAGE_BYTES)
    yield _histogram(CALLERS, f"{attempt}_rcvd_total_{size}", "Bytes received by attempt.", *own, bounds=MESSAGE_BYTES)
    text = "Durations of calls to other services, what gRPC itself repeats included."
    yield _histogram(CALLERS, "grpc_client_call_duration_seconds", text, *own, bounds=CALLS_S)


def _redis() -> Iterator[MetricRow]:
    text = "Durations of Redis commands, by the script that they run."
    yield _histogram(SERVERS, "hotslot_redis_seconds", text, "command")
    text = "Redis commands that failed: unavailable, or forbidden by access rules."
    yield _counter(SERVERS, "hotslot_redis_errors_total", text, "command", "why")
    text = "Records in Redis that were not believed: unsigned, forged, moved or too old."
    yield _counter(SERVERS, "hotslot_redis_records_refused_total", text, "why")


def _engine() -> Iterator[MetricRow]:
    own = (WORKER,)
    yield _histogram(own, "hotslot_step_seconds", "Durations of steps, by bucket.", "bucket", bounds=STEPS_S)
    text = "Time between a step's end and the next one's beginning while there was something to compute."
    yield _histogram(own, "hotslot_step_gap_seconds", text, bounds=LAGS_S)
    yield _histogram(own, "hotslot_step_rows", "Rows of steps.", bounds=ROWS)
    yield _gauge(own, "hotslot_longest_stall_seconds", "Longest such time since the start.")
    text = "Tokens of prompts that were computed, again after a preemption included."
    yield _counter(own, "hotslot_prompt_tokens_computed_total", text)
    yield _counter(own, "hotslot_generated_tokens_total", "Tokens of answers.")
    yield _counter(own, "hotslot_prefix_cache_queries_total", "Tokens of prompts looked for in the prefix cache.")
    yield _counter(own, "hotslot_prefix_cache_hits_total", "Tokens of prompts that the prefix cache had.")
    yield _counter(own, "hotslot_sequences_total", "Sequences that ended, by their end.", "outcome")
    yield _histogram(own, "hotslot_sequence_queue_seconds", "Time of sequences from arrival to their row.")
    yield _histogram(own, "hotslot_sequence_slots_seconds", "Time from their row until their adapters were in slots.")
    yield _counter(own, "hotslot_preemptions_total", "Sequences that lost their blocks and were computed again.")
    yield _counter(own, "hotslot_recompiles_total", "Compilations after the warm-up; anything but 0 is a bug.")
    yield _gauge(own, "hotslot_step_graphs", "Kinds of steps that were captured at the start.")
    yield _counter(own, "hotslot_captured_steps_total", "Steps that a captured graph computed.")
    yield _counter(own, "hotslot_uncaptured_steps_total", "Steps that ran uncaptured where steps are captured.", "why")
    yield _gauge(own, "hotslot_sequences", "Sequences now: running, waiting for a row.", "state")
    yield _gauge(own, "hotslot_max_sequences", "Rows.")
    yield _gauge(own, "hotslot_kv_blocks", "KV blocks: held by sequences, kept for their content, free.", "state")
    text = "Slots: free; resident, the ones that hold adapters; in_use and pinned, parts of these."
    yield _gauge(own, "hotslot_slots", text, "state")


def _adapters() -> Iterator[MetricRow]:
    own = (WORKER,)
    yield _histogram(
        own,
        "hotslot_adapter_load_seconds",
        "Stages of bringing adapters: resolve (reference to version), fetch (to host memory), wait (for slots and "
        "copies before it), activate (the copy into slots).",
        "stage",
    )
    text = "Loads to host memory that ended: loaded, refused (never possible here), failed."
    yield _counter(own, "hotslot_adapter_loads_total", text, "outcome")
    yield _counter(own, "hotslot_adapter_fetched_bytes_total", "Bytes of weights that loads brought.")
    text = "Adapters brought into slots: ahead of a row, or for a sequence that waited in its row."
    yield _counter(own, "hotslot_adapter_activations_total", text, "ahead")
    yield _counter(own, "hotslot_adapter_evictions_total", "Adapters that made room for others, by tier.", "tier")
    yield _gauge(own, "hotslot_adapters_resident", "Versions by the fastest tier that has them.", "tier")
    yield _gauge(own, "hotslot_host_cache_used_bytes", "Host memory of adapters, loads under way included.")
    yield _gauge(own, "hotslot_host_cache_limit_bytes", "Host memory that adapters may take.")
    yield _gauge(own, "hotslot_loading_requests", "Requests that wait for adapters to be loaded.")


def _requests() -> Iterator[MetricRow]:
    own = (WORKER,)
    model = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_response_model")
    served = "Requests that this worker answered itself, with a text or an error"
    text = f"{served}; by the adapter's name, __base__ for none, __mix__ for several."
    yield _counter(own, "hotslot_requests_total", text, "adapter", "tenant", "code")
    yield _gauge(own, "hotslot_requests_running", "Requests that are served here.")
    text = "Requests that took longer than HOTSLOT_SLOW_REQUEST_S."
    yield _counter(own, "hotslot_slow_requests_total", text)
    text = f"Durations of requests. {served}."
    yield _histogram(own, "gen_ai_server_request_duration_seconds", text, *model, "error_type", bounds=REQUESTS_S)
    text = "Time from a request's arrival to its first token."
    yield _histogram(own, "gen_ai_server_time_to_first_token_seconds", text, *model, bounds=FIRST_TOKENS_S)
    text = "Mean time of each token after the first, by request."
    yield _histogram(own, "gen_ai_server_time_per_output_token_seconds", text, *model, bounds=NEXT_TOKENS_S)


def _routing() -> Iterator[MetricRow]:
    own = (WORKER,)
    text = (
        "Requests by the first place that was chosen: here (everything is here), cold (here, with a load), away (to a "
        "worker that has the adapters or their home), spilled (away although everything is here), none (this worker "
        "takes none, and no other is known)."
    )
    yield _counter(own, "hotslot_routing_decisions_total", text, "outcome")
    text = "Requests sent on to another worker: ok, refused before the first token, lost after it."
    yield _counter(own, "hotslot_forwards_total", text, "result")
    yield _counter(own, "hotslot_heartbeats_total", "Heartbeats to Redis: ok, failed.", "outcome")
    yield _counter(own, "hotslot_lease_losses_total", "Times that Redis was lost, or a lease ended unrenewed.")
    yield _gauge(own, "hotslot_fleet_connected", "1 while heartbeats reach Redis.")
    yield _gauge(own, "hotslot_worker_state", "1 for the state that the worker is in.", "state")
    yield _gauge(own, "hotslot_engine_silent", "1 while the engine does not answer.")


def _picker() -> Iterator[MetricRow]:
    own = (WORKER,)
    yield _gauge(own, "vllm:num_requests_running", "Sequences that have rows.")
    yield _gauge(own, "vllm:num_requests_waiting", "Sequences that wait for rows, and requests that wait for loads.")
    yield _gauge(own, "vllm:kv_cache_usage_perc", "Part of the KV blocks that sequences hold, 0 to 1.")
    yield _gauge(
        own, "vllm:cache_config_info", "1, with the KV cache's sizes as labels.", "block_size", "num_gpu_blocks"
    )
    yield _gauge(
        own,
        "vllm:lora_requests_info",
        "Time of the last change, with the names of adapters as labels: running, those resident in slots, whether or "
        "not a request uses them; waiting, those that requests wait for.",
        "max_lora",
        "running_lora_adapters",
        "waiting_lora_adapters",
    )
    text = "1 for each adapter in slots (level gpu) or host memory (cpu)."
    yield _gauge(own, "vllm:lora_adapter_loaded", text, "adapter_name", "level", "pinned")
    yield _gauge(own, "vllm:num_gpu_loaded_lora_adapters", "Adapters in slots.")
    yield _gauge(own, "vllm:num_cpu_loaded_lora_adapters", "Adapters in host memory, those in slots included.")


def _store() -> Iterator[MetricRow]:
    own = (STORE,)
    text = "Checkpoints judged: published, present (that version was there), refused, failed."
    yield _counter(own, "hotslot_admissions_total", text, "outcome")
    text = "Stages of admissions: check (to staged weights), publish (blob and catalog)."
    yield _histogram(own, "hotslot_admission_seconds", text, "stage")
    yield _counter(
        own, "hotslot_imports_total", "Imports that ended: published, refused, failed, cancelled.", "outcome"
    )
    yield _gauge(own, "hotslot_imports_running", "Imports under way.")
    text = "Content over gRPC: in (uploads and publications), out (downloads)."
    yield _counter(own, "hotslot_content_bytes_total", text, "direction")
    yield _gauge(own, "hotslot_blobs", "Blobs on the disk.")
    yield _gauge(own, "hotslot_blob_disk_bytes", "Bytes of blobs on the disk, and those about to be written.")
    yield _gauge(own, "hotslot_blob_limit_bytes", "Bytes of blobs that the disk may hold; 0 without a bound.")
    yield _gauge(own, "hotslot_disk_free_bytes", "Free bytes of the disk that data_dir is on.")
    text = "Openings of blobs to be read: hit (on the disk), miss (brought back first)."
    yield _counter(own, "hotslot_blob_opens_total", text, "result")
    yield _counter(own, "hotslot_blob_restores_total", "Blobs brought back from where they came.", "outcome")
    yield _counter(own, "hotslot_blob_evictions_total", "Blobs that left the disk for others.")
    yield _counter(own, "hotslot_blob_evicted_bytes_total", "Bytes of these.")
    yield _counter(own, "hotslot_blobs_quarantined_total", "Blobs that were rotten on the disk, and put aside.")
    text = "Calls of the catalog and admissions: time in their queue."
    yield _histogram(own, "hotslot_queue_wait_seconds", text, "queue")
    yield _histogram(own, "hotslot_catalog_seconds", "Durations of the catalog's calls, without the queue.", "queue")
    text = "Calls that a queue refused: busy (too many wait), late (their deadline would pass)."
    yield _counter(own, "hotslot_queue_refusals_total", text, "queue", "why")
    yield _gauge(own, "hotslot_queue_waiting", "Calls that wait in a queue.", "queue")
    text = "Picks of workers, by the tier in which the best one has the adapters; no_workers without one."
    yield _counter(own, "hotslot_placement_decisions_total", text, "outcome")
    yield _counter(own, "hotslot_placement_spills_total", "Picks whose best worker was no home of the version.")
    text = "Homes of the version that a pick was for: how many workers are to have it."
    yield _histogram(own, "hotslot_placement_replicas", text, bounds=HOMES)


def _gateway() -> Iterator[MetricRow]:
    own = (GATEWAY,)
    yield _counter(own, "hotslot_http_requests_total", "HTTP requests that ended.", "route", "method", "code")
    yield _histogram(own, "hotslot_http_request_seconds", "Durations of HTTP requests.", "route", bounds=REQUESTS_S)
    yield _gauge(own, "hotslot_http_requests_running", "HTTP requests under way.")
    yield _gauge(own, "hotslot_http_connections", "Open connections.")
    text = "Scrapes of the worker beside the gateway: ok, failed."
    yield _counter(own, "hotslot_worker_scrapes_total", text, "outcome")


TABLE: dict[str, MetricRow] = {
    row.name: row
    for part in (
        _process(),
        _rpc(),
        _redis(),
        _engine(),
        _adapters(),
        _requests(),
        _routing(),
        _picker(),
        _store(),
        _gateway(),
    )
    for row in part
}
"""Every metric by its name."""
PICKER_PREFIX = "vllm:"


def rows_of(service: str) -> tuple[MetricRow, ...]:
    """Metrics of a process, by its service."""
    return tuple(row for row in TABLE.values() if service in row.services)
