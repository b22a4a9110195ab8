"""Calls of tools in the text of answers: found in either format, and the same however the text is cut."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_service.call_objects import CallArguments, CallName
from gateway_service.tool_calls import CallContent, CallEvent, ToolFormat, parser_of

HERMES, LLAMA = ToolFormat.HERMES, ToolFormat.LLAMA3_JSON


@dataclass
class Told:
    """Everything that a parser told, put together."""

    content: str = ""
    names: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)

    def add(self, events: Iterable[CallEvent]) -> None:
        for event in events:
            match event:
                case CallContent(text):
                    assert text
                    self.content += text
                case CallName(index, name):
                    assert index == len(self.names), "calls come in their order"
                    self.names.append(name)
                    self.arguments.append("")
                case CallArguments(index, text):
                    assert text
                    assert index == len(self.names) - 1, "arguments follow their name"
                    self.arguments[index] += text


def told(format_: ToolFormat, pieces: Sequence[str]) -> Told:
    parser, found = parser_of(format_), Told()
    for piece in pieces:
        found.add(parser.feed(piece))
    found.add(parser.finish())
    return found


def cut(text: str, places: Iterable[int]) -> list[str]:
    at = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[begin:end] for begin, end in pairwise(at)]


texts = st.text(st.sampled_from('ab {}[]"\\\n<>/|é😀:,;t') | st.characters(codec="utf-8"), max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts | st.sampled_from(["</tool_call>", "<tool_call>", "; {"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
calls = st.tuples(st.text("abc_1", min_size=1, max_size=5), st.dictionaries(texts, json_values, max_size=3))
indents = st.sampled_from([None, 2])
places = st.lists(st.integers(0, 10_000), max_size=8)


def written(call: tuple[str, dict[str, Any]], key: str, indent: int | None, is_reversed: bool) -> str:
    document = {"name": call[0], key: call[1]}
    if is_reversed:
        document = dict(reversed(document.items()))
    return json.dumps(document, ensure_ascii=False, indent=indent)


@settings(max_examples=60)
@given(
    content=texts.filter(lambda text: "<" not in text),
    made=st.lists(calls, min_size=1, max_size=3),
    indent=indents,
    is_reversed=st.booleans(),
    gap=st.sampled_from(["", "\n", " \n "]),
    is_closed=st.booleans(),
    places=places,
)
def test_calls_between_tags_are_found_wherever_the_text_is_cut(
    content: str,
    made: list[tuple[str, dict[str, Any]]],
    indent: int | None,
    is_reversed: bool,
    gap: str,
    is_closed: bool,
    places: list[int],
) -> None:
    parts = [
        f"<tool_call>{gap}{written(call, 'arguments', indent, is_reversed)}{gap}</tool_call>{gap}" for call in made
    ]
    text = content + "".join(parts)
    if not is_closed:
        text = text[: text.rindex("</tool_call>")]
    found = told(HERMES, cut(text, places))
    assert found.content == content.rstrip()
    assert [(n, json.loads(a)) for n, a in zip(found.names, found.arguments, strict=True)] == made


@settings(max_examples=60)
@given(
    made=st.lists(calls, min_size=1, max_size=3),
    indent=indents,
    is_reversed=st.booleans(),
    tag=st.sampled_from(["", "<|python_tag|>", " \n"]),
    between=st.sampled_from(["; ", ";", "\n"]),
    places=places,
)
def test_an_answer_of_calls_alone_is_found_wherever_the_text_is_cut(
    made: list[tuple[str, dict[str, Any]]],
    indent: int | None,
    is_reversed: bool,
    tag: str,
    between: str,
    places: list[int],
) -> None:
    text = tag + between.join(written(call, "parameters", indent, is_reversed) for call in made)
    found = told(LLAMA, cut(text, places))
    assert found.content == ""
    assert [(n, json.loads(a)) for n, a in zip(found.names, found.arguments, strict=True)] == made


FRAGMENTS = [
    *("<tool_call>", "</tool_call>", "<tool_", "call>", "<|python_tag|>", "<|py", '{"name": "f", ', '"arguments": {'),
    *(
        '"a": 1}',
        "}",
        "{",
        '"',
        "\\",
        ";",
        ",",
        ":",
        " ",
        "\n",
        "x",
        "null",
        '"parameters": ',
        '{"name": 3}',
        '{"b": 2}',
    ),
    *('{"name": "g", "arguments": "{\\"c\\": 1}"}', '{"type": "function", "name": "h"}', "[", "]", "é"),
]


@pytest.mark.parametrize("format_", list(ToolFormat))
@settings(max_examples=60)
@given(parts=st.lists(st.sampled_from(FRAGMENTS), max_size=10), places=places)
def test_any_text_is_told_the_same_however_it_is_cut(format_: ToolFormat, parts: list[str], places: list[int]) -> None:
    text = "".join(parts)
    whole = told(format_, [text])
    assert told(format_, cut(text, places)) == whole
    assert told(format_, list(text)) == whole
    if not whole.names:
        assert whole.content == text, "what has no call is told as it is"


@pytest.mark.parametrize(
    ("format_", "text", "names", "arguments", "content"),
    [
        (HERMES, 'Hm. <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>', ["f"], ['{"a": 1}'], "Hm."),
        (HERMES, '<tool_call>{"name": "f", "arguments": {}}</tool_call> Done.', ["f"], ["{}"], "Done."),
        (HERMES, '<tool_call>{"name": "f"}</tool_call>', ["f"], ["{}"], ""),
        (HERMES, '<tool_call>{"name": "f", "arguments": null}</tool_call>', ["f"], ["{}"], ""),
        (HERMES, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', ["f"], ['{"a": 1}'], ""),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}', ["f"], ['{"a": "</tool_call>"}'], ""),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": [1, ', ["f"], ['{"a": [1, '], ""),
        (HERMES, '<tool_call>{"name": "f"', ["f"], [], ""),
        (HERMES, "<tool_call>no json</tool_call>", [], [], "<tool_call>no json</tool_call>"),
        (HERMES, '<tool_call>{"name": ""}</tool_call>', [], [], '<tool_call>{"name": ""}</tool_call>'),
        (HERMES, '{"name": "f", "arguments": {}}', [], [], '{"name": "f", "arguments": {}}'),
        (LLAMA, '{"type": "function", "name": "f", "parameters": {"a": 1}}', ["f"], ['{"a": 1}'], ""),
        (LLAMA, '{"a": 1}', [], [], '{"a": 1}'),
        (LLAMA, 'See: {"name": "f", "parameters": {}}', [], [], 'See: {"name": "f", "parameters": {}}'),
        (LLAMA, '{"name": "f", "parameters": {}} and so on', ["f"], ["{}"], " and so on"),
        (LLAMA, "", [], [], ""),
    ],
)
def test_what_a_model_may_write(
    format_: ToolFormat, text: str, names: list[str], arguments: list[str], content: str
) -> None:
    found = told(format_, [text])
    assert (found.names, [one for one in found.arguments if one], found.content) == (names, arguments, content)


def test_arguments_come_before_the_call_has_ended() -> None:
    parser = parser_of(HERMES)
    events = list(parser.feed('<tool_call>{"name": "f", "arguments": {"text": "Once upon a'))
    assert events == [CallName(0, "f"), CallArguments(0, '{"text": "Once upon a')]
    assert list(parser.feed(" time")) == [CallArguments(0, " time")]


def test_an_answer_in_json_that_calls_nothing_is_not_held_back() -> None:
    assert list(parser_of(LLAMA).feed('{"city": ')) == [CallContent('{"city": ')]
