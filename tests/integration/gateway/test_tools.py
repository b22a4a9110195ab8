"""Tools, calls and variables reach the chat template as it takes them."""

import dataclasses
import json
from pathlib import Path

import pytest
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam

from tests.support.echo_model import EchoTokenizer, echo_model
from tests.support.gateway import served

pytestmark = pytest.mark.integration

TEMPLATE = """
{%- for tool in tools or [] %}[{{ tool.function.name }} {{ tool.function.parameters.type }}]{% endfor -%}
{{- mood | default("") }}{{ reasoning_effort | default("") }}
{%- for turn in messages %}<{{ turn.role }}>{{ turn.content or "" }}
    {%- for call in turn.tool_calls or [] %}({{ call.function.name }} {{ call.function.arguments.city }}){% endfor %}
    {%- if turn.tool_call_id %}#{{ turn.tool_call_id }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}
"""
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
    model = dataclasses.replace(echo_model(), tokenizer=EchoTokenizer())
    model.tokenizer.chat_template = TEMPLATE
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
