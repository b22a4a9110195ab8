"""Imports from a hub, over real HTTP with faults."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from shared import errors
from shared.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from store_service.sources import hub as hub_module
from tests.support.checkpoints import adapter, base_spec
from tests.support.fake_hub import COMMIT, FakeHub, fake_hub
from tests.support.store import StoreClient, error_of, open_store
from tests.support.waiting import until

WEIGHTS = "adapter_model.safetensors"
TOKEN = "hf_very-secret"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as server:
        server.repositories["acme/bot"] = {**adapter().files(), "README.md": b"# hello", "adapter_model.bin": b"\x80"}
        yield server


@pytest.fixture
async def store(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StoreClient]:
    monkeypatch.setattr(hub_module, "NUM_ATTEMPTS", 3)
    settings = {"hub_endpoint": hub.endpoint, "hub_token": SecretStr(TOKEN), "hub_token_tenants": ["acme"]}
    async with open_store(tmp_path / "data", **settings) as client:
        await client.register()
        yield client


def request_for(repo_id: str = "acme/bot", reference: str = "bot", **fields: str) -> pb.ImportAdapterRequest:
    return pb.ImportAdapterRequest(reference=reference, hub=pb.HubSource(repo_id=repo_id, **fields))


async def import_it(store: StoreClient, **fields: str) -> pb.Version:
    return (await store.stream("ImportAdapter", request_for(**fields)))[-1].version  # type: ignore[no-any-return]


async def _last(call: AsyncIterator[pb.ImportAdapterResponse]) -> pb.ImportAdapterResponse:
    return [response async for response in call][-1]


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


async def test_fifty_importers_of_the_same_cause_one_download(store: StoreClient, hub: FakeHub) -> None:
    hub.gate = threading.Event()
    calls = [aiter(store.adapters.ImportAdapter(request_for(), metadata=store.metadata)) for _ in range(50)]
    # Held back until all have joined: who comes after the end is free to fetch again.
    await asyncio.gather(*(anext(call) for call in calls))
    hub.gate.set()
    results = await asyncio.gather(*(_last(call) for call in calls))
    assert len({response.version.digest for response in results}) == 1
    assert hub.requests[WEIGHTS] == 1


async def test_an_importer_who_comes_back_joins_the_import_under_way(store: StoreClient, hub: FakeHub) -> None:
    hub.gate = threading.Event()
    first = store.adapters.ImportAdapter(request_for(), metadata=store.metadata)
    await first.read()
    await until(lambda: hub.requests["adapter_config.json"] == 1)
    first.cancel()
    second = asyncio.ensure_future(import_it(store))
    hub.gate.set()
    assert (await second).source == f"hf:acme/bot@{COMMIT}"
    assert hub.requests["api"] == 1


async def test_an_adapter_above_the_limit_is_refused_before_it_is_fetched(tmp_path: Path, hub: FakeHub) -> None:
    async with open_store(tmp_path, hub_endpoint=hub.endpoint, max_adapter_bytes=500) as store:
        await store.register(base_spec())
        assert isinstance(await error_of(import_it(store)), errors.QuotaExceededError)
    assert hub.requests[WEIGHTS] == 0
