"""Generation messages to and from the client's types."""

import json
from collections.abc import Iterable, Mapping, Sequence

from hotslot.contract.control import ModelInfo
from hotslot.contract.generation import (
    DEFAULT_MAX_TOKENS,
    AdapterSelection,
    ChatMessage,
    ChatPrompt,
    Chunk,
    Finished,
    FinishReason,
    GenerationEvent,
    GenerationRequest,
    Logprobs,
    Sampling,
    ServedAdapter,
    Started,
    Stop,
    TextPart,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
)
from hotslot.convert.messages import Form, build, items_of, mismatch
from hotslot.convert.scalars import enum_field
from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from hotslot.rpc.times import from_duration as seconds


def request_to(request: GenerationRequest | str | pb.GenerateRequest) -> pb.GenerateRequest:
    """Encode a request; a string is the prompt of one, and one that is encoded already stays as it is.

    Raises InvalidRequestError for values that the message cannot hold. What they mean is the worker's to check.
    """
    if isinstance(request, pb.GenerateRequest):
        return request
    return _encoded(GenerationRequest(request) if isinstance(request, str) else request)


def _encoded(request: object) -> pb.GenerateRequest:
    if not isinstance(request, GenerationRequest):
        raise InvalidRequestError([mismatch("request", request, "GenerationRequest or a string")])
    stop: object = request.stop
    return build(
        pb.GenerateRequest,
        {
            **_prompt_fields(request.prompt),
            "adapters": request.adapters,
            "base_only": request.base_only,
            "sampling": request.sampling,
            "stop": Stop() if stop is None else stop,
            "logprobs": request.logprobs,
            "request_id": request.request_id,
            "priority": request.priority,
            "num_choices": request.num_choices,
            # What older workers do is not written, so that nothing about the message is new to them.
            "skip_special_tokens": None if request.skip_special_tokens is True else request.skip_special_tokens,
        },
        FORMS,
    )


def _prompt_fields(prompt: object) -> dict[str, object]:
    if isinstance(prompt, str):
        return {"text": prompt}
    if isinstance(prompt, ChatPrompt):
        return {"chat": prompt}
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray | memoryview):
        if any(isinstance(item, ChatMessage | Mapping) for item in prompt[:1]):
            return {"chat": ChatPrompt(prompt)}
        return {"tokens": {"token_ids": prompt}}
    raise InvalidRequestError([mismatch("prompt", prompt, "text, ChatPrompt, ChatMessages or token ids")])


def _chat_fields(chat: ChatPrompt) -> dict[str, object]:
    continues: object = chat.continue_final_message
    opens_turn: object = continues is not True if chat.add_generation_prompt is None else chat.add_generation_prompt
    if opens_turn is True and continues is True:
        problem = "excludes continue_final_message: either the last message goes on or another turn begins"
        raise InvalidRequestError([FieldViolation("prompt.chat.add_generation_prompt", problem)])
    return {
        "messages": chat.messages,
        "omit_generation_prompt": not opens_turn if isinstance(opens_turn, bool) else opens_turn,
        "continue_final_message": continues,
        "tools_json": _objects_to_json(chat.tools, "prompt.chat.tools"),
        "template_arguments_json": _to_json(chat.template_arguments, "prompt.chat.template_arguments"),
        "allow_special_tokens": chat.allow_special_tokens,
        "template": chat.template,
    }


def _message_fields(turn: ChatMessage) -> dict[str, object]:
    is_text = isinstance(turn.content, str) or not isinstance(turn.content, Sequence)
    return {
        "role": turn.role,
        "content" if is_text else "parts": turn.content,
        "tool_calls": turn.tool_calls,
        "tool_call_id": turn.tool_call_id,
        "name": turn.name,
        "reasoning_content": turn.reasoning_content,
    }


def _call_fields(call: ToolCall) -> dict[str, object]:
    arguments = _to_json(call.arguments, "prompt.chat.messages.tool_calls.arguments")
    return {"id": call.id, "name": call.name, "arguments_json": arguments}


def _sampling_fields(sampling: Sampling) -> dict[str, object]:
    penalty: object = sampling.repetition_penalty
    is_none = type(penalty) in (int, float) and penalty == 1.0
    return {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "seed": sampling.seed,
        "repetition_penalty": None if is_none else penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": sampling.logit_bias,
    }


def _stop_fields(stop: Stop) -> dict[str, object]:
    return {
        "max_tokens": 0 if stop.max_tokens is None else stop.max_tokens,
        "default_max_tokens": 0 if stop.max_tokens is None else DEFAULT_MAX_TOKENS,
        "min_tokens": stop.min_tokens,
        "stop_strings": stop.strings,
        "stop_token_ids": stop.token_ids,
        "ignore_eos": stop.ignore_eos,
    }


def _logprobs_fields(logprobs: Logprobs) -> dict[str, object]:
    return {"enabled": True, "num_alternatives": logprobs.num_alternatives, "prompt": logprobs.prompt}


def _selection_fields(selection: AdapterSelection) -> dict[str, object]:
    return {"reference": selection.reference, "weight": selection.weight}


FORMS = {
    pb.ChatPrompt.DESCRIPTOR: Form(ChatPrompt, _chat_fields),
    pb.ChatMessage.DESCRIPTOR: Form(ChatMessage, _message_fields),
    pb.ContentPart.DESCRIPTOR: Form(TextPart, lambda part: {"text": part.text}),
    pb.ToolCall.DESCRIPTOR: Form(ToolCall, _call_fields),
    pb.AdapterSelection.DESCRIPTOR: Form(AdapterSelection, _selection_fields),
    pb.SamplingParams.DESCRIPTOR: Form(Sampling, _sampling_fields),
    pb.StopConditions.DESCRIPTOR: Form(Stop, _stop_fields),
    pb.LogprobOptions.DESCRIPTOR: Form(Logprobs, _logprobs_fields),
}
"""Types of the client in the place of messages."""


def _to_json(value: object, field: str) -> str:
    """A mapping as JSON; an empty one as nothing."""
    if not isinstance(value, Mapping):
        raise InvalidRequestError([mismatch(field, value, "a mapping of names to values that JSON can express")])
    try:
        return json.dumps(dict(value), ensure_ascii=False, allow_nan=False) if value else ""
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidRequestError([FieldViolation(field, f"JSON cannot express it: {exc}")]) from exc


def _objects_to_json(values: object, field: str) -> list[str]:
    items = items_of(values)
    if items is None:
        raise InvalidRequestError([mismatch(field, values, "a sequence of mappings")])
    return [_to_json(value, f"{field}[{index}]") or "{}" for index, value in enumerate(items)]


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
