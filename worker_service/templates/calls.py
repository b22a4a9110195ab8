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


def renamed(turn: Turn, name: str) -> Turn:
    """The message with other names for what it calls: this one, and the place of the call."""
    if not calls_of(turn):
        return turn
    calls = [
        {**call, "function": {**call["function"], "name": f"{name}{index}e"}}
        for index, call in enumerate(calls_of(turn))
    ]
    return {**turn, "tool_calls": calls}


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
