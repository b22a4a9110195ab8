"""Tools, calls and variables reach the chat template as it takes them."""

import dataclasses
import json
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam

from tests.support.echo_model import echo_model
from tests.support.gateway import served
from tests.support.saying_model import knowing_tools, saying_model

pytestmark = pytest.mark.integration

TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
TURNS: list[ChatCompletionMessageParam] = [
    {"role": "developer", "content": "be brief"},
    {"role": "user", "content": "rain?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "weather", "arguments": json.dumps({"city": "Oslo"})},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "wet"},
]
TALK = "<system>be brief<user>rain?<assistant>(weather Oslo)<tool>wet#c1<assistant>"


async def test_tools_and_calls_are_in_the_prompt(tmp_path: Path) -> None:
    model = dataclasses.replace(echo_model(), tokenizer=knowing_tools())
    async with served(tmp_path, model) as stack:
        sdk = await stack.sdk()

        async def prompt_tokens(**options: object) -> int:
            answer = await sdk.chat.completions.create(
                model="test/echo",
                messages=TURNS,
                tools=[TOOL],
                max_tokens=4,
                **options,  # type: ignore[call-overload]
            )
            found: int = answer.usage.prompt_tokens
            return found

        assert await prompt_tokens() == len("[weather object]" + TALK)
        assert await prompt_tokens(tool_choice="none") == len(TALK)
        variables = {"extra_body": {"chat_template_kwargs": {"mood": "sad"}}, "reasoning_effort": "low"}
        assert await prompt_tokens(**variables) == len("[weather object]sadlow" + TALK)
        no_opening = {"extra_body": {"add_generation_prompt": False}}
        assert await prompt_tokens(**no_opening) == len("[weather object]" + TALK) - len("<assistant>")


WRITTEN = {
    "hermes": 'I look. <tool_call>\n{"name": "weather", "arguments": {"city": "Malmö"}}\n</tool_call>\n'
    '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>',
    "llama3_json": '{"name": "weather", "parameters": {"city": "Malmö"}}; '
    '{"name": "weather", "parameters": {"city": "Oslo"}}',
}
CITIES = [{"city": "Malmö"}, {"city": "Oslo"}]


@pytest.mark.parametrize("tool_parser", WRITTEN)
async def test_calls_come_back_as_calls_whole_and_streamed(tmp_path: Path, tool_parser: str) -> None:
    async with served(tmp_path, saying_model(WRITTEN[tool_parser]), gateway_tool_parser=(tool_parser,)) as stack:
        sdk = await stack.sdk()
        answer = await sdk.chat.completions.create(model="test/echo", messages=TURNS, tools=[TOOL], n=2, max_tokens=256)
        said = "I look." if tool_parser == "hermes" else None
        for choice in answer.choices:
            assert (choice.finish_reason, choice.message.content) == ("tool_calls", said)
            made = [call for call in choice.message.tool_calls or () if call.type == "function"]
            assert [call.function.name for call in made] == ["weather"] * 2
            assert [json.loads(call.function.arguments) for call in made] == CITIES
        ids = {call.id for choice in answer.choices for call in choice.message.tool_calls or ()}
        assert len(ids) == 4, "each call has an id of its own"

        # The SDK's own accumulator knows a stream's calls by their deltas.
        async with sdk.chat.completions.stream(
            model="test/echo", messages=TURNS, tools=[TOOL], max_tokens=256
        ) as stream:
            kinds = [event.type async for event in stream]
            final = (await stream.get_final_completion()).choices[0]
        assert kinds.count("tool_calls.function.arguments.done") == 2
        assert kinds.count("tool_calls.function.arguments.delta") > 4, "arguments stream"
        assert (final.finish_reason, final.message.content or None) == ("tool_calls", said)
        assert [json.loads(call.function.arguments) for call in final.message.tool_calls or ()] == CITIES

        # The calls go back into the conversation as they came.
        turns = [
            *TURNS,
            answer.choices[0].message,
            *({"role": "tool", "tool_call_id": i, "content": "dry"} for i in ids),
        ]
        again = await sdk.chat.completions.create(model="test/echo", messages=turns, tools=[TOOL], max_tokens=256)  # type: ignore[arg-type]
        assert again.choices[0].finish_reason == "tool_calls"


async def test_calls_stay_text_without_tools_and_without_a_parser(tmp_path: Path) -> None:
    text = WRITTEN["hermes"]
    async with served(tmp_path / "with", saying_model(text), gateway_tool_parser=("hermes",)) as stack:
        sdk = await stack.sdk()
        for options in ({}, {"tools": [TOOL], "tool_choice": "none"}):
            answer = await sdk.chat.completions.create(
                model="test/echo",
                messages=TURNS,
                max_tokens=256,
                **options,  # type: ignore[call-overload]
            )
            assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (text, "stop")
    async with served(tmp_path / "without", saying_model(text)) as stack:
        sdk = await stack.sdk()
        answer = await sdk.chat.completions.create(model="test/echo", messages=TURNS, tools=[TOOL], max_tokens=256)
        assert (answer.choices[0].message.content, answer.choices[0].message.tool_calls) == (text, None)


@pytest.mark.parametrize(
    ("parsers", "finish_reason"),
    [(("test/echo=hermes",), "tool_calls"), (("llama3_json", "test/echo=hermes"), "tool_calls"),
     (("hermes", "test/echo=none"), "stop"), (("other/base=hermes",), "stop")],
)  # fmt: skip
async def test_a_base_model_has_its_own_parser_whatever_names_it(
    tmp_path: Path, parsers: tuple[str, ...], finish_reason: str
) -> None:
    async with served(tmp_path, saying_model(WRITTEN["hermes"]), gateway_tool_parser=parsers) as stack:
        sdk = await stack.sdk()
        for model in ("test/echo", "bot"):
            answer = await sdk.chat.completions.create(model=model, messages=TURNS, tools=[TOOL], max_tokens=256)
            assert answer.choices[0].finish_reason == finish_reason, model


async def test_a_call_that_is_cut_says_so_and_is_not_repaired(tmp_path: Path) -> None:
    async with served(tmp_path, saying_model(WRITTEN["hermes"]), gateway_tool_parser=("hermes",)) as stack:
        sdk = await stack.sdk()
        cut = WRITTEN["hermes"].index("Malm")
        answer = await sdk.chat.completions.create(model="test/echo", messages=TURNS, tools=[TOOL], max_tokens=cut)
        choice = answer.choices[0]
        assert choice.finish_reason == "length"
        assert [call.function.arguments for call in choice.message.tool_calls or ()] == ['{"city": "']  # type: ignore[union-attr]


async def test_a_call_cannot_be_forced(tmp_path: Path) -> None:
    async with served(tmp_path, saying_model("x"), gateway_tool_parser=("hermes",)) as stack:
        sdk = await stack.sdk()
        named = {"type": "function", "function": {"name": "weather"}}
        for choice in ("required", named):
            with pytest.raises(openai.BadRequestError) as refused:
                await sdk.chat.completions.create(
                    model="test/echo",
                    messages=TURNS,
                    tools=[TOOL],
                    tool_choice=choice,  # type: ignore[call-overload]
                )
            assert refused.value.param == "tool_choice"
            assert "cannot be forced" in str(refused.value)
