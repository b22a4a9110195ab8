"""One trace of a cold request that is forwarded: over real processes, into a collector on a real socket."""

import asyncio
import json
import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from hotslot import AdapterSelection, BlockingHotslotClient, GenerationRequest
from hotslot.contract.generation import Stop
from tests.support.checkpoints import adapter
from tests.support.echo_model import echo_model
from tests.support.otlp_collector import CollectedSpan, Collector, Trace, otlp_collector
from tests.support.prometheus import hold_soon
from tests.support.recorded_spans import exporting_spans
from tests.support.slow_proxy import SlowProxy, slow_proxy
from tests.support.stack import Stack
from tests.support.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]

SPEC = echo_model().spec
PACE_S = 0.3
"""Time of decoding, of a slot's copy and of a step."""
FETCH_DELAY_S = 0.05
"""Before each chunk that the store sends to workers."""
ADAPTERS = tuple(f"team/bot-{number}" for number in range(12))
GENERATE = "hotslot.worker.v1.InferenceService/Generate"
READ_BLOB = "hotslot.store.v1.BlobService/ReadBlob"
RESOLVE = "hotslot.store.v1.AdapterStoreService/ResolveAdapter"
STAGES = (
    "hotslot.connect",
    "hotslot.load.resolve",
    "hotslot.route",
    "hotslot.prompt",
    "hotslot.load.turn",
    "hotslot.load.fetch",
    "hotslot.load.verify",
    "hotslot.load.decode",
    "hotslot.engine.queue",
    "hotslot.load.wait",
    "hotslot.load.activate",
    "hotslot.engine.prefill",
)
"""Stages until the first token, of all processes, none of them within another."""
SHARE = 0.05


@dataclass
class Traced:
    """A deployment whose processes export their traces."""

    collector: Collector
    gateway: str
    workers: list[str]
    store: str
    digests: Mapping[str, str]
    folder: Path
    left: list[str] = field(default_factory=lambda: list(ADAPTERS))

    def collected(self, trace_id: str, *names: str) -> Trace:
        """The trace, once it has spans of these names and all between them, which each process sends when it likes."""

        def is_there() -> bool:
            trace = self.collector.trace(trace_id)
            tops = [span for span in trace.spans if trace.parent(span) is None]
            return len(tops) == 1 and {*names} <= {span.name for span in trace.spans}

        hold_soon(is_there)
        return self.collector.trace(trace_id)

    def whole(self, trace_id: str) -> Trace:
        """The trace of a forwarded generation, once the calls' spans of all processes are there."""
        hold_soon(lambda: len(self.collector.trace(trace_id).named(GENERATE)) == 4)
        return self.collector.trace(trace_id)

    def line(self, process: str, event: str, **wanted: Any) -> dict[str, Any]:
        """The first such line; it may come a moment after the answer."""
        hold_soon(lambda: bool(self.lines(process, event, **wanted)))
        return self.lines(process, event, **wanted)[0]

    def lines(self, process: str, event: str, **wanted: Any) -> list[dict[str, Any]]:
        text = (self.folder / f"{process}.log").read_text(encoding="utf-8")
        found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return [x for x in found if x["event"] == event and all(x.get(name) == v for name, v in wanted.items())]


@contextmanager
def delaying_proxy() -> Iterator[SlowProxy]:
    """A slow way to where its `target_port` says, from a thread."""
    told: queue.Queue[tuple[SlowProxy, Callable[[], object]]] = queue.Queue()

    async def run() -> None:
        loop, ending = asyncio.get_running_loop(), asyncio.Event()
        async with slow_proxy(0) as proxy:
            proxy.delay_s = FETCH_DELAY_S
            told.put((proxy, lambda: loop.call_soon_threadsafe(ending.set)))
            await ending.wait()
            proxy.cut()
            await until(lambda: not proxy.is_used)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    proxy, end = told.get(timeout=120)
    try:
        yield proxy
    finally:
        end()
        thread.join(60)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    folder = tmp_path_factory.mktemp("traced")
    with (
        pytest.MonkeyPatch.context() as patch,
        otlp_collector() as collector,
        delaying_proxy() as proxy,
        Stack(folder) as stack,
    ):
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        store = stack.start_store(log_format="json").spec.endpoint
        proxy.target_port, slow_store = int(store.rpartition(":")[2]), f"127.0.0.1:{proxy.port}"
        settings = {"model": f"paced {PACE_S}", "lease_s": "2", "log_format": "json", "store": slow_store}
        first, second = (stack.launch_echo_worker(**settings, slow_request_s="0.05") for _ in range(2))
        first.wait_ready(120)
        second.wait_ready(120)
        stack.start_gateway(gateway_worker=first.spec.endpoint, log_format="json")
        workers = [first.spec.endpoint, second.spec.endpoint]
        digests = {}
        with BlockingHotslotClient(store) as client:
            for seed, name in enumerate(ADAPTERS):
                adapter(spec=SPEC, seed=seed).write(folder / f"draft-{seed}")
                pushed = client.store.push(folder / f"draft-{seed}", name, base_model=SPEC.digest)
                digests[name] = pushed.version.digest
        yield Traced(collector, stack.gateway, workers, store, digests, folder)


def post(traced: Traced, name: str, trace_id: str) -> None:
    """Ask the gateway for a completion."""
    body = {"model": name, "prompt": "hello", "max_tokens": 2}
    headers = {"traceparent": f"00-{trace_id}-{'b' * 16}-01", "tracestate": "rojo=1", "x-request-id": trace_id[:12]}
    url = f"http://{traced.gateway}/v1/completions"
    assert httpx2.post(url, json=body, headers=headers, trust_env=False, timeout=60).status_code == 200


def send_on(traced: Traced) -> tuple[str, str, Trace]:
    """Name, trace id and trace of a cold request that its first worker sent on."""
    while traced.left:
        name, trace_id = traced.left.pop(), secrets.token_hex(16)
        post(traced, name, trace_id)
        trace = traced.collected(trace_id, "hotslot.engine.decode", "POST /v1/completions")
        if trace.named("hotslot.forward"):
            # Each process exports when it comes to it: the last of both workers are their servers' spans.
            return name, trace_id, traced.whole(trace_id)
    raise AssertionError("no request was sent on")


@pytest.fixture(scope="module")
def forwarded(traced: Traced) -> tuple[str, str, Trace]:
    # Python imports some of what a request needs with the first one.
    post(traced, traced.left.pop(), secrets.token_hex(16))
    return send_on(traced)


def test_a_cold_forwarded_request_is_one_trace_with_all_stages(
    traced: Traced, forwarded: tuple[str, str, Trace]
) -> None:
    _, trace_id, _ = forwarded
    trace = traced.collected(trace_id, *STAGES, READ_BLOB, RESOLVE, "hotslot.engine.decode", "hotslot.load")
    roots = [span for span in trace.spans if trace.parent(span) is None]
    assert [(root.name, root.kind, root.parent_id) for root in roots] == [
        ("POST /v1/completions", "SERVER", "b" * 16)
    ], trace.shown()
    services = {span.service for span in trace.spans}
    assert services == {"hotslot-gateway", "hotslot-worker", "hotslot-store"}


def test_each_span_is_below_what_made_it(traced: Traced, forwarded: tuple[str, str, Trace]) -> None:
    name, trace_id, _ = forwarded
    trace = traced.collected(trace_id, *STAGES, READ_BLOB, "hotslot.engine.decode")
    assert ancestors(trace, trace.one("hotslot.engine.prefill")) == [
        (f"text_completion {name}", "INTERNAL", "hotslot-worker"),
        (GENERATE, "SERVER", "hotslot-worker"),
        (GENERATE, "CLIENT", "hotslot-worker"),
        ("hotslot.forward", "INTERNAL", "hotslot-worker"),
        (GENERATE, "SERVER", "hotslot-worker"),
        (GENERATE, "CLIENT", "hotslot-gateway"),
        (f"text_completion {name}", "CLIENT", "hotslot-gateway"),
        ("POST /v1/completions", "SERVER", "hotslot-gateway"),
    ], trace.shown()
    (read,) = [span for span in trace.named(READ_BLOB) if span.kind == "SERVER"]
    assert [each[0] for each in ancestors(trace, read)][:4] == [
        READ_BLOB,
        "hotslot.load.fetch",
        "hotslot.load",
        f"text_completion {name}",
    ], trace.shown()
    for span in trace.spans:
        above = trace.parent(span)
        if above is not None:
            # A handler tells of its end after its caller has heard of it.
            slack_ns = 0 if span.service == above.service and span.kind == "INTERNAL" else 5_000_000_000
            assert above.began_ns - 1_000_000 <= span.began_ns <= span.ended_ns <= above.ended_ns + slack_ns + 1_000_000


def test_what_the_store_and_redis_do_for_a_call_is_below_it(traced: Traced) -> None:
    trace_id = secrets.token_hex(16)
    with exporting_spans(traced.collector.endpoint, "application") as tracer:
        with tracer.start_as_current_span("work") as work, BlockingHotslotClient(traced.store) as client:
            adapter(spec=SPEC, seed=77).write(traced.folder / "draft-77")
            client.store.push(traced.folder / "draft-77", "team/new", base_model=SPEC.digest)
        trace_id = f"{work.get_span_context().trace_id:032x}"
    trace = traced.collected(trace_id, "work", "hotslot.admission.check", "hotslot.admission.publish")
    for stage in ("hotslot.admission.check", "hotslot.admission.publish"):
        above = [each[0] for each in ancestors(trace, trace.one(stage))]
        assert above[0].startswith("hotslot.store.v1.AdapterStoreService/"), trace.shown()
        assert above[-1] == "work"
    _, trace_id, _ = send_on(traced)
    trace = traced.collected(trace_id, "hotslot.redis", "hotslot.catalog", "hotslot.route", RESOLVE)
    below_route = {span.attributes["db.operation.name"] for span in descendants(trace, trace.one("hotslot.route"))}
    assert below_route, trace.shown()
    (resolve, *_) = [span for span in trace.named(RESOLVE) if span.kind == "SERVER"]
    (looked_up,) = [span for span in descendants(trace, resolve) if span.name == "hotslot.catalog"]
    assert 0 <= looked_up.attributes["hotslot.queue.seconds"] <= looked_up.duration_s


def test_no_heartbeat_is_a_trace(traced: Traced) -> None:
    stray = [span for span in traced.collector.received if span.name == "hotslot.redis" and not span.parent_id]
    assert not stray


def test_the_stages_of_the_worker_that_serves_add_up_to_its_time_to_the_first_token(
    traced: Traced, forwarded: tuple[str, str, Trace]
) -> None:
    name, _, trace = forwarded
    served = trace.one(f"text_completion {name}", "hotslot-worker")
    first_s = served.attributes["hotslot.time_to_first_token"]
    on_server = trace.parent(served)
    assert on_server is not None
    (resolve,) = [span for span in trace.children(on_server) if span.name == "hotslot.load.resolve"]
    below = [span for span in descendants(trace, served) if span.name in STAGES]
    stages_s = sum(span.duration_s for span in [resolve, *below])
    assert abs(stages_s - first_s) <= SHARE * first_s, f"{stages_s} of {first_s}\n{trace.shown()}"
    for stage in ("hotslot.load.decode", "hotslot.load.activate", "hotslot.engine.prefill"):
        assert trace.one(stage).duration_s >= PACE_S, trace.shown()
    assert trace.one("hotslot.load.fetch").duration_s >= FETCH_DELAY_S


def test_all_stages_add_up_to_the_time_to_the_first_token_as_the_caller_has_it(
    traced: Traced, forwarded: tuple[str, str, Trace]
) -> None:
    """Hops are no stages: of several requests the one counts that a busy machine held up least."""
    missing: list[float] = []
    name, _, trace = forwarded
    while not missing or (min(missing) > SHARE and len(traced.left) > 4):
        if missing:
            name, _, trace = send_on(traced)
        caller = trace.one(f"text_completion {name}", "hotslot-gateway")
        first_s = caller.attributes["hotslot.time_to_first_token"]
        stages_s = sum(span.duration_s for span in descendants(trace, caller) if span.name in STAGES)
        missing.append(abs(stages_s - first_s) / first_s)
    assert min(missing) <= SHARE, f"{missing}\n{trace.shown()}"


def test_spans_have_the_attributes_of_the_conventions(traced: Traced, forwarded: tuple[str, str, Trace]) -> None:
    name, trace_id, _ = forwarded
    digest = traced.digests[name]
    (served,) = traced.collected(trace_id, STAGES[-1]).named(f"text_completion {name}", "hotslot-worker")
    wanted = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "hotslot",
        "gen_ai.request.model": f"{name}",
        "gen_ai.request.max_tokens": 2,
        "gen_ai.response.model": f"{name}@{digest}",
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.output_tokens": 2,
        "hotslot.adapter.digest": [digest],
        "hotslot.adapter.weight": [1.0],
    }
    assert {key: served.attributes.get(key) for key in wanted} == wanted
    trace = traced.collector.trace(trace_id)
    server = trace.one("POST /v1/completions")
    assert (server.attributes["http.request.method"], server.attributes["http.response.status_code"]) == ("POST", 200)
    assert server.attributes["http.route"] == "/v1/completions"
    for span in trace.named(GENERATE):
        assert (span.attributes["rpc.system.name"], span.attributes["rpc.method"]) == ("grpc", GENERATE)
        assert span.attributes["rpc.response.status_code"] == "OK"
        assert span.kind == "SERVER" or span.attributes["server.address"] == "127.0.0.1"


def test_log_lines_of_every_process_have_the_traces_id(traced: Traced, forwarded: tuple[str, str, Trace]) -> None:
    name, trace_id, _ = forwarded
    line = traced.line("gateway", "request_served", trace_id=trace_id)
    assert (line["model"], line["request_id"]) == (name, trace_id[:12])
    rpc = f"/{GENERATE}"
    for worker in ("worker-1", "worker-2"):
        traced.line(worker, "rpc", method=rpc, trace_id=trace_id)
        traced.line(worker, "slow_request", trace_id=trace_id)
    for method in (READ_BLOB, RESOLVE):
        traced.line("store", "rpc", method=f"/{method}", trace_id=trace_id)
    traced.line("worker-2", "loaded", trace_id=trace_id, digest=traced.digests[name])


def test_a_call_that_came_without_a_trace_begins_one_and_logs_its_id(traced: Traced) -> None:
    url = f"http://{traced.gateway}/v1/models"
    answer = httpx2.get(url, headers={"x-request-id": "models-1"}, trust_env=False, timeout=120)
    assert answer.status_code == 200
    line = traced.line("gateway", "request_served", request_id="models-1")
    trace = traced.collected(line["trace_id"], "GET /v1/models")
    assert trace.one("GET /v1/models").parent_id == ""


def test_what_the_caller_does_not_record_is_not_recorded(traced: Traced) -> None:
    ids = [secrets.token_hex(16) for _ in range(2)]
    for trace_id, flags in zip(ids, ("00", "01"), strict=True):
        headers = {"traceparent": f"00-{trace_id}-{'b' * 16}-{flags}"}
        httpx2.get(f"http://{traced.gateway}/v1/models", headers=headers, trust_env=False, timeout=120)
    traced.collected(ids[1], "GET /v1/models")
    assert not traced.collector.trace(ids[0]).spans
    traced.line("gateway", "request_served", trace_id=ids[0])


def test_an_application_that_records_traces_has_the_clients_spans_above_the_services(traced: Traced) -> None:
    name = ADAPTERS[0]
    request = GenerationRequest("hello", (AdapterSelection(name),), stop=Stop(max_tokens=2))
    worker = traced.workers[0]
    with exporting_spans(traced.collector.endpoint, "application") as tracer:
        with tracer.start_as_current_span("work") as work, BlockingHotslotClient(traced.store, worker) as client:
            list(client.generate(request))
            client.worker.complete(request)
        trace_id = f"{work.get_span_context().trace_id:032x}"
    trace = traced.collected(trace_id, "work", "hotslot.engine.prefill", "hotslot.worker.v1.InferenceService/Complete")
    generations = trace.named(f"text_completion {name}", "application")
    assert [(span.kind, span.parent_id) for span in generations] == [("CLIENT", trace.one("work").span_id)] * 2
    for span in generations:
        assert span.attributes["hotslot.adapter.digest"] == [traced.digests[name]]
        assert span.attributes["gen_ai.usage.output_tokens"] == 2
    assert generations[0].attributes["hotslot.time_to_first_token"] > 0
    calls = {span.name for each in generations for span in trace.children(each)}
    assert calls >= {GENERATE, "hotslot.worker.v1.InferenceService/Complete"}


def ancestors(trace: Trace, span: CollectedSpan) -> list[tuple[str, str, str]]:
    found = []
    above = trace.parent(span)
    while above is not None:
        found.append((above.name, above.kind, above.service))
        above = trace.parent(above)
    return found


def descendants(trace: Trace, span: CollectedSpan) -> list[CollectedSpan]:
    below = trace.children(span)
    return [*below, *(each for child in below for each in descendants(trace, child))]
