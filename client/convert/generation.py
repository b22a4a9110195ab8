"""Generation messages to and from the client's types."""

from collections.abc import Iterable

from client.convert.scalars import enum_field
from client.types.control import ModelInfo
from client.types.generation import (
    ChatMessage,
    Chunk,
    Finished,
    FinishReason,
    GenerationEvent,
    GenerationRequest,
    Sampling,
    ServedAdapter,
    Started,
    Stop,
    Timings,
    TokenLogprob,
    Usage,
)
from shared.pb.hotslot.worker.v1 import inference_pb2 as pb
from shared.rpc.times import from_duration as seconds


def request_to(request: GenerationRequest) -> pb.GenerateRequest:
    """Encode a request. Values are sent as they are: the worker checks them and names every field at fault."""
    message = pb.GenerateRequest(
        adapters=[pb.AdapterSelection(reference=a.reference, weight=a.weight) for a in request.adapters],
        base_only=request.base_only,
        sampling=_sampling_to(request.sampling),
        stop=_stop_to(request.stop),
        request_id=request.request_id,
        priority=request.priority,
        num_choices=request.num_choices,
    )
    if request.logprobs is not None:
        message.logprobs.CopyFrom(
            pb.LogprobOptions(
                enabled=True,
                num_alternatives=request.logprobs.num_alternatives,
                prompt=request.logprobs.prompt,
            )
        )
    if isinstance(request.prompt, str):
        message.text = request.prompt
        return message
    turns = [p for p in request.prompt if isinstance(p, ChatMessage)]
    if turns:
        message.chat.CopyFrom(pb.ChatPrompt(messages=[pb.ChatMessage(role=t.role, content=t.content) for t in turns]))
    else:
        message.tokens.CopyFrom(pb.TokenPrompt(token_ids=[p for p in request.prompt if not isinstance(p, ChatMessage)]))
    return message


def _sampling_to(sampling: Sampling) -> pb.SamplingParams:
    message = pb.SamplingParams(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias),
    )
    if sampling.seed is not None:
        message.seed = sampling.seed
    if sampling.repetition_penalty != 1.0:
        message.repetition_penalty = sampling.repetition_penalty
    return message


def _stop_to(stop: Stop) -> pb.StopConditions:
    return pb.StopConditions(
        max_tokens=stop.max_tokens,
        min_tokens=stop.min_tokens,
        stop_strings=stop.strings,
        stop_token_ids=stop.token_ids,
        ignore_eos=stop.ignore_eos,
    )


def event_from(message: pb.GenerateResponse) -> GenerationEvent | None:
    """Decode an event; None for a kind that this client does not know."""
    kind = message.WhichOneof("event")
    if kind == "started":
        return _started_from(message.started)
    if kind == "chunk":
        chunk = message.chunk
        return Chunk(chunk.choice, chunk.text, tuple(chunk.token_ids), _logprobs_from(chunk.logprobs))
    if kind == "finished":
        return _finished_from(message.finished)
    return None


def _started_from(message: pb.GenerateStarted) -> Started:
    return Started(
        request_id=message.request_id,
        worker_id=message.worker_id,
        base_model_digest=message.base_model_digest,
        adapters=tuple(ServedAdapter(a.reference, a.digest, a.weight) for a in message.adapters),
        num_prompt_tokens=message.num_prompt_tokens,
        prompt_logprobs=_logprobs_from(message.prompt_logprobs),
    )


def _logprobs_from(messages: Iterable[pb.TokenLogprob]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(m.token_id, m.logprob, tuple((a.token_id, a.logprob) for a in m.alternatives)) for m in messages
    )


def _finished_from(message: pb.GenerateFinished) -> Finished:
    usage, timings = message.usage, message.timings
    return Finished(
        choice=message.choice,
        reason=enum_field(message, "reason", FinishReason),
        stop_string=message.stop_string,
        stop_token_id=message.stop_token_id if message.HasField("stop_token_id") else None,
        usage=Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens),
        timings=Timings(
            queue_s=seconds(timings.queue),
            adapter_load_s=seconds(timings.adapter_load),
            time_to_first_token_s=seconds(timings.time_to_first_token),
            total_s=seconds(timings.total),
        ),
    )


def model_info_from(message: pb.GetModelInfoResponse) -> ModelInfo:
    """Decode what a worker says about its model."""
    return ModelInfo(
        base_model=message.base_model,
        base_model_digest=message.base_model_digest,
        model_type=message.model_type,
        dtype=message.dtype,
        max_sequence_tokens=message.max_sequence_tokens,
        vocab_size=message.vocab_size,
        eos_token_ids=tuple(message.eos_token_ids),
        has_chat_template=message.has_chat_template,
        target_modules=tuple(message.target_modules),
        num_slots=message.num_slots,
        slot_rank=message.slot_rank,
        max_rank=message.max_rank,
        max_sequences=message.max_sequences,
        worker_id=message.worker_id,
    )
