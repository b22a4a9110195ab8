"""Measures a worker through gRPC under open load, and adapters that it does not have yet.

`python -m tools.bench.load [--quick]` prints one JSON object. Requests arrive as a Poisson process whatever the worker
does, for adapters by Zipf's law, eight times as many as slots: latency against rate, up to the knee. A cold adapter is
one that was pushed and never used: its first token is compared with a warm one of the same adapter, in turns. The front
is asked for its status while the engine computes for all rows that it may have.
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hotslot import AdapterSelection, Chunk, GenerationRequest, HotslotClient, Stop, WorkerClient
from hotslot.errors import HotslotError
from tests.support.stack import Stack
from tools.bench.inputs import adapter_folders, prompt
from worker_service.demo_model import BASE_MODEL, default_cache_dir, ensure_model

SLOTS = 8
WORKER_SETTINGS = {
    "buckets": "1,4,8,32,128", "max_sequences": "8", "num_slots": str(SLOTS), "slot_rank": "16", "kv_tokens": "16384",
    "max_sequence_tokens": "1024", "staleness_s": "60",
}  # fmt: skip
PROMPT_TOKENS = 32
ANSWER_TOKENS = 16
ZIPF_EXPONENT = 1.0
KNEE = 3.0
"""The knee is the last rate at which the median time to the first token is at most so many times that of an idle
worker."""
SEEDS = itertools.count(1)


@dataclass(frozen=True)
class Timed:
    """One request."""

    first_token_s: float
    total_s: float


async def ask(client: HotslotClient, reference: str, num_tokens: int = ANSWER_TOKENS) -> Timed:
    """One request with a prompt of its own."""
    selection = (AdapterSelection(reference),)
    stop = Stop(max_tokens=num_tokens, ignore_eos=True)
    began_s = time.perf_counter()
    first_s = None
    async for event in client.generate(GenerationRequest(prompt(PROMPT_TOKENS, next(SEEDS)), selection, stop=stop)):
        if isinstance(event, Chunk) and first_s is None:
            first_s = time.perf_counter() - began_s
    assert first_s is not None
    return Timed(first_s, time.perf_counter() - began_s)


async def measure_cold(client: HotslotClient, references: Sequence[str]) -> dict[str, Any]:
    """First tokens with adapters that the worker has nowhere, beside those with the same once they are in slots."""
    cold, warm = [], []
    await ask(client, references[0], 1)
    for reference in references[1:]:
        cold.append((await ask(client, reference, 1)).first_token_s)
        warm.append((await ask(client, reference, 1)).first_token_s)
    beyond_ms = [1e3 * (c - w) for c, w in zip(cold, warm, strict=True)]
    return {
        "adapters": len(cold),
        "cold_first_token_ms": 1e3 * statistics.median(cold),
        "warm_first_token_ms": 1e3 * statistics.median(warm),
        "beyond_warm_ms": statistics.median(beyond_ms),
        "beyond_warm_worst_ms": max(beyond_ms),
    }


async def measure_rate(
    client: HotslotClient, references: Sequence[str], rate_per_s: float, seconds: float
) -> dict[str, float]:
    """Poisson arrivals for some seconds; all that arrived are waited for."""
    chooser = random.Random(round(1000 * rate_per_s))
    weights = [1 / (place + 1) ** ZIPF_EXPONENT for place in range(len(references))]
    tasks: list[asyncio.Task[Timed]] = []
    began_s = time.perf_counter()
    at_s = 0.0
    while (at_s := at_s + chooser.expovariate(rate_per_s)) < seconds:
        await asyncio.sleep(max(0.0, began_s + at_s - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(client, chooser.choices(references, weights)[0])))
    done = await asyncio.gather(*tasks, return_exceptions=True)
    ended_s = time.perf_counter()
    refused = sum(isinstance(result, HotslotError) for result in done)
    found = [result for result in done if isinstance(result, Timed)]
    for result in done:
        if isinstance(result, BaseException) and not isinstance(result, HotslotError):
            raise result
    first_ms = 1e3 * np.array([timed.first_token_s for timed in found])
    total_ms = 1e3 * np.array([timed.total_s for timed in found])
    return {
        "rate_per_s": rate_per_s,
        "requests": len(tasks),
        "refused": refused,
        "tok_s": len(found) * ANSWER_TOKENS / (ended_s - began_s),
        "ttft_p50_ms": float(np.percentile(first_ms, 50)),
        "ttft_p99_ms": float(np.percentile(first_ms, 99)),
        "total_p50_ms": float(np.percentile(total_ms, 50)),
        "total_p99_ms": float(np.percentile(total_ms, 99)),
    }


def knee(idle_ms: float, rates: Sequence[dict[str, float]]) -> float:
    """The largest rate up to which the median time to the first token stays near an idle worker's; 0 if none does."""
    held = itertools.takewhile(lambda row: row["ttft_p50_ms"] <= KNEE * idle_ms and not row["refused"], rates)
    return max((row["rate_per_s"] for row in held), default=0.0)


async def measure_front(stack: Stack, seconds: float) -> dict[str, float]:
    """Answers to the plainest call, of an idle worker and of one that computes for as many rows as it may."""
    endpoint, busy_rows = stack.workers[0].spec.endpoint, int(WORKER_SETTINGS["max_sequences"])

    async def answers_ms(worker: WorkerClient, until_s: float) -> list[float]:
        found = []
        while time.perf_counter() < until_s:
            began_s = time.perf_counter()
            await worker.status()
            found.append(1e3 * (time.perf_counter() - began_s))
            await asyncio.sleep(0.01)
        return found

    async with WorkerClient(endpoint) as worker:
        tokens = 0
        idle = await answers_ms(worker, time.perf_counter() + seconds / 4)
        until_s = time.perf_counter() + seconds

        async def keep_busy() -> None:
            nonlocal tokens
            while time.perf_counter() < until_s:
                stop = Stop(max_tokens=64, ignore_eos=True)
                async for event in worker.generate(GenerationRequest(prompt(PROMPT_TOKENS, next(SEEDS)), stop=stop)):
                    tokens += len(event.token_ids) if isinstance(event, Chunk) else 0

        began_s = time.perf_counter()
        rows = [asyncio.create_task(keep_busy()) for _ in range(busy_rows)]
        busy = await answers_ms(worker, until_s)
        await asyncio.gather(*rows)
        took_s = time.perf_counter() - began_s
    percentiles = {f"{name}_p{p}_ms": float(np.percentile(found, p)) for name, found in (("idle", idle), ("busy", busy))
                   for p in (50, 99)}  # fmt: skip
    return {"rows": busy_rows, "tok_s": tokens / took_s, **percentiles}


async def measure(stack: Stack, *, quick: bool) -> dict[str, Any]:
    """Push all adapters, then cold ones, then rates that ascend until latency is far beyond the knee."""
    assert stack.store is not None
    num_adapters, num_cold = (8 * SLOTS, 13) if quick else (8 * SLOTS, 41)
    folders = adapter_folders(16, num_adapters, default_cache_dir() / "bench")
    references = [f"bench/a{number}" for number in range(num_adapters)]
    async with HotslotClient(stack.store.spec.endpoint, stack.workers[0].spec.endpoint) as client:
        for folder, reference in zip(folders, references, strict=True):
            await client.store.push(folder, reference, base_model=BASE_MODEL)
        cold = await measure_cold(client, references[:num_cold])
        idle_ms = 1e3 * statistics.median([(await ask(client, references[0])).first_token_s for _ in range(8)])
        rates: list[dict[str, float]] = []
        for rate_per_s in (1, 2, 4, 6, 8, 10, 12, 16, 24):
            rates.append(await measure_rate(client, references, rate_per_s, 6.0 if quick else 20.0))
            if rates[-1]["ttft_p50_ms"] > 4 * KNEE * idle_ms:
                break
    return {
        "cold": cold,
        "open": {"adapters": num_adapters, "slots": SLOTS, "idle_ttft_ms": idle_ms, "rates": rates,
                 "knee_per_s": knee(idle_ms, rates)},
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer seconds at each rate")
    parser.add_argument("--front", action="store_true", help="only how soon the front answers meanwhile")
    parser.add_argument("--threads", type=int, default=0, help="the worker's threads; 0 is its default")
    arguments = parser.parse_args()
    settings = WORKER_SETTINGS | {"num_threads": str(arguments.threads)}
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder)) as stack:
        stack.start_store()
        stack.start_worker(ensure_model(), model_name=BASE_MODEL, cache_dir=str(default_cache_dir()), **settings)
        front = asyncio.run(measure_front(stack, 8.0 if arguments.quick else 30.0))
        rest = {} if arguments.front else asyncio.run(measure(stack, quick=arguments.quick))
        print(json.dumps({"threads": arguments.threads, "front": front, **rest}))


if __name__ == "__main__":
    main()
