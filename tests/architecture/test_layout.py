"""The code keeps the shape that CONTRIBUTING.md describes, as far as that can be checked cheaply."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

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
    "hotslot/rpc/fork_support.py",
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


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _tree(path: Path) -> ast.Module:
    return ast.parse(_text(path))


# One test a rule, not one a file: thousands of tests cost more than what they look at.
def test_files_are_short() -> None:
    def limit(path: Path) -> int:
        return MAX_TEST_LINES if _id(path).startswith("tests/") else MAX_LINES

    long = {_id(path): lines for path in FILES if (lines := len(_text(path).splitlines())) > limit(path)}
    assert long == {}, "split them along what they do"


def test_files_say_what_they_do() -> None:
    silent = [_id(path) for path in FILES if _text(path).strip() and not ast.get_docstring(_tree(path))]
    assert silent == [], "start them with a docstring of one line that says what they do"


def test_names_say_what_lives_there() -> None:
    shapeless = [
        _id(path)
        for path in FILES
        if {part.removesuffix(".py") for part in path.relative_to(ROOT).parts} & SHAPELESS_NAMES
    ]
    assert shapeless == []


def _environment_reads(path: Path) -> Iterator[int]:
    nodes = list(ast.walk(_tree(path)))
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


def test_the_environment_is_read_at_the_start_only() -> None:
    inner = [path for path in PACKAGES if path.name not in SETTINGS_EDGES and _id(path) not in COMMAND_EDGES]
    assert {_id(path): lines for path in inner if (lines := list(_environment_reads(path)))} == {}, (
        "take it as a setting instead"
    )


def test_modules_have_no_mutable_globals() -> None:
    found = {
        _id(path): lines
        for path in PACKAGES
        if (lines := [node.lineno for node in ast.walk(_tree(path)) if isinstance(node, ast.Global)])
    }
    assert found == {}, "`global` means state that nobody owns; give it to an object"


def test_comments_carry_no_banners_and_no_leftovers() -> None:
    banners = re.compile(r"^\s*#\s*[-=#*~]{5,}|^\s*#\s*(TODO|FIXME|XXX)\b", re.MULTILINE)
    assert [_id(path) for path in FILES if banners.search(_text(path))] == []


def test_unit_tests_are_in_the_folder_of_the_package_that_they_test() -> None:
    unit = ROOT / "tests" / "unit"
    for path in sorted(unit.rglob("test_*.py")):
        package = path.parent.relative_to(unit)
        assert package.parts[0] in PRODUCT, path
        assert list((ROOT / package).glob("*.py")), f"{path}: there is no package {package}"
