"""One word has one meaning, docstrings name the thing first, and log events have one style."""

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.architecture.test_pages import ROOT, section, sources, tracked
from tools.structure import QUESTION_WORDS, measure

EVENT = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
LEVELS = ("debug", "info", "warning", "error", "exception", "critical")


@cache
def glossary() -> dict[str, tuple[str, ...]]:
    """Words by what they stand in place of: each row's words, with those that are never used for them."""
    rows = [line.strip("|").split("|") for line in section("Words").splitlines() if line.startswith("| ")]
    return {words.strip(): tuple(never.split(",")) for words, _, never in rows[1:]}


def synonyms() -> list[str]:
    return sorted({word.strip() for never in glossary().values() for word in never if word.strip()})


def events(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
            owner = node.func.value
            yield from [node] if isinstance(owner, ast.Name) and owner.id in ("log", "logger") else []


def styles(source: str) -> list[str]:
    """What is wrong with the events that a module logs."""
    found = []
    for call in events(ast.parse(source)):
        event, line = call.args[0] if call.args else None, call.lineno
        if isinstance(event, ast.Constant) and not EVENT.fullmatch(str(event.value)):
            found.append(f"line {line}: {event.value!r} is no word_by_word event")
        if isinstance(event, ast.JoinedStr | ast.BinOp):
            found.append(f"line {line}: values belong into keywords, not into the event")
        found += [f"line {line}: why= names a reason, not error=" for word in call.keywords if word.arg == "error"]
    return found


def test_the_glossary_has_some_thirty_rows_and_no_word_twice() -> None:
    words = [word.strip(" *`") for row in glossary() for word in row.split(",")]
    assert 25 <= len(glossary()) <= 40
    assert len(words) == len(set(words))
    assert len(synonyms()) >= 5


@pytest.mark.parametrize("word", synonyms())
def test_a_word_that_the_glossary_rules_out_is_used_nowhere(word: str) -> None:
    pages = [name for name in tracked() if name.endswith((".md", ".proto"))]
    pattern = re.compile(re.escape(word), re.IGNORECASE)
    text = {name: (ROOT / name).read_text() for name in (*sources(), *pages)}
    text["ARCHITECTURE.md"] = text["ARCHITECTURE.md"].replace(section("Words"), "")
    assert not [name for name, content in text.items() if pattern.search(content) or pattern.search(name)]


def test_every_docstring_names_the_thing_first() -> None:
    assert measure(ROOT).question_docstrings == ()


def test_every_title_of_a_page_names_the_thing_first() -> None:
    asking = re.compile(rf"^#+ (?:.*\?$|(?:{'|'.join(QUESTION_WORDS)})\b.*)", re.MULTILINE)
    assert asking.findall("# The store\n## Where it is\n### Is it?\n") == ["## Where it is", "### Is it?"]
    pages = [name for name in tracked() if name.endswith(".md")]
    assert {name: found for name in pages if (found := asking.findall((ROOT / name).read_text()))} == {}


@pytest.mark.parametrize("name", [name for name in sources() if "log." in (ROOT / name).read_text()])
def test_log_events_have_one_style(name: str) -> None:
    assert styles((ROOT / name).read_text()) == []


def test_another_style_of_events_is_seen() -> None:
    assert len(styles('log.info("blob evicted")\nlog.warning("blob_lost", error=str(exc))\nlog.info(f"lost {x}")')) == 3
    assert styles('log.info("blob_evicted", digest=digest)\nlog.warning(event, why=why)') == []
