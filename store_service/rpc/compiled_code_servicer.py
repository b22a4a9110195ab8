"""CompiledCodeService: archives of workers' compiled code, in and out."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from hotslot.errors import FieldViolation, ForbiddenError, InvalidRequestError, QuotaExceededError
from hotslot.ids import TenantId, parse_digest
from hotslot.pb.hotslot.store.v1 import compiled_code_pb2 as pb
from hotslot.pb.hotslot.store.v1 import compiled_code_pb2_grpc
from hotslot.rpc.tenant import tenant_of
from store_service.content.keyed import KeyedContent
from store_service.content.reading import read_stream
from store_service.content.writer import Writer
from store_service.execution.offload import Offload
from store_service.execution.turns import Turns


class CompiledCodeServicer(compiled_code_pb2_grpc.CompiledCodeServiceServicer):
    """Streams what a key has, and takes what belongs to one."""

    def __init__(self, code: KeyedContent, offload: Offload, turns: Turns) -> None:
        """`turns` are those of all streams that the store sends."""
        self._code = code
        self._offload = offload
        self._turns = turns

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


def _write(writer: Writer, data: bytes, max_bytes: int) -> None:
    received = writer.size_bytes + len(data)
    if received > max_bytes:
        problem = f"the archive was to have {max_bytes} bytes, and {received} or more came"
        raise QuotaExceededError(problem, subject="size_bytes")
    writer.write(data)


def _message(data: bytes, offset: int, size_bytes: int) -> pb.ReadCompiledCodeResponse:
    return pb.ReadCompiledCodeResponse(data=data, size_bytes=size_bytes)
