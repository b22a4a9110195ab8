"""Connections and heads of calls made to harm: each is bounded before its caller is known, and others are served."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from hotslot.errors import InvalidRequestError, StreamStalledError
from hotslot.pb.hotslot.store.v1 import blob_pb2, blob_pb2_grpc
from hotslot.rpc.status import from_rpc_error
from shared.quotas.gate import QuotaGate
from shared.quotas.limits import TenantLimits
from shared.quotas.rates import Rates
from shared.server import connection_bounds
from shared.server.connection_bounds import LEAST_BYTES_PER_S, MAX_METADATA_ENTRIES, Pace
from shared.server.counters import BOUND_REFUSALS, CUT_OFF, MESSAGE, METADATA, Counters
from shared.server.grpc_server import RpcServer, ServerOptions, serve, service
from shared.transport_settings import Transport
from tests.support.waiting import until_async

APART = [("grpc.use_local_subchannel_pool", 1)]


class Blobs(blob_pb2_grpc.BlobServiceServicer):
    """Answers at once, or when it is let."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.go_on = asyncio.Event()

    ReadBlob = FindMissingBlobs = None  # type: ignore[assignment]

    async def GetWriteStatus(self, request: Any, context: Any) -> Any:
        if request.digest == "slow":
            self.running += 1
            self.most = max(self.most, self.running)
            await self.go_on.wait()
            self.running -= 1
        return blob_pb2.GetWriteStatusResponse()

    async def WriteBlob(self, request: Any, context: Any) -> Any:
        async for _ in request:
            pass
        return blob_pb2.WriteBlobResponse()


@asynccontextmanager
async def bounded(blobs: Blobs | None = None, **options: Any) -> AsyncIterator[tuple[RpcServer, Counters]]:
    limits, counters = TenantLimits(), Counters()
    gate = QuotaGate(limits, Rates(limits), counters)
    add = blob_pb2_grpc.add_BlobServiceServicer_to_server
    served = service(blob_pb2, "BlobService", add, blobs or Blobs())
    async with serve([served], ServerOptions(grace_s=0.1, **options), observers=(), quotas=gate) as server:
        yield server, counters


@asynccontextmanager
async def dialled(server: RpcServer) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=APART) as channel:
        yield blob_pb2_grpc.BlobServiceStub(channel)


async def status(stub: Any, **fields: Any) -> Any:
    return await stub.GetWriteStatus(blob_pb2.GetWriteStatusRequest(), timeout=60, **fields)


async def test_connections_beyond_the_bound_are_closed_and_those_that_stand_are_served() -> None:
    async with bounded(transport=Transport(max_connections=3)) as (server, _), dialled(server) as first:
        await status(first)
        flood = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(40)]
        for sock in flood:
            sock.setblocking(False)
        await status(first)
        async with dialled(server) as late:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await status(late)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            for sock in flood:
                sock.close()

            async def is_served() -> bool:
                try:
                    await status(late)
                except grpc.aio.AioRpcError:
                    return False
                return True

            await until_async(is_served)


async def test_a_connection_that_says_nothing_is_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_bounds, "HANDSHAKE_S", 0.5)
    async with bounded() as (server, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        async with asyncio.timeout(60):
            await reader.read()  # to its end
        writer.close()


async def test_metadata_is_bounded_in_bytes_and_in_entries() -> None:
    async with bounded() as (server, counters), dialled(server) as stub:
        await status(stub, metadata=[("x", "y" * 20_000)])
        await status(stub, metadata=[(f"x-{number}", "y") for number in range(MAX_METADATA_ENTRIES - 10)])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await status(stub, metadata=[("x", "y" * 30_000)])
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.aio.AioRpcError) as many:
            await status(stub, metadata=[(f"x-{number}", "y") for number in range(MAX_METADATA_ENTRIES + 1)])
        error = from_rpc_error(many.value)
        assert isinstance(error, InvalidRequestError)
        assert error.fields[0].field == "metadata"
        assert counters.snapshot() == {(BOUND_REFUSALS, METADATA): 1}
        await status(stub)


async def test_calls_beyond_those_of_a_connection_are_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_bounds, "MAX_STREAMS_A_CONNECTION", 4)
    blobs = Blobs()
    async with bounded(blobs) as (server, _), dialled(server) as stub, dialled(server) as other:
        await status(stub)
        slow = blob_pb2.GetWriteStatusRequest(digest="slow")
        calls = [asyncio.ensure_future(stub.GetWriteStatus(slow, timeout=60)) for _ in range(20)]
        async with asyncio.timeout(60):
            while blobs.running < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await status(other)
        blobs.go_on.set()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        failed = [error for error in ended if isinstance(error, grpc.aio.AioRpcError)]
        # gRPC's clients hold most of them back; one that was sent all the same was not begun, and may be tried again.
        assert {error.code() for error in failed} <= {grpc.StatusCode.UNAVAILABLE}
        assert len(failed) < 16
        assert blobs.most <= 4


async def test_a_message_that_is_refused_undecoded_is_counted() -> None:
    async with bounded(max_request_bytes=1000) as (server, counters), dialled(server) as stub:
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.GetWriteStatus(blob_pb2.GetWriteStatusRequest(digest="x" * 2000), timeout=60)
        assert counters.snapshot() == {(BOUND_REFUSALS, MESSAGE): 1}


async def test_an_upload_that_drips_is_cut_off_however_often_it_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def drip() -> AsyncIterator[Any]:
        while True:
            yield blob_pb2.WriteBlobRequest(data=b"x")
            await asyncio.sleep(0.05)

    async with bounded(stall_s=0.4) as (server, counters), dialled(server) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as cut:
            await stub.WriteBlob(drip(), timeout=60)
        assert isinstance(from_rpc_error(cut.value), StreamStalledError)
        assert counters.snapshot() == {(CUT_OFF, "stalled"): 1}


async def test_a_slow_line_is_waited_for() -> None:
    """10 kB/s in messages of 1 MiB, on a clock that is set forward: never cut off, for as long as it takes."""
    loop = asyncio.get_running_loop()
    now_s, pace = [0.0], Pace(120.0)

    async def message(size: int) -> bytes:
        now_s[0] += size / 10_000
        return bytes(size)

    real, loop.time = loop.time, lambda: now_s[0]  # type: ignore[method-assign]
    try:
        for _ in range(30):
            await pace.next(message(2**20))
        with pytest.raises(StreamStalledError, match=f"less than {LEAST_BYTES_PER_S:,} bytes a second"):
            await _until_cut(pace, now_s)
    finally:
        loop.time = real  # type: ignore[method-assign]


async def _until_cut(pace: Pace, now_s: list[float]) -> None:
    for _ in range(100_000):
        await pace.next(_late(now_s))


async def _late(now_s: list[float]) -> bytes:
    now_s[0] += 60.0
    return b"x"
