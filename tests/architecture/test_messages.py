"""What a server says is for callers in any language: it names fields and reasons, never the command of one client."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.hotslot.rpc.test_rpc_status import EXAMPLES

ROOT = Path(__file__).resolve().parents[2]
SAID_BY_SERVERS = ("hotslot/errors", "hotslot/formats", "hotslot/codec", "hotslot/rpc", "shared", "gateway_service",
                  "controller_service",
                   "store_service", "worker_service")  # fmt: skip
COMMAND = re.compile(r"`hotslot |\bhotslot (?:up|ls|show|push|pull|rm|base|policy|workers|restore|backup|import)\b"
                     r"|(?:^|[\s(`'\"])--[a-z][a-z-]+")  # fmt: skip
NOT_SENT = {
    "store_service/backup": "runs as a command on the store's machine, and speaks to who typed it",
    "store_service/admission/__main__.py": "is a command itself: its options and their help",
    "store_service/opening.py": "the last line of a store that cannot start, for its operator, whom a restore helps",
    "store_service/content/ownership.py": "the same, of a store whose blobs and catalog do not belong together",
    "shared/settings.py": "the usage of a process, which has its options",
    "worker_service/demo_model.py": "the command line of pip",
    "worker_service/model/code_key.py": "the command line of a compiler",
    "gateway_service/errors.py": "the expression that takes commands out of messages of earlier releases",
}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Texts of a module that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value


def modules() -> list[Path]:
    """Modules whose texts may reach a caller."""
    found = [path for folder in SAID_BY_SERVERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if not any(str(path.relative_to(ROOT)).startswith(name) for name in NOT_SENT)]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_of_a_server_names_a_command(path: Path) -> None:
    assert [(line, text) for line, text in texts(path) if COMMAND.search(text)] == []


def test_what_is_exempt_is_there_and_names_a_command() -> None:
    for name in NOT_SENT:
        path = ROOT / name
        found = [path] if path.is_file() else sorted(path.rglob("*.py"))
        assert any(COMMAND.search(text) for file in found for _, text in texts(file)), f"{name} needs no exemption"


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_no_error_names_a_command(error: Exception) -> None:
    assert COMMAND.search(str(error)) is None


def test_a_command_is_noticed() -> None:
    for text in ("x; `hotslot ls` lists", "name one with --base", "hotslot restore it"):
        assert COMMAND.search(text)
    for text in ("hotslot serves", "a -- b", "sha256:--", "hotslot-tenant"):
        assert COMMAND.search(text) is None
