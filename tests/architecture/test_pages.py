"""The pages say what is there: paths and links exist, the walks go forward, one word has one meaning."""

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
PRODUCT = ("hotslot", "shared", "store_service", "worker_service", "gateway_service", "controller_service")
MAX_LINES = 200
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PAGE = re.compile(r"[\w./-]+\.md\b")
PATH = re.compile(r"[\w.-]+(/[\w.-]+)*/?")


@cache
def tracked() -> tuple[str, ...]:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], check=True, capture_output=True, text=True)
    return tuple(listed.stdout.splitlines())


def pages() -> list[str]:
    return [name for name in tracked() if name.endswith(".md") and not name.startswith("deploy/demo/adapters/")]


def sources() -> list[str]:
    return [name for name in tracked() if name.endswith(".py") and name.split("/")[0] in PRODUCT and "/pb/" not in name]


def section(title: str) -> str:
    return ARCHITECTURE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def named_paths(text: str) -> Iterator[str]:
    """Paths of the repository in inline code: those that begin with one of its folders, or name one of its files."""
    tops = {name.split("/")[0] for name in tracked() if "/" in name}
    for found in CODE.findall(text):
        if PATH.fullmatch(found) and "/" in found and found.split("/")[0] in tops:
            yield found


def docstrings(name: str) -> Iterator[str]:
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def test_there_are_pages_to_check() -> None:
    assert len(pages()) > 20
    assert sum(len(list(named_paths((ROOT / name).read_text()))) for name in pages()) > 150


def test_the_map_is_short() -> None:
    assert len(ARCHITECTURE.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("name", pages())
def test_a_page_names_only_paths_that_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    missing = [path for path in named_paths(text) if not (ROOT / path).exists()]
    for target in LINK.findall(text):
        path = target.split("#")[0]
        if (
            path
            and "://" not in path
            and not path.startswith("mailto:")
            and not (ROOT / name).parent.joinpath(path).exists()
        ):
            missing.append(target)
    assert not missing, f"{name} names what is not there: {missing}"


def test_every_page_that_a_docstring_names_exists() -> None:
    named = [(name, page) for name in sources() for text in docstrings(name) for page in PAGE.findall(text)]
    assert len(named) > 15
    missing = [(name, page) for name, page in named if "://" not in page and not (ROOT / page).exists()]
    own = [item for item in missing if item[1].startswith(("docs/", "ARCHITECTURE", "CONTRIBUTING", "README.md"))]
    assert not own


def test_every_page_of_decisions_is_named_by_a_docstring() -> None:
    # The page about tests is named where they begin.
    named = {
        page for name in [*sources(), "tests/conftest.py"] for text in docstrings(name) for page in PAGE.findall(text)
    }
    assert {name for name in pages() if name.startswith("docs/decisions/")} <= named


@pytest.mark.parametrize("title", ["The life of a request", "The life of a blob"])
def test_a_walk_names_each_file_once(title: str) -> None:
    files = Counter(path for path in named_paths(section(title)) if path.endswith(".py"))
    assert len(files) > 15
    assert not [path for path, count in files.items() if count > 1]


def test_every_invariant_names_the_test_that_holds_it() -> None:
    invariants = section("Invariants").split("\n- ")[1:]
    assert len(invariants) > 10
    assert not [text for text in invariants if not any(path.startswith("tests/") for path in named_paths(text))]
