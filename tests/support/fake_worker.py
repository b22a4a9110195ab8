"""A worker that answers with a fixed text behind real gRPC sockets, and fails where a test asks for it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from hotslot.errors import AdapterNotLoadedError, HotslotError
from hotslot.pb.hotslot.worker.v1 import (
    adapter_control_pb2,
    adapter_control_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
)
from shared.server.grpc_server import Service, service


class FakeInference(inference_pb2_grpc.InferenceServiceServicer):
    """Streams `pieces` for every choice. Complete is not there, as with workers of an earlier release."""

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.pieces = ["Hello", ", ", "sailor"]
        self.requests: list[inference_pb2.GenerateRequest] = []
        self.fail_first: list[HotslotError] = []
        """Raised before the first event, one per call."""
        self.fail_after_pieces: tuple[int, HotslotError] | None = None
        self.hang_after_pieces: int | None = None
        self.hanging = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def Generate(self, request: inference_pb2.GenerateRequest, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        if self.fail_first:
            raise self.fail_first.pop(0)
        yield inference_pb2.GenerateResponse(
            started=inference_pb2.GenerateStarted(
                request_id=request.request_id or "r-1",
                worker_id=self.worker_id,
                adapters=[
                    inference_pb2.ServedAdapter(reference=a.reference, digest="sha256:" + "ab" * 32, weight=a.weight)
                    for a in request.adapters
                ],
                num_prompt_tokens=3,
            )
        )
        try:
            for index, piece in enumerate(self.pieces):
                if self.fail_after_pieces is not None and index == self.fail_after_pieces[0]:
                    raise self.fail_after_pieces[1]
                if index == self.hang_after_pieces:
                    self.hanging.set()
                    await asyncio.Event().wait()
                for choice in range(request.num_choices or 1):
                    yield inference_pb2.GenerateResponse(
                        chunk=inference_pb2.GenerateChunk(choice=choice, text=piece, token_ids=[index])
                    )
        except (asyncio.CancelledError, GeneratorExit):
            # Which one depends on whether the call is cancelled while we wait or while a message is sent.
            self.cancelled.set()
            raise
        for choice in range(request.num_choices or 1):
            finished = inference_pb2.GenerateFinished(
                choice=choice,
                reason=inference_pb2.FINISH_REASON_STOP,
                stop_token_id=0,
                usage=inference_pb2.Usage(prompt_tokens=3, completion_tokens=len(self.pieces)),
            )
            finished.timings.time_to_first_token.FromMilliseconds(12)
            finished.timings.total.FromMilliseconds(34)
            yield inference_pb2.GenerateResponse(finished=finished)

    async def CountTokens(self, request: inference_pb2.CountTokensRequest, context: Any) -> Any:
        tokens = [inference_pb2.Token(token_id=i, text=text) for i, text in enumerate(self.pieces)]
        return inference_pb2.CountTokensResponse(num_tokens=len(tokens), max_sequence_tokens=512, tokens=tokens)

    async def Detokenize(self, request: inference_pb2.DetokenizeRequest, context: Any) -> Any:
        return inference_pb2.DetokenizeResponse(text="".join(self.pieces[i] for i in request.token_ids))

    async def GetModelInfo(self, request: Any, context: Any) -> Any:
        return inference_pb2.GetModelInfoResponse(
            base_model="org/base", max_rank=64, eos_token_ids=[2], worker_id=self.worker_id
        )


class FakeControl(adapter_control_pb2_grpc.AdapterControlServiceServicer):
    """Holds one adapter."""

    def __init__(self) -> None:
        self.drained = False
        self.adapter = adapter_control_pb2.LoadedAdapter(
            digest="sha256:" + "ab" * 32,
            references=["pirate"],
            tier=adapter_control_pb2.ADAPTER_TIER_SLOT,
            max_rank=16,
            slots=[3],
            host_size_bytes=1_234_567,
        )

    async def LoadAdapter(self, request: Any, context: Any) -> Any:
        response = adapter_control_pb2.LoadAdapterResponse(adapter=self.adapter)
        response.timings.activate.FromMicroseconds(1500)
        return response

    async def UnloadAdapter(self, request: Any, context: Any) -> Any:
        if request.reference == "slow":
            await asyncio.sleep(60)
        if request.reference != "pirate":
            raise AdapterNotLoadedError(request.reference)
        return adapter_control_pb2.UnloadAdapterResponse(digest=self.adapter.digest)

    async def PinAdapter(self, request: Any, context: Any) -> Any:
        self.adapter.pinned = True
        return adapter_control_pb2.PinAdapterResponse(adapter=self.adapter)

    async def DrainWorker(self, request: Any, context: Any) -> Any:
        self.drained = True
        return adapter_control_pb2.DrainWorkerResponse()

    async def UndrainWorker(self, request: Any, context: Any) -> Any:
        self.drained = False
        return adapter_control_pb2.UndrainWorkerResponse()

    async def ListAdapters(self, request: Any, context: Any) -> Any:
        return adapter_control_pb2.ListAdaptersResponse(
            adapters=[self.adapter],
            default_adapters=[adapter_control_pb2.DefaultAdapter(reference="pirate")],
            adapters_enabled=True,
        )

    async def GetWorkerStatus(self, request: Any, context: Any) -> Any:
        return adapter_control_pb2.GetWorkerStatusResponse(
            worker_id="w-1",
            state=adapter_control_pb2.WORKER_STATE_READY,
            slots=adapter_control_pb2.SlotStatus(num_slots=8, slot_rank=16, free=7, in_use=1),
            kv=adapter_control_pb2.KvStatus(
                num_blocks=100, free_blocks=75, block_tokens=16, cached_blocks=5, prompt_tokens=90, cached_tokens=30
            ),
            queue=adapter_control_pb2.QueueStatus(running_sequences=2, max_sequences=8),
            generated_tokens=1000,
            drained=self.drained,
        )


class FakeWorker:
    """Both services of a worker."""

    def __init__(self, worker_id: str = "w-1") -> None:
        self.inference = FakeInference(worker_id)  # type: ignore[abstract]
        # What the fake does not answer, the generated base class answers with UNIMPLEMENTED.
        self.control = FakeControl()  # type: ignore[abstract]

    def services(self) -> list[Service]:
        return [
            service(
                inference_pb2,
                "InferenceService",
                inference_pb2_grpc.add_InferenceServiceServicer_to_server,
                self.inference,
            ),
            service(
                adapter_control_pb2,
                "AdapterControlService",
                adapter_control_pb2_grpc.add_AdapterControlServiceServicer_to_server,
                self.control,
            ),
        ]
