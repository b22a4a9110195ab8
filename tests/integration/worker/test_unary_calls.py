"""Complete, CountTokens and Detokenize over real sockets, with the real engine."""

import asyncio
from typing import Any

import grpc
import pytest

from hotslot.codec import generation_event_from_proto, to_proto
from hotslot.collecting import collect
from hotslot.errors import (
    AdapterNotFoundError,
    HotslotError,
    InvalidRequestError,
    PromptTooLongError,
    QuotaExceededError,
)
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from hotslot.rpc.status import from_rpc_error
from tests.support.echo_model import EOS, VOCAB_SIZE, EchoModel, voice
from tests.support.echo_worker import Calls, RunningWorker, make_request
from tests.support.memory_store import MemoryStore
from tests.support.waiting import until
from worker_service.front import inference_servicer, prompts

TORN = "\N{REPLACEMENT CHARACTER}"


async def error_of(call: object) -> HotslotError:
    with pytest.raises(grpc.RpcError) as caught:
        await call  # type: ignore[misc]
    return from_rpc_error(caught.value)


async def complete(calls: Calls, *adapters: str, **fields: object) -> pb.CompleteResponse:
    request = pb.CompleteRequest(request=make_request(*adapters, **fields))
    answer: pb.CompleteResponse = await calls.inference.Complete(request, timeout=60)
    return answer


async def count(calls: Calls, **fields: object) -> pb.CountTokensResponse:
    request = pb.CountTokensRequest(**fields)  # type: ignore[arg-type]
    answer: pb.CountTokensResponse = await calls.inference.CountTokens(request, timeout=60)
    return answer


async def test_complete_answers_with_all_that_generate_streams(
    calls: Calls, store: MemoryStore, model: EchoModel
) -> None:
    digest = store.add("bot", model.spec.digest)
    fields = {
        "num_choices": 2,
        "request_id": "r-same",
        "logprobs": pb.LogprobOptions(enabled=True, num_alternatives=2, prompt=True),
    }
    request = make_request("bot=0.5", **fields)

    async def streamed() -> object:
        async for message in calls.inference.Generate(request, timeout=60):
            yield generation_event_from_proto(message)

    expected = to_proto(pb.CompleteResponse, await collect(streamed()))  # type: ignore[arg-type]
    found = await complete(calls, "bot=0.5", **fields)
    for answer in (expected, found):
        for choice in answer.choices:
            choice.finished.ClearField("timings")
            choice.finished.usage.ClearField("cached_tokens")
    assert found == expected
    assert [choice.finished.choice for choice in found.choices] == [0, 1]
    assert found.started.adapters[0].digest == digest


async def test_a_completion_that_its_caller_leaves_is_cancelled(calls: Calls, running: RunningWorker) -> None:
    call = calls.inference.Complete(pb.CompleteRequest(request=make_request(text="endless")), timeout=60)
    waiting = asyncio.ensure_future(call)
    await until(lambda: running.parts.engine.open_sequences > 0)
    waiting.cancel()
    await until(lambda: running.worker.in_flight == 0 and running.parts.engine.open_sequences == 0)
    running.assert_nothing_is_held()


async def test_complete_refuses_as_generate_does(calls: Calls) -> None:
    assert isinstance(await error_of(complete(calls, "nobody")), AdapterNotFoundError)
    missing = await error_of(calls.inference.Complete(pb.CompleteRequest(), timeout=60))
    assert isinstance(missing, InvalidRequestError)
    assert missing.reason == "EMPTY_PROMPT"


async def test_an_answer_that_no_message_holds_is_refused_with_what_to_do(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference_servicer, "MAX_MESSAGE_BYTES", 20)
    error = await error_of(complete(calls))
    assert isinstance(error, QuotaExceededError)
    assert "stream it with Generate" in error.message


async def test_a_count_is_the_length_of_the_prompt_as_generate_has_it(calls: Calls) -> None:
    chat = pb.ChatPrompt(messages=[pb.ChatMessage(role="user", content="hi")])
    for prompt in ({"text": "hello, wörld"}, {"chat": chat}):
        answer = await calls.generate(**prompt)
        found = await count(calls, **prompt, with_token_ids=True, with_tokens=True)
        assert found.num_tokens == answer.started.num_prompt_tokens == len(found.token_ids)
        assert [token.token_id for token in found.tokens] == list(found.token_ids)
        text = (await calls.inference.Detokenize(pb.DetokenizeRequest(token_ids=found.token_ids), timeout=60)).text
        assert text == prompt.get("text", "<user>hi<assistant>")
    bare = await count(calls, text="hello")
    assert (bare.num_tokens, bare.max_sequence_tokens, list(bare.token_ids), list(bare.tokens)) == (5, 512, [], [])
    assert (await count(calls, text="")).num_tokens == 0


async def test_a_prompt_that_does_not_fit_is_counted_all_the_same(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await count(calls, text="x" * 100_000)).num_tokens == 100_000
    chat = pb.ChatPrompt(messages=[pb.ChatMessage(role="user", content="x" * 10_000)])
    assert (await count(calls, chat=chat)).num_tokens == 10_000 + len("<user><assistant>")
    monkeypatch.setattr(prompts, "MAX_COUNTED_TOKENS", 1_000)
    assert isinstance(await error_of(count(calls, text="x" * 1_001)), PromptTooLongError)


PART = pb.ChatPrompt(messages=[pb.ChatMessage(role="user", parts=[pb.ContentPart(text="a"), pb.ContentPart()])])
NAMELESS = pb.ChatPrompt(messages=[pb.ChatMessage(content="a")])
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({}, "prompt"),
    "a part of no kind that is known": ({"chat": PART}, "chat.messages[0].parts[1]"),
    "a message without a role": ({"chat": NAMELESS}, "chat.messages[0].role"),
    "more tokens than are told": ({"text": "x" * 140_000, "with_tokens": True}, "with_tokens"),
    "more ids than are told": ({"text": "x" * 140_000, "with_token_ids": True}, "with_token_ids"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_cannot_be_counted_is_refused_by_its_field(calls: Calls, case: str) -> None:
    fields, name = WRONG[case]
    error = await error_of(count(calls, **fields))
    assert isinstance(error, InvalidRequestError)
    assert [violation.field for violation in error.fields] == [name]


async def test_tokens_become_text_with_or_without_special_ones(calls: Calls) -> None:
    request = pb.DetokenizeRequest(token_ids=[*"hö".encode(), EOS], with_tokens=True)
    answer = await calls.inference.Detokenize(request, timeout=60)
    assert answer.text == "hö"
    assert [token.text for token in answer.tokens] == ["h", TORN, TORN, ""]


@pytest.mark.parametrize(
    ("token_ids", "name"),
    [([1, VOCAB_SIZE], "token_ids[1]"), ([-1], "token_ids[0]"), ([1] * 513, "token_ids")],
)
async def test_tokens_that_are_none_are_refused_by_their_place(calls: Calls, token_ids: list[int], name: str) -> None:
    error = await error_of(calls.inference.Detokenize(pb.DetokenizeRequest(token_ids=token_ids), timeout=60))
    assert isinstance(error, InvalidRequestError)
    assert [violation.field for violation in error.fields] == [name]


async def test_logprobs_have_the_tokens_texts_and_bytes(calls: Calls, store: MemoryStore, model: EchoModel) -> None:
    digest = store.add("bot", model.spec.digest)
    answer = await complete(calls, "bot", logprobs=pb.LogprobOptions(enabled=True, num_alternatives=1, prompt=True))
    scored = answer.choices[0].logprobs
    assert "".join(token.text for token in scored) == voice(digest)
    assert b"".join(token.text_bytes for token in scored).decode() == voice(digest)
    assert [token.text for token in answer.started.prompt_logprobs] == [*"ello"]
    assert {token.alternatives[0].text for token in scored} == {"\0"}
