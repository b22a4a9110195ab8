"""Throughput and latency of one store and of two over one PostgreSQL and one S3 server, with the same callers.

`python -m tools.bench.several_stores [--quick]` prints one JSON object. Stores, databases and callers share the
machine, so two stores are faster only where processors are free; each process's time on them is beside the figures.
"""

import argparse
import asyncio
import itertools
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from hotslot.ids import digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from tests.support.checkpoints import adapter
from tests.support.several_stores import SharedPlace, shared_services
from tests.support.store import StoreClient, bring, dial
from tests.support.store_process import StoreForks, StoreProcess, store_forks
from tools.bench.full_load import percentile
from tools.bench.processes import MIB, log_errors_only
from tools.bench.store import wide_spec

NUM_CALLERS = {"resolve": 16, "push": 4, "read": 8}
NUM_ADAPTERS = 20
READ_MIB = 8
MAX_SECONDS = 10.0


@dataclass(frozen=True)
class BenchCaller:
    """One connection to one of the stores."""

    store: StoreClient
    number: int


BenchCall = Callable[[BenchCaller, int], Awaitable[int]]
"""Makes the caller's next call; returns how many bytes came."""


async def resolve(caller: BenchCaller, turn: int) -> int:
    """Resolve any of the adapters."""
    await caller.store.resolve(f"bench/bot-{(caller.number + 7 * turn) % NUM_ADAPTERS}")
    return 0


async def push(caller: BenchCaller, turn: int) -> int:
    """Push a small adapter of its own, files and version."""
    seed = 1_000_000 + caller.number * 10_000 + turn
    # Others upload the same config at the same time.
    files = [await bring(caller.store, *file) for file in adapter(seed=seed).files().items()]
    request = pb.CreateVersionRequest(reference=f"pushed/{caller.number}-{turn}", files=files)
    await caller.store.call("CreateVersion", request)
    return 0


async def drive(callers: Sequence[BenchCaller], call: BenchCall, seconds: float) -> dict[str, float]:
    """Calls by all callers at once, one after the other each, for some seconds."""
    times_ms: list[float] = []
    num_bytes = 0
    began_s = time.perf_counter()

    async def work(caller: BenchCaller) -> None:
        nonlocal num_bytes
        for turn in itertools.count():
            called_s = time.perf_counter()
            if called_s - began_s > seconds:
                return
            came_bytes = await call(caller, turn)
            num_bytes += came_bytes
            times_ms.append((time.perf_counter() - called_s) * 1e3)

    await asyncio.gather(*map(work, callers))
    took_s = time.perf_counter() - began_s
    found = {
        "calls": len(times_ms),
        "per_s": round(len(times_ms) / took_s, 1),
        "p50_ms": percentile(times_ms, 50),
        "p99_ms": percentile(times_ms, 99),
    }
    return {**found, "mib_s": round(num_bytes / MIB / took_s, 1)} if num_bytes else found


async def measure(place: SharedPlace, forks: StoreForks, num_stores: int, seconds: float) -> dict[str, Any]:
    """All loads against so many stores of one catalog."""
    async with AsyncExitStack() as stack:
        processes: list[StoreProcess] = []
        for number in range(num_stores):
            folder = place.folder / f"store-{number}"
            folder.mkdir()
            processes.append(await stack.enter_async_context(forks.store(folder, **place.settings())))

        async def caller(number: int) -> BenchCaller:
            endpoint = f"127.0.0.1:{processes[number % num_stores].port}"
            return BenchCaller(await stack.enter_async_context(dial(endpoint)), number)

        first = (await caller(0)).store
        await first.register()
        for number in range(NUM_ADAPTERS):
            await first.push(adapter(seed=number), f"bench/bot-{number}")
        spec = wide_spec(READ_MIB * MIB)
        await first.register(spec)
        large = await first.push(adapter(("up_proj",), spec=spec, rank=256), "bench/large")
        weights = large.manifest.weights_digest

        async def read(caller: BenchCaller, turn: int) -> int:
            data = await caller.store.read(weights)
            assert turn or digest_of(data) == weights
            return len(data)

        found: dict[str, Any] = {}
        for name, call in (("resolve", resolve), ("push", push), ("read", read)):
            callers = [await caller(number) for number in range(NUM_CALLERS[name])]
            for each in callers[:num_stores]:
                await call(each, -1)  # each store knows what it is asked for
            before_s = [_cpu_s(process.pid) for process in processes]
            row: dict[str, Any] = await drive(callers, call, seconds)
            row["stores_cpu_s"] = [round(_cpu_s(p.pid) - s, 1) for p, s in zip(processes, before_s, strict=True)]
            found[name] = row
        return found


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two seconds of each load")
    seconds = 2.0 if parser.parse_args().quick else MAX_SECONDS
    log_errors_only()
    found: dict[str, Any] = {"cores": psutil.cpu_count(), "callers": NUM_CALLERS, "read_mib": READ_MIB}
    with tempfile.TemporaryDirectory(prefix="several-stores-") as name, shared_services() as services:
        for num_stores in (1, 2):
            folder = Path(name, str(num_stores))
            folder.mkdir()
            with store_forks() as forks:
                row = asyncio.run(measure(services.place(folder), forks, num_stores, seconds))
            found[f"{num_stores} store{'s' * (num_stores > 1)}"] = row
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
