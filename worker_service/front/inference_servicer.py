"""InferenceService on the wire: decode, one call, encode."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from shared.pb.hotslot.worker.v1 import inference_pb2 as pb
from shared.pb.hotslot.worker.v1 import inference_pb2_grpc as pb_grpc
from shared.rpc.tenant import tenant_of
from worker_service.front.inference_converters import decode_request, encode_event, encode_model_info
from worker_service.front.worker import Worker

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(pb_grpc.InferenceServiceServicer):
    """What clients call."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        """Stream an answer."""
        with self._worker.admitted() as parts:
            events = parts.generation.generate(tenant_of(context), decode_request(request), context.time_remaining())
            async with aclosing(events):
                async for event in events:
                    yield encode_event(event)

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> pb.GetModelInfoResponse:
        """Say what is served."""
        return encode_model_info(self._worker, self._worker.parts.info)
