"""Every field that can be absurd is refused, all at once, before anything is spent."""

import dataclasses
import math
from typing import Any

import pytest

from hotslot.contract.generation import (
    AdapterSelection,
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    JsonText,
    Logprobs,
    Sampling,
    Stop,
    TextPart,
    ToolCall,
)
from hotslot.errors import EmptyPromptError, InvalidReferenceError, InvalidRequestError
from worker_service.front.prompts import PlainPrompt
from worker_service.front.validation import (
    MAX_PROMPT_LOGPROBS,
    RequestLimits,
    check,
    check_mix,
    check_prompt_logprobs,
    check_prompt_tokens,
)

LIMITS = RequestLimits(vocab_size=1_000, max_sequence_tokens=512, max_choices=16, max_adapters=4)
GOOD = GenerationRequest("hello")
NAN, INF = math.nan, math.inf


def sampling(**fields: object) -> dict[str, object]:
    return {"sampling": dataclasses.replace(Sampling(), **fields)}  # type: ignore[arg-type]


def logprobs(*wanted: Any) -> dict[str, object]:
    return {"logprobs": Logprobs(*wanted)}


def stop(**fields: Any) -> dict[str, object]:
    return {"stop": Stop(**{"default_max_tokens": 0, **fields})}


def adapters(*named: tuple[str, float]) -> dict[str, object]:
    return {"adapters": tuple(AdapterSelection(reference, weight) for reference, weight in named)}


HI = ChatMessage("user", "hi")


def calling(*calls: ToolCall) -> dict[str, object]:
    return {"prompt": ChatPrompt((ChatMessage("assistant", "", tool_calls=calls),))}


ABSURD: list[tuple[dict[str, object], str]] = [
    (sampling(temperature=NAN), "sampling.temperature"),
    (sampling(temperature=-0.1), "sampling.temperature"),
    (sampling(temperature=INF), "sampling.temperature"),
    (sampling(top_k=-1), "sampling.top_k"),
    (sampling(top_p=1.1), "sampling.top_p"),
    (sampling(top_p=-0.5), "sampling.top_p"),
    (sampling(top_p=NAN), "sampling.top_p"),
    (sampling(min_p=1.5), "sampling.min_p"),
    (sampling(min_p=NAN), "sampling.min_p"),
    (sampling(repetition_penalty=0.0), "sampling.repetition_penalty"),
    (sampling(repetition_penalty=1e-40), "sampling.repetition_penalty"),
    (sampling(repetition_penalty=0.0099), "sampling.repetition_penalty"),
    (sampling(repetition_penalty=101.0), "sampling.repetition_penalty"),
    (sampling(repetition_penalty=NAN), "sampling.repetition_penalty"),
    (sampling(presence_penalty=3.0), "sampling.presence_penalty"),
    (sampling(frequency_penalty=-INF), "sampling.frequency_penalty"),
    (sampling(logit_bias={1_000: 1.0}), "sampling.logit_bias"),
    (sampling(logit_bias={-1: 1.0}), "sampling.logit_bias"),
    (sampling(logit_bias={5: NAN}), "sampling.logit_bias[5]"),
    (sampling(logit_bias=dict.fromkeys(range(2_000), 0.0)), "sampling.logit_bias"),
    (logprobs(21), "logprobs.num_alternatives"),
    (logprobs(-1), "logprobs.num_alternatives"),
    (logprobs(2, False, False), "logprobs.num_alternatives"),
    (stop(max_tokens=-1), "stop.max_tokens"),
    (stop(max_tokens=513), "stop.max_tokens"),
    (stop(default_max_tokens=-1), "stop.default_max_tokens"),
    (stop(min_tokens=-1), "stop.min_tokens"),
    (stop(min_tokens=11, max_tokens=10), "stop.min_tokens"),
    (stop(strings=("x",) * 17), "stop.stop_strings"),
    (stop(strings=("",)), "stop.stop_strings[0]"),
    (stop(strings=("x" * 300,)), "stop.stop_strings[0]"),
    (stop(token_ids=(1_000,)), "stop.stop_token_ids[0]"),
    (stop(token_ids=(1,) * 300), "stop.stop_token_ids"),
    ({"num_choices": -1}, "num_choices"),
    ({"num_choices": 17}, "num_choices"),
    ({"priority": 1_001}, "priority"),
    ({"request_id": "a\nb"}, "request_id"),
    ({"request_id": "a" * 129}, "request_id"),
    ({"prompt": (1, 1_000)}, "tokens.token_ids[1]"),
    ({"prompt": (-1,)}, "tokens.token_ids[0]"),
    ({"prompt": ChatPrompt((ChatMessage("", "hi"),))}, "chat.messages[0].role"),
    ({"prompt": ChatPrompt((ChatMessage("user", "hi"), ChatMessage("r" * 257, "hi")))}, "chat.messages[1].role"),
    ({"prompt": ChatPrompt((ChatMessage("user", "hi", name="n" * 257),))}, "chat.messages[0].name"),
    ({"prompt": ChatPrompt((ChatMessage("tool", "hi", tool_call_id="n" * 257),))}, "chat.messages[0].tool_call_id"),
    ({"prompt": ChatPrompt((ChatMessage("user", "hi", parts=(TextPart("hi"),)),))}, "chat.messages[0].content"),
    ({"prompt": ChatPrompt((ChatMessage("user", "", parts=(TextPart("hi"), None)),))}, "chat.messages[0].parts[1]"),
    (calling(ToolCall("", JsonText(), "1")), "chat.messages[0].tool_calls[0].name"),
    (
        calling(ToolCall("f", JsonText(), "1"), ToolCall("f", JsonText(), "1" * 257)),
        "chat.messages[0].tool_calls[1].id",
    ),
    (calling(ToolCall("f", JsonText("x" * 2**19), "1")), "chat.messages[0].tool_calls[0].arguments_json"),
    ({"prompt": ChatPrompt((HI,), tools=(JsonText("{}"),) * 129)}, "chat.tools_json"),
    ({"prompt": ChatPrompt((HI,), tools=(JsonText("{}"), JsonText("x" * 2**19)))}, "chat.tools_json[1]"),
    ({"prompt": ChatPrompt((HI,), template_arguments=JsonText("x" * 2**19))}, "chat.template_arguments_json"),
    (adapters(("a", NAN)), "adapters[0].weight"),
    (adapters(("a", INF)), "adapters[0].weight"),
    (adapters(("a", 1e9)), "adapters[0].weight"),
    (adapters(("a", 1.0), ("a:latest", 1.0)), "adapters[1].reference"),
    (adapters(*((f"a{index}", 1.0) for index in range(5))), "adapters"),
    ({**adapters(("a", 1.0)), "base_only": True}, "base_only"),
]


@pytest.mark.parametrize(("fields", "at_fault"), ABSURD, ids=[f"{i}-{case[1]}" for i, case in enumerate(ABSURD)])
def test_an_absurd_field_is_named(fields: dict[str, object], at_fault: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check(dataclasses.replace(GOOD, **fields), LIMITS)  # type: ignore[arg-type]
    assert [violation.field for violation in caught.value.fields] == [at_fault]


def test_all_fields_at_fault_are_named_at_once() -> None:
    request = dataclasses.replace(
        GOOD,
        prompt="",
        adapters=(AdapterSelection("UPPER"), AdapterSelection("b", NAN)),
        sampling=Sampling(temperature=NAN, top_p=7),
        stop=Stop(max_tokens=-5),
        num_choices=99,
    )
    with pytest.raises(InvalidRequestError) as caught:
        check(request, LIMITS)
    assert {violation.field for violation in caught.value.fields} == {
        "adapters[1].weight",
        "sampling.temperature",
        "sampling.top_p",
        "stop.max_tokens",
        "num_choices",
        "adapters.reference",
        "prompt",
    }


@pytest.mark.parametrize("prompt", [None, "", ChatPrompt(()), ()])
def test_an_empty_prompt_has_its_own_reason(prompt: PlainPrompt | None) -> None:
    with pytest.raises(EmptyPromptError):
        check(dataclasses.replace(GOOD, prompt=prompt), LIMITS)


def test_a_malformed_reference_has_its_own_reason() -> None:
    with pytest.raises(InvalidReferenceError):
        check(dataclasses.replace(GOOD, adapters=(AdapterSelection("../etc/passwd"),)), LIMITS)
    with pytest.raises(InvalidReferenceError):
        check_mix((AdapterSelection(""),), 4)


def test_prompt_logprobs_are_refused_when_they_would_not_fit_into_a_message() -> None:
    request = dataclasses.replace(GOOD, logprobs=Logprobs(20, prompt=True, enabled=False))
    check(request, LIMITS)
    check_prompt_logprobs(request, MAX_PROMPT_LOGPROBS // 21)
    with pytest.raises(InvalidRequestError, match="alternatives"):
        check_prompt_logprobs(request, MAX_PROMPT_LOGPROBS // 21 + 1)
    check_prompt_logprobs(GOOD, 10 * MAX_PROMPT_LOGPROBS)


def test_everything_within_bounds_passes() -> None:
    request = dataclasses.replace(
        GOOD,
        adapters=(AdapterSelection("acme/bot:v2", 0.5), AdapterSelection("b", -1.0)),
        sampling=Sampling(1.5, 50, 0.9, 0.1, 0, 1.1, 2.0, -2.0, {5: 100.0}),
        logprobs=Logprobs(20),
        stop=Stop(512, 3, ("\n",), (999,)),
        num_choices=16,
    )
    selections = check(request, LIMITS)
    assert [(str(s.reference), s.weight) for s in selections] == [("acme/bot:v2", 0.5), ("b:latest", -1.0)]


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({}, 0),
        ({"max_tokens": 7, "default_max_tokens": 5}, 7),
        ({"default_max_tokens": 5}, 5),
        ({"default_max_tokens": 5_000}, 5_000),
        ({"default_max_tokens": 5, "min_tokens": 9}, 9),
    ],
)
def test_the_default_bound_counts_where_no_other_is_given(fields: dict[str, int], most: int) -> None:
    request = dataclasses.replace(GOOD, stop=Stop(**{"default_max_tokens": 0, **fields}))  # type: ignore[arg-type]
    check(request, LIMITS)
    assert request.stop.most_tokens == most


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ("hi", "text"),
        (ChatPrompt((ChatMessage("user", "hi"),)), "chat.messages"),
        ((1, 2, 1_000), "tokens.token_ids[2]"),
    ],
)
@pytest.mark.parametrize("token_id", [1_000, 10**6, -1])
def test_a_token_without_an_embedding_is_named_with_its_place(prompt: PlainPrompt, field: str, token_id: int) -> None:
    def text_of(token_id: int) -> str:
        return f"<{token_id}>"

    check_prompt_tokens(prompt, [0, 999], LIMITS, text_of)
    with pytest.raises(InvalidRequestError) as caught:
        check_prompt_tokens(prompt, [0, 999, token_id, 5_000], LIMITS, text_of)
    (violation,) = caught.value.fields
    assert violation.field == field
    assert (
        f"token {token_id} ('<{token_id}>'), at position 2 of the prompt, is beyond the 1000" in violation.description
    )
