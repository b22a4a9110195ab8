"""InferenceService on the wire: decode, one call, encode. Messages of another worker go out as they came."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import Message

from hotslot.codec import from_proto, generation_event_from_proto, generation_event_to_proto, to_proto
from hotslot.collecting import collect
from hotslot.contract.generation import AdapterSelection, ChatPrompt, GenerationEvent, GenerationRequest
from hotslot.errors import QuotaExceededError
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from hotslot.pb.hotslot.worker.v1 import inference_pb2_grpc as pb_grpc
from hotslot.rpc.message_sizes import MAX_MESSAGE_BYTES
from hotslot.rpc.min_revision import noted_min_revision
from hotslot.rpc.tenant import tenant_of
from worker_service.adapters.policy import Selection
from worker_service.front.door import Call, Events, FrontDoor
from worker_service.front.worker import ServingWorker
from worker_service.routing.forwarding import is_forwarded

M = TypeVar("M", bound=Message)
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

    async def Complete(self, request: pb.CompleteRequest, context: Context) -> pb.CompleteResponse:
        """Answer at once."""
        async with aclosing(self._door.generate(_decode_call(request.request, context))) as events:
            completion = await collect(_decoded(events))
        return _sendable(to_proto(pb.CompleteResponse, completion))

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:
        """Count a prompt's tokens."""
        found = await self._worker.parts.counting.count(
            _prompt_of(request),
            add_special_tokens=request.add_special_tokens if request.HasField("add_special_tokens") else True,
            with_token_ids=request.with_token_ids,
            with_tokens=request.with_tokens,
        )
        return _sendable(await asyncio.to_thread(to_proto, pb.CountTokensResponse, found))

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:
        """Make text of tokens."""
        decoded = await self._worker.parts.counting.detokenize(
            tuple(request.token_ids),
            skip_special_tokens=request.skip_special_tokens,
            with_tokens=request.with_tokens,
        )
        return _sendable(await asyncio.to_thread(to_proto, pb.DetokenizeResponse, decoded))

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


async def _decoded(events: Events) -> AsyncIterator[GenerationEvent]:
    """Events made here, and those of another worker."""
    async for event in events:
        found = event if not isinstance(event, bytes) else generation_event_from_proto(_response_of(event))
        if found is not None:
            yield found


def _response_of(message: bytes) -> pb.GenerateResponse:
    return pb.GenerateResponse.FromString(message)


def _prompt_of(request: pb.CountTokensRequest) -> str | ChatPrompt | None:
    kind = request.WhichOneof("prompt")
    if kind == "chat":
        return from_proto(ChatPrompt, request.chat)
    return request.text if kind == "text" else None


def _sendable(message: M) -> M:
    """A message that clients take. Raises QuotaExceededError for a larger one."""
    size_bytes = message.ByteSize()
    if size_bytes > MAX_MESSAGE_BYTES:
        problem = f"the answer has {size_bytes:,} bytes, at most {MAX_MESSAGE_BYTES:,} fit a message"
        raise QuotaExceededError(f"{problem}; stream it with Generate, or ask for less", subject="response")
    return message


def _decode_call(request: pb.GenerateRequest, context: Context) -> Call:
    metadata = tuple(context.invocation_metadata() or ())
    decoded, noted = from_proto(GenerationRequest, request), noted_min_revision(metadata)
    return Call(
        tenant_of(context),
        replace(decoded, min_revision=noted) if noted > decoded.min_revision >= 0 else decoded,
        context.time_remaining,
        metadata,
        is_forwarded(metadata),
        partial(serialise_settled, request),
        with_references,
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


def with_references(message: bytes, references: Sequence[str]) -> bytes:
    """The first message of another worker's answer, which was sent digests, with the references that were asked for."""
    response = _response_of(message)
    for served, reference in zip(response.started.adapters, references, strict=False):
        served.reference = reference
    return response.SerializeToString()
