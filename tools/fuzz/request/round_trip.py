"""Round trips of a request that was taken: through the client's forms, and on to another worker."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hotslot.codec import from_proto, request_to_proto
from hotslot.contract.generation import (
    DEFAULT_MAX_TOKENS,
    AdapterSelection,
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    JsonText,
    TextPart,
)
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from tools.fuzz.target import require
from worker_service.adapters.policy import Selection
from worker_service.front.inference_servicer import serialise_settled


def check_round_trips(message: pb.GenerateRequest, request: GenerationRequest, selections: Sequence[Selection]) -> None:
    """Raise OracleError where the request arrives as another one."""
    sent = pb.GenerateRequest.FromString(request_to_proto(_of_client(request)).SerializeToString())
    found = from_proto(GenerationRequest, sent)
    require(_meaning(found) == _meaning(request), f"our client sends {found}, expected {request}")
    passed_on = pb.GenerateRequest.FromString(serialise_settled(message, "r-1", selections))
    settled = from_proto(GenerationRequest, passed_on)
    adapters = tuple(AdapterSelection(str(s.reference), s.weight) for s in selections)
    expected = replace(request, adapters=adapters, base_only=not adapters, request_id="r-1")
    require(settled == expected, f"another worker gets {settled}, expected {expected}")


def _of_client(request: GenerationRequest) -> GenerationRequest:
    """The request in the forms that a user would write."""
    stop = request.stop
    if not stop.max_tokens and not stop.default_max_tokens:
        stop = replace(stop, max_tokens=None, default_max_tokens=DEFAULT_MAX_TOKENS)
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt):
        prompt = replace(
            prompt,
            messages=[_message_of(message) for message in prompt.messages],
            add_generation_prompt=None if prompt.continue_final_message else prompt.add_generation_prompt,
            tools=[_parsed(tool) for tool in prompt.tools],
            template_arguments=_parsed(prompt.template_arguments),
        )
    return replace(request, prompt=prompt, stop=stop)


def _message_of(message: ChatMessage) -> ChatMessage:
    parts = [TextPart(part.text) for part in message.parts if part is not None]
    calls = [replace(call, arguments=_parsed(call.arguments)) for call in message.tool_calls]
    return replace(message, content=parts or message.content, parts=(), tool_calls=calls)


def _parsed(document: object) -> Any:
    assert isinstance(document, JsonText), "as it arrived"
    return json.loads(document or "{}")


def _meaning(request: GenerationRequest) -> GenerationRequest:
    """The request with what has several spellings in one of them."""
    request = replace(request, stop=replace(request.stop, max_tokens=request.stop.most_tokens, default_max_tokens=0))
    chat = request.prompt
    if not isinstance(chat, ChatPrompt):
        return request
    messages = [
        replace(message, tool_calls=tuple(replace(c, arguments=_plain(c.arguments)) for c in message.tool_calls))
        for message in chat.messages
    ]
    plain = replace(
        chat,
        messages=tuple(messages),
        add_generation_prompt=chat.add_generation_prompt and not chat.continue_final_message,
        tools=tuple(map(_plain, chat.tools)),
        template_arguments=_plain(chat.template_arguments),
    )
    return replace(request, prompt=plain)


def _plain(document: object) -> JsonText:
    return JsonText(json.dumps(_parsed(document)))
