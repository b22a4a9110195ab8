"""SmolLM2 over HTTP: the same texts as over gRPC, with tools in its template, logprobs, choices and stops."""

from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam

from hotslot import (
    AdapterSelection,
    BlockingHotslotClient,
    ChatMessage,
    GenerationRequest,
    Logprobs,
    Sampling,
    Stop,
)
from tests.integration.conftest import DEMO_ADAPTERS
from tests.support.gateway import open_gateway
from worker_service.demo_model import BASE_MODEL

pytestmark = [pytest.mark.integration, pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

QUESTION = "What is the capital of France?"
USER: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
PIRATE = "gateway/pirate"


@pytest.fixture(scope="module")
def pushed(hotslot: BlockingHotslotClient) -> BlockingHotslotClient:
    for name in ("pirate", "json"):
        hotslot.store.push(DEMO_ADAPTERS / name, f"gateway/{name}")
    return hotslot


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real_sdk(pushed: BlockingHotslotClient) -> AsyncIterator[AsyncOpenAI]:
    settings = {"store": pushed.store.client.endpoint, "gateway_worker": pushed.worker.client.endpoint}
    async with (
        open_gateway(**settings) as gateway,
        AsyncOpenAI(base_url=f"http://127.0.0.1:{gateway.server.port}/v1", api_key="none", max_retries=0) as sdk,
    ):
        yield sdk


async def test_a_chat_has_the_text_that_it_has_over_grpc(real_sdk: AsyncOpenAI, pushed: BlockingHotslotClient) -> None:
    request = GenerationRequest(
        (ChatMessage("user", QUESTION),), (AdapterSelection(PIRATE),), stop=Stop(max_tokens=24), logprobs=Logprobs(3)
    )
    ours = pushed.worker.complete(request)
    answer = await real_sdk.chat.completions.create(
        model=PIRATE, messages=USER, temperature=0, max_tokens=24, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].message.content == ours.text
    assert ours.started.adapters[0].digest in (answer.system_fingerprint or "")
    assert answer.choices[0].logprobs is not None
    theirs = [token.logprob for token in answer.choices[0].logprobs.content or ()]
    assert theirs == pytest.approx([token.logprob for token in ours.choices[0].logprobs], abs=1e-3)
    stream = await real_sdk.chat.completions.create(
        model=PIRATE, messages=USER, temperature=0, max_tokens=24, stream=True
    )
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == ours.text


async def test_seeded_choices_are_those_of_grpc(real_sdk: AsyncOpenAI, pushed: BlockingHotslotClient) -> None:
    request = GenerationRequest(
        "The sea is",
        base_only=True,
        num_choices=3,
        sampling=Sampling(temperature=0.9, seed=7, top_p=0.9),
        stop=Stop(max_tokens=12),
    )
    ours = [choice.text for choice in pushed.worker.complete(request).choices]
    answer = await real_sdk.completions.create(
        model=BASE_MODEL, prompt="The sea is", n=3, temperature=0.9, seed=7, top_p=0.9, max_tokens=12
    )
    assert [choice.text for choice in answer.choices] == ours
    assert len(set(ours)) > 1


async def test_a_stop_text_is_left_out(real_sdk: AsyncOpenAI) -> None:
    whole = await real_sdk.completions.create(model=BASE_MODEL, prompt="One, two,", temperature=0, max_tokens=12)
    text = whole.choices[0].text
    stop = text.split()[2]
    cut = await real_sdk.completions.create(
        model=BASE_MODEL, prompt="One, two,", temperature=0, max_tokens=12, stop=[stop]
    )
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


async def test_a_mix_is_served_over_the_base_models_name(real_sdk: AsyncOpenAI, pushed: BlockingHotslotClient) -> None:
    mix = (AdapterSelection(PIRATE, 0.5), AdapterSelection("gateway/json", 0.5))
    ours = pushed.worker.complete(GenerationRequest((ChatMessage("user", QUESTION),), mix, stop=Stop(max_tokens=16)))
    answer = await real_sdk.chat.completions.create(
        model=BASE_MODEL,
        messages=USER,
        temperature=0,
        max_tokens=16,
        extra_body={"adapters": [{"reference": one.reference, "weight": one.weight} for one in mix]},
    )
    assert answer.choices[0].message.content == ours.text


async def test_tools_that_the_template_would_drop_are_refused(real_sdk: AsyncOpenAI) -> None:
    tool: ChatCompletionFunctionToolParam = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    with pytest.raises(openai.BadRequestError) as refused:
        await real_sdk.chat.completions.create(model=BASE_MODEL, messages=USER, tools=[tool], max_tokens=4)
    assert refused.value.param == "tools"
    left_out = await real_sdk.chat.completions.create(
        model=BASE_MODEL, messages=USER, tools=[tool], tool_choice="none", max_tokens=4
    )
    assert left_out.choices[0].message.content
