"""Measures the store: the verified stream against an unverified one, admission, resolving, a large catalog.

`python -m tests.bench.store [--quick]` prints one JSON object. Both ends share the machine, as in a test.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from shared.base_spec import BaseModule, BaseSpec, ModuleKind
from shared.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from shared.pb.hotslot.store.v1 import blob_pb2
from store_service.admission.admit import admit
from store_service.admission.settings import AdmissionLimits
from store_service.blobs.streams import CHUNK_BYTES
from tests.support.checkpoints import adapter
from tests.support.store import StoreClient, dial, open_store

MIB = 2**20


class _RawBlobs:
    """The same bytes from memory, unverified: what gRPC alone can do."""

    def __init__(self, size_bytes: int) -> None:
        self._chunk = bytes(CHUNK_BYTES)
        self._size_bytes = size_bytes

    async def ReadBlob(self, request: Any, context: Any) -> AsyncIterator[blob_pb2.ReadBlobResponse]:
        for offset in range(0, self._size_bytes, CHUNK_BYTES):
            yield blob_pb2.ReadBlobResponse(data=self._chunk, offset=offset, size_bytes=self._size_bytes)


def wide_spec(num_bytes: int) -> BaseSpec:
    """A base whose adapter of rank 256 in float32 has about so many bytes."""
    num_modules = max(1, num_bytes // (2 * 256 * 4096 * 4))
    modules = [
        BaseModule(f"model.layers.{layer}.mlp.up_proj", ModuleKind.LINEAR, 4096, 4096) for layer in range(num_modules)
    ]
    return BaseSpec("bench/wide", "llama", "bench", tuple(modules))


def _serve(folder: str, raw_bytes: int, ports: Any, peaks: Any) -> None:
    """The server's own process: the store, and the raw service beside it."""

    async def main() -> None:
        import structlog

        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
        raw = grpc.aio.server()
        handler = grpc.unary_stream_rpc_method_handler(
            _RawBlobs(raw_bytes).ReadBlob,
            request_deserializer=blob_pb2.ReadBlobRequest.FromString,
            response_serializer=blob_pb2.ReadBlobResponse.SerializeToString,
        )
        raw.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("hotslot.store.v1.BlobService", {"ReadBlob": handler})]
        )
        port = raw.add_insecure_port("127.0.0.1:0")
        await raw.start()
        async with open_store(Path(folder), num_io_threads=8) as store:
            ports.put((store.endpoint, f"127.0.0.1:{port}"))
            lag_ms = 0.0
            while True:
                before = time.perf_counter()
                await asyncio.sleep(0.001)
                lag_ms = max(lag_ms, (time.perf_counter() - before) * 1e3 - 1)
                peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                peaks[:] = [lag_ms, peak_mib]

    asyncio.run(main())


async def stream_mib_s(client: StoreClient, digest: str) -> float:
    """Receive a blob once, doing nothing with it."""
    started, size_bytes = time.perf_counter(), 0
    async for message in client.blobs.ReadBlob(blob_pb2.ReadBlobRequest(digest=digest), metadata=client.metadata):
        size_bytes += len(message.data)
    return size_bytes / MIB / (time.perf_counter() - started)


def measure_admission(num_bytes: int, folder: Path) -> dict[str, float]:
    """Admission alone, without storing."""
    spec = wide_spec(num_bytes)
    checkpoint = adapter(("up_proj",), spec=spec, rank=256).write(folder)
    started = time.perf_counter()
    verdict = admit(checkpoint, spec, AdmissionLimits())
    seconds = time.perf_counter() - started
    size_mib = verdict.require().weights_size_bytes / MIB
    return {"size_mib": round(size_mib, 1), "seconds": round(seconds, 3), "mib_s": round(size_mib / seconds, 1)}


async def measure_store(store_at: str, raw_at: str, num_bytes: int, num_adapters: int) -> dict[str, Any]:
    """Streams, resolving and listing over sockets."""
    spec = wide_spec(num_bytes)
    async with dial(store_at) as store, dial(raw_at) as raw:
        await store.register(spec)
        started = time.perf_counter()
        version = await store.push(adapter(("up_proj",), spec=spec, rank=256), "bench/large")
        push_s = time.perf_counter() - started
        digest = version.manifest.weights_digest
        first = await stream_mib_s(store, digest)
        pairs = [(await stream_mib_s(store, digest), await stream_mib_s(raw, digest)) for _ in range(5)]
        verified, unverified = (statistics.median(side) for side in zip(*pairs, strict=True))
        small = BaseSpec("bench/small", "llama", "s", (BaseModule("model.layers.0.q_proj", ModuleKind.LINEAR, 8, 8),))
        await store.register(small)
        files = await store.upload(adapter(("q_proj",), spec=small))
        started = time.perf_counter()
        for number in range(num_adapters):
            reference = f"bench/bot-{number}"
            await store.call("CreateVersion", pb.CreateVersionRequest(reference=reference, files=files))
        create_ms = (time.perf_counter() - started) / num_adapters * 1e3
        started, token, num_listed = time.perf_counter(), "", 0
        while True:
            page = await store.call("ListAdapters", pb.ListAdaptersRequest(page_size=1000, page_token=token))
            num_listed, token = num_listed + len(page.adapters), page.next_page_token
            if not token:
                break
        list_s = time.perf_counter() - started
        times_ms = []
        for number in np.random.default_rng(0).integers(0, num_adapters, 500):
            started = time.perf_counter()
            await store.resolve(f"bench/bot-{number}")
            times_ms.append((time.perf_counter() - started) * 1e3)
        return {
            "blob_mib": round(version.manifest.weights_size_bytes / MIB, 1),
            "push_s": round(push_s, 2),
            "first_stream_mib_s": round(first, 1),
            "stream_mib_s": round(verified, 1),
            "raw_stream_mib_s": round(unverified, 1),
            "stream_over_raw": round(statistics.median(v / r for v, r in pairs), 3),
            "num_adapters": num_listed,
            "create_version_ms": round(create_ms, 2),
            "list_all_s": round(list_s, 2),
            "resolve_p50_ms": round(float(np.percentile(times_ms, 50)), 2),
            "resolve_p99_ms": round(float(np.percentile(times_ms, 99)), 2),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes")
    quick = parser.parse_args().quick
    num_bytes, num_adapters = (32 * MIB, 200) if quick else (160 * MIB, 10_000)
    with tempfile.TemporaryDirectory() as folder:
        admission = measure_admission(num_bytes, Path(folder, "adapter"))
        Path(folder, "store").mkdir()
        context = multiprocessing.get_context("spawn")
        ports: Any = context.Queue()
        peaks: Any = context.Array("d", [0.0, 0.0])
        server = context.Process(target=_serve, args=(str(Path(folder, "store")), num_bytes, ports, peaks), daemon=True)
        server.start()
        store_at, raw_at = ports.get(timeout=60)
        try:
            store = asyncio.run(measure_store(store_at, raw_at, num_bytes, num_adapters))
        finally:
            server.terminate()
            server.join()
    lag_ms, peak_mib = peaks[:]
    process = {"longest_loop_stall_ms": round(lag_ms, 1), "peak_memory_mib": round(peak_mib, 1)}
    print(json.dumps({"admission": admission, "store": store, "process": process}, indent=2))


if __name__ == "__main__":
    main()
