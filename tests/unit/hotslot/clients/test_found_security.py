"""Certificates and token of a client, from its environment or from the context of the deployment that it calls."""

import json
from pathlib import Path

import pytest

from hotslot.clients.found_security import security_for
from hotslot.errors import InvalidRequestError

STORE = "127.0.0.1:7400"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    contexts = {
        "local": {"store": STORE, "ca_file": "/up/ca.crt", "token_file": "/up/token"},
        "far": {"store": "far:7400", "ca_file": "/far/ca.crt", "token_file": "/far/token", "worker_name": "worker"},
    }
    folder = tmp_path / "hotslot"
    folder.mkdir()
    (folder / "contexts.json").write_text(json.dumps({"current": "local", "contexts": contexts}))
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def test_a_token_of_a_context_goes_to_its_own_store_alone(environment: dict[str, str]) -> None:
    assert security_for(environment, STORE).token_file == Path("/up/token")
    far = security_for(environment, "far:7400")
    assert (far.ca_file, far.token_file, far.worker_name) == (Path("/far/ca.crt"), Path("/far/token"), "worker")
    unknown = security_for(environment, "elsewhere:7400")
    assert not unknown.has_token
    assert not unknown.uses_tls


@pytest.mark.parametrize("name", ["HOTSLOT_TLS_CA_FILE", "HOTSLOT_TOKEN_FILE", "HOTSLOT_TOKEN"])
def test_variables_go_before_the_context_and_do_not_mix_with_it(environment: dict[str, str], name: str) -> None:
    found = security_for({**environment, name: "/mine"}, STORE)
    values = {found.ca_file, found.token_file, found.token} - {None, ""}
    assert values == {"/mine" if name == "HOTSLOT_TOKEN" else Path("/mine")}


def test_a_flag_that_is_none_is_refused(environment: dict[str, str]) -> None:
    assert security_for({**environment, "HOTSLOT_INSECURE": "true"}, STORE).insecure
    with pytest.raises(InvalidRequestError, match="HOTSLOT_INSECURE"):
        security_for({**environment, "HOTSLOT_INSECURE": "perhaps"}, STORE)
