"""Measures streams of one blob: verified as the worker and the client do, against an unverified one of the same bytes.

All variants take turns, round by round, and a ratio is the median of the ratios within the rounds. The baseline is
grpc.aio as it comes, in processes of its own, at the best of three chunk sizes.
"""

import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import grpc

from hotslot import StoreClient
from hotslot.ids import DEFAULT_TENANT, Digest
from hotslot.pb.hotslot.store.v1 import blob_pb2, blob_pb2_grpc
from hotslot.rpc.channel import open_channel
from store_service.content.reading import CHUNK_BYTES
from tools.bench.processes import MIB, Process
from worker_service.adapters.store_client import StoreView

RAW_CHUNKS = (64 * 1024, 256 * 1024, 1024 * 1024)


async def raw(endpoint: str, key: str, chunk_bytes: int) -> float:
    """MiB/s of the raw service, the bytes thrown away."""
    async with grpc.aio.insecure_channel(endpoint) as channel:
        return await _discard(channel, blob_pb2.ReadBlobRequest(digest=key, limit=chunk_bytes))


async def discarded(endpoint: str, digest: str) -> float:
    """MiB/s from a store, the bytes thrown away."""
    async with open_channel(endpoint) as channel:
        return await _discard(channel, blob_pb2.ReadBlobRequest(digest=digest))


@cache
def worker_view(endpoint: str) -> StoreView:
    """A worker's view of the store, for the life of the process: it uses its memory again, as a worker does."""
    return StoreView(open_channel(endpoint), Digest(""))


async def by_worker(endpoint: str, digest: str, size_bytes: int) -> float:
    """MiB/s into a worker's memory, verified."""
    store = worker_view(endpoint)
    began_s = time.perf_counter()
    data = await store.read_blob(DEFAULT_TENANT, Digest(digest), size_bytes)
    return len(data) / MIB / (time.perf_counter() - began_s)


async def by_client(endpoint: str, digest: str) -> float:
    """MiB/s through the client's iterator, verified."""
    async with StoreClient(endpoint) as store:
        _ = [adapter async for adapter in store.list_adapters(name_prefix="connects")]
        began_s, size_bytes = time.perf_counter(), 0
        async for data in store.read_blob(digest):
            size_bytes += len(data)
        return size_bytes / MIB / (time.perf_counter() - began_s)


async def _discard(channel: grpc.aio.Channel, request: blob_pb2.ReadBlobRequest) -> float:
    await channel.channel_ready()
    began_s, size_bytes = time.perf_counter(), 0
    async for message in blob_pb2_grpc.BlobServiceStub(channel).ReadBlob(request):
        size_bytes += len(message.data)
    return size_bytes / MIB / (time.perf_counter() - began_s)


def measure_streams(
    warm: str,
    verifying: str,
    raw_plain: str,
    raw_tuned: str,
    blob: Path,
    receivers: tuple[Process, Process],
    senders: tuple[Process, Process],
    rounds: int,
) -> dict[str, Any]:
    """Rates and ratios; the endpoints are of a store, one that digests at every stream, and two raw services.

    `senders` are the processes of the stores and of the raw service as Python starts it. CPU time, which other work on
    the machine hardly changes, is the least of all rounds; the kernel counts it in ticks of 10 ms.
    """
    tuned, plain = receivers
    stores, raw_service = senders
    digest, size_bytes = f"sha256:{blob.name}", blob.stat().st_size
    variants: dict[str, Callable[[], float]] = {
        **{
            f"raw_{chunk // 1024}_kib": lambda chunk=chunk: plain.run(raw, raw_plain, str(blob), chunk)  # type: ignore[misc]
            for chunk in RAW_CHUNKS
        },
        "raw_tuned": lambda: tuned.run(raw, raw_tuned, str(blob), CHUNK_BYTES),
        "verified_by_worker": lambda: tuned.run(by_worker, warm, digest, size_bytes),
        "verified_by_client": lambda: tuned.run(by_client, warm, digest),
        "verified_by_store": lambda: tuned.run(discarded, verifying, digest),
        "verified_by_store_and_worker": lambda: tuned.run(by_worker, verifying, digest, size_bytes),
    }
    for variant in variants.values():
        variant()
    rates: dict[str, list[float]] = {name: [] for name in variants}
    cpu_s: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            is_raw = name.startswith("raw") and name != "raw_tuned"
            ends = (raw_service, plain) if is_raw else (stores, tuned)
            before = [end.cpu_s for end in ends]
            rates[name].append(variant())
            sender_s, receiver_s = (end.cpu_s - used_s for end, used_s in zip(ends, before, strict=True))
            cpu_s[name].append((sender_s, receiver_s))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best_raw = max((f"raw_{chunk // 1024}_kib" for chunk in RAW_CHUNKS), key=medians.__getitem__)

    def over(name: str, base: str) -> float:
        return round(statistics.median(a / b for a, b in zip(rates[name], rates[base], strict=True)), 2)

    verified = [name for name in variants if name.startswith("verified")]
    return {
        "blob_mib": round(size_bytes / MIB, 1),
        "rounds": rounds,
        "mib_s": {name: round(value) for name, value in medians.items()},
        "over_best_raw": {name: over(name, best_raw) for name in verified},
        "over_raw_tuned": {name: over(name, "raw_tuned") for name in verified},
        "best_raw": best_raw,
        "cpu_ms_per_mib": {
            name: {
                "sender": round(1e3 * MIB / size_bytes * min(sender_s for sender_s, _ in cpu_s[name]), 2),
                "receiver": round(1e3 * MIB / size_bytes * min(receiver_s for _, receiver_s in cpu_s[name]), 2),
            }
            for name in (best_raw, "raw_tuned", *verified)
        },
    }
