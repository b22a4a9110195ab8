"""FleetService's calls to a store, by their earlier names where the store is of an earlier release.

A fleet is updated with both ages side by side, so a worker may start before its store. A store that does not know
FleetService answers UNIMPLEMENTED, which costs one round trip of calls that are rare.
"""

from collections.abc import AsyncGenerator, Callable
from typing import Any

import grpc

from hotslot.pb.hotslot.fleet.v1 import fleet_pb2 as pb
from hotslot.pb.hotslot.fleet.v1 import fleet_pb2_grpc as pb_grpc
from hotslot.rpc.sending import send_all
from hotslot.rpc.stub_method import Metadata

EARLIER_SERVICES = {
    "IssueEpoch": "hotslot.store.v1.AdapterStoreService",
    "ListPinnedVersions": "hotslot.store.v1.AdapterStoreService",
    "ReadCompiledCode": "hotslot.store.v1.CompiledCodeService",
    "WriteCompiledCode": "hotslot.store.v1.CompiledCodeService",
}
"""Services that had the methods, with messages that are the same on the wire."""


class FleetCalls:
    """Calls to one store. All raise grpc.aio.AioRpcError."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        now: Any = pb_grpc.FleetServiceStub(channel)
        self._issue_epoch = now.IssueEpoch, _earlier(channel.unary_unary, "IssueEpoch", pb.IssueEpochResponse)
        self._pinned = (
            now.ListPinnedVersions,
            _earlier(channel.unary_unary, "ListPinnedVersions", pb.ListPinnedVersionsResponse),
        )
        self._read_code = (
            now.ReadCompiledCode,
            _earlier(channel.unary_stream, "ReadCompiledCode", pb.ReadCompiledCodeResponse),
        )
        self._write_code = (
            now.WriteCompiledCode,
            _earlier(channel.stream_unary, "WriteCompiledCode", pb.WriteCompiledCodeResponse),
        )

    async def issue_epoch(self, timeout_s: float) -> int:
        """A fencing number larger than every one before it."""
        answer: pb.IssueEpochResponse = await _first_known(self._issue_epoch, pb.IssueEpochRequest(), timeout_s)
        return answer.epoch

    async def pinned(self, request: pb.ListPinnedVersionsRequest, timeout_s: float) -> pb.ListPinnedVersionsResponse:
        """One page of the versions that are pinned."""
        answer: pb.ListPinnedVersionsResponse = await _first_known(self._pinned, request, timeout_s)
        return answer

    async def read_code(
        self, request: pb.ReadCompiledCodeRequest, timeout_s: float, metadata: Metadata
    ) -> AsyncGenerator[pb.ReadCompiledCodeResponse, None]:
        """An archive of compiled code, in pieces."""
        for method in self._read_code:
            call = method(request, timeout=timeout_s, metadata=metadata)
            try:
                async for message in call:
                    yield message
                return
            except grpc.aio.AioRpcError as exc:
                if not _is_unknown(exc) or method is self._read_code[-1]:
                    raise
            finally:
                call.cancel()

    async def write_code(
        self,
        messages: Callable[[], AsyncGenerator[pb.WriteCompiledCodeRequest, None]],
        timeout_s: float,
        metadata: Metadata,
    ) -> None:
        """Keep an archive of compiled code; `messages` begins the stream anew."""
        for method in self._write_code:
            try:
                await send_all(method(timeout=timeout_s, metadata=metadata), messages())
                return
            except grpc.aio.AioRpcError as exc:
                if not _is_unknown(exc) or method is self._write_code[-1]:
                    raise


def _earlier(make: Callable[..., Any], name: str, response: Any) -> Any:
    """A method by its earlier name."""
    path = f"/{EARLIER_SERVICES[name]}/{name}"
    return make(path, request_serializer=_serialise, response_deserializer=response.FromString)


async def _first_known(methods: tuple[Any, ...], request: Any, timeout_s: float) -> Any:
    try:
        return await methods[0](request, timeout=timeout_s)
    except grpc.aio.AioRpcError as exc:
        if not _is_unknown(exc):
            raise
    return await methods[1](request, timeout=timeout_s)


def _is_unknown(failure: grpc.aio.AioRpcError) -> bool:
    """Tell whether the server does not know the method."""
    return failure.code() is grpc.StatusCode.UNIMPLEMENTED


def _serialise(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
