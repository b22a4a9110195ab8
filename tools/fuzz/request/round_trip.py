"""Round trips of a request that was taken: through our client's types, and on to another worker."""

import json
from dataclasses import replace
from typing import Any

from hotslot.codec import request_to_proto as request_to
from hotslot.contract import generation as client
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from tools.fuzz.target import require
from worker_service.front.inference_converters import decode_request, serialise_settled
from worker_service.front.requests import (
    ChatPrompt,
    CheckedRequest,
    GenerationRequest,
    NamedAdapter,
    TextPrompt,
    TokenPrompt,
)


def check_round_trips(message: pb.GenerateRequest, checked: CheckedRequest) -> None:
    """Raise OracleError where the request arrives as another one."""
    request = checked.request
    sent = _of_client(request)
    if sent is not None:
        found = decode_request(pb.GenerateRequest.FromString(request_to(sent).SerializeToString()))
        require(_meaning(found) == _meaning(request), f"our client sends {found}, expected {request}")
    settled = decode_request(pb.GenerateRequest.FromString(serialise_settled(message, "r-1", checked.selections)))
    adapters = tuple(NamedAdapter(str(s.reference), s.weight) for s in checked.selections)
    expected = replace(request, adapters=adapters, base_only=not adapters, request_id="r-1")
    require(settled == expected, f"another worker gets {settled}, expected {expected}")


def _of_client(request: GenerationRequest) -> client.GenerationRequest | None:
    """The request in our client's types; None for what these do not express."""
    sampling = request.sampling
    if not sampling.logprobs and (sampling.num_alternatives or request.prompt_logprobs):
        return None
    max_tokens: int | None = request.max_tokens
    if not max_tokens and request.default_max_tokens != client.DEFAULT_MAX_TOKENS:
        if request.default_max_tokens:
            return None
        max_tokens = None
    return client.GenerationRequest(
        _prompt_of(request),
        adapters=[client.AdapterSelection(a.reference, a.weight) for a in request.adapters],
        base_only=request.base_only,
        sampling=client.Sampling(
            sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, request.seed,
            sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty,
            dict(sampling.logit_bias),
        ),
        stop=client.Stop(
            max_tokens, request.min_tokens, request.stop_strings, request.stop_token_ids, request.ignore_eos
        ),
        logprobs=client.Logprobs(sampling.num_alternatives, request.prompt_logprobs) if sampling.logprobs else None,
        request_id=request.request_id,
        priority=request.priority,
        num_choices=request.num_choices,
        skip_special_tokens=request.skip_special_tokens,
    )  # fmt: skip


def _prompt_of(request: GenerationRequest) -> Any:
    match request.prompt:
        case TextPrompt(text):
            return text
        case TokenPrompt(token_ids):
            return token_ids
        case ChatPrompt() as chat:
            return client.ChatPrompt(
                [_message_of(message) for message in chat.messages],
                None if chat.continue_final_message else chat.add_generation_prompt,
                chat.continue_final_message,
                [json.loads(text or "{}") for text in chat.tools_json],
                json.loads(chat.template_arguments_json or "{}"),
                chat.allow_special_tokens,
                chat.template,
            )


def _message_of(message: Any) -> client.ChatMessage:
    return client.ChatMessage(
        message.role,
        [client.TextPart(text) for text in message.parts] or message.content,
        [client.ToolCall(c.name, json.loads(c.arguments_json or "{}"), c.call_id) for c in message.tool_calls],
        message.tool_call_id,
        message.name,
        message.reasoning_content,
    )


def _meaning(request: GenerationRequest) -> GenerationRequest:
    """The request with what has several spellings in one of them."""
    request = replace(request, max_tokens=request.most_tokens, default_max_tokens=0)
    chat = request.prompt
    if not isinstance(chat, ChatPrompt):
        return request
    messages = [
        replace(
            message, tool_calls=tuple(replace(c, arguments_json=_plain(c.arguments_json)) for c in message.tool_calls)
        )
        for message in chat.messages
    ]
    plain = replace(
        chat,
        messages=tuple(messages),
        add_generation_prompt=chat.add_generation_prompt and not chat.continue_final_message,
        tools_json=tuple(map(_plain, chat.tools_json)),
        template_arguments_json=_plain(chat.template_arguments_json),
    )
    return replace(request, prompt=plain)


def _plain(text: str) -> str:
    return json.dumps(json.loads(text or "{}"))
