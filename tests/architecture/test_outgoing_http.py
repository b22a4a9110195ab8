"""One place of the services makes HTTP requests, so that where they may lead is decided for every one alike."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.test_layout import FILES, ROOT

SERVICES = ("shared", "controller_service", "gateway_service", "store_service", "worker_service")
HOME = ROOT / "shared" / "outgoing_http.py"
KEYS = ROOT / "shared" / "identity" / "issuer_keys.py"
"""Asks the issuer that the operator's settings name, which is often in the cluster, and nothing that a caller names."""
SIDECAR = ROOT / "gateway_service" / "metrics.py"
"""Asks the worker beside the gateway, which the operator's settings name, and nothing that a caller names."""
KUBERNETES = ROOT / "controller_service" / "kubernetes_api.py"
"""Asks the Kubernetes API that the operator's settings name, and nothing that a caller names."""
MODULES = {"aiohttp", "requests", "urllib3", "http.client", "urllib.request", "socks"}
"""Modules that make requests, and that services do not import."""
CLIENTS = {"Client", "AsyncClient", "HTTPTransport", "AsyncHTTPTransport", "stream", "request", "get", "post", "head"}
"""Names of `httpx2` that make requests or connections."""


def requests_of(tree: ast.AST) -> Iterator[int]:
    """Lines that make a request by another way than the client that checks."""
    for node in ast.walk(tree):
        imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        imported += [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        if any(name == module or name.startswith(f"{module}.") for name in imported for module in MODULES) or (
            isinstance(node, ast.ImportFrom)
            and node.module == "httpx2"
            and CLIENTS & {alias.name for alias in node.names}
        ):
            yield node.lineno  # type: ignore[attr-defined]
        if (
            isinstance(node, ast.Attribute)
            and node.attr in CLIENTS
            and isinstance(node.value, ast.Name)
            and node.value.id.startswith("httpx")
        ):
            yield node.lineno


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in FILES
        if path.relative_to(ROOT).parts[0] in SERVICES and path not in (HOME, KEYS, SIDECAR, KUBERNETES)
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_services_make_requests_by_one_client(path: Path) -> None:
    assert not list(requests_of(ast.parse(path.read_text(encoding="utf-8")))), "use shared.outgoing_http"


def test_a_request_is_seen_however_it_is_written() -> None:
    for code in (
        "import httpx2\nhttpx2.Client()",
        "import httpx2\nhttpx2.get('x')",
        "from httpx2 import Client",
        "import urllib.request",
        "from urllib import request",
        "from urllib.request import urlopen",
        "import http.client",
        "import requests",
    ):
        assert list(requests_of(ast.parse(code))), code
    assert list(requests_of(ast.parse(HOME.read_text(encoding="utf-8"))))
