"""Every field that can be absurd is refused, all at once, before anything is spent."""

import dataclasses
import math

import pytest

from hotslot.errors import EmptyPromptError, InvalidReferenceError, InvalidRequestError
from worker_service.engine.messages import SamplingOptions
from worker_service.front.requests import (
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    NamedAdapter,
    Prompt,
    TextPrompt,
    TokenPrompt,
    ToolCall,
)
from worker_service.front.validation import (
    MAX_PROMPT_LOGPROBS,
    RequestLimits,
    check,
    check_mix,
    check_prompt_logprobs,
    check_prompt_tokens,
)

LIMITS = RequestLimits(vocab_size=1_000, max_sequence_tokens=512, max_choices=16, max_adapters=4)
GOOD = GenerationRequest(TextPrompt("hello"))
NAN, INF = math.nan, math.inf


def sampling(**fields: object) -> dict[str, object]:
    return {"sampling": dataclasses.replace(SamplingOptions(), **fields)}  # type: ignore[arg-type]


def adapters(*named: tuple[str, float]) -> dict[str, object]:
    return {"adapters": tuple(NamedAdapter(reference, weight) for reference, weight in named)}


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
    (sampling(logit_bias=((1_000, 1.0),)), "sampling.logit_bias"),
    (sampling(logit_bias=((-1, 1.0),)), "sampling.logit_bias"),
    (sampling(logit_bias=((5, NAN),)), "sampling.logit_bias[5]"),
    (sampling(logit_bias=tuple((1, 0.0) for _ in range(2_000))), "sampling.logit_bias"),
    (sampling(logprobs=True, num_alternatives=21), "logprobs.num_alternatives"),
    (sampling(logprobs=True, num_alternatives=-1), "logprobs.num_alternatives"),
    (sampling(num_alternatives=2), "logprobs.num_alternatives"),
    ({"max_tokens": -1}, "stop.max_tokens"),
    ({"max_tokens": 513}, "stop.max_tokens"),
    ({"default_max_tokens": -1}, "stop.default_max_tokens"),
    ({"min_tokens": -1}, "stop.min_tokens"),
    ({"min_tokens": 11, "max_tokens": 10}, "stop.min_tokens"),
    ({"stop_strings": ("x",) * 17}, "stop.stop_strings"),
    ({"stop_strings": ("",)}, "stop.stop_strings[0]"),
    ({"stop_strings": ("x" * 300,)}, "stop.stop_strings[0]"),
    ({"stop_token_ids": (1_000,)}, "stop.stop_token_ids[0]"),
    ({"stop_token_ids": (1,) * 300}, "stop.stop_token_ids"),
    ({"num_choices": -1}, "num_choices"),
    ({"num_choices": 17}, "num_choices"),
    ({"priority": 1_001}, "priority"),
    ({"request_id": "a\nb"}, "request_id"),
    ({"request_id": "a" * 129}, "request_id"),
    ({"prompt": TokenPrompt((1, 1_000))}, "tokens.token_ids[1]"),
    ({"prompt": TokenPrompt((-1,))}, "tokens.token_ids[0]"),
    ({"prompt": ChatPrompt((ChatMessage("", "hi"),))}, "chat.messages[0].role"),
    ({"prompt": ChatPrompt((ChatMessage("user", "hi"), ChatMessage("r" * 257, "hi")))}, "chat.messages[1].role"),
    ({"prompt": ChatPrompt((ChatMessage("user", "hi", name="n" * 257),))}, "chat.messages[0].name"),
    ({"prompt": ChatPrompt((ChatMessage("tool", "hi", tool_call_id="n" * 257),))}, "chat.messages[0].tool_call_id"),
    ({"prompt": ChatPrompt((ChatMessage("user", "hi", parts=("hi",)),))}, "chat.messages[0].content"),
    ({"prompt": ChatPrompt((ChatMessage("user", "", parts=("hi", None)),))}, "chat.messages[0].parts[1]"),
    (calling(ToolCall("1", "")), "chat.messages[0].tool_calls[0].name"),
    (calling(ToolCall("1", "f"), ToolCall("1" * 257, "f")), "chat.messages[0].tool_calls[1].id"),
    (calling(ToolCall("1", "f", "x" * 2**19)), "chat.messages[0].tool_calls[0].arguments_json"),
    ({"prompt": ChatPrompt((HI,), tools_json=("{}",) * 129)}, "chat.tools_json"),
    ({"prompt": ChatPrompt((HI,), tools_json=("{}", "x" * 2**19))}, "chat.tools_json[1]"),
    ({"prompt": ChatPrompt((HI,), template_arguments_json="x" * 2**19)}, "chat.template_arguments_json"),
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
        prompt=TextPrompt(""),
        adapters=(NamedAdapter("UPPER"), NamedAdapter("b", NAN)),
        sampling=SamplingOptions(temperature=NAN, top_p=7),
        max_tokens=-5,
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


@pytest.mark.parametrize("prompt", [None, TextPrompt(""), ChatPrompt(()), TokenPrompt(())])
def test_an_empty_prompt_has_its_own_reason(prompt: TextPrompt | ChatPrompt | TokenPrompt | None) -> None:
    with pytest.raises(EmptyPromptError):
        check(dataclasses.replace(GOOD, prompt=prompt), LIMITS)


def test_a_malformed_reference_has_its_own_reason() -> None:
    with pytest.raises(InvalidReferenceError):
        check(dataclasses.replace(GOOD, adapters=(NamedAdapter("../etc/passwd"),)), LIMITS)
    with pytest.raises(InvalidReferenceError):
        check_mix((NamedAdapter(""),), 4)


def test_prompt_logprobs_are_refused_when_they_would_not_fit_into_a_message() -> None:
    request = dataclasses.replace(GOOD, prompt_logprobs=True, sampling=SamplingOptions(num_alternatives=20))
    check(request, LIMITS)
    check_prompt_logprobs(request, MAX_PROMPT_LOGPROBS // 21)
    with pytest.raises(InvalidRequestError, match="alternatives"):
        check_prompt_logprobs(request, MAX_PROMPT_LOGPROBS // 21 + 1)
    check_prompt_logprobs(GOOD, 10 * MAX_PROMPT_LOGPROBS)


def test_everything_within_bounds_passes() -> None:
    request = dataclasses.replace(
        GOOD,
        adapters=(NamedAdapter("acme/bot:v2", 0.5), NamedAdapter("b", -1.0)),
        sampling=SamplingOptions(1.5, 50, 0.9, 0.1, 0, 1.1, 2.0, -2.0, ((5, 100.0),), True, 20),
        max_tokens=512,
        min_tokens=3,
        stop_strings=("\n",),
        stop_token_ids=(999,),
        num_choices=16,
    )
    checked = check(request, LIMITS)
    assert [(str(s.reference), s.weight) for s in checked.selections] == [("acme/bot:v2", 0.5), ("b:latest", -1.0)]


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
    request = dataclasses.replace(GOOD, **fields)  # type: ignore[arg-type]
    assert check(request, LIMITS).request.most_tokens == most


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (TextPrompt("hi"), "text"),
        (ChatPrompt((ChatMessage("user", "hi"),)), "chat.messages"),
        (TokenPrompt((1, 2, 1_000)), "tokens.token_ids[2]"),
    ],
)
@pytest.mark.parametrize("token_id", [1_000, 10**6, -1])
def test_a_token_without_an_embedding_is_named_with_its_place(prompt: Prompt, field: str, token_id: int) -> None:
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
