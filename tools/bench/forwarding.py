"""Measures what a hop between workers costs: the same requests to a worker, and through another one that forwards.

`python -m tools.bench.forwarding [--quick]` prints one JSON object. The workers are processes around a model that
computes nothing; a drained one forwards everything. Rounds with and without the hop take turns.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hotslot.local.child_processes import free_port
from hotslot.local.embedded_valkey import embedded_valkey
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2 as control_pb
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from hotslot.rpc.channel import open_channel
from shared.server.grpc_server import READINESS, ServerOptions, serve
from tests.support.echo_worker import Calls, make_request
from tests.support.memory_store import MemoryStore
from tests.support.waiting import until_async
from tools.bench.processes import log_errors_only

STEP_S = 0.005
ROWS = 4
"""Rows of the echo model."""
TOKENS = 400


@asynccontextmanager
async def worker(
    store: str, redis_url: str, model: str, endpoint: str = ""
) -> AsyncIterator[tuple[Calls, psutil.Process]]:
    """One ready process around an echo model, and a client of it."""
    endpoint = endpoint or f"127.0.0.1:{free_port()}"
    settings = {"listen": endpoint, "store": store, "redis_url": redis_url, "model": model}
    environment = {**os.environ, **{f"HOTSLOT_{name.upper()}": value for name, value in settings.items()}}
    command = (sys.executable, "-m", "tests.support.echo_process", "--log-level", "error")
    process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=DEVNULL)
    try:
        async with open_channel(endpoint) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)

            async def is_ready() -> bool:
                request = health_pb2.HealthCheckRequest(service=READINESS)
                response = await health.Check(request, timeout=30, wait_for_ready=True)
                return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

            await until_async(is_ready, timeout_s=60)
            yield Calls(channel), psutil.Process(process.pid)
    finally:
        process.kill()
        await process.wait()


def cpu_s(process: psutil.Process) -> float:
    """Processor time that it took so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


async def first_token_s(calls: Calls) -> float:
    """Seconds from a request to its first message."""
    began_s = time.perf_counter()
    call = calls.inference.Generate(make_request(), timeout=30)
    await call.read()
    seconds = time.perf_counter() - began_s
    while await call.read():
        pass
    return seconds


async def tokens_a_second(calls: Calls) -> float:
    """All rows busy, from the first request to the last token."""
    began_s = time.perf_counter()
    stop = pb.StopConditions(max_tokens=TOKENS)
    answers = await asyncio.gather(*(calls.generate(text="endless", stop=stop) for _ in range(ROWS)))
    tokens = sum(len(answer.token_ids[0]) for answer in answers)
    return tokens / (time.perf_counter() - began_s)


async def measure(step_s: float, rounds: int, requests: int) -> dict[str, float]:
    """Both ways in turns, medians of all rounds."""
    async with AsyncExitStack() as stack:
        redis_url = stack.enter_context(embedded_valkey()).url
        store = await stack.enter_async_context(serve(MemoryStore().services(), ServerOptions(), observers=()))
        ends = [
            await stack.enter_async_context(worker(f"127.0.0.1:{store.port}", redis_url, f"step {step_s}"))
            for _ in range(2)
        ]
        (direct, _), (forwarding, forwarder) = ends
        await forwarding.control.DrainWorker(control_pb.DrainWorkerRequest(), timeout=10)
        served_by = (await direct.generate()).started.worker_id

        async def is_forwarded() -> bool:
            return (await forwarding.generate()).started.worker_id == served_by

        await until_async(is_forwarded)
        ways = {"direct": direct, "forwarded": forwarding}
        first: dict[str, list[float]] = {name: [] for name in ways}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(requests):
            for name, calls in ways.items():
                first[name].append(await first_token_s(calls))
        began_s = cpu_s(forwarder)
        for _ in range(requests):
            await first_token_s(forwarding)
        request_s = (cpu_s(forwarder) - began_s) / requests
        began_s = cpu_s(forwarder)
        for _ in range(rounds):
            rates["direct"].append(await tokens_a_second(direct))
            rates["forwarded"].append(await tokens_a_second(forwarding))
        token_s = (cpu_s(forwarder) - began_s) / (rounds * ROWS * TOKENS)
    hops = [f - d for f, d in zip(first["forwarded"], first["direct"], strict=True)]
    shares = [f / d for f, d in zip(rates["forwarded"], rates["direct"], strict=True)]
    quick_s = {name: statistics.quantiles(values, n=10)[0] for name, values in first.items()}
    return {
        "first_token_direct_ms": round(statistics.median(first["direct"]) * 1e3, 3),
        "hop_ms": round(statistics.median(hops) * 1e3, 3),
        # The quickest tenth says what it costs when nothing else wants the processor.
        "hop_undisturbed_ms": round((quick_s["forwarded"] - quick_s["direct"]) * 1e3, 3),
        # What the machine's other work cannot disturb: processor time of the worker that forwards.
        "forwarder_cpu_per_request_ms": round(request_s * 1e3, 3),
        "forwarder_cpu_per_token_ms": round(token_s * 1e3, 4),
        "direct_tok_s": round(statistics.median(rates["direct"]), 1),
        "forwarded_of_direct": round(statistics.median(shares), 3),
    }


async def measure_all(quick: bool) -> dict[str, Any]:
    """Paced like a model, and as fast as messages go."""
    rounds, requests = (3, 50) if quick else (9, 300)
    return {
        f"paced, {STEP_S * 1e3:g} ms a step": await measure(STEP_S, rounds, requests),
        "unpaced": await measure(0.0, rounds, requests),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    quick = parser.parse_args().quick
    log_errors_only()
    print(json.dumps(asyncio.run(measure_all(quick)), indent=2))
