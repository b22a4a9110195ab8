"""The table of parameters has every parameter of the installed SDK, and is what the models and the page say."""

import inspect
from pathlib import Path

import pytest
from openai.resources.chat.completions import Completions as ChatCompletions
from openai.resources.completions import Completions
from pydantic import BaseModel

from gateway_service.errors import ApiError
from gateway_service.parameters import CHAT, COMPLETIONS, Parameter, Treatment, markdown, supported
from gateway_service.request_bodies import ChatBody, CompletionBody

PAGE = Path(__file__).resolve().parents[3] / "docs" / "gateway.md"
OF_THE_SDK_ALONE = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
"""Parameters of its methods that are no part of a body."""
KINDS = [(CHAT, ChatCompletions, ChatBody), (COMPLETIONS, Completions, CompletionBody)]


@pytest.mark.parametrize(("parameters", "sdk", "_body"), KINDS)
def test_every_parameter_of_the_sdk_has_a_row(parameters: tuple[Parameter, ...], sdk: type, _body: object) -> None:
    wanted = set(inspect.signature(sdk.create).parameters) - OF_THE_SDK_ALONE  # type: ignore[attr-defined]
    assert len(wanted) > 15
    assert wanted - {parameter.name for parameter in parameters} == set()


@pytest.mark.parametrize(("parameters", "_sdk", "body"), KINDS)
def test_exactly_the_supported_ones_are_fields(
    parameters: tuple[Parameter, ...], _sdk: object, body: type[BaseModel]
) -> None:
    assert len({parameter.name for parameter in parameters}) == len(parameters)
    taken = {parameter.name for parameter in parameters if parameter.treatment is Treatment.SUPPORTED}
    assert taken == set(body.model_fields)


@pytest.mark.parametrize("parameter", [*CHAT, *COMPLETIONS], ids=lambda parameter: parameter.name)
def test_what_is_not_supported_says_why(parameter: Parameter) -> None:
    assert parameter.treatment is Treatment.SUPPORTED or parameter.note


@pytest.mark.parametrize("parameter", [row for row in CHAT if row.treatment is Treatment.REFUSED])
def test_a_refused_parameter_is_named_unless_it_asks_for_nothing(parameter: Parameter) -> None:
    for value in (None, *parameter.neutral):
        assert supported(CHAT, {parameter.name: value}) == {}
    with pytest.raises(ApiError, match=parameter.name) as refused:
        supported(CHAT, {parameter.name: {"anything": "else"}})
    assert (refused.value.status, refused.value.param) == (400, parameter.name)


@pytest.mark.parametrize("parameter", [row for row in CHAT if row.treatment is Treatment.IGNORED])
def test_an_ignored_parameter_is_left_out(parameter: Parameter) -> None:
    assert supported(CHAT, {parameter.name: {"any": "thing"}}) == {}


def test_one_is_not_true() -> None:
    with pytest.raises(ApiError):
        supported(CHAT, {"parallel_tool_calls": 1})


def test_the_page_has_the_table() -> None:
    printed = PAGE.read_text(encoding="utf-8").split("gateway_service.parameters` -->\n")[1]
    assert printed.split("<!-- end")[0].strip() == markdown().strip()
