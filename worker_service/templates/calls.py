"""Forms in which templates take calls of tools: arguments as an object or as text, no content as "" or as none. Pure.

Most templates take what transformers documents, an object and an empty string. Some were written for the messages of
an API whose arguments are JSON text, and whose content is null where there are calls: given anything else, they raise,
or leave the calls out.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Turn = dict[str, Any]


def calls_of(turn: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The calls that a message makes."""
    calls: Sequence[Mapping[str, Any]] = turn.get("tool_calls", ())
    return calls


def other_forms(turns: Sequence[Turn], texts: Sequence[Sequence[str]]) -> Iterator[list[Turn]]:
    """The messages in the other forms, the likeliest first; none where nothing is called.

    `texts` are the arguments of each message's calls as the caller wrote them.
    """
    if any(calls_of(turn) for turn in turns):
        written = [_with_texts(turn, own) for turn, own in zip(turns, texts, strict=True)]
        yield written
        yield [_with_none(turn) for turn in written]
        yield [_with_none(turn) for turn in turns]


def probing_calls(turn: Turn, name: str) -> Turn:
    """The message with this name and the place of the call as what is called, and in the arguments."""
    if not calls_of(turn):
        return turn
    calls = [
        {
            **call,
            "function": {
                **call["function"],
                "name": f"{name}{index}e",
                "arguments": _probing_arguments(call["function"]["arguments"], f"{name}{index}a"),
            },
        }
        for index, call in enumerate(calls_of(turn))
    ]
    return {**turn, "tool_calls": calls}


def written_by_python(probe: str) -> str:
    """Text of a probe in arguments that a template writes as Python does, which is no JSON."""
    return f"'{probe}': '{probe}'"


def _probing_arguments(arguments: Any, probe: str) -> Any:
    """Arguments with a probe in each text, and as one more: a template may write only those that a tool declares."""
    if isinstance(arguments, str):
        return json.dumps(_probing_arguments(json.loads(arguments), probe), ensure_ascii=False)
    changed = {key: value + probe if isinstance(value, str) else value for key, value in arguments.items()}
    return {**changed, probe: probe}


def _with_texts(turn: Turn, texts: Sequence[str]) -> Turn:
    if not calls_of(turn):
        return turn
    calls = [
        {**call, "function": {**call["function"], "arguments": text or json.dumps({})}}
        for call, text in zip(calls_of(turn), texts, strict=True)
    ]
    return {**turn, "tool_calls": calls}


def _with_none(turn: Turn) -> Turn:
    return turn if turn["content"] or not calls_of(turn) else {**turn, "content": None}
