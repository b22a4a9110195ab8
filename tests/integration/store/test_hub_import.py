"""Imports from a hub, over real HTTP with faults."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from hotslot import errors
from hotslot.local.child_processes import free_port
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from store_service.sources.hub import requests
from tests.support.checkpoints import adapter, base_spec
from tests.support.fake_hub import COMMIT, FakeHub, fake_hub
from tests.support.store import StoreClient, error_of, hub_request, open_store

WEIGHTS = "adapter_model.safetensors"
TOKEN = "hf_very-secret"


@pytest.fixture
async def store(tmp_path: Path, hub: FakeHub) -> AsyncIterator[StoreClient]:
    settings = {
        "hub_endpoint": hub.endpoint,
        "hub_token": SecretStr(TOKEN),
        "hub_token_tenants": ["acme"],
        "hub_attempts": 3,
    }
    async with open_store(tmp_path / "data", **settings) as client:
        await client.register()
        yield client


async def import_it(store: StoreClient, **hub: str) -> pb.Version:
    return await store.import_(hub_request(**hub))


async def test_a_repository_becomes_the_version_that_a_push_gives(store: StoreClient, hub: FakeHub) -> None:
    version = await import_it(store)
    assert version.source == f"hf:acme/bot@{COMMIT}"
    assert version.digest == (await store.push(adapter(), "pushed")).digest
    assert set(hub.requests) == {"api", "adapter_config.json", WEIGHTS}


@pytest.mark.parametrize("revision", ["main", "v1", COMMIT])
async def test_a_revision_is_resolved_to_its_commit(store: StoreClient, revision: str) -> None:
    assert (await import_it(store, revision=revision)).source == f"hf:acme/bot@{COMMIT}"


async def test_a_subfolder_is_imported(store: StoreClient, hub: FakeHub) -> None:
    files = adapter(seed=5).files()
    hub.repositories["acme/many"] = {f"checkpoints/last/{name}": data for name, data in files.items()}
    version = await import_it(store, repo_id="acme/many", subfolder="checkpoints/last")
    assert version.source == f"hf:acme/many@{COMMIT}/checkpoints/last"


async def test_a_broken_download_goes_on_where_it_ended(store: StoreClient, hub: FakeHub) -> None:
    hub.truncate = [700, 100]
    await import_it(store)
    assert hub.requests[WEIGHTS] == 3


async def test_passing_server_errors_are_survived(store: StoreClient, hub: FakeHub) -> None:
    hub.fail_with = {WEIGHTS: [503, 429]}
    await import_it(store)


@pytest.mark.parametrize("what", ["api", WEIGHTS])
async def test_lasting_server_errors_are_unavailable(store: StoreClient, hub: FakeHub, what: str) -> None:
    hub.fail_with = {what: [500] * 20}
    error = await error_of(import_it(store))
    assert isinstance(error, errors.SourceUnavailableError)
    assert await store.names() == []


@pytest.mark.parametrize("name", [WEIGHTS, "adapter_config.json"])
async def test_other_bytes_than_the_commits_are_refused(store: StoreClient, hub: FakeHub, name: str) -> None:
    data = bytearray(hub.repositories["acme/bot"][name])
    data[-2] ^= 1
    hub.replace[name] = bytes(data)
    error = await error_of(import_it(store))
    assert isinstance(error, errors.DigestMismatchError)
    assert await store.names() == []


async def test_more_bytes_than_the_commits_are_refused(store: StoreClient, hub: FakeHub) -> None:
    hub.replace[WEIGHTS] = hub.repositories["acme/bot"][WEIGHTS] + b"x"
    assert isinstance(await error_of(import_it(store)), errors.DigestMismatchError)


@pytest.mark.parametrize("target", ["http://169.254.169.254{path}", "https://evil.example{path}", "file:///etc/passwd"])
async def test_a_redirect_elsewhere_is_not_followed(store: StoreClient, hub: FakeHub, target: str) -> None:
    hub.redirect_to = target
    error = await error_of(import_it(store))
    assert isinstance(error, errors.SourceForbiddenError), error


@pytest.mark.parametrize("networks", [[], ["10.0.0.0/8"], ["127.0.0.0/8", "::1/128"]])
async def test_a_hub_with_a_private_address_is_asked_where_its_network_is_allowed(
    tmp_path: Path, hub: FakeHub, networks: list[str]
) -> None:
    named = hub.endpoint.replace("127.0.0.1", "localhost")
    async with open_store(tmp_path, hub_endpoint=named, hub_private_networks=networks) as store:
        await store.register(base_spec())
        if "127.0.0.0/8" in networks:
            assert (await import_it(store)).source == f"hf:acme/bot@{COMMIT}"
            return
        error = await error_of(import_it(store))
    assert isinstance(error, errors.SourceForbiddenError)
    assert "hub_private_networks" in error.message
    assert not hub.requests


async def test_a_redirect_within_the_endpoint_is_followed_without_the_token(store: StoreClient, hub: FakeHub) -> None:
    hub.redirect_to = "{path}"
    await import_it(store.of("acme"))
    assert hub.tokens[-2:] == [f"Bearer {TOKEN}", ""]


async def test_a_private_repository_is_for_the_tokens_tenants_only(store: StoreClient, hub: FakeHub) -> None:
    hub.private_token = TOKEN
    error = await error_of(import_it(store))
    assert isinstance(error, errors.SourceNotFoundError)
    assert TOKEN not in error.message
    assert (await import_it(store.of("acme"))).source == f"hf:acme/bot@{COMMIT}"
    assert isinstance(await error_of(store.resolve("bot")), errors.AdapterNotFoundError)


@pytest.mark.parametrize("fields", [{"repo_id": "acme/nothing"}, {"revision": "v9"}, {"subfolder": "nothing"}])
async def test_what_the_hub_does_not_have_is_not_found(store: StoreClient, fields: dict[str, str]) -> None:
    assert isinstance(await error_of(import_it(store, **fields)), errors.SourceNotFoundError)


@pytest.mark.parametrize(
    "fields",
    [
        {"repo_id": "http://169.254.169.254/x"},
        {"repo_id": "../../etc"},
        {"repo_id": "acme/bot/more"},
        {"revision": "../../other/resolve/main"},
        {"subfolder": "../secrets"},
        {"subfolder": "/etc"},
    ],
)
async def test_a_malformed_location_is_refused_before_anything_is_asked(
    store: StoreClient, hub: FakeHub, fields: dict[str, str]
) -> None:
    assert isinstance(await error_of(import_it(store, **fields)), errors.InvalidRequestError)
    assert not hub.requests


async def test_a_hub_that_stops_sending_is_asked_for_the_rest(tmp_path: Path, hub: FakeHub) -> None:
    async with open_store(tmp_path, hub_endpoint=hub.endpoint, hub_timeout_s=1.5) as store:
        await store.register()
        hub.pause_after = [700]
        await import_it(store)
        assert hub.requests[WEIGHTS] == 2


async def test_a_hub_that_never_goes_on_is_unavailable(tmp_path: Path, hub: FakeHub) -> None:
    async with open_store(tmp_path, hub_endpoint=hub.endpoint, hub_timeout_s=1.5, hub_attempts=2) as store:
        await store.register()
        hub.pause_after = [700, 0]
        assert isinstance(await error_of(import_it(store)), errors.SourceUnavailableError)
        assert list((tmp_path / "imports").iterdir()) == []


async def test_a_hub_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    async with open_store(tmp_path, hub_endpoint=f"http://127.0.0.1:{free_port()}") as store:
        error = await error_of(import_it(store))
        assert isinstance(error, errors.SourceUnavailableError)
        assert error.retry_after_s is not None


async def test_offline_mode_is_kept(store: StoreClient, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "is_offline_mode", lambda: True)
    error = await error_of(import_it(store))
    assert isinstance(error, errors.SourceUnavailableError)
    assert "HF_HUB_OFFLINE" in error.message
    assert not hub.requests


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"{}", b'{"id": "acme/bot", "sha": "main", "siblings": []}'])
async def test_an_answer_that_is_none_is_unavailable(store: StoreClient, hub: FakeHub, answer: bytes) -> None:
    hub.answer_with["api"] = answer
    assert isinstance(await error_of(import_it(store)), errors.SourceUnavailableError)


async def test_a_question_that_is_sent_elsewhere_is_not_asked_there(store: StoreClient, hub: FakeHub) -> None:
    with fake_hub() as elsewhere:
        hub.redirect_api_to = elsewhere.endpoint + "{path}"
        assert isinstance(await error_of(import_it(store)), errors.SourceForbiddenError)
        assert not elsewhere.requests


async def test_a_renamed_repository_is_followed_within_the_endpoint(store: StoreClient, hub: FakeHub) -> None:
    hub.redirect_api_to = "{path}"
    assert (await import_it(store)).source == f"hf:acme/bot@{COMMIT}"


async def test_an_adapter_above_the_limit_is_refused_before_it_is_fetched(tmp_path: Path, hub: FakeHub) -> None:
    async with open_store(tmp_path, hub_endpoint=hub.endpoint, max_adapter_bytes=500) as store:
        await store.register(base_spec())
        assert isinstance(await error_of(import_it(store)), errors.QuotaExceededError)
    assert hub.requests[WEIGHTS] == 0
