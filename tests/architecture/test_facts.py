"""A fact is written once: no two modules of the product have a constant of the same text."""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping

from tests.architecture.test_pages import ROOT, sources

LEAST_CHARS = 5
COINCIDENCES = {"'hotslot'": "a domain of errors, and the name of an attention in transformers' registry"}
"""Values that mean different things in their modules."""
FROZEN = "store_service/catalog/migrations/"
"""Steps that stay as they were released."""


def facts(tree: ast.Module) -> Iterator[str]:
    """Values of a module's constants that have a text, an expression of one included, as code."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            texts = [part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant)]
            if any(isinstance(text, str) and len(text) >= LEAST_CHARS for text in texts):
                yield ast.unparse(node.value)


def twice(files: Mapping[str, str]) -> dict[str, list[str]]:
    """Facts that stand in more than one place."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, text in files.items():
        for fact in facts(ast.parse(text)):
            places[fact].append(name)
    return {fact: found for fact, found in places.items() if len(found) > 1 and fact not in COINCIDENCES}


def test_a_text_that_is_a_constant_is_written_once() -> None:
    files = {name: (ROOT / name).read_text() for name in sources() if not name.startswith(FROZEN)}
    assert len(files) > 300
    assert twice(files) == {}, "import it from the lower of them"
    assert all(any(fact in text for text in files.values()) for fact in (value.strip("'") for value in COINCIDENCES))


def test_a_second_writing_is_seen() -> None:
    files = {"a": 'A = "adapter.json"\nB = 1', "b": 'import re\nC = "adapter.json"', "c": 'D = re.compile("[0-9]{64}")'}
    assert twice(files) == {"'adapter.json'": ["a", "b"]}
    assert twice({**files, "d": 'E = re.compile("[0-9]{64}")'}).keys() == {"'adapter.json'", "re.compile('[0-9]{64}')"}
