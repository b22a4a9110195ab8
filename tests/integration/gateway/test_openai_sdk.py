"""The `openai` SDK, unmodified, against a gateway before an echo worker."""

import asyncio

import openai
import pydantic
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionContentPartTextParam, ChatCompletionMessageParam

from tests.support.echo_model import UNHURRIED_STEP_S, voice
from tests.support.gateway import Served
from tests.support.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

BASE = "test/echo"
USER: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


async def test_a_chat_is_answered_by_the_adapter_that_the_model_names(gateway: Served, sdk: AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(model="bot", messages=USER, temperature=0, max_tokens=64)
    digest = gateway.digests["bot"]
    assert answer.choices[0].message.content == voice(digest)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.model == "bot"
    assert answer.system_fingerprint == f"{gateway.model.spec.digest}+bot:latest@{digest}*1"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("<user>hello<assistant>")
    assert answer.usage.completion_tokens == len(voice(digest)) + 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_the_base_models_name_is_the_base_model_alone(gateway: Served, sdk: AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(model=BASE, messages=USER, max_tokens=64)
    assert answer.choices[0].message.content == "base"
    assert answer.system_fingerprint == gateway.model.spec.digest


async def test_a_version_is_named_by_its_digest(gateway: Served, sdk: AsyncOpenAI) -> None:
    digest = gateway.digests["other"]
    answer = await sdk.completions.create(model=f"other@{digest}", prompt="hello", max_tokens=64)
    assert answer.choices[0].text == voice(digest)


async def test_several_adapters_are_a_mix(gateway: Served, sdk: AsyncOpenAI) -> None:
    mix = [{"reference": "bot", "weight": 0.5}, {"reference": "other:latest", "weight": -2}]
    raw = await sdk.chat.completions.with_raw_response.create(
        model=BASE, messages=USER, max_tokens=128, extra_body={"adapters": mix}
    )
    first, second = gateway.digests["bot"], gateway.digests["other"]
    assert raw.parse().choices[0].message.content == "+".join(sorted((voice(first, 0.5), voice(second, -2.0))))
    assert raw.headers["hotslot-adapters"] == f"bot:latest@{first};weight=0.5, other:latest@{second};weight=-2"
    assert raw.headers["hotslot-base-model"] == gateway.model.spec.digest
    assert raw.headers["hotslot-worker"] == gateway.worker.worker.worker_id
    assert raw.headers["x-request-id"]


async def test_a_chat_streams_and_ends_with_its_usage(gateway: Served, sdk: AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(
        model="bot", messages=USER, max_tokens=64, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    *pieces, last = chunks
    assert pieces[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
    assert text == voice(gateway.digests["bot"])
    assert [chunk.choices[0].finish_reason for chunk in pieces if chunk.choices[0].finish_reason] == ["stop"]
    assert all(chunk.usage is None for chunk in pieces)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == len(text) + 1
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(pieces) >= 3, "role, text and end come apart; a busy machine may send many tokens in one piece"


async def test_a_stream_without_the_option_has_no_usage(sdk: AsyncOpenAI) -> None:
    stream = await sdk.completions.create(model="bot", prompt="hello", max_tokens=64, stream=True)
    chunks = [chunk async for chunk in stream]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


async def test_n_choices_each_end(gateway: Served, sdk: AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(model="bot", messages=USER, n=3, seed=7, max_tokens=64)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {voice(gateway.digests["bot"])}
    stream = await sdk.chat.completions.create(model="bot", messages=USER, n=3, max_tokens=64, stream=True)
    texts: dict[int, str] = {}
    async for chunk in stream:
        choice = chunk.choices[0]
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    assert texts == dict.fromkeys(range(3), voice(gateway.digests["bot"]))


async def test_several_prompts_are_answered_in_their_order(sdk: AsyncOpenAI) -> None:
    prompts = ["endless one", "two"]
    answer = await sdk.completions.create(model=BASE, prompt=prompts, n=2, max_tokens=6, temperature=0)
    assert [choice.text for choice in answer.choices] == ["baseba", "baseba", "base", "base"]
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length", "stop", "stop"]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(map(len, prompts))
    stream = await sdk.completions.create(model=BASE, prompt=prompts, max_tokens=6, stream=True)
    texts = ["", ""]
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["baseba", "base"]


async def test_a_prompt_may_be_tokens_and_is_echoed_where_it_is_text(sdk: AsyncOpenAI) -> None:
    tokens = await sdk.completions.create(model=BASE, prompt=list(b"hello"), max_tokens=8)
    assert tokens.choices[0].text == "base"
    echoed = await sdk.completions.create(model=BASE, prompt="hello ", echo=True, max_tokens=8)
    assert echoed.choices[0].text == "hello base"


async def test_a_completion_ends_after_16_tokens_unless_it_says_otherwise(sdk: AsyncOpenAI) -> None:
    answer = await sdk.completions.create(model=BASE, prompt="endless")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    chat = await sdk.chat.completions.create(model=BASE, messages=USER)
    assert chat.choices[0].finish_reason == "stop"


async def test_a_stop_text_ends_an_answer_and_may_be_kept(sdk: AsyncOpenAI) -> None:
    left_out = await sdk.completions.create(model=BASE, prompt="endless", stop=["eb", "xx"], max_tokens=64)
    assert left_out.choices[0].text == "bas"
    assert left_out.choices[0].finish_reason == "stop"
    assert left_out.choices[0].model_extra == {"stop_reason": "eb"}
    kept = await sdk.completions.create(
        model=BASE, prompt="endless", stop="eb", max_tokens=64, extra_body={"include_stop_str_in_output": True}
    )
    assert kept.choices[0].text == "baseb"


async def test_logprobs_come_back_in_either_form(sdk: AsyncOpenAI) -> None:
    chat = await sdk.chat.completions.create(model=BASE, messages=USER, logprobs=True, top_logprobs=2, max_tokens=2)
    assert chat.choices[0].logprobs is not None
    assert chat.choices[0].logprobs.content is not None
    assert [token.logprob for token in chat.choices[0].logprobs.content] == [-0.5, -0.5]
    assert [top.logprob for top in chat.choices[0].logprobs.content[0].top_logprobs] == [-1.0, -2.0]
    text = await sdk.completions.create(model=BASE, prompt="hello", logprobs=2, max_tokens=2)
    assert text.choices[0].logprobs is not None
    assert text.choices[0].logprobs.token_logprobs == [-0.5, -0.5]
    stream = await sdk.chat.completions.create(model=BASE, messages=USER, logprobs=True, max_tokens=2, stream=True)
    found = [
        token.logprob
        async for chunk in stream
        if chunk.choices[0].logprobs is not None
        for token in chunk.choices[0].logprobs.content or ()
    ]
    assert found == [-0.5, -0.5]


async def test_token_ids_come_back_where_they_are_asked_for(sdk: AsyncOpenAI) -> None:
    answer = await sdk.completions.create(
        model=BASE, prompt="hello", max_tokens=4, extra_body={"return_token_ids": True}
    )
    assert answer.choices[0].model_extra is not None
    assert bytes(answer.choices[0].model_extra["token_ids"]) == b"base"


async def test_contents_may_be_parts(sdk: AsyncOpenAI) -> None:
    parts: list[ChatCompletionContentPartTextParam] = [
        {"type": "text", "text": "hello"},
        {"type": "text", "text": "there"},
    ]
    answer = await sdk.chat.completions.create(model=BASE, messages=[{"role": "user", "content": parts}], max_tokens=8)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("<user>hello\nthere<assistant>")


async def test_models_are_listed_and_described(gateway: Served, sdk: AsyncOpenAI) -> None:
    models = {model.id: model async for model in sdk.models.list()}
    assert set(models) == {BASE, "bot", "other"}
    assert models["bot"].model_extra == {
        "root": f"bot@{gateway.digests['bot']}",
        "parent": BASE,
        "max_model_len": 512,
    }
    described = await sdk.models.retrieve(f"bot@{gateway.digests['bot']}")
    assert described.id == f"bot@{gateway.digests['bot']}"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await sdk.models.retrieve("nobody")


async def test_an_unknown_model_is_not_found(sdk: AsyncOpenAI) -> None:
    for model, code in (("nobody", "ADAPTER_NOT_FOUND"), ("bot:v9", "TAG_NOT_FOUND"), ("No/Such", "MODEL_NOT_FOUND")):
        with pytest.raises(openai.NotFoundError) as refused:
            await sdk.chat.completions.create(model=model, messages=USER)
        assert (refused.value.code, refused.value.param) == (code, "model")


async def test_a_wrong_value_names_the_parameter(sdk: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature: found -1") as refused:
        await sdk.chat.completions.create(model="bot", messages=USER, temperature=-1)
    assert refused.value.param == "temperature"
    assert refused.value.code == "INVALID_REQUEST"
    assert refused.value.request_id


@pytest.mark.parametrize("way", ["closed", "cancelled stream", "cancelled whole"])
async def test_a_generation_that_is_left_is_cancelled(gateway: Served, sdk: AsyncOpenAI, way: str) -> None:
    body = {"model": BASE, "prompt": "endless", "max_tokens": 480}
    gateway.model.runner.step_s = UNHURRIED_STEP_S
    try:
        if way == "closed":
            stream = await sdk.completions.create(**body, stream=True)  # type: ignore[call-overload]
            async for _ in stream:
                break
            assert gateway.worker.parts.engine.open_sequences == 1
            await stream.close()
        else:

            async def ask() -> None:
                answer = await sdk.completions.create(**body, stream="stream" in way)  # type: ignore[call-overload]
                if "stream" in way:
                    _ = [chunk async for chunk in answer]

            asking = asyncio.create_task(ask())
            await until(lambda: gateway.worker.parts.engine.open_sequences == 1)
            asking.cancel()
        # Sooner than it would end by itself.
        await until(lambda: gateway.worker.parts.engine.open_sequences == 0, 15)
    finally:
        gateway.model.runner.step_s = 0.0


async def test_a_form_that_cannot_be_had_is_refused_with_the_reason(sdk: AsyncOpenAI) -> None:
    class Weather(pydantic.BaseModel):
        city: str

    with pytest.raises(openai.BadRequestError, match="not constrained by a grammar or schema") as refused:
        await sdk.chat.completions.parse(model=BASE, messages=USER, response_format=Weather)
    assert refused.value.param == "response_format"
    for kind in ("json_object", "grammar"):
        with pytest.raises(openai.BadRequestError, match="not constrained by a grammar or schema"):
            await sdk.chat.completions.create(model=BASE, messages=USER, response_format={"type": kind})  # type: ignore[call-overload]
    plain = await sdk.chat.completions.create(model=BASE, messages=USER, response_format={"type": "text"}, max_tokens=8)
    assert plain.choices[0].message.content == "base"


async def test_tenants_are_apart(gateway: Served, sdk: AsyncOpenAI) -> None:
    stranger = sdk.with_options(default_headers={"hotslot-tenant": "stranger"})
    with pytest.raises(openai.NotFoundError):
        await stranger.chat.completions.create(model="bot", messages=USER)
    assert [model.id async for model in stranger.models.list()] == [BASE]
