"""CompiledCodeService: archives of workers' compiled code, in and out."""

import time
from collections.abc import AsyncIterator
from typing import Any

from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.ids import parse_digest
from hotslot.pb.hotslot.store.v1 import compiled_code_pb2 as pb
from hotslot.pb.hotslot.store.v1 import compiled_code_pb2_grpc
from hotslot.rpc.tenant import tenant_of
from store_service.compiled_code import CompiledCodeStage, CompiledCodeStore
from store_service.content.streams import Pace
from store_service.execution.offload import Offload
from store_service.execution.turns import Turns


class CompiledCodeServicer(compiled_code_pb2_grpc.CompiledCodeServiceServicer):
    """Streams what a key has, and takes what belongs to one."""

    def __init__(self, code: CompiledCodeStore, offload: Offload, turns: Turns) -> None:
        """`turns` are those of all streams that the store sends."""
        self._code = code
        self._offload = offload
        self._turns = turns

    async def ReadCompiledCode(
        self, request: pb.ReadCompiledCodeRequest, context: Any
    ) -> AsyncIterator[pb.ReadCompiledCodeResponse]:
        """See the service's definition."""
        key = parse_digest(request.key, field="key")
        file, size_bytes = await self._offload(self._code.open, tenant_of(context), key)
        pace = Pace()
        with file:
            while data := await self._offload.to_its_end(file.read, pace.chunk_bytes):
                await self._turns.take()
                given_s = time.monotonic()
                yield pb.ReadCompiledCodeResponse(data=data, size_bytes=size_bytes)
                pace.add(time.monotonic() - given_s)

    async def WriteCompiledCode(
        self, request_iterator: AsyncIterator[pb.WriteCompiledCodeRequest], context: Any
    ) -> pb.WriteCompiledCodeResponse:
        """See the service's definition."""
        tenant, stage = tenant_of(context), None
        try:
            async for message in request_iterator:
                if stage is None:
                    key, digest = parse_digest(message.key, field="key"), parse_digest(message.digest)
                    stage = await self._offload.to_its_end(self._code.stage, tenant, key, digest, message.size_bytes)
                await self._offload.to_its_end(stage.write, message.data)
            await self._offload.to_its_end(_begun(stage).finish)
        finally:
            if stage is not None:
                stage.discard()
        return pb.WriteCompiledCodeResponse()


def _begun(stage: CompiledCodeStage | None) -> CompiledCodeStage:
    if stage is None:
        raise InvalidRequestError([FieldViolation("key", "the stream ended before its first message")])
    return stage
