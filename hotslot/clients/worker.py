"""The asyncio client of one worker: inference and control."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from hotslot.clients.environment import FROM_ENVIRONMENT, FromEnvironment, timeout_of, worker_of, worker_options_of
from hotslot.clients.plain_forms import Adapters, Message, Prompt, as_adapters, as_messages, as_request
from hotslot.clients.rpc import UNARY_TIMEOUT_S, Connection
from hotslot.clients.token_requests import count_request, detokenize_request
from hotslot.clients.traced_generation import traced, traced_answer
from hotslot.clients.written_revision import WrittenRevision
from hotslot.codec import build, from_proto, generation_event_from_proto, mismatch, request_to_proto
from hotslot.collecting import collect
from hotslot.contract.control import LoadedAdapter, LoadResult, ModelInfo, WorkerAdapters, WorkerStatus
from hotslot.contract.generation import (
    AdapterSelection,
    ChatPrompt,
    Completion,
    GenerationEvent,
    GenerationRequest,
    Sampling,
    Stop,
)
from hotslot.contract.tokens import DecodedTokens, TokenCount
from hotslot.errors import InvalidRequestError, NotImplementedYetError
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2 as control_pb
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2_grpc as control_grpc
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from hotslot.pb.hotslot.worker.v1 import inference_pb2_grpc as pb_grpc
from hotslot.rpc.channel import ChannelOptions

LOAD_TIMEOUT_S = 300.0


class WorkerClient:
    """Calls one worker. Belongs to the event loop of its first call; use it with `async with`, or close it.

    `min_revision`, wherever it is taken, is what a write returned: references are read at that revision or a later one.
    """

    def __init__(
        self,
        endpoint: str | FromEnvironment = FROM_ENVIRONMENT,
        options: ChannelOptions | None = None,
        *,
        written: WrittenRevision | None = None,
    ) -> None:
        """`written` is that of the client whose writes every call is to be served by."""
        self._written = written or WrittenRevision()
        endpoint = worker_of(endpoint)
        self._connection = Connection("worker", endpoint, worker_options_of(options, worker=endpoint))
        self._inference = pb_grpc.InferenceServiceStub(self._connection.channel)
        self._control = control_grpc.AdapterControlServiceStub(self._connection.channel)

    @property
    def endpoint(self) -> str:
        """host:port of the worker."""
        return self._connection.endpoint

    async def __aenter__(self) -> "WorkerClient":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls that are under way raise ClientClosedError. Again is harmless."""
        await self._connection.close()

    async def connect(self, timeout_s: float = 5.0) -> None:
        """Wait until the connection stands; raises UnavailableError when it fails or takes too long."""
        await self._connection.connect(timeout_s)

    async def generate(
        self,
        request: GenerationRequest | Prompt | pb.GenerateRequest,
        *,
        adapters: Adapters = (),
        timeout_s: float | FromEnvironment = FROM_ENVIRONMENT,
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Stream a generation: Started, then Chunks, then one Finished per choice.

        A prompt alone (a text, messages or token ids) is a request with these `adapters`, none of them meaning the
        worker's defaults. Closing the iterator cancels the request.
        """
        message, timeout_s = self._message(request, adapters), timeout_of(timeout_s)
        found = self._events(message, timeout_s)
        async with aclosing(traced(found, message)) as events:
            async for event in events:
                yield event

    async def _events(self, message: pb.GenerateRequest, timeout_s: float) -> AsyncGenerator[GenerationEvent, None]:
        async with aclosing(self._connection.stream(self._inference.Generate, message, timeout_s)) as responses:
            async for response in responses:
                event = generation_event_from_proto(response)
                if event is not None:
                    yield event

    async def complete(
        self,
        request: GenerationRequest | Prompt | pb.GenerateRequest,
        *,
        adapters: Adapters = (),
        timeout_s: float | FromEnvironment = FROM_ENVIRONMENT,
    ) -> Completion:
        """Generate to the end; the arguments are those of `generate`."""
        message, timeout_s = self._message(request, adapters), timeout_of(timeout_s)
        # An answer with log-probabilities may be larger than a message.
        if not message.HasField("logprobs"):
            try:
                return await traced_answer(self._whole(message, timeout_s), message)
            except NotImplementedYetError:
                pass  # A worker of an earlier release only streams.
        return await collect(self.generate(message, timeout_s=timeout_s))

    async def _whole(self, message: pb.GenerateRequest, timeout_s: float) -> Completion:
        whole = pb.CompleteRequest(request=message)
        return from_proto(Completion, await self._connection.unary(self._inference.Complete, whole, timeout_s))

    async def count_tokens(
        self,
        prompt: Prompt | pb.CountTokensRequest,
        *,
        add_special_tokens: bool = True,
        with_token_ids: bool = False,
        with_tokens: bool = False,
        timeout_s: float = UNARY_TIMEOUT_S,
    ) -> TokenCount:
        """Number of a text's or a chat's tokens as a prompt has them, with the tokens where that is asked for."""
        request = count_request(
            prompt, add_special_tokens=add_special_tokens, with_token_ids=with_token_ids, with_tokens=with_tokens
        )
        return from_proto(TokenCount, await self._connection.unary(self._inference.CountTokens, request, timeout_s))

    async def detokenize(
        self,
        token_ids: Sequence[int] | pb.DetokenizeRequest,
        *,
        skip_special_tokens: bool = False,
        with_tokens: bool = False,
        timeout_s: float = UNARY_TIMEOUT_S,
    ) -> DecodedTokens:
        """The text of tokens, and of each where that is asked for."""
        request = detokenize_request(token_ids, skip_special_tokens=skip_special_tokens, with_tokens=with_tokens)
        return from_proto(DecodedTokens, await self._connection.unary(self._inference.Detokenize, request, timeout_s))

    async def chat(
        self,
        messages: ChatPrompt | str | Sequence[Message],
        *,
        adapters: Adapters = (),
        sampling: Sampling | None = None,
        stop: Stop | None = None,
        min_revision: int = 0,
        timeout_s: float | FromEnvironment = FROM_ENVIRONMENT,
    ) -> Completion:
        """Answer a conversation, rendered with the model's chat template; a text is what the user says."""
        prompt = messages if isinstance(messages, ChatPrompt) else ChatPrompt(as_messages(messages))
        request = GenerationRequest(
            prompt,
            as_adapters(adapters),
            sampling=Sampling() if sampling is None else sampling,
            stop=Stop() if stop is None else stop,
            min_revision=min_revision,
        )
        return await self.complete(request, timeout_s=timeout_s)

    async def model_info(self, *, timeout_s: float = UNARY_TIMEOUT_S) -> ModelInfo:
        """The model that the worker serves, and its limits."""
        response = await self._connection.unary(self._inference.GetModelInfo, pb.GetModelInfoRequest(), timeout_s)
        return from_proto(ModelInfo, response)

    async def load(
        self, reference: str, *, host_only: bool = False, min_revision: int = 0, timeout_s: float = LOAD_TIMEOUT_S
    ) -> LoadResult:
        """Bring the version that a reference stands for now into slots, and serve it to new requests."""
        needed = self._needed(min_revision)
        request = build(control_pb.LoadAdapterRequest, reference=reference, host_only=host_only, min_revision=needed)
        response = await self._connection.unary(self._control.LoadAdapter, request, timeout_s)
        return from_proto(LoadResult, response)

    async def unload(self, reference: str, *, timeout_s: float = 60.0) -> str:
        """Remove an adapter from every tier once its users are done, at the latest in `timeout_s`; its digest."""
        request = build(control_pb.UnloadAdapterRequest, reference=reference)
        return (await self._connection.unary(self._control.UnloadAdapter, request, timeout_s)).digest

    async def pin(self, reference: str, *, min_revision: int = 0, timeout_s: float = LOAD_TIMEOUT_S) -> LoadedAdapter:
        """Keep an adapter in its slots; loads it first if need be."""
        needed = self._needed(min_revision)
        request = build(control_pb.PinAdapterRequest, reference=reference, min_revision=needed)
        response = await self._connection.unary(self._control.PinAdapter, request, timeout_s)
        return from_proto(LoadedAdapter, response.adapter)

    async def unpin(self, reference: str) -> LoadedAdapter:
        """Let an adapter be evicted again."""
        request = build(control_pb.UnpinAdapterRequest, reference=reference)
        response = await self._connection.unary(self._control.UnpinAdapter, request)
        return from_proto(LoadedAdapter, response.adapter)

    async def list_adapters(self) -> WorkerAdapters:
        """Every adapter that the worker holds, in any tier."""
        response = await self._connection.unary(self._control.ListAdapters, control_pb.ListAdaptersRequest())
        return from_proto(WorkerAdapters, response)

    async def set_default_adapters(
        self, adapters: Sequence[AdapterSelection], *, min_revision: int = 0, timeout_s: float = LOAD_TIMEOUT_S
    ) -> tuple[AdapterSelection, ...]:
        """Set what a request that names no adapters gets; none means the base model."""
        needed = self._needed(min_revision)
        request = build(control_pb.SetDefaultAdaptersRequest, adapters=adapters, min_revision=needed)
        response = await self._connection.unary(self._control.SetDefaultAdapters, request, timeout_s)
        return tuple(from_proto(AdapterSelection, adapter) for adapter in response.adapters)

    async def enable_adapters(self) -> None:
        """Serve adapters again."""
        await self._connection.unary(self._control.EnableAdapters, control_pb.EnableAdaptersRequest())

    async def disable_adapters(self) -> None:
        """Serve every new request with the base model alone."""
        await self._connection.unary(self._control.DisableAdapters, control_pb.DisableAdaptersRequest())

    async def drain(self, *, timeout_s: float = 600.0) -> None:
        """Stop taking requests and wait until the running ones have finished; `undrain` is the way back.

        Raises RequestDeadlineError when some still run after the timeout, and ConflictError when it is called off.
        """
        await self._connection.unary(self._control.DrainWorker, control_pb.DrainWorkerRequest(), timeout_s)

    async def undrain(self) -> None:
        """Take requests again."""
        await self._connection.unary(self._control.UndrainWorker, control_pb.UndrainWorkerRequest())

    async def status(self, *, timeout_s: float = UNARY_TIMEOUT_S) -> WorkerStatus:
        """Status of the worker."""
        request = control_pb.GetWorkerStatusRequest()
        return from_proto(WorkerStatus, await self._connection.unary(self._control.GetWorkerStatus, request, timeout_s))

    def _message(
        self, request: GenerationRequest | Prompt | pb.GenerateRequest, adapters: Adapters
    ) -> pb.GenerateRequest:
        """The message of a request that sees what this client wrote."""
        if isinstance(request, pb.GenerateRequest):
            message = request
        else:
            message = request_to_proto(as_request(request, adapters))
        needed = self._written.needed_by(message)
        if needed == message.min_revision:
            return message
        changed = pb.GenerateRequest()
        changed.CopyFrom(message)
        changed.min_revision = needed
        return changed

    def _needed(self, min_revision: int) -> int:
        """The revision that a call must see: the caller's, or that of the client's own writes. Raises
        InvalidRequestError for what is no number."""
        if isinstance(min_revision, bool) or not isinstance(min_revision, int):
            raise InvalidRequestError([mismatch("min_revision", min_revision, "a whole number")])
        return max(min_revision, self._written.value)
