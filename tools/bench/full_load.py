"""The store under everything at once, while every callback of its event loop is timed.

16 streams that are verified, pushes of new adapters, 200 resolves a second, list pages, and admissions of a large
adapter, for some seconds.
"""

import asyncio
import itertools
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from hotslot import StoreClient
from hotslot.errors import HotslotError
from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from tests.support.checkpoints import adapter
from tests.support.store import dial
from tools.bench.processes import MIB, Process

NUM_STREAMS = 16
RESOLVES_PER_S = 200
LISTED = 100
PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def many_modules(num_layers: int = 80) -> BaseSpec:
    """A base of as many modules as a 70B model has, but narrow."""
    return BaseSpec(
        "bench/deep",
        "llama",
        "bench",
        tuple(
            BaseModule(f"model.layers.{layer}.block.{part}", ModuleKind.LINEAR, 64, 64)
            for layer in range(num_layers)
            for part in PARTS
        ),
    )


async def prepare(endpoint: str) -> None:
    """Adapters with large manifests to resolve and to list."""
    spec = many_modules()
    async with dial(endpoint) as store:
        await store.register(spec)
        files = await store.upload(adapter(PARTS, spec=spec, rank=8))
        for number in range(LISTED):
            request = pb.CreateVersionRequest(reference=f"deep/bot-{number}", files=files)
            await store.call("CreateVersion", request)


async def readers(endpoint: str, digest: str, until_s: float, num_streams: int) -> float:
    """MiB/s of verified streams side by side."""

    async def read() -> int:
        size_bytes = 0
        async with StoreClient(endpoint) as store:
            while time.time() < until_s:
                async for data in store.read_blob(digest):
                    size_bytes += len(data)
        return size_bytes

    began_s = time.time()
    sizes = await asyncio.gather(*(read() for _ in range(num_streams)))
    return sum(sizes) / MIB / (time.time() - began_s)


async def resolvers(endpoint: str, until_s: float) -> dict[str, Any]:
    """Resolves at a steady rate until a moment."""
    async with dial(endpoint) as store, asyncio.TaskGroup() as group:
        calls = _Calls(until_s)
        for number in itertools.count():
            if time.time() >= until_s:
                break
            group.create_task(calls.time("resolve", store.resolve(f"deep/bot-{number % LISTED}")))
            await asyncio.sleep(1 / RESOLVES_PER_S)
    return calls.report()


async def callers(endpoint: str, large: list[tuple[str, str]], until_s: float) -> dict[str, Any]:
    """Pushes, pages and admissions, one of each at a time, until a moment."""
    spec = many_modules()
    large_files = [pb.UploadedFile(path=path, digest=digest) for path, digest in large]
    async with dial(endpoint) as store:

        def push(number: int) -> Awaitable[Any]:
            return store.push(adapter(PARTS, spec=spec, rank=8, seed=number + 1), f"pushed/bot-{number % 20}")

        def page(_: int) -> Awaitable[Any]:
            return store.call("ListAdapters", pb.ListAdaptersRequest(page_size=1000))

        def admit(_: int) -> Awaitable[Any]:
            return store.call("ValidateAdapter", pb.ValidateAdapterRequest(files=large_files))

        calls = _Calls(until_s)
        await asyncio.gather(calls.repeat("push", push), calls.repeat("list", page), calls.repeat("admit", admit))
    return calls.report()


class _Calls:
    """Durations of calls by name, and how many failed."""

    def __init__(self, until_s: float) -> None:
        self._until_s = until_s
        self._times_ms: dict[str, list[float]] = {}
        self._num_failed = 0

    async def time(self, name: str, call: Awaitable[Any]) -> None:
        began_s = time.perf_counter()
        try:
            await call
        except HotslotError as exc:
            self._num_failed += 1
            print(f"{name} failed under load: {exc}", file=sys.stderr)
        self._times_ms.setdefault(name, []).append((time.perf_counter() - began_s) * 1e3)

    async def repeat(self, name: str, make: Callable[[int], Awaitable[Any]]) -> None:
        for number in itertools.count():
            if time.time() >= self._until_s:
                return
            await self.time(name, make(number))

    def report(self) -> dict[str, Any]:
        rows: dict[str, Any] = {
            name: {"calls": len(values), "p50_ms": percentile(values, 50), "p99_ms": percentile(values, 99)}
            for name, values in self._times_ms.items()
        }
        return rows | {"failed": self._num_failed} if self._num_failed else rows


def percentile(values: list[float], percent: float) -> float:
    """Rounded for a report."""
    return round(float(np.percentile(values, percent)), 2)


def measure_full_load(
    store: Process,
    endpoint: str,
    digest: str,
    large: list[tuple[str, str]],
    peers: tuple[Process, Process, Process],
    seconds: float,
) -> dict[str, Any]:
    """The longest callbacks of the store's loop, and what its callers felt; prints the worst callbacks to stderr."""
    reader, resolver, caller = peers
    caller.run(prepare, endpoint)
    store.ask("watch")
    until_s = time.time() + seconds
    reader.send(readers, endpoint, digest, until_s, NUM_STREAMS)
    resolver.send(resolvers, endpoint, until_s)
    calls = caller.run(callers, endpoint, large, until_s) | resolver.result()
    streams_mib_s = reader.result()
    stalls, worst = store.ask("report")
    for cpu_ms, wall_ms, what in worst:
        print(f"a callback took {wall_ms:.1f} ms, {cpu_ms:.1f} ms of them its own:\n{what}", file=sys.stderr)
    return {"seconds": seconds, "streams_mib_s": round(streams_mib_s), "calls": calls, "loop": stalls}
