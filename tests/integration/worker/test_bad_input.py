"""Bad input: each kind has its typed error and reason, and the worker goes on serving."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from hotslot.errors import InvalidRequestError
from hotslot.ids import DEFAULT_TENANT, digest_of
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2 as control_pb
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from hotslot.rpc.status import DETAILS_KEY, from_rpc_error, row_for
from tests.support.echo_model import EchoModel, voice
from tests.support.echo_worker import Calls, RunningWorker, make_request
from tests.support.memory_store import MemoryStore

Code = grpc.StatusCode
NAN = math.nan

MISSING_DIGEST = digest_of(b"no such version")


def sampling(**fields: Any) -> dict[str, Any]:
    return {"sampling": pb.SamplingParams(**fields)}


def stop(**fields: Any) -> dict[str, Any]:
    return {"stop": pb.StopConditions(**fields)}


def chat(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    messages = [pb.ChatMessage(role=role, content=text) for role, text in turns]
    return {"chat": pb.ChatPrompt(messages=messages, **more)}


BAD: dict[str, tuple[tuple[str, ...], dict[str, Any], grpc.StatusCode, str]] = {
    "missing adapter": (("nobody",), {}, Code.NOT_FOUND, "ADAPTER_NOT_FOUND"),
    "unknown tag": (("bot:v9",), {}, Code.NOT_FOUND, "TAG_NOT_FOUND"),
    "unknown version": ((f"bot@{MISSING_DIGEST}",), {}, Code.NOT_FOUND, "VERSION_NOT_FOUND"),
    "wrong base": (("foreign",), {}, Code.FAILED_PRECONDITION, "BASE_MODEL_MISMATCH"),
    "truncated file": (("truncated",), {}, Code.DATA_LOSS, "DIGEST_MISMATCH"),
    "rotten file": (("rotten",), {}, Code.DATA_LOSS, "DIGEST_MISMATCH"),
    "rank too large": (("huge",), {}, Code.FAILED_PRECONDITION, "RANK_TOO_LARGE"),
    "junk inside": (("junk",), {}, Code.INVALID_ARGUMENT, "INVALID_ADAPTER"),
    "too large for host memory": (("fat",), {}, Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"),
    "malformed reference": (("No Such/../Name",), {}, Code.INVALID_ARGUMENT, "INVALID_REFERENCE"),
    "malformed digest": (("bot@sha256:12",), {}, Code.INVALID_ARGUMENT, "INVALID_REFERENCE"),
    "empty reference": (("",), {}, Code.INVALID_ARGUMENT, "INVALID_REFERENCE"),
    "the same adapter twice": (("bot", "bot:latest"), {}, Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "weight that is no number": (("bot=nan",), {}, Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "infinite weight": (("bot=inf",), {}, Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "adapters and base only": (("bot",), {"base_only": True}, Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "no prompt": ((), {"tokens": None}, Code.INVALID_ARGUMENT, "EMPTY_PROMPT"),
    "empty text": ((), {"text": ""}, Code.INVALID_ARGUMENT, "EMPTY_PROMPT"),
    "empty chat": ((), chat(), Code.INVALID_ARGUMENT, "EMPTY_PROMPT"),
    "empty tokens": ((), {"tokens": pb.TokenPrompt()}, Code.INVALID_ARGUMENT, "EMPTY_PROMPT"),
    "prompt too long": ((), {"text": "x" * 512}, Code.INVALID_ARGUMENT, "PROMPT_TOO_LONG"),
    "very long prompt": ((), {"text": "x" * 10**6}, Code.INVALID_ARGUMENT, "PROMPT_TOO_LONG"),
    "token outside the vocabulary": (
        (),
        {"tokens": pb.TokenPrompt(token_ids=[1, 9_999])},
        Code.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    ),
    "text with a token that the model lacks": ((), {"text": "a<pad>"}, Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "chat with a token that the model lacks": ((), chat(("user", "<pad>")), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "negative token": ((), {"tokens": pb.TokenPrompt(token_ids=[-1])}, Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "no role": ((), chat(("", "hi")), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "role of a page": ((), chat(("r" * 999, "hi")), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "tools for a template without": (
        (),
        chat(("user", "hi"), tools_json=["{}"]),
        Code.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    ),
    "a tool that is no JSON": ((), chat(("user", "hi"), tools_json=["{"]), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "a template of no name": ((), chat(("user", "hi"), template="x"), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "what the template refuses": ((), chat(("assistant", "hi")), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "temperature nan": ((), sampling(temperature=NAN), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "temperature below 0": ((), sampling(temperature=-1), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "top_p above 1": ((), sampling(top_p=1.5), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "top_k below 0": ((), sampling(top_k=-3), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "penalty 0": ((), sampling(repetition_penalty=0.0), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "bias nan": ((), sampling(logit_bias={1: NAN}), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "max_tokens below 0": ((), stop(max_tokens=-1), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "max_tokens absurd": ((), stop(max_tokens=2**31 - 1), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "too many stop strings": ((), stop(stop_strings=["x"] * 99), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "empty stop string": ((), stop(stop_strings=[""]), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "too many alternatives": (
        (),
        {"logprobs": pb.LogprobOptions(enabled=True, num_alternatives=21)},
        Code.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    ),
    "very many adapters": (("bot",) * 20_000, {}, Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "more ranks than all slots have": (("wide", "broad", "large"), {}, Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "very many tokens": (
        (),
        {"tokens": pb.TokenPrompt(token_ids=[1] * 10**6)},
        Code.INVALID_ARGUMENT,
        "PROMPT_TOO_LONG",
    ),
    "very many biases": (
        (),
        sampling(logit_bias=dict.fromkeys(range(9_999), 1e9)),
        Code.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    ),
    "very many turns": ((), chat(*[("wizard", "")] * 9_999), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    "too many choices": ((), {"num_choices": 1_000}, Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
}


@pytest.fixture
def published(store: MemoryStore, model: EchoModel) -> str:
    """One good adapter and one of each bad kind; the digest of the good one."""
    base = model.spec.digest
    store.add("foreign", digest_of(b"another base"))
    store.add("truncated", base, truncated=True)
    store.add("huge", base, rank=17)
    for name in ("wide", "broad", "large"):
        store.add(name, base, rank=12)
    store.add("fat", base, size_bytes=2**20 + 1)
    model.decoder.refuse.add(store.add("junk", base))
    rotten = store.add("rotten", base)
    version = store.catalog.tenants[DEFAULT_TENANT].get("rotten").version(rotten)
    blob = store.blobs.published[DEFAULT_TENANT][version.manifest.weights_digest]
    blob.data = bytes(reversed(blob.data))
    return store.add("bot", base)


def reason_of(failure: grpc.aio.AioRpcError) -> str:
    assert DETAILS_KEY in dict(failure.trailing_metadata() or ()), "an untyped status"
    return row_for(from_rpc_error(failure)).reason


@pytest.mark.parametrize("name", BAD)
async def test_bad_input_has_a_typed_error_and_the_worker_goes_on(
    name: str, calls: Calls, running: RunningWorker, published: str
) -> None:
    adapters, fields, code, reason = BAD[name]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await calls.generate(*adapters, **fields)
    assert (caught.value.code(), reason_of(caught.value)) == (code, reason)
    assert caught.value.details()
    assert (await calls.generate("bot")).text == voice(published)
    running.assert_nothing_is_held()


async def test_a_failure_before_the_first_token_sends_no_message(calls: Calls, published: str) -> None:
    call = calls.inference.Generate(make_request("nobody"), timeout=60)
    with pytest.raises(grpc.aio.AioRpcError):
        await call.read()


async def test_adapters_that_never_fit_together_are_refused_before_any_is_loaded(
    calls: Calls, running: RunningWorker, store: MemoryStore, published: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await calls.generate("wide", "broad", "large")
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidRequestError)
    (violation,) = error.fields
    assert violation.field == "adapters"
    assert "6 slots ('wide:latest' takes 2, 'broad:latest' takes 2, 'large:latest' takes 2)" in violation.description
    assert "this worker has 4" in violation.description
    defaults = control_pb.SetDefaultAdaptersRequest(
        adapters=[control_pb.DefaultAdapter(reference=name) for name in ("wide", "broad", "large")]
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await calls.control.SetDefaultAdapters(defaults, timeout=60)
    assert reason_of(caught.value) == "INVALID_REQUEST"
    assert store.blobs.read_offsets == []
    assert (await calls.generate()).text == "base", "the defaults have changed"
    await calls.generate("wide", "broad")
    running.assert_nothing_is_held()


async def test_a_crowd_of_bad_requests_disturbs_nobody(calls: Calls, running: RunningWorker, published: str) -> None:
    bad: list[Callable[[], Any]] = [
        lambda adapters=adapters, fields=fields: calls.generate(*adapters, **fields)  # type: ignore[misc]
        for adapters, fields, _, _ in BAD.values()
    ]
    good = [lambda: calls.generate("bot")] * len(bad)
    outcomes = await asyncio.gather(
        *(call() for pair in zip(bad, good, strict=True) for call in pair), return_exceptions=True
    )
    assert all(isinstance(outcome, grpc.aio.AioRpcError) for outcome in outcomes[0::2])
    assert all(getattr(outcome, "text", None) == voice(published) for outcome in outcomes[1::2])
    running.assert_nothing_is_held()
