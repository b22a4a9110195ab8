"""Measures what a hop between workers costs: the same requests to a worker, and through another one that forwards.

`python -m tools.bench.forwarding [--quick]` prints one JSON object. The workers are processes around a model that
computes nothing; a drained one forwards everything. Rounds with and without the hop take turns.
"""

import asyncio
import statistics
import time
from contextlib import AsyncExitStack

from hotslot.local.embedded_valkey import embedded_valkey
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2 as control_pb
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from shared.server.grpc_server import ServerOptions, serve
from tests.support.echo_worker import Calls, make_request
from tests.support.memory_store import MemoryStore
from tests.support.waiting import until_async
from tools.bench.echo import cpu_s, main, worker

ROWS = 4
"""Rows of the echo model."""
TOKENS = 400


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


if __name__ == "__main__":
    main(__doc__, measure)
