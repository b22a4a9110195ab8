"""What a composed deployment makes for itself: each service finds its files, and callers are known by them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import credentials
from hotslot.errors import TokenRevokedError, UnauthenticatedError
from hotslot.formats.principals import CLIENT_SCOPES, Principals, Scope, revoked
from hotslot.formats.principals_file import change_principals
from shared.identity.authenticator import Authenticator

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[3]
FILES = [yaml.safe_load((ROOT / name).read_text()) for name in ("docker-compose.yml", "docker-compose.fleet.yml")]
OWN = {"store": "store", "store-b": "store", "worker-a": "worker", "worker-b": "worker", "gateway": "gateway"}
"""Services of ours, and the folders of their credentials."""


def composed(service: str) -> dict[str, Any]:
    """Environment and volumes of a service, with what the fleet's file adds."""
    found = [file["services"][service] for file in FILES if service in file["services"]]
    return {
        "environment": {key: value for each in found for key, value in each.get("environment", {}).items()},
        "volumes": [volume for each in found for volume in each.get("volumes", ())],
    }


def named(environment: dict[str, str]) -> set[str]:
    """Files below /credentials that variables name."""
    return {name for value in environment.values() for name in re.findall(r"/credentials/([\w.-]+)", str(value))}


@pytest.mark.parametrize("service", sorted(OWN))
def test_every_file_that_a_service_is_told_of_is_made_for_it(tmp_path: Path, service: str) -> None:
    credentials.make(tmp_path)
    found = composed(service)
    assert f"credentials-{OWN[service]}:/credentials:ro" in found["volumes"]
    assert named(found["environment"]) <= {path.name for path in (tmp_path / OWN[service]).iterdir()}


@pytest.mark.parametrize("service", sorted(OWN))
def test_every_service_of_ours_knows_its_callers(service: str) -> None:
    assert composed(service)["environment"]["HOTSLOT_PRINCIPALS_FILE"] == "/credentials/principals.json"


async def test_callers_are_known_by_the_tokens_that_are_made(tmp_path: Path) -> None:
    credentials.make(tmp_path)
    tokens = {
        "user": tmp_path / "authority" / "user.token",
        "worker": tmp_path / "worker" / "token",
        "gateway": tmp_path / "gateway" / "token",
    }
    for service in credentials.KNOW_CALLERS:
        known = Authenticator(tmp_path / service / "principals.json")
        try:
            found = {name: await known.principal(f"Bearer {file.read_text().strip()}") for name, file in tokens.items()}
            assert {name: principal.name for name, principal in found.items()} == {name: name for name in tokens}
            assert found["user"].scopes == CLIENT_SCOPES | {Scope.OPERATOR}
            assert found["worker"].scopes == {Scope.WORKER}
            assert found["gateway"].scopes == {Scope.GATEWAY}
            with pytest.raises(UnauthenticatedError):
                await known.principal(None)
        finally:
            known.close()


def test_no_service_has_what_another_is_known_by(tmp_path: Path) -> None:
    credentials.make(tmp_path)
    held = {service: {p.name for p in (tmp_path / service).iterdir()} for service in credentials.HOSTS}
    assert not any({"ca.key", "user.token", "worker.token", "gateway.token"} & names for names in held.values())
    assert {service for service, names in held.items() if "token" in names} == {"worker", "gateway"}
    secrets = {(tmp_path / "authority" / f"{name}.token").read_text().strip() for name in ("user", "worker", "gateway")}
    assert len(secrets) == 3
    assert not any(secret in (tmp_path / "store" / "principals.json").read_text() for secret in secrets)


async def test_a_token_that_is_revoked_while_it_runs_is_refused_by_every_service(tmp_path: Path) -> None:
    credentials.make(tmp_path)
    file, token = tmp_path / "authority" / "principals.json", (tmp_path / "worker" / "token").read_text().strip()
    token_id = token.split("_")[1]

    def revoke(principals: Principals) -> Principals:
        return revoked(principals, token_id, 1)

    change_principals(file, revoke)
    credentials.share_principals(tmp_path)
    for service in credentials.KNOW_CALLERS:
        known = Authenticator(tmp_path / service / "principals.json")
        with pytest.raises(TokenRevokedError):
            await known.principal(f"Bearer {token}")
        known.close()
    credentials.make(tmp_path)  # The next start makes another.
    assert (tmp_path / "worker" / "token").read_text().strip() != token


def test_a_file_that_is_being_written_changes_nothing(tmp_path: Path) -> None:
    credentials.make(tmp_path)
    before = (tmp_path / "store" / "principals.json").read_bytes()
    (tmp_path / "authority" / "principals.json").write_text('{"principals": {')
    credentials.share_principals(tmp_path)
    assert (tmp_path / "store" / "principals.json").read_bytes() == before
    assert json.loads(before)["principals"].keys() == {"user", "worker", "gateway"}


def test_names_and_tokens_that_are_there_stay(tmp_path: Path) -> None:
    credentials.make(tmp_path)
    before = {path.name: path.read_text() for path in (tmp_path / "authority").glob("*.token")}
    credentials.make(tmp_path)
    assert {path.name: path.read_text() for path in (tmp_path / "authority").glob("*.token")} == before
