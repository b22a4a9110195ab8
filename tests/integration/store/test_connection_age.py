"""Connections of an age end for new calls only: what runs on them goes on, and their clients notice nothing."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from hotslot.ids import digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.pb.hotslot.store.v1 import blob_pb2
from tests.support.checkpoints import adapter
from tests.support.store import dial, open_store
from tests.support.waiting import until

AGE_S = 0.3


async def test_watches_and_uploads_outlive_their_connection(tmp_path: Path) -> None:
    data = b"x" * 1000
    async with open_store(tmp_path / "data", max_connection_age_s=AGE_S) as other, dial(other.endpoint) as client:

        async def two_messages() -> AsyncIterator[blob_pb2.WriteBlobRequest]:
            digest, size_bytes = digest_of(data), len(data)
            yield blob_pb2.WriteBlobRequest(digest=digest, size_bytes=size_bytes, data=data[:500])
            await until(lambda: client.channel.get_state() is not grpc.ChannelConnectivity.READY)
            yield blob_pb2.WriteBlobRequest(data=data[500:], offset=500, finish=True)

        await other.register()
        watch = client.adapters.WatchAdapters(pb.WatchAdaptersRequest())
        await watch.initial_metadata()
        assert (await client.blobs.WriteBlob(two_messages())).complete
        # The next call has a connection of its own.
        await client.push(adapter(), "bot")
        first = await watch.read()
        assert (first.adapter, first.kind) == ("bot", pb.ADAPTER_EVENT_KIND_VERSION_CREATED)
        watch.cancel()
