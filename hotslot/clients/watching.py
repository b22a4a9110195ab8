"""Watching the catalog: every change in order, over streams that break."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from hotslot.clients.blobs import BROKEN_STREAM, RetryPolicy
from hotslot.clients.rpc import Connection
from hotslot.codec import build, from_proto
from hotslot.contract.catalog import AdapterEvent
from hotslot.errors import RequestDeadlineError
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2_grpc as pb_grpc

NO_NAMES_PREFIX = "*"
"""No adapter's name begins so: a listing that reads none, and so none that is damaged, still carries the revision."""


async def watch_adapters(
    connection: Connection,
    stub: "pb_grpc.AdapterStoreServiceAsyncStub",
    retry: RetryPolicy,
    from_revision: int | None,
    timeout_s: float,
) -> AsyncGenerator[AdapterEvent, None]:
    """See `StoreClient.watch`; a stream stands for `timeout_s` at most."""
    stalls = 0
    while True:
        try:
            if from_revision is None:
                # Changes before the first event have to be found again when the stream breaks until then.
                here = build(pb.ListAdaptersRequest, page_size=1, name_prefix=NO_NAMES_PREFIX)
                from_revision = (await connection.unary(stub.ListAdapters, here)).revision
            request = build(pb.WatchAdaptersRequest, from_revision=from_revision)
            async with aclosing(connection.stream(stub.WatchAdapters, request, timeout_s)) as stream:
                async for message in stream:
                    from_revision, stalls = message.revision, 0
                    yield from_proto(AdapterEvent, message)
        except BROKEN_STREAM as exc:
            # A stream that stood for as long as one may is no fault: the catalog is quiet.
            is_quiet = isinstance(exc, RequestDeadlineError) and from_revision is not None
            stalls = 0 if is_quiet else stalls + 1
            if stalls > retry.max_stalls:
                raise
        await asyncio.sleep(retry.delay_s(stalls))
