"""Streams whose callers sleep cost a store little, others nothing, and end with a status that says why."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from hotslot import errors
from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
from hotslot.ids import Digest, digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2, blob_pb2
from hotslot.rpc.status import from_rpc_error
from shared.server import stream_places
from tests.support.checkpoints import adapter
from tests.support.store import StoreClient, open_store
from tests.support.waiting import until_async

pytestmark = pytest.mark.integration

WIDE = BaseSpec("acme/wide", "llama", "f", (BaseModule("model.layers.0.mlp.wide_proj", ModuleKind.LINEAR, 4096, 4096),))
# A window that grew with the measured speed could take in the whole blob.
NARROW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536), ("grpc.use_local_subchannel_pool", 1)]
DATA = os.urandom(300_000)


async def with_blob(store: StoreClient, *tenants: str) -> Digest:
    """A blob of 8 MiB that these tenants may read."""
    await store.register(WIDE)
    draft = adapter(("wide_proj",), spec=WIDE, rank=256)
    found = {(await store.of(tenant).push(draft, "bot")).manifest.weights_digest for tenant in tenants}
    return Digest(found.pop())


async def is_read(store: StoreClient, digest: Digest) -> bool:
    """Read a blob; false where there is no place for that."""
    try:
        return digest_of(await store.read(digest)) == digest
    except errors.QuotaExceededError:
        return False


class Sleepers:
    """Readers of one tenant that take one message, and then nothing."""

    def __init__(self, store: StoreClient, digest: Digest) -> None:
        self.store, self.digest = store, digest
        self.calls: list[Any] = []
        self.channel = grpc.aio.insecure_channel(store.endpoint, options=NARROW)

    async def add(self) -> errors.HotslotError | None:
        """One more; what it was refused with."""
        client = StoreClient(self.channel, self.store.tenant)
        call = client.blobs.ReadBlob(blob_pb2.ReadBlobRequest(digest=self.digest), metadata=client.metadata)
        try:
            await call.read()
        except grpc.aio.AioRpcError as exc:
            return from_rpc_error(exc)
        self.calls.append(call)
        return None

    async def wake(self, index: int) -> errors.HotslotError:
        """How the stream of a reader ends that takes all that still comes."""
        try:
            while await self.calls[index].read():
                pass
        except grpc.aio.AioRpcError as exc:
            return from_rpc_error(exc)
        raise AssertionError("the stream went on to its end")

    async def __aenter__(self) -> "Sleepers":
        return self

    async def __aexit__(self, *_: object) -> None:
        for call in self.calls:
            call.cancel()
        await self.channel.close()


async def test_readers_that_sleep_leave_room_for_other_tenants(tmp_path: Path) -> None:
    async with open_store(tmp_path, max_read_streams=9) as store:
        digest = await with_blob(store, "sleepy", "awake")
        async with Sleepers(store.of("sleepy"), digest) as sleepers:
            refusals = [await sleepers.add() for _ in range(20)]
            assert [refusal is None for refusal in refusals] == [True] * 8 + [False] * 12
            assert isinstance(refusals[-1], errors.QuotaExceededError)
            assert refusals[-1].subject == "max_read_streams"
            began_s = time.monotonic()
            for _ in range(3):
                assert digest_of(await store.of("awake").read(digest)) == digest
            assert time.monotonic() - began_s < 60


async def test_readers_that_sleep_give_way_to_their_own_tenants_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_places, "SLEEPS_S", 0.3)
    async with open_store(tmp_path, max_read_streams=4) as store:
        digest = await with_blob(store, "default")
        async with Sleepers(store, digest) as sleepers:
            assert [await sleepers.add() for _ in range(4)] == [None] * 4

            await until_async(partial(is_read, store, digest))
            assert isinstance(await sleepers.wake(0), errors.StreamStalledError)


async def test_a_reader_that_sleeps_for_too_long_is_ended_and_its_place_free(tmp_path: Path) -> None:
    async with open_store(tmp_path, max_read_streams=1, stream_stall_s=1.0) as store:
        digest = await with_blob(store, "default")
        async with Sleepers(store, digest) as sleepers:
            await sleepers.add()

            await until_async(partial(is_read, store, digest))
            ended = await sleepers.wake(0)
            assert isinstance(ended, errors.StreamStalledError), ended
            assert "took nothing" in ended.message


async def test_a_reader_that_is_slow_is_not_ended(tmp_path: Path) -> None:
    async with open_store(tmp_path, max_read_streams=1, stream_stall_s=3.0) as store:
        digest = await with_blob(store, "default")
        async with Sleepers(store, digest) as sleepers:
            await sleepers.add()
            sizes = []
            while (message := await sleepers.calls[0].read()) is not grpc.aio.EOF:
                sizes.append(len(message.data))
                await asyncio.sleep(0.6)
            assert all(sizes)
            assert sum(sizes) > 8_000_000
            assert 0.6 * len(sizes) > 4.5  # for longer than the bound, in all


async def test_an_upload_that_sends_nothing_is_ended_and_goes_on_from_what_came(tmp_path: Path) -> None:
    digest = digest_of(DATA)
    async with open_store(tmp_path, max_uploads=1, stream_stall_s=2.0) as store:

        async def messages() -> AsyncIterator[blob_pb2.WriteBlobRequest]:
            yield blob_pb2.WriteBlobRequest(digest=digest, size_bytes=len(DATA), data=DATA[:100_000])
            await asyncio.sleep(60)

        call = store.blobs.WriteBlob(messages(), metadata=store.metadata, timeout=120)
        try:
            await call
            raise AssertionError("the upload was taken")
        except grpc.aio.AioRpcError as exc:
            ended = from_rpc_error(exc)
        assert isinstance(ended, errors.StreamStalledError), ended
        status = await store.call("GetWriteStatus", blob_pb2.GetWriteStatusRequest(digest=digest))
        assert status.committed_size == 100_000
        assert (await store.write(DATA, offset=100_000)).complete


async def test_uploads_that_are_held_open_leave_room_for_other_tenants(tmp_path: Path) -> None:
    async with open_store(tmp_path, max_uploads=9) as store:
        held = []
        for index in range(12):

            async def messages(index: int = index) -> AsyncIterator[blob_pb2.WriteBlobRequest]:
                digest = digest_of(b"%d" % index)
                yield blob_pb2.WriteBlobRequest(digest=digest, size_bytes=len(DATA), data=DATA[:1])
                await asyncio.sleep(60)

            held.append(store.blobs.WriteBlob(messages(), metadata=store.metadata))

        async def is_refused() -> bool:
            return [call.done() for call in held].count(True) == 4

        await until_async(is_refused)
        refused = [call for call in held if call.done()]
        assert {await call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert (await store.of("other").write(DATA)).complete
        for call in held:
            call.cancel()


async def test_watches_that_are_held_open_leave_room_for_other_tenants(tmp_path: Path) -> None:
    async with open_store(tmp_path, max_watches=9) as store:
        request = adapter_store_pb2.WatchAdaptersRequest()
        held = [store.adapters.WatchAdapters(request, metadata=store.metadata) for _ in range(12)]

        async def are_refused() -> bool:
            return [call.done() for call in held].count(True) == 4

        await until_async(are_refused)
        other = store.of("other")
        watch = other.adapters.WatchAdapters(request, metadata=other.metadata)
        await asyncio.wait_for(watch.initial_metadata(), 60)
        for call in (*held, watch):
            call.cancel()
