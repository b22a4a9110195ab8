"""A store with more calls than it can answer: who cannot be answered in time hears so at once, and costs no work."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from hotslot.errors import StoreBusyError
from hotslot.ids import TenantId
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2_grpc
from hotslot.references import Reference
from hotslot.rpc.channel import open_channel
from hotslot.rpc.status import from_rpc_error
from shared.server.failed_calls import PUSHBACK_KEY
from store_service.catalog.catalog import Catalog
from store_service.catalog.records import Resolution
from store_service.execution.backlog import Backlog
from tests.support.checkpoints import adapter
from tests.support.store import StoreClient, error_of, open_store
from tests.support.waiting import until

LOOKUP_S = 0.4


class SlowLookups:
    """Every resolve takes a while, and as long as the gate is closed; remembers which were begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        resolve = Catalog.resolve

        def slowly(catalog: Catalog, tenant: TenantId, reference: Reference) -> Resolution:
            self.begun.append(reference.name)
            time.sleep(LOOKUP_S)
            assert self.gate.wait(120)
            return resolve(catalog, tenant, reference)

        monkeypatch.setattr(Catalog, "resolve", slowly)


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowLookups]:
    slow = SlowLookups(monkeypatch)
    yield slow
    slow.gate.set()


@pytest.fixture
async def narrow(lookups: SlowLookups, tmp_path: Path) -> AsyncIterator[StoreClient]:
    """A store with one thread for lookups, at which nobody may wait for as long as one takes; it knows how long."""
    async with open_store(tmp_path / "data", num_catalog_threads=1, max_catalog_wait_s=LOOKUP_S / 2) as client:
        await client.register()
        await client.push(adapter(), "bot")
        await client.resolve("bot")
        yield client


async def occupy(client: StoreClient, lookups: SlowLookups) -> "asyncio.Task[Any]":
    """A lookup that runs until the gate is opened."""
    lookups.gate.clear()
    lookups.begun.clear()
    running = asyncio.create_task(client.resolve("bot"))
    await until(lambda: bool(lookups.begun))
    return running


async def test_a_call_beyond_the_bound_is_refused_and_told_when_to_come_again(
    narrow: StoreClient, lookups: SlowLookups
) -> None:
    running = await occupy(narrow, lookups)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await narrow.adapters.ResolveAdapter(pb.ResolveAdapterRequest(reference="bot"))
    error = from_rpc_error(refused.value)
    assert type(error) is StoreBusyError
    assert error.retry_after_s is not None
    trailing = dict(refused.value.trailing_metadata() or ())
    assert int(trailing[PUSHBACK_KEY]) == pytest.approx(error.retry_after_s * 1e3, abs=1)
    assert lookups.begun == ["bot"]
    lookups.gate.set()
    await running
    assert (await narrow.resolve("bot")).adapter == "bot"


async def test_changes_and_blobs_do_not_wait_behind_lookups(narrow: StoreClient, lookups: SlowLookups) -> None:
    version = await narrow.resolve("bot")
    running = await occupy(narrow, lookups)
    await narrow.call("SetTag", pb.SetTagRequest(adapter="bot", tag="stable", digest=version.digest))
    assert len(await narrow.read(version.manifest.weights_digest)) == version.manifest.weights_size_bytes
    assert not running.done()
    assert type(await error_of(narrow.call("GetAdapter", pb.GetAdapterRequest(name="bot")))) is StoreBusyError
    lookups.gate.set()
    await running


async def test_hotslots_own_channels_come_again_when_they_were_told_to(
    narrow: StoreClient, lookups: SlowLookups, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = []
    arrive = Backlog.arrive

    def watched(backlog: Backlog, left_s: float | None) -> Any:
        refusal = arrive(backlog, left_s)
        refusals.append(refusal)
        return refusal

    running = await occupy(narrow, lookups)
    monkeypatch.setattr(Backlog, "arrive", watched)
    async with open_channel(narrow.endpoint) as channel:
        stub = adapter_store_pb2_grpc.AdapterStoreServiceStub(channel)
        call = stub.ResolveAdapter(pb.ResolveAdapterRequest(reference="bot"))
        await until(lambda: bool(refusals))
        lookups.gate.set()
        await running
        assert (await call).version.adapter == "bot"
    assert isinstance(refusals[0], StoreBusyError)
    assert refusals[-1] is None


async def test_a_call_whose_deadline_passes_while_it_waits_is_never_begun(
    lookups: SlowLookups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[Backlog] = []
    leave = Backlog.leave

    def watched(backlog: Backlog) -> None:
        left.append(backlog)
        leave(backlog)

    monkeypatch.setattr(Backlog, "leave", watched)
    async with open_store(tmp_path / "data", num_catalog_threads=1, max_catalog_wait_s=30) as client:
        await client.register()
        await client.push(adapter(), "bot")
        running = await occupy(client, lookups)
        request = pb.ResolveAdapterRequest(reference="impatient")
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await client.adapters.ResolveAdapter(request, timeout=2 * LOOKUP_S)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: bool(left))  # the store has heard of it, too
        lookups.gate.set()
        await running
        await client.resolve("bot")
    assert lookups.begun == ["bot", "bot"]
