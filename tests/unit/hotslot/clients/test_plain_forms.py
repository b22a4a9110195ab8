"""Plain values in the place of the contract's types: what they stand for on the wire."""

from collections.abc import Iterator
from typing import Any

import pytest

from hotslot import AdapterSelection, BlockingHotslotClient, ChatMessage, ChatPrompt, GenerationRequest, TextPart
from hotslot.contract.generation import ToolCall
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from tests.unit.hotslot.conftest import Served

A, B = pb.AdapterSelection(reference="a"), pb.AdapterSelection(reference="b", weight=0.5)
ADAPTERS: dict[str, tuple[Any, list[pb.AdapterSelection]]] = {
    "nothing": ((), []),
    "None": (None, []),
    "a name": ("a", [A]),
    "a selection": (AdapterSelection("b", 0.5), [B]),
    "a name with its weight": (("b", 0.5), [B]),
    "two names": (("a", "b"), [A, pb.AdapterSelection(reference="b")]),
    "a mapping": ({"b": 0.5}, [B]),
    "a list of all kinds": (["a", ("b", 0.5), AdapterSelection("a")], [A, B, A]),
    "a tuple of pairs": ((("b", 0.5), ("b", 0.5)), [B, B]),
}
HI = ChatMessage("user", "hi")
CALLED = ChatMessage("assistant", "", (ToolCall("look", {"at": "sea"}, "c1"),))
LOOK = {"name": "look", "arguments": {"at": "sea"}, "id": "c1"}
PROMPTS: dict[str, tuple[Any, ChatPrompt]] = {
    "messages": ([HI], ChatPrompt((HI,))),
    "a mapping for each": ([{"role": "user", "content": "hi"}], ChatPrompt((HI,))),
    "both": ([{"role": "system", "content": "be brief"}, HI], ChatPrompt((ChatMessage("system", "be brief"), HI))),
    "parts as OpenAI has them": (
        [{"role": "user", "content": [{"type": "text", "text": "h"}, "i"]}],
        ChatPrompt((ChatMessage("user", (TextPart("h"), TextPart("i"))),)),
    ),
    "a call of a tool without a text": (
        [{"role": "assistant", "content": None, "tool_calls": [LOOK]}],
        ChatPrompt((CALLED,)),
    ),
}  # fmt: skip


@pytest.fixture
def hotslot(served: Served) -> Iterator[BlockingHotslotClient]:
    with BlockingHotslotClient(*served.endpoints, route=False) as client:
        yield client


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters_are_written_in_any_way_that_means_one_thing(
    hotslot: BlockingHotslotClient, served: Served, case: str
) -> None:
    given, expected = ADAPTERS[case]
    expected = [pb.AdapterSelection(reference=it.reference, weight=it.weight or 1.0) for it in expected]
    assert hotslot.complete("Hi", adapters=given).text == "Hello, sailor"
    assert hotslot.worker.complete("Hi", adapters=given).text == "Hello, sailor"
    assert hotslot.worker.chat("Hi", adapters=given).text == "Hello, sailor"
    for request in served.worker.inference.requests:
        found = [pb.AdapterSelection(reference=it.reference, weight=it.weight or 1.0) for it in request.adapters]
        assert found == expected


@pytest.mark.parametrize("case", PROMPTS)
def test_messages_are_mappings_as_well(hotslot: BlockingHotslotClient, served: Served, case: str) -> None:
    given, expected = PROMPTS[case]
    hotslot.complete(given)
    hotslot.worker.chat(given)
    hotslot.complete(GenerationRequest(expected))
    first, second, third = served.worker.inference.requests
    assert first.chat == second.chat == third.chat


def test_a_text_and_token_ids_are_prompts_and_a_text_is_what_the_user_says(
    hotslot: BlockingHotslotClient, served: Served
) -> None:
    hotslot.complete("hi")
    hotslot.complete([1, 2])
    hotslot.worker.chat("hi")
    text, tokens, chat = served.worker.inference.requests
    assert (text.text, list(tokens.tokens.token_ids)) == ("hi", [1, 2])
    assert [(turn.role, turn.content) for turn in chat.chat.messages] == [("user", "hi")]


def test_adapters_beside_a_request_are_its_own_where_it_names_none(
    hotslot: BlockingHotslotClient, served: Served
) -> None:
    hotslot.complete(GenerationRequest("hi", priority=3), adapters="a")
    (request,) = served.worker.inference.requests
    assert ([it.reference for it in request.adapters], request.priority) == (["a"], 3)
