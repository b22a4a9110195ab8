"""The code keeps the shape that CONTRIBUTING.md describes, as far as that can be checked cheaply."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "hotslot" / "pb"
PRODUCT = ("hotslot", "shared", "controller_service", "gateway_service", "store_service", "worker_service")
MAX_LINES = 300
MAX_TEST_LINES = 450
SHAPELESS_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base_classes"}
SETTINGS_EDGES = {"__main__.py", "settings.py"}
"""Where the environment may be read: once, at the start of a process."""
COMMAND_EDGES = {
    "hotslot/clients/environment.py",
    "hotslot/cli/options.py",
    "hotslot/cli/supervisor.py",
    "hotslot/local/children.py",
    "worker_service/demo_model.py",
}
"""Settings of clients and of the command, the environment that a child process inherits, and a program that only brings
a model."""


def own_files() -> list[Path]:
    """Every Python file under version control or about to be, without the generated ones."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\n")
    files = [ROOT / name for name in listed if name and (ROOT / name).is_file()]
    return sorted(path for path in files if GENERATED not in path.parents)


FILES = own_files()
PACKAGES = [path for path in FILES if path.relative_to(ROOT).parts[0] in PRODUCT]


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_code_to_check() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} >= {"deploy", "tests", "tools", *PRODUCT}


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_a_file_is_short_and_says_what_it_does(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    name = str(path.relative_to(ROOT))
    limit = MAX_TEST_LINES if name.startswith("tests/") else MAX_LINES
    assert len(text.splitlines()) <= limit, "split it along what it does"
    if text.strip():
        first = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
        assert first, "start it with a docstring of one line that says what it does"


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_a_name_says_what_lives_there(path: Path) -> None:
    parts = {part.removesuffix(".py") for part in path.relative_to(ROOT).parts}
    assert not parts & SHAPELESS_NAMES


def _environment_reads(path: Path) -> Iterator[int]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    # Setting a variable is how some libraries are configured.
    written = {id(node.value) for node in nodes if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)}
    for node in nodes:
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and (node.value.id, node.attr) in {("os", "environ"), ("os", "getenv")}
            and id(node) not in written
        ):
            yield node.lineno


@pytest.mark.parametrize("path", PACKAGES, ids=_id)
def test_the_environment_is_read_at_the_start_only(path: Path) -> None:
    if path.name not in SETTINGS_EDGES and _id(path) not in COMMAND_EDGES:
        assert not list(_environment_reads(path)), "take it as a setting instead"


@pytest.mark.parametrize("path", PACKAGES, ids=_id)
def test_modules_have_no_mutable_globals(path: Path) -> None:
    found = [
        node.lineno for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Global)
    ]
    assert not found, "`global` means state that nobody owns; give it to an object"


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_comments_carry_no_banners_and_no_leftovers(path: Path) -> None:
    banners = re.compile(r"^\s*#\s*[-=#*~]{5,}|^\s*#\s*(TODO|FIXME|XXX)\b", re.MULTILINE)
    assert not banners.search(path.read_text(encoding="utf-8"))


UNIT_TESTS = sorted((ROOT / "tests" / "unit").rglob("test_*.py"))


@pytest.mark.parametrize("path", UNIT_TESTS, ids=_id)
def test_a_unit_test_is_in_the_folder_of_the_package_that_it_tests(path: Path) -> None:
    package = path.parent.relative_to(ROOT / "tests" / "unit")
    assert package.parts[0] in PRODUCT
    assert list((ROOT / package).glob("*.py")), f"there is no package {package}"
