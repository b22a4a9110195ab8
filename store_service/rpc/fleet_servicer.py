"""FleetService: what workers ask of the store, under its names now and under the earlier ones."""

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, cast

import grpc

from hotslot.codec import to_proto
from hotslot.errors import FieldViolation, ForbiddenError, InvalidRequestError, QuotaExceededError
from hotslot.ids import TenantId, parse_digest
from hotslot.pb.hotslot.fleet.v1 import fleet_pb2 as pb
from hotslot.pb.hotslot.fleet.v1 import fleet_pb2_grpc
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2, compiled_code_pb2
from hotslot.rpc.tenant import tenant_of
from shared.identity.callers import may_see
from shared.server.grpc_server import Service, service
from store_service.catalog.epochs import Epochs
from store_service.catalog.policies import Policies
from store_service.content.keyed import KeyedContent
from store_service.content.reading import read_stream
from store_service.content.writer import Writer
from store_service.execution.call_queue import CallQueue
from store_service.execution.offload import Offload
from store_service.execution.turns import Turns
from store_service.rpc import contract
from store_service.rpc.paging import decode_token, encode_token, fitting, page_size_of

EARLIER_NAMES: Mapping[str, tuple[str, ...]] = {
    adapter_store_pb2.DESCRIPTOR.services_by_name["AdapterStoreService"].full_name: (
        "IssueEpoch",
        "ListPinnedVersions",
    ),
    compiled_code_pb2.DESCRIPTOR.services_by_name["CompiledCodeService"].full_name: (
        "ReadCompiledCode",
        "WriteCompiledCode",
    ),
}
"""Methods that workers of earlier releases call, by service. Their messages are the same on the wire as those now."""


class FleetServicer(fleet_pb2_grpc.FleetServiceServicer):
    """Issues epochs, lists what is pinned; streams what a key has, and takes what belongs to one."""

    def __init__(
        self,
        epochs: Epochs,
        policies: Policies,
        lookups: CallQueue,
        changes: CallQueue,
        code: KeyedContent,
        offload: Offload,
        turns: Turns,
    ) -> None:
        """`turns` are those of all streams that the store sends."""
        self._epochs = epochs
        self._policies = policies
        self._lookups = lookups
        self._changes = changes
        self._code = code
        self._offload = offload
        self._turns = turns

    async def IssueEpoch(self, request: pb.IssueEpochRequest, context: Any) -> pb.IssueEpochResponse:
        """See the service's definition."""
        return pb.IssueEpochResponse(epoch=await self._changes(context, self._epochs.issue))

    async def ListPinnedVersions(
        self, request: pb.ListPinnedVersionsRequest, context: Any
    ) -> pb.ListPinnedVersionsResponse:
        """See the service's definition."""
        limit, base = page_size_of(request.page_size), parse_digest(request.base_model_digest)
        tenant, name = decode_token(request.page_token, ("pinned", base), ("", ""))
        found = await self._lookups(
            context, self._policies.pinned_for, base, limit=limit, after=(str(tenant), str(name))
        )
        page, more = fitting((to_proto(pb.PinnedVersion, contract.pinned_of(it)) for it in found), limit)
        token = encode_token(("pinned", base), (page[-1].tenant, page[-1].policy.adapter)) if more else ""
        # A worker that serves some tenants is told of theirs alone; a page may have fewer for that, and go on.
        own = [version for version in page if may_see(version.tenant)]
        return pb.ListPinnedVersionsResponse(versions=own, next_page_token=token)

    async def ReadCompiledCode(
        self, request: pb.ReadCompiledCodeRequest, context: Any
    ) -> AsyncIterator[pb.ReadCompiledCodeResponse]:
        """See the service's definition."""
        key = parse_digest(request.key, field="key")
        self._check(tenant_of(context))
        file, size_bytes = await self._offload(self._code.open, key)
        async with aclosing(read_stream(file, size_bytes, key, _message, self._offload)) as messages:
            async for message in messages:
                await self._turns.take()
                yield message

    async def WriteCompiledCode(
        self, request_iterator: AsyncIterator[pb.WriteCompiledCodeRequest], context: Any
    ) -> pb.WriteCompiledCodeResponse:
        """See the service's definition."""
        first = await anext(aiter(request_iterator), None)
        if first is None:
            raise InvalidRequestError([FieldViolation("key", "the stream ended before its first message")])
        key, digest = parse_digest(first.key, field="key"), parse_digest(first.digest)
        self._check(tenant_of(context))
        if first.size_bytes < 1:
            raise InvalidRequestError([FieldViolation("size_bytes", f"found {first.size_bytes}, expected 1 or more")])
        writer = await self._offload.to_its_end(self._code.writer, key, first.size_bytes)
        try:
            await self._offload.to_its_end(_write, writer, first.data, first.size_bytes)
            async for message in request_iterator:
                await self._offload.to_its_end(_write, writer, message.data, first.size_bytes)
            await self._offload.to_its_end(writer.publish, digest, writer.size_bytes)
        finally:
            writer.close()
        return pb.WriteCompiledCodeResponse()

    def _check(self, tenant: TenantId) -> None:
        if not self._code.max_bytes:
            raise ForbiddenError("this store keeps no compiled code; HOTSLOT_COMPILED_CODE_BYTES turns it on")
        if tenant != self._code.tenant:
            raise ForbiddenError(f"this store keeps no compiled code for tenant {tenant!r}")


def fleet_services(servicer: FleetServicer) -> list[Service]:
    """The service by its name now and, where all of it has an earlier name, by that one.

    The earlier names that are in AdapterStoreService come with the first: they take the place of what that service,
    which is to be added before, has for them.
    """
    return [
        service(pb, "FleetService", _add_with_earlier_names, servicer),
        service(compiled_code_pb2, "CompiledCodeService", _add_nothing, servicer),
    ]


def _add_with_earlier_names(servicer: FleetServicer, server: Any) -> None:
    fleet_pb2_grpc.add_FleetServiceServicer_to_server(servicer, server)
    collected = _Collected()
    fleet_pb2_grpc.add_FleetServiceServicer_to_server(servicer, cast(grpc.aio.Server, collected))
    for name, methods in EARLIER_NAMES.items():
        server.add_registered_method_handlers(name, {method: collected.handlers[method] for method in methods})


def _add_nothing(servicer: FleetServicer, server: Any) -> None:
    """The handlers were added with those of the names now."""


class _Collected:
    """Stands in for the server while the generated code makes its handlers."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """The same handlers come once more, by name."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Keeps the handlers by method."""
        self.handlers = handlers


def _write(writer: Writer, data: bytes, max_bytes: int) -> None:
    received = writer.size_bytes + len(data)
    if received > max_bytes:
        problem = f"the archive was to have {max_bytes} bytes, and {received} or more came"
        raise QuotaExceededError(problem, subject="size_bytes")
    writer.write(data)


def _message(data: bytes, offset: int, size_bytes: int) -> pb.ReadCompiledCodeResponse:
    return pb.ReadCompiledCodeResponse(data=data, size_bytes=size_bytes)
