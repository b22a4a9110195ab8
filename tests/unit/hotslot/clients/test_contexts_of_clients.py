"""Clients that say nothing of where and how they call: the context in use has it, variables and arguments go first."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hotslot import BlockingHotslotClient, BlockingStoreClient, BlockingWorkerClient, HotslotClient
from hotslot.clients.environment import FROM_ENVIRONMENT, options_of, store_of, worker_of, worker_options_of
from hotslot.errors import InvalidContextsError, InvalidRequestError

LOCAL = {"store": "127.0.0.1:17400", "worker": "127.0.0.1:17500", "token_file": "/up/token", "ca_file": "/up/ca.crt"}
PROD = {"store": "prod:7400", "tenant": "acme", "token_file": "/prod/token", "worker_name": "worker.prod"}
TWIN = {"store": "localhost:17400", "token_file": "/twin/token"}
"""The same store for another principal."""


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes the user's contexts."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("STORE", "WORKER", "TENANT", "CONTEXT", "TOKEN", "TOKEN_FILE", "TLS_CA_FILE"):
        monkeypatch.delenv(f"HOTSLOT_{name}", raising=False)
    (tmp_path / "hotslot").mkdir()

    def write(current: str, **named: Any) -> None:
        document = {"current": current, "contexts": {"local": LOCAL, "prod": PROD, "twin": TWIN, **named}}
        (tmp_path / "hotslot" / "contexts.json").write_text(json.dumps(document))

    return write


def test_the_context_in_use_names_the_endpoints_unless_a_variable_or_an_argument_does(
    kept: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept("local")
    assert (store_of(FROM_ENVIRONMENT), worker_of(FROM_ENVIRONMENT)) == ("127.0.0.1:17400", "127.0.0.1:17500")
    monkeypatch.setenv("HOTSLOT_CONTEXT", "prod")
    assert (store_of(FROM_ENVIRONMENT), worker_of(FROM_ENVIRONMENT)) == ("prod:7400", "127.0.0.1:7500")
    monkeypatch.setenv("HOTSLOT_STORE", "env:7400")
    assert store_of(FROM_ENVIRONMENT) == "env:7400"
    assert store_of("given:7400") == "given:7400"
    kept("")
    monkeypatch.delenv("HOTSLOT_CONTEXT")
    monkeypatch.delenv("HOTSLOT_STORE")
    assert store_of(FROM_ENVIRONMENT) == "127.0.0.1:7400"


def test_a_stores_context_has_its_worker_its_tenant_and_its_token_and_no_other_has(kept: Callable[..., None]) -> None:
    kept("local")
    options = options_of(None, store="prod:7400")
    assert (options.tenant, options.security.token_file) == ("acme", Path("/prod/token"))
    assert options_of(None, store="127.0.0.1:17400").tenant is None
    assert options_of(None, store="localhost:17400").security.token_file == Path("/up/token"), (
        "this machine is one place"
    )
    assert not options_of(None, store="127.0.0.1:17401").security.has_token
    assert worker_of(FROM_ENVIRONMENT, store="127.0.0.1:17400") == "127.0.0.1:17500"
    assert worker_of(FROM_ENVIRONMENT, store="prod:7400") == "127.0.0.1:7500", "the worker in use is another's"
    kept("twin")
    assert options_of(None, store="127.0.0.1:17400").security.token_file == Path("/twin/token"), "in use goes first"


def test_a_worker_alone_is_called_by_the_context_that_names_it(kept: Callable[..., None]) -> None:
    kept("prod", far={"worker": "far:7500", "worker_name": "far.worker", "token_file": "/far", "ca_file": "/far.crt"})
    assert worker_options_of(None, worker="127.0.0.1:17500").security.ca_file == Path("/up/ca.crt")
    far = worker_options_of(None, worker="far:7500").security
    assert (far.server_name, far.token_file) == ("far.worker", Path("/far"))
    # The context in use names no worker: its token is not for whatever answers at the default port.
    assert not worker_options_of(None, worker="127.0.0.1:7500").security.has_token


def test_the_parts_of_a_blocking_client_call_as_the_whole_does(kept: Callable[..., None], tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    kept("own", own={**LOCAL, "token_file": str(token), "ca_file": ""})
    with BlockingHotslotClient() as hotslot, BlockingStoreClient() as store, BlockingWorkerClient() as worker:
        assert (hotslot.store.client.endpoint, hotslot.worker.client.endpoint) == (LOCAL["store"], LOCAL["worker"])
        assert (store.client.endpoint, worker.client.endpoint) == (LOCAL["store"], LOCAL["worker"])


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"contexts": {"a": {"ca_file": 1}}}'])
def test_a_damaged_file_of_contexts_is_a_typed_error_unless_nothing_of_it_is_needed(
    content: bytes, kept: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hotslot" / "contexts.json"
    path.write_bytes(content)
    for make in (HotslotClient, BlockingHotslotClient, BlockingStoreClient, BlockingWorkerClient):
        with pytest.raises(InvalidContextsError, match="mend it, or move it away") as found:
            make()
        assert str(path) in found.value.message
        assert found.value.reason == "INVALID_CONTEXTS"
    with pytest.raises(InvalidRequestError):
        store_of(FROM_ENVIRONMENT)
