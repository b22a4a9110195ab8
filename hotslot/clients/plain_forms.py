"""Plain values for requests: texts, mappings and tuples in the place of the contract's types, where they are one thing
only. What might be two things is refused, with what was found and what is expected."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

from hotslot.codec import mismatch
from hotslot.contract.generation import (
    AdapterSelection,
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    TextPart,
    ToolCall,
)
from hotslot.errors import FieldViolation, InvalidRequestError

Adapters = (
    str
    | AdapterSelection
    | tuple[str, float]
    | Mapping[str, float]
    | Sequence[str | AdapterSelection | tuple[str, float]]
)
"""One adapter by reference, one with its weight, several by reference with their weights, or a sequence of such."""
Message = ChatMessage | Mapping[str, object]
"""A turn; a mapping has ChatMessage's fields, of which `role` and `content` are the ones that mostly matter."""
Prompt = str | ChatPrompt | Sequence[Message] | Sequence[int]
"""A text, a conversation, or token ids."""

_ADAPTERS = 'a reference, a pair ("name", 0.5), a mapping {"name": 0.5}, AdapterSelection, or a sequence of them'
_ADAPTER = 'a reference, a pair ("name", 0.5) or AdapterSelection'
_REQUEST = "GenerationRequest or a string, ChatPrompt, messages or token ids"
_TURN = 'ChatMessage or a mapping such as {"role": "user", "content": "hi"}'
_MESSAGE_FIELDS = frozenset(field.name for field in fields(ChatMessage)) - {"parts"}


def as_request(request: object, adapters: object = ()) -> GenerationRequest:
    """The request that stands for a prompt, or is one already. Raises InvalidRequestError."""
    chosen = as_adapters(adapters)
    if isinstance(request, GenerationRequest):
        if not chosen:
            return request
        if request.adapters:
            problem = "the request names adapters already; name them in one place"
            raise InvalidRequestError([FieldViolation("adapters", problem)])
        return replace(request, adapters=chosen)
    return GenerationRequest(as_prompt(request), chosen)


def as_prompt(prompt: object) -> str | ChatPrompt | Sequence[int]:
    """The prompt that a value is. Raises InvalidRequestError."""
    if isinstance(prompt, str | ChatPrompt):
        return prompt
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray | memoryview):
        raise InvalidRequestError([mismatch("request", prompt, _REQUEST)])
    first = next(iter(prompt), None)
    if isinstance(first, str):
        problem = "found a sequence of strings, expected one text, messages with roles, or token ids"
        raise InvalidRequestError([FieldViolation("prompt", f"{problem}; join them, or send a request for each")])
    if isinstance(first, ChatMessage | Mapping):
        return ChatPrompt(as_messages(prompt))
    # Token ids: the codec looks at each.
    return cast("Sequence[int]", prompt)


def as_messages(messages: object) -> tuple[ChatMessage, ...]:
    """The turns of a conversation; a text is what the user says. Raises InvalidRequestError."""
    if isinstance(messages, str):
        return (ChatMessage("user", messages),)
    if isinstance(messages, ChatMessage | Mapping):
        return (_message(messages, "messages"),)
    if not isinstance(messages, Sequence) or isinstance(messages, bytes | bytearray | memoryview):
        raise InvalidRequestError([mismatch("messages", messages, f"a text, or a sequence of {_TURN}")])
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))


def as_path(path: object, field: str = "folder") -> Path:
    """The path that a value is. Raises InvalidRequestError."""
    if isinstance(path, str | os.PathLike):
        found = os.fspath(path)
        if isinstance(found, str):
            return Path(found)
    raise InvalidRequestError([mismatch(field, path, "a path")])


def as_adapters(adapters: object) -> tuple[AdapterSelection, ...]:
    """The selections that a value is. Raises InvalidRequestError."""
    if adapters is None:
        return ()
    if isinstance(adapters, Mapping):
        pairs = (_pair(name, weight, f"adapters[{name!r}]") for name, weight in adapters.items())
        return tuple(pairs)
    if isinstance(adapters, str | AdapterSelection) or _is_pair(adapters):
        return (_adapter(adapters, "adapters"),)
    if not isinstance(adapters, Sequence) or isinstance(adapters, bytes | bytearray | memoryview):
        raise InvalidRequestError([mismatch("adapters", adapters, _ADAPTERS)])
    return tuple(_adapter(adapter, f"adapters[{index}]") for index, adapter in enumerate(adapters))


def _adapter(adapter: Any, field: str) -> AdapterSelection:
    if isinstance(adapter, AdapterSelection):
        return adapter
    if isinstance(adapter, str):
        return AdapterSelection(adapter)
    if _is_pair(adapter):
        return _pair(adapter[0], adapter[1], field)
    raise InvalidRequestError([mismatch(field, adapter, _ADAPTER)])


def _is_pair(value: object) -> bool:
    """Tell a name with a weight from two names."""
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and not _is_adapter(value[1])


def _is_adapter(value: object) -> bool:
    return isinstance(value, str | AdapterSelection | tuple)


def _pair(name: object, weight: Any, field: str) -> AdapterSelection:
    if not isinstance(name, str):
        raise InvalidRequestError([mismatch(field, name, "a reference")])
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise InvalidRequestError([mismatch(f"{field}.weight", weight, "a number")])
    return AdapterSelection(name, weight)


def _message(message: object, field: str) -> ChatMessage:
    if isinstance(message, ChatMessage):
        return message
    if not isinstance(message, Mapping):
        raise InvalidRequestError([mismatch(field, message, _TURN)])
    unknown = [str(name) for name in message if name not in _MESSAGE_FIELDS]
    if unknown:
        problem = f"found {', '.join(map(repr, unknown[:8]))}, expected {', '.join(sorted(_MESSAGE_FIELDS))}"
        raise InvalidRequestError([FieldViolation(field, problem)])
    if "role" not in message:
        raise InvalidRequestError([FieldViolation(f"{field}.role", "missing; mostly user, assistant, system or tool")])
    values: dict[str, Any] = dict(message)
    values["content"] = _content(values.get("content", ""), f"{field}.content")
    calls = values.get("tool_calls", ())
    if isinstance(calls, Sequence) and not isinstance(calls, str):
        made = [_call(call, f"{field}.tool_calls[{index}]") for index, call in enumerate(calls)]
        values["tool_calls"] = tuple(made)
    return ChatMessage(**values)


def _content(content: object, field: str) -> object:
    """A content; of parts those of text, as OpenAI writes them. None, as of an answer of calls alone, is no text."""
    if content is None:
        return ""
    if isinstance(content, str) or not isinstance(content, Sequence):
        return content
    return tuple(_part(part, f"{field}[{index}]") for index, part in enumerate(content))


def _part(part: object, field: str) -> object:
    if isinstance(part, str):
        return TextPart(part)
    if not isinstance(part, Mapping):
        return part
    if part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return TextPart(str(part["text"]))
    kind = part.get("type", "no type")
    raise InvalidRequestError([FieldViolation(field, f"found a part of kind {kind!r}, expected text")])


def _call(call: object, field: str) -> object:
    if not isinstance(call, Mapping):
        return call
    try:
        return ToolCall(**call)
    except TypeError as exc:
        raise InvalidRequestError([mismatch(field, call, "ToolCall or a mapping of name, arguments and id")]) from exc
