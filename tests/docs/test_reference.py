"""The reference has a sentence on everything that users may name, and every setting's type and unit in words."""

import inspect
import re

import pytest
from pydantic.fields import FieldInfo

from gateway_service.openapi import ROUTES, document
from hotslot.rpc.status import STATUS_TABLE, StatusRow
from shared.settings import Settings
from tools.docs import commands_reference, errors_reference, http_reference, protos_reference, settings_reference
from tools.docs.pages import GENERATED

SENTENCE = re.compile(r"[`\"A-Z0-9(a-z].*[.)…:]$", re.DOTALL)
SETTINGS = [
    (f"{module}.{name}", name, field)
    for module, settings in settings_reference.SERVICES.items()
    for name, field in settings.model_fields.items()
]
DESCRIBED = [
    item
    for item in protos_reference.described()
    # An RPC says what its own two messages are for, and the value 0 of an enum says nothing.
    if not (item.kind == "message" and item.name.endswith(("Request", "Response")))
    and not (item.kind == "value" and item.number == 0)
]
OPTIONS = [
    (" ".join(path), parameter)
    for path, command in commands_reference.commands()
    for parameter in commands_reference.parameters(command)
]
SCHEMAS = {name: schema for name, schema in document("0")["components"]["schemas"].items() if name != "Error"}


def test_there_is_much_to_describe() -> None:
    kinds = [item.kind for item in DESCRIBED]
    assert len(SETTINGS) > 100
    assert len(OPTIONS) > 150
    assert (kinds.count("rpc") > 40, kinds.count("field") > 250, kinds.count("service") >= 6) == (True, True, True)
    assert len(STATUS_TABLE) > 60
    assert len(ROUTES) > 8


@pytest.mark.parametrize(("where", "name", "field"), SETTINGS, ids=[where for where, _, _ in SETTINGS])
def test_a_setting_has_a_sentence_a_type_in_words_and_a_unit_where_it_measures(
    where: str, name: str, field: FieldInfo
) -> None:
    assert SENTENCE.fullmatch((field.description or "").strip()), f"{where}: say what it means, in a docstring under it"
    assert settings_reference.type_of(field)
    if field.annotation is float:
        assert settings_reference.unit_of(name), f"{where}: its name ends with its unit"


@pytest.mark.parametrize("row", STATUS_TABLE, ids=lambda row: row.reason)
def test_an_error_has_a_sentence_of_its_own(row: StatusRow) -> None:
    own = inspect.cleandoc(row.error.__doc__ or "")
    assert SENTENCE.fullmatch(own), f"{row.error.__name__}: say what it means, in its docstring"
    assert errors_reference.meaning(row.error) == own
    assert all(detail in errors_reference.CARRIED for detail in row.error.carries.values())


@pytest.mark.parametrize("item", DESCRIBED, ids=lambda item: item.name)
def test_what_a_proto_names_has_a_sentence(item: protos_reference.Described) -> None:
    assert SENTENCE.fullmatch(item.comment), f"{item.kind} {item.name}: say what it means, in a comment above it"


@pytest.mark.parametrize(("command", "parameter"), OPTIONS, ids=[f"{name} {option.name}" for name, option in OPTIONS])
def test_an_option_has_a_sentence(command: str, parameter: object) -> None:
    assert SENTENCE.fullmatch(str(getattr(parameter, "help", "") or "")), f"{command}: say what it is for"


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_field_of_a_body_has_a_meaning(name: str) -> None:
    assert [field for field, _, meaning in http_reference.fields(SCHEMAS[name]) if not meaning] == []
    assert SCHEMAS[name].get("description")


def test_every_page_is_made_and_names_all_that_it_describes() -> None:
    pages = {name: page() for name, page in GENERATED.items()}
    for module, settings in settings_reference.SERVICES.items():
        assert issubclass(settings, Settings)
        for name in settings.model_fields:
            assert f"({settings_reference.anchor(module, name)})=" in pages["settings.md"]
    for row in STATUS_TABLE:
        assert f"## {row.reason}\n" in pages["errors.md"]
    for path, command in commands_reference.commands():
        assert hasattr(command, "commands") or f"## `{' '.join(path)}`\n" in pages["commands.md"]
    for item in DESCRIBED:
        local = item.name.rpartition(".")[2]
        assert (
            f"`{local}`" in pages["grpc.md"] or f"## {local}\n" in pages["grpc.md"] or f".{local}\n" in pages["grpc.md"]
        )
    for method, route, _, _ in ROUTES:
        assert f"## `{method.upper()} {route}`" in pages["http.md"]
