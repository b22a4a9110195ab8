"""A worker with a disk cache: what leaves host memory is said to be on disk, and comes back without the store."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hotslot.contract.placement import Tier
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2 as pb
from tests.support.echo_model import EchoModel, voice
from tests.support.echo_worker import Calls, RunningWorker, run_worker
from tests.support.memory_store import MemoryStore
from worker_service.adapters.disk_tier import DiskOptions
from worker_service.adapters.known_reference import ReferenceLimits
from worker_service.pulse import Pulse

SIZE_BYTES = 5_000


@pytest.fixture
async def running(
    model: EchoModel, store_endpoint: str, references: ReferenceLimits, tmp_path: Path
) -> AsyncIterator[RunningWorker]:
    """Host memory for one adapter, a disk for ten."""
    disk = DiskOptions(tmp_path, 10 * SIZE_BYTES)
    async with run_worker(
        model, store_endpoint, host_cache_bytes=SIZE_BYTES, references=references, disk=disk
    ) as running:
        yield running


def kept(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


async def test_an_adapter_that_left_host_memory_comes_back_from_disk(
    running: RunningWorker, calls: Calls, store: MemoryStore, model: EchoModel
) -> None:
    first, second = (store.add(name, model.spec.digest, size_bytes=SIZE_BYTES) for name in ("first", "second"))
    disk = running.parts.provider.tiers.disk
    assert disk is not None
    for name in ("first", "second"):
        await calls.generate(name)
        await disk.settled()
    tiers = {adapter.digest: adapter.tier for adapter in await calls.list()}
    assert tiers[first] == pb.ADAPTER_TIER_DISK
    running.worker.hear_engine(await running.parts.engine.inspect())
    told = {resident.digest: resident for resident in Pulse(running.worker).report().residents}
    assert (told[first].tier, told[first].name) == (Tier.DISK, "first")
    assert told[second].tier in (Tier.SLOT, Tier.HOST)
    reads = len(store.blobs.read_offsets)
    assert (await calls.generate("first")).text == voice(first)
    assert len(store.blobs.read_offsets) == reads


async def test_an_unloaded_adapter_is_on_no_tier(
    running: RunningWorker, calls: Calls, store: MemoryStore, model: EchoModel, tmp_path: Path
) -> None:
    store.add("first", model.spec.digest, size_bytes=SIZE_BYTES)
    await calls.load("first")
    disk = running.parts.provider.tiers.disk
    assert disk is not None
    await disk.settled()
    assert kept(tmp_path)
    await calls.control.UnloadAdapter(pb.UnloadAdapterRequest(reference="first"), timeout=60)
    assert not kept(tmp_path)
    assert not await calls.list()
