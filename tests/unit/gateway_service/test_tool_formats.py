"""Parsers of tool calls by base model, as the setting lists them."""

import pytest
from pydantic import ValidationError

from gateway_service.settings import GatewaySettings
from gateway_service.tool_calls import ToolFormat
from gateway_service.tool_formats import parsed_formats

HERMES, LLAMA = ToolFormat.HERMES, ToolFormat.LLAMA3_JSON
DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("none", ("base",), None),
        ("", ("base",), None),
        ("hermes", ("base",), HERMES),
        ("hermes,base=llama3_json", ("base",), LLAMA),
        ("base=llama3_json,hermes", ("base",), LLAMA),
        ("hermes,base=none", ("base",), None),
        ("base=hermes", ("other",), None),
        ("a/b=c=hermes", ("a/b=c",), HERMES),
        (f"base=hermes,{DIGEST}=llama3_json", (DIGEST, "base"), LLAMA),
        (f"{DIGEST}=llama3_json", (DIGEST, "base"), LLAMA),
    ],
)
def test_a_base_model_has_its_own_parser_or_that_of_all(
    text: str, names: tuple[str, ...], expected: ToolFormat | None
) -> None:
    settings = GatewaySettings(gateway_tool_parser=text)  # type: ignore[arg-type]
    assert parsed_formats(settings.gateway_tool_parser).of(*names) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hermse", "'hermse' is none of none, hermes, llama3_json"),
        ("base=hermse", "'base=hermse' is none of"),
        ("=hermes", "'=hermes' is none of"),
        ("hermes,none", "'none' gives all base models a second parser"),
        ("base=hermes,base=none", "'base=none' gives base a second parser"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_the_start(text: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        GatewaySettings(gateway_tool_parser=text)  # type: ignore[arg-type]
