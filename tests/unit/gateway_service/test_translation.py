"""Sampling parameters reach the client's request under their own names, and nulls leave the defaults."""

from dataclasses import fields
from typing import Any

import pytest

from gateway_service.translation import completion_from
from hotslot import Sampling

BODY = {"model": "m", "prompt": "x"}
GIVEN: dict[str, tuple[Any, Any]] = {
    "temperature": (0.5, 0.5),
    "top_k": (-1, 0),
    "top_p": (0.25, 0.25),
    "min_p": (0.125, 0.125),
    "seed": (-1, 2**64 - 1),
    "repetition_penalty": (1.5, 1.5),
    "presence_penalty": (-0.5, -0.5),
    "frequency_penalty": (0.75, 0.75),
    "logit_bias": ({"7": -1.5}, {7: -1.5}),
}
"""Value in a body and value in the request, of each parameter."""


def sampling_of(**more: Any) -> Sampling:
    wanted, _ = completion_from({**BODY, **more}, "")
    return wanted.requests[0].sampling


def test_every_parameter_has_a_line_here() -> None:
    assert GIVEN.keys() == {field.name for field in fields(Sampling)}


@pytest.mark.parametrize("name", GIVEN)
def test_a_parameter_is_taken_over_alone(name: str) -> None:
    sent, wanted = GIVEN[name]
    others = {other: value for other, value in vars_of(sampling_of()).items() if other != name}
    found = vars_of(sampling_of(**{name: sent}))
    assert found.pop(name) == wanted
    assert found == others


@pytest.mark.parametrize("name", GIVEN)
def test_null_is_as_if_it_were_left_out(name: str) -> None:
    assert sampling_of(**{name: None}) == sampling_of() == Sampling(temperature=1.0)


def vars_of(sampling: Sampling) -> dict[str, Any]:
    return {field.name: getattr(sampling, field.name) for field in fields(sampling)}
