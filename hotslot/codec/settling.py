"""A user's short forms of a request, brought into the one that its message holds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hotslot.codec.wrong_values import items_of, mismatch
from hotslot.contract.generation import ChatMessage, ChatPrompt, GenerationRequest, JsonText, Stop, ToolCall
from hotslot.errors import FieldViolation, InvalidRequestError


def settled_request(request: GenerationRequest) -> GenerationRequest:
    """Messages alone are a chat, and no stop conditions the default ones. Raises InvalidRequestError."""
    stop: Stop | None = request.stop
    return replace(request, prompt=_prompt(request.prompt), stop=Stop() if stop is None else stop)


def _prompt(prompt: object) -> str | ChatPrompt | Sequence[int] | None:
    if isinstance(prompt, str | ChatPrompt):
        return prompt
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray | memoryview):
        return ChatPrompt(prompt) if any(isinstance(item, ChatMessage | Mapping) for item in prompt[:1]) else prompt
    raise InvalidRequestError([mismatch("prompt", prompt, "text, ChatPrompt, ChatMessages or token ids")])


def settled_chat(chat: ChatPrompt) -> ChatPrompt:
    """A turn is opened unless the last message goes on; values are JSON. Raises InvalidRequestError."""
    continues: object = chat.continue_final_message
    opens_turn = chat.add_generation_prompt
    if opens_turn is None:
        opens_turn = continues is not True
    elif opens_turn is True and continues is True:
        problem = "excludes continue_final_message: either the last message goes on or another turn begins"
        raise InvalidRequestError([FieldViolation("prompt.chat.add_generation_prompt", problem)])
    return replace(
        chat,
        add_generation_prompt=opens_turn,
        tools=_objects_to_json(chat.tools, "prompt.chat.tools"),
        template_arguments=_to_json(chat.template_arguments, "prompt.chat.template_arguments"),
    )


def settled_message(turn: ChatMessage) -> ChatMessage:
    """A content in parts is in `parts`."""
    content: object = turn.content
    if isinstance(content, str) or not isinstance(content, Sequence):
        return turn
    return replace(turn, content="", parts=content)


def settled_call(call: ToolCall) -> ToolCall:
    """Arguments are JSON. Raises InvalidRequestError."""
    return replace(call, arguments=_to_json(call.arguments, "prompt.chat.messages.tool_calls.arguments"))


def settled_stop(stop: Stop) -> Stop:
    """As many tokens as fit is a bound of 0, and no default."""
    return replace(stop, max_tokens=0, default_max_tokens=0) if stop.max_tokens is None else stop


def _to_json(value: object, field: str) -> JsonText:
    """A mapping as JSON; an empty one as nothing."""
    if isinstance(value, JsonText):
        return value
    if not isinstance(value, Mapping):
        raise InvalidRequestError([mismatch(field, value, "a mapping of names to values that JSON can express")])
    try:
        return JsonText(json.dumps(dict(value), ensure_ascii=False, allow_nan=False) if value else "")
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidRequestError([FieldViolation(field, f"JSON cannot express it: {exc}")]) from exc


def _objects_to_json(values: object, field: str) -> tuple[JsonText, ...]:
    items = items_of(values)
    if items is None:
        raise InvalidRequestError([mismatch(field, values, "a sequence of mappings")])
    return tuple(_to_json(value, f"{field}[{index}]") or JsonText("{}") for index, value in enumerate(items))
