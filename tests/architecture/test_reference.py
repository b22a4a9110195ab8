"""The reference has a sentence on everything that users may name, and every setting's type and unit in words."""

import inspect
import re
from collections.abc import Iterable

import pytest

from gateway_service.openapi import ROUTES, document
from hotslot.rpc.status import STATUS_TABLE
from shared.settings import Settings
from tools.docs import commands_reference, errors_reference, http_reference, protos_reference, settings_reference
from tools.docs.error_remedies import remedy
from tools.docs.pages import GENERATED
from tools.structure import QUESTION_WORDS

SENTENCE = re.compile(r"[`\"A-Z0-9(a-z].*[.)…:]$", re.DOTALL)
ASKING = re.compile(rf"(?!When set,)({'|'.join(QUESTION_WORDS)})\b")
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


def silent(described: Iterable[tuple[str, str]]) -> list[str]:
    """Names whose text is no sentence."""
    return [name for name, text in described if not SENTENCE.fullmatch(text.strip())]


def test_a_setting_has_a_sentence_a_type_in_words_and_a_unit_where_it_measures() -> None:
    assert silent((where, field.description or "") for where, _, field in SETTINGS) == [], "a docstring under each"
    assert all(settings_reference.type_of(field) for _, _, field in SETTINGS)
    measured = [(where, name) for where, name, field in SETTINGS if field.annotation is float]
    assert len(measured) > 20
    assert [where for where, name in measured if not settings_reference.unit_of(name)] == [], "units end names"


def test_an_error_has_a_sentence_of_its_own() -> None:
    assert silent((row.reason, inspect.cleandoc(row.error.__doc__ or "")) for row in STATUS_TABLE) == []
    assert silent((row.reason, remedy(row.error)) for row in STATUS_TABLE) == []
    assert all("what to do" in part for part in errors_reference.page().split("\n## ")[1:])
    carried = {detail for row in STATUS_TABLE for detail in row.error.carries.values()}
    assert carried <= errors_reference.CARRIED.keys()


def test_what_a_proto_names_has_a_sentence() -> None:
    missing = silent((f"{item.kind} {item.name}", item.comment) for item in DESCRIBED)
    assert missing == [], f"write a comment above each: {', '.join(missing)}"


def asking(described: Iterable[tuple[str, str]]) -> list[str]:
    """Names whose text begins with a question word; `When set, …` is a condition."""
    return [name for name, text in described if ASKING.match(text.strip())]


def test_what_users_read_names_the_thing_first() -> None:
    protos = [(f"{item.kind} {item.name}", item.comment) for item in protos_reference.described()]
    settings = [(where, field.description or "") for where, _, field in SETTINGS]
    options = [(f"{command} {option.name}", option.help or "") for command, option in OPTIONS]
    errors = [(row.reason, inspect.cleandoc(row.error.__doc__ or "")) for row in STATUS_TABLE]
    assert asking([*protos, *settings, *options, *errors]) == []
    assert asking([("a", "When it ends."), ("b", "When set, the tag."), ("c", "Howl."), ("d", "How it ended.")]) == [
        "a", "d"
    ]  # fmt: skip


def test_an_option_has_a_sentence() -> None:
    assert silent((f"{command} {option.name}", option.help or "") for command, option in OPTIONS) == []


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_field_of_a_body_has_a_meaning(name: str) -> None:
    assert [field for field, _, meaning in http_reference.fields(SCHEMAS[name]) if not meaning] == []
    assert SCHEMAS[name].get("description")


def test_what_says_nothing_is_seen() -> None:
    assert silent([("a", ""), ("b", "no sentence"), ("c", "A sentence."), ("d", "TODO")]) == ["a", "b", "d"]


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
