"""One place opens gRPC channels, so that proxies, forks, limits and endpoints are decided for every call alike."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.test_layout import FILES, ROOT

PRODUCT = ("hotslot", "shared", "controller_service", "gateway_service", "store_service", "worker_service", "deploy")
HOME = ROOT / "hotslot" / "rpc" / "channel.py"
OPENERS = {"insecure_channel", "secure_channel", "intercept_channel", "experimental"}
"""Attributes of `grpc` and `grpc.aio`. The last one's functions open a channel for one call."""


def openings(tree: ast.AST) -> Iterator[int]:
    """Lines that open a channel, or import what does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "grpc":
            if OPENERS & {name.name for name in node.names} or "experimental" in (node.module or ""):
                yield node.lineno
        elif (
            (isinstance(node, ast.Attribute) and node.attr in OPENERS - {"experimental"})
            or (isinstance(node, ast.Attribute) and ast.unparse(node) == "grpc.experimental")
            or (isinstance(node, ast.Constant) and node.value in OPENERS - {"experimental"})
        ):
            yield node.lineno


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.relative_to(ROOT).parts[0] in PRODUCT and path != HOME],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_only_one_file_opens_channels(path: Path) -> None:
    assert not list(openings(ast.parse(path.read_text(encoding="utf-8")))), "use hotslot.rpc.channel"


def test_an_opening_is_seen_however_it_is_written() -> None:
    for code in (
        "import grpc\ngrpc.insecure_channel('x')",
        "import grpc.aio as g\ng.secure_channel('x', None)",
        "from grpc.aio import insecure_channel",
        "import grpc\ngetattr(grpc, 'insecure_channel')('x')",
        "import grpc\ngrpc.experimental.unary_unary",
    ):
        assert list(openings(ast.parse(code))), code
    assert list(openings(ast.parse(HOME.read_text(encoding="utf-8"))))
