"""Blobs that are cut again and again, by either side, arrive whole; little is sent twice and memory stays flat."""

import asyncio
import hashlib
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from hotslot import RetryPolicy, StoreClient
from hotslot.clients.blobs import CHUNK_BYTES as UPLOAD_CHUNK_BYTES
from hotslot.contract.catalog import TransferProgress, TransferStage
from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
from hotslot.local.child_processes import free_port
from hotslot.local.children import Child, ChildSpec
from store_service.content.reading import CHUNK_BYTES
from tests.support.checkpoints import adapter
from tests.support.slow_proxy import SlowProxy, slow_proxy

MIB = 2**20
ON_ITS_WAY_BYTES = 4 * MIB
"""What gRPC and the kernel may hold of a stream that is cut: flow control's window and the sockets' buffers."""
PATIENT = RetryPolicy(max_stalls=100, first_delay_s=0.02, max_delay_s=0.3)


def wide_spec(num_bytes: int) -> BaseSpec:
    """A base whose adapter of rank 256 in float32 has about so many bytes."""
    num_modules = max(1, num_bytes // (2 * 256 * 1024 * 4))
    paths = [f"model.layers.{layer}.mlp.up_proj" for layer in range(num_modules)]
    return BaseSpec("acme/wide", "llama", "f", tuple(BaseModule(path, ModuleKind.LINEAR, 1024, 1024) for path in paths))


@dataclass
class Cutter:
    """Cuts a transfer at chosen positions: the connection, or every few times the store's process."""

    proxy: SlowProxy
    store: Child
    kill_every: int
    positions: list[int] = field(default_factory=list)
    num_cuts: int = 0
    resent_bytes: list[int] = field(default_factory=list)
    """By cut: how far before what had been handed over, or received, the transfer went on."""
    peaks_mib: dict[str, list[float]] = field(default_factory=lambda: {"store": [], "client": []})
    _reached: int = 0

    def moved(self, start: int, end: int) -> None:
        """Bytes `[start, end)` were sent or received."""
        if start < self._reached:
            self.resent_bytes.append(self._reached - start)
        self._reached = end
        self._sample()
        if self.positions and end >= self.positions[0]:
            self.positions.pop(0)
            self.num_cuts += 1
            if self.num_cuts % self.kill_every == 0:
                self.store.kill()
                self.store = Child(self.store.spec)
            else:
                self.proxy.cut()

    def begin(self, positions: list[int]) -> None:
        """A new transfer."""
        self.positions, self.num_cuts, self.resent_bytes, self._reached = sorted(positions), 0, [], 0

    def growth_mib(self, who: str) -> float:
        """The most memory less that of the first tenth of the samples, over all of the transfer."""
        samples = self.peaks_mib[who]
        return max(samples) - max(samples[: max(1, len(samples) // 10)])

    def _sample(self) -> None:
        self.peaks_mib["client"].append(psutil.Process().memory_info().rss / MIB)
        if self.store.exit_code() is None:
            self.peaks_mib["store"].append(psutil.Process(self.store.pid).memory_info().rss / MIB)


@asynccontextmanager
async def cut_store(folder: Path, kill_every: int) -> AsyncIterator[tuple[Cutter, StoreClient]]:
    """A store process behind a proxy, and a client that only knows the proxy."""
    port = free_port()
    environment = {
        "HOTSLOT_LISTEN": f"127.0.0.1:{port}",
        "HOTSLOT_DATA_DIR": str(folder / "data"),
        "HOTSLOT_MAX_ADAPTER_BYTES": str(4 * 2**30),
        "HOTSLOT_LOG_LEVEL": "warning",
    }
    child = Child(ChildSpec("store", "store_service", f"127.0.0.1:{port}", environment, folder / "store.log"))
    await asyncio.to_thread(child.wait_ready, 60)
    async with slow_proxy(port) as proxy, StoreClient(f"127.0.0.1:{proxy.port}", retry=PATIENT) as client:
        cutter = Cutter(proxy, child, kill_every)
        try:
            yield cutter, client
        finally:
            cutter.store.kill()


async def cut_both_ways(folder: Path, num_bytes: int, num_cuts: int) -> None:
    rng = random.Random(0)
    spec = wide_spec(num_bytes)
    await asyncio.to_thread(adapter(("up_proj",), spec=spec, rank=256).write, folder / "adapter")
    size_bytes = (folder / "adapter" / "adapter_model.safetensors").stat().st_size
    async with cut_store(folder, kill_every=4) as (cutter, client):
        await client.register_base_model(spec)
        cutter.begin(rng.sample(range(MIB, size_bytes - MIB), num_cuts))

        def on_progress(progress: TransferProgress) -> None:
            if progress.stage is TransferStage.UPLOADING and progress.total_bytes > size_bytes:
                start = max(0, progress.done_bytes - UPLOAD_CHUNK_BYTES)
                cutter.moved(start, progress.done_bytes)

        up = cutter.proxy.bytes_up
        version = (await client.push(folder / "adapter", "wide", on_progress=on_progress)).version
        assert cutter.num_cuts == num_cuts
        print_report("upload", cutter, cutter.proxy.bytes_up - up - size_bytes)
        assert max(cutter.resent_bytes, default=0) <= UPLOAD_CHUNK_BYTES

        cutter.begin(rng.sample(range(MIB, version.weights_size_bytes - MIB), num_cuts))
        digest, position, down = hashlib.sha256(), 0, cutter.proxy.bytes_down
        async for chunk in client.read_blob(version.weights_digest):
            digest.update(chunk)
            cutter.moved(position, position + len(chunk))
            position += len(chunk)
        assert f"sha256:{digest.hexdigest()}" == version.weights_digest
        assert cutter.num_cuts == num_cuts
        assert cutter.resent_bytes == [], "what the client has is never asked for again"
        on_the_wire = cutter.proxy.bytes_down - down - version.weights_size_bytes
        print_report("download", cutter, on_the_wire)
        assert on_the_wire <= num_cuts * (CHUNK_BYTES + ON_ITS_WAY_BYTES) + version.weights_size_bytes // 100
        assert max(cutter.growth_mib("store"), cutter.growth_mib("client")) < 128


def print_report(what: str, cutter: Cutter, wire_bytes: int) -> None:
    resent = sorted(cutter.resent_bytes)
    sys.stdout.write(
        f"{what}: {cutter.num_cuts} cuts, wire overhead {wire_bytes / MIB:.2f} MiB, "
        f"resent by offset, max {max(resent, default=0) / 1024:.0f} KiB, all {[round(r / 1024) for r in resent]}, "
        f"store RSS +{cutter.growth_mib('store'):.0f} MiB, client RSS +{cutter.growth_mib('client'):.0f} MiB\n"
    )


async def test_a_blob_that_is_cut_again_and_again_arrives_both_ways(tmp_path: Path) -> None:
    await cut_both_ways(tmp_path, 24 * MIB, num_cuts=8)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_gibibyte_that_is_cut_twenty_times_arrives_both_ways(tmp_path: Path) -> None:
    await cut_both_ways(tmp_path, 1024 * MIB, num_cuts=20)
