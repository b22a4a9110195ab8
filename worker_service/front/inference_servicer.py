"""InferenceService on the wire: decode, one call, encode. Bytes of another worker go out as they came."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, cast

import grpc

from hotslot.codec import from_proto, generation_event_to_proto, to_proto
from hotslot.contract.generation import AdapterSelection, GenerationRequest
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from hotslot.pb.hotslot.worker.v1 import inference_pb2_grpc as pb_grpc
from hotslot.rpc.tenant import tenant_of
from worker_service.adapters.policy import Selection
from worker_service.front.door import Call, FrontDoor
from worker_service.front.worker import ServingWorker
from worker_service.routing.forwarding import is_forwarded

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(pb_grpc.InferenceServiceServicer):
    """Servicer of InferenceService, which clients call."""

    def __init__(self, worker: ServingWorker, door: FrontDoor) -> None:
        self._worker = worker
        self._door = door

    async def Generate(  # type: ignore[override]  # bytes too: see add_inference_servicer
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse | bytes]:
        """Stream an answer."""
        async with aclosing(self._door.generate(_decode_call(request, context))) as events:
            async for event in events:
                yield event if isinstance(event, bytes) else generation_event_to_proto(event)

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> pb.GetModelInfoResponse:
        """Say what is served."""
        return to_proto(pb.GetModelInfoResponse, self._worker.parts.info)


def add_inference_servicer(servicer: InferenceServicer, server: Any) -> None:
    """As the generated function does, but Generate may also answer with messages that are serialised already."""
    pb_grpc.add_InferenceServiceServicer_to_server(servicer, cast(grpc.aio.Server, _Registrar(server)))


class _Registrar:
    """Stands in for the server while the generated code registers its handlers."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """The same handlers come once more, by name."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Replaces Generate's handler and registers all."""
        generated = handlers["Generate"]
        generate = grpc.unary_stream_rpc_method_handler(
            generated.unary_stream, generated.request_deserializer, _serialise
        )
        every = {**handlers, "Generate": generate}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, every),))
        self._server.add_registered_method_handlers(service, every)


def _serialise(message: pb.GenerateResponse | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def _decode_call(request: pb.GenerateRequest, context: Context) -> Call:
    metadata = tuple(context.invocation_metadata() or ())
    return Call(
        tenant_of(context),
        from_proto(GenerationRequest, request),
        context.time_remaining,
        metadata,
        is_forwarded(metadata),
        partial(serialise_settled, request),
    )


def serialise_settled(received: pb.GenerateRequest, request_id: str, selections: Sequence[Selection]) -> bytes:
    """The request as another worker gets it, with nothing left to that worker's defaults; none means the base.

    It is the message that was received, so that fields of a newer client go on with it.
    """
    settled = pb.GenerateRequest()
    settled.CopyFrom(received)
    settled.request_id = request_id
    settled.base_only = not selections
    del settled.adapters[:]
    named = (AdapterSelection(str(selection.reference), selection.weight) for selection in selections)
    settled.adapters.extend(to_proto(pb.AdapterSelection, selection) for selection in named)
    return settled.SerializeToString()
