"""Tokens over HTTP: counted and back as vLLM has it, and with their texts in log-probabilities."""

from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.support.echo_model import EOS
from tests.support.gateway import Served

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

BASE = "test/echo"
CHAT = [{"role": "user", "content": "hi"}]


async def posted(gateway: Served, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
    response = await (await gateway.http()).post(path, json=body)
    return response.status_code, response.json()


@pytest.mark.parametrize("model", [None, BASE, "bot", "other:latest"])
async def test_a_text_is_tokenised_and_comes_back(gateway: Served, model: str | None) -> None:
    named = {"model": model} if model is not None else {}
    status, found = await posted(gateway, "/tokenize", prompt="hello", return_token_strs=True, **named)
    expected = {"count": 5, "max_model_len": 512, "tokens": [*b"hello"], "token_strs": [*"hello"]}
    assert (status, found) == (200, expected)
    assert await posted(gateway, "/detokenize", tokens=found["tokens"], **named) == (200, {"prompt": "hello"})


async def test_a_chat_is_tokenised_with_the_models_template(gateway: Served) -> None:
    _, found = await posted(gateway, "/tokenize", messages=CHAT)
    assert bytes(found["tokens"]).decode() == "<user>hi<assistant>"
    assert found["token_strs"] is None
    _, bare = await posted(gateway, "/tokenize", messages=CHAT, add_generation_prompt=False)
    assert bytes(bare["tokens"]).decode() == "<user>hi"


WRONG: dict[str, tuple[str, dict[str, Any], int, str, str]] = {
    "nothing to tokenise": ("/tokenize", {}, 400, "prompt", "INVALID_REQUEST"),
    "two things to tokenise": ("/tokenize", {"prompt": "a", "messages": CHAT}, 400, "prompt", "INVALID_REQUEST"),
    "a field that is not there": ("/tokenize", {"prompt": "a", "text": "b"}, 400, "text", "UNKNOWN_PARAMETER"),
    "a model that is not there": ("/tokenize", {"prompt": "a", "model": "nobody"}, 404, "model", "MODEL_NOT_FOUND"),
    "a model that is none": ("/detokenize", {"tokens": [1], "model": "A B"}, 404, "model", "MODEL_NOT_FOUND"),
    "no tokens": ("/detokenize", {}, 400, "tokens", "INVALID_REQUEST"),
    "a token that is no number": ("/detokenize", {"tokens": ["a"]}, 400, "tokens[0]", "INVALID_REQUEST"),
    "a token that is not there": ("/detokenize", {"tokens": [1, 10**6]}, 400, "tokens[1]", "INVALID_REQUEST"),
    "a turn that the template refuses": (
        "/tokenize",
        {"messages": [{"role": "assistant", "content": "hi"}]},
        400,
        "messages",
        "INVALID_REQUEST",
    ),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_cannot_be_tokenised_is_refused_in_openais_form(gateway: Served, case: str) -> None:
    path, body, status, param, code = WRONG[case]
    found_status, found = await posted(gateway, path, **body)
    error = found["error"]
    assert (found_status, error["param"], error["code"]) == (status, param, code), error
    assert error["message"]


async def test_logprobs_of_a_chat_have_the_tokens_texts_and_bytes(gateway: Served, sdk: AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(
        model="bot", messages=CHAT, logprobs=True, top_logprobs=2, max_tokens=64  # type: ignore[arg-type]
    )  # fmt: skip
    choice = answer.choices[0]
    assert choice.logprobs is not None
    content = choice.logprobs.content or []
    assert "".join(token.token for token in content[:-1]) == choice.message.content
    assert b"".join(bytes(token.bytes or []) for token in content[:-1]).decode() == choice.message.content
    # The end of the sequence has no text in this model.
    assert (content[-1].token, content[-1].bytes) == (f"token_id:{EOS}", None)
    assert [top.token for top in content[0].top_logprobs] == ["\0", "\1"]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_echoed_prompt_has_its_logprobs(gateway: Served, sdk: AsyncOpenAI, stream: bool) -> None:
    asked: dict[str, Any] = {"model": "bot", "prompt": "hello", "echo": True, "logprobs": 1, "max_tokens": 4, "n": 2}
    chunks = [await sdk.completions.create(**asked)]
    if stream:
        chunks = [chunk async for chunk in await sdk.completions.create(**asked, stream=True)]
    for index in range(2):
        mine = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        told = [choice.logprobs for choice in mine if choice.logprobs is not None]
        text = "".join(choice.text for choice in mine)
        tokens = [token for part in told for token in part.tokens or ()]
        offsets = [offset for part in told for offset in part.text_offset or ()]
        scores = [score for part in told for score in part.token_logprobs or ()]
        tops = [top for part in told for top in part.top_logprobs or ()]
        assert text.startswith("hello")
        assert "".join(tokens) == text
        assert offsets == list(range(len(text)))
        assert scores[:5] == [None, *(-float(byte) for byte in b"ello")]
        assert all(isinstance(score, float) for score in scores[1:])
        assert tops[0] is None
        assert len(tops) == len(tokens) == len(scores)
