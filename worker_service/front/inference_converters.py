"""InferenceService's messages to domain types and back."""

import functools
from collections.abc import Sequence

from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from hotslot.rpc.times import to_duration
from worker_service.adapters.policy import Selection
from worker_service.engine.messages import FinishReason, SampledToken, SamplingOptions
from worker_service.front.requests import (
    ChatMessage,
    ChatPrompt,
    Chunk,
    Finished,
    GenerationEvent,
    GenerationRequest,
    NamedAdapter,
    Prompt,
    Started,
    TextPrompt,
    TokenPrompt,
    ToolCall,
)
from worker_service.front.worker import ModelInfo, Worker

_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}


def decode_request(message: pb.GenerateRequest) -> GenerationRequest:
    """The request with its defaults filled in, unchecked."""
    sampling, stop, logprobs = message.sampling, message.stop, message.logprobs
    return GenerationRequest(
        prompt=_decode_prompt(message),
        adapters=tuple(NamedAdapter(a.reference, a.weight if a.HasField("weight") else 1.0) for a in message.adapters),
        base_only=message.base_only,
        sampling=SamplingOptions(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p or 1.0,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty if sampling.HasField("repetition_penalty") else 1.0,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=tuple(sorted(sampling.logit_bias.items())),
            logprobs=logprobs.enabled,
            num_alternatives=logprobs.num_alternatives,
        ),
        seed=sampling.seed if sampling.HasField("seed") else None,
        max_tokens=stop.max_tokens,
        default_max_tokens=stop.default_max_tokens,
        min_tokens=stop.min_tokens,
        stop_strings=tuple(stop.stop_strings),
        stop_token_ids=tuple(stop.stop_token_ids),
        ignore_eos=stop.ignore_eos,
        prompt_logprobs=logprobs.prompt,
        request_id=message.request_id,
        priority=message.priority,
        num_choices=message.num_choices or 1,
        skip_special_tokens=message.skip_special_tokens if message.HasField("skip_special_tokens") else True,
    )


def serialise_settled(message: pb.GenerateRequest, request_id: str, selections: Sequence[Selection]) -> bytes:
    """The request as another worker gets it, with nothing left to that worker's defaults; none means the base."""
    settled = pb.GenerateRequest()
    settled.CopyFrom(message)
    settled.request_id = request_id
    settled.base_only = not selections
    del settled.adapters[:]
    settled.adapters.extend(pb.AdapterSelection(reference=str(s.reference), weight=s.weight) for s in selections)
    return settled.SerializeToString()


@functools.singledispatch
def encode_event(event: GenerationEvent) -> pb.GenerateResponse:
    """One message of the answer's stream."""
    raise AssertionError(f"{type(event).__name__} is no event")


@encode_event.register
def _(event: Started) -> pb.GenerateResponse:
    adapters = [pb.ServedAdapter(reference=str(a.reference), digest=a.digest, weight=a.weight) for a in event.adapters]
    started = pb.GenerateStarted(
        request_id=event.request_id,
        worker_id=event.worker_id,
        base_model_digest=event.base_model_digest,
        adapters=adapters,
        num_prompt_tokens=event.num_prompt_tokens,
        prompt_logprobs=[_encode_logprob(token) for token in event.prompt_logprobs],
    )
    return pb.GenerateResponse(started=started)


@encode_event.register
def _(event: Chunk) -> pb.GenerateResponse:
    chunk = pb.GenerateChunk(
        choice=event.choice,
        text=event.text,
        token_ids=[token.token_id for token in event.tokens],
        logprobs=[_encode_logprob(token) for token in event.tokens if token.logprob is not None],
    )
    return pb.GenerateResponse(chunk=chunk)


@encode_event.register
def _(event: Finished) -> pb.GenerateResponse:
    timings = event.timings
    finished = pb.GenerateFinished(
        choice=event.choice,
        reason=_REASONS[event.reason],
        stop_string=event.stop_string or "",
        stop_token_id=event.stop_token_id,
        usage=pb.Usage(
            prompt_tokens=event.prompt_tokens,
            completion_tokens=event.completion_tokens,
            cached_tokens=event.cached_tokens,
        ),
        timings=pb.Timings(
            queue=to_duration(timings.queue_s),
            adapter_load=to_duration(timings.adapter_load_s),
            time_to_first_token=to_duration(timings.time_to_first_token_s),
            total=to_duration(timings.total_s),
        ),
    )
    return pb.GenerateResponse(finished=finished)


def encode_model_info(worker: Worker, info: ModelInfo) -> pb.GetModelInfoResponse:
    """What the worker serves."""
    return pb.GetModelInfoResponse(
        base_model=info.base_model,
        base_model_digest=info.base_model_digest,
        model_type=info.model_type,
        dtype=info.dtype,
        max_sequence_tokens=info.max_sequence_tokens,
        vocab_size=info.vocab_size,
        eos_token_ids=info.eos_token_ids,
        has_chat_template=info.has_chat_template,
        target_modules=info.target_modules,
        num_slots=info.num_slots,
        slot_rank=info.slot_rank,
        max_rank=info.max_rank,
        max_sequences=info.max_sequences,
        worker_id=worker.worker_id,
    )


def _decode_prompt(message: pb.GenerateRequest) -> Prompt | None:
    match message.WhichOneof("prompt"):
        case "text":
            return TextPrompt(message.text)
        case "chat":
            return _decode_chat(message.chat)
        case "tokens":
            return TokenPrompt(tuple(message.tokens.token_ids))
        case _:
            return None


def _decode_chat(chat: pb.ChatPrompt) -> ChatPrompt:
    return ChatPrompt(
        messages=tuple(_decode_message(message) for message in chat.messages),
        add_generation_prompt=not chat.omit_generation_prompt,
        continue_final_message=chat.continue_final_message,
        tools_json=tuple(chat.tools_json),
        template_arguments_json=chat.template_arguments_json,
        allow_special_tokens=chat.allow_special_tokens,
        template=chat.template,
    )


def _decode_message(message: pb.ChatMessage) -> ChatMessage:
    return ChatMessage(
        role=message.role,
        content=message.content,
        parts=tuple(part.text if part.HasField("text") else None for part in message.parts),
        tool_calls=tuple(ToolCall(call.id, call.name, call.arguments_json) for call in message.tool_calls),
        tool_call_id=message.tool_call_id,
        name=message.name,
        reasoning_content=message.reasoning_content,
    )


def _encode_logprob(token: SampledToken) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token_id=token.token_id,
        logprob=token.logprob or 0.0,
        alternatives=[pb.TokenAlternative(token_id=a.token_id, logprob=a.logprob) for a in token.alternatives],
    )
