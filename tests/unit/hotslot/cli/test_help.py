"""The help of every command says all that was written, names the thing first, and leaves no option out."""

import re
from collections.abc import Iterator

import pytest
import typer
from typer.testing import CliRunner

from hotslot.cli.app import app
from tools.structure import QUESTION_WORDS

Entry = tuple[tuple[str, ...], str, str]


def entries() -> Iterator[Entry]:
    """Each command's path, a name, and the help that goes with it."""
    yield from _entries(typer.main.get_command(app), ())


def _entries(command: object, path: tuple[str, ...]) -> Iterator[Entry]:
    yield path, "the command", str(getattr(command, "help", "") or "")
    for parameter in getattr(command, "params", ()):
        if parameter.name not in ("install_completion", "show_completion", "help"):
            yield path, str(parameter.name), str(getattr(parameter, "help", "") or "")
    for name, inner in getattr(command, "commands", {}).items():
        yield from _entries(inner, (*path, name))


def shown(path: tuple[str, ...]) -> str:
    found = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "400", "TERM": "dumb", "NO_COLOR": "1"})
    assert found.exit_code == 0
    return found.output


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\s│]+", text.replace("\\[", "[")))


def test_there_are_commands_to_look_at() -> None:
    assert len({path for path, _, _ in entries()}) > 25
    assert len(list(entries())) > 150


@pytest.mark.parametrize("path", sorted({path for path, _, _ in entries()}), ids=" ".join)
def test_help_is_shown_as_it_was_written(path: tuple[str, ...]) -> None:
    found = words(shown(path))
    for at, name, text in entries():
        if at == path:
            assert words(text) <= found, f"{' '.join(path)}: {name} loses {words(text) - found}"


@pytest.mark.parametrize("entry", list(entries()), ids=lambda entry: f"{' '.join(entry[0])} {entry[1]}")
def test_help_is_a_sentence_that_names_the_thing_first(entry: Entry) -> None:
    path, name, text = entry
    where = f"{' '.join(path)}: {name}"
    assert text, f"{where} has no help"
    assert text.split()[0] not in (*QUESTION_WORDS, "How", "Also", "Only"), where
    assert re.fullmatch(r"[`*\w].*[.)…]", text.strip(), re.DOTALL), where
