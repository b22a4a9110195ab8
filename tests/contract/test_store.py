"""What the worker needs of a store: one suite against the store in memory and against the real one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import grpc
import pytest

from hotslot.clients.store import StoreClient as PublishingClient
from hotslot.errors import (
    AdapterNotFoundError,
    BaseModelMismatchError,
    BlobNotFoundError,
    StoreUnavailableError,
    TagNotFoundError,
    VersionNotFoundError,
)
from hotslot.ids import DEFAULT_TENANT, Digest, TenantId, digest_of
from hotslot.references import parse_reference
from hotslot.rpc.channel import ChannelOptions, open_channel
from hotslot.rpc.status import from_rpc_error
from shared.server.grpc_server import ServerOptions, serve
from store_service.app import running_store
from store_service.settings import StoreSettings
from tests.support.checkpoints import adapter, base_spec
from tests.support.echo_model import echo_model, voice
from tests.support.echo_worker import run_worker
from tests.support.memory_store import MemoryStore
from tests.support.waiting import until_async
from worker_service.adapters.known_reference import ReferenceLimits
from worker_service.adapters.store_client import StoreView

SPEC = base_spec()
OTHER_BASE = base_spec("acme/other", fingerprint="other")
OTHER_TENANT = TenantId("other")


class Publisher(Protocol):
    """A store with a way to put things into it."""

    endpoint: str

    async def publish(self, name: str, seed: int, tenant: TenantId = DEFAULT_TENANT) -> Digest:
        """A version under `latest`."""
        ...

    async def delete(self, name: str) -> None:
        """An adapter."""
        ...


@dataclass
class MemoryPublisher:
    endpoint: str
    store: MemoryStore

    async def publish(self, name: str, seed: int, tenant: TenantId = DEFAULT_TENANT) -> Digest:
        return self.store.add(name, SPEC.digest, seed=seed, tenant=tenant)

    async def delete(self, name: str) -> None:
        self.store.remove(name)


@dataclass
class RealPublisher:
    endpoint: str
    folder: Path

    async def publish(self, name: str, seed: int, tenant: TenantId = DEFAULT_TENANT) -> Digest:
        folder = self.folder / f"{name}-{seed}"
        adapter(spec=SPEC, seed=seed).write(folder)
        async with PublishingClient(self.endpoint, ChannelOptions(tenant=tenant)) as client:
            return (await client.push(folder, name)).version.digest

    async def delete(self, name: str) -> None:
        async with PublishingClient(self.endpoint) as client:
            await client.delete_adapter(name)


@asynccontextmanager
async def memory_publisher(folder: Path) -> AsyncIterator[Publisher]:
    store = MemoryStore()
    async with serve(store.services(), ServerOptions(grace_s=0.1), observers=()) as server:
        yield MemoryPublisher(f"127.0.0.1:{server.port}", store)


@asynccontextmanager
async def real_publisher(folder: Path) -> AsyncIterator[Publisher]:
    async with running_store(StoreSettings(listen="127.0.0.1:0", data_dir=folder / "store", grace_s=0.1)) as server:
        yield RealPublisher(f"127.0.0.1:{server.port}", folder)


@pytest.fixture(params=[memory_publisher, real_publisher], ids=["memory", "real"])
async def publisher(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Publisher]:
    async with request.param(tmp_path) as publisher:
        async with open_channel(publisher.endpoint) as channel:
            await StoreView(channel, SPEC.digest).register_base_model(SPEC)
        yield publisher


@pytest.fixture
async def client(publisher: Publisher) -> AsyncIterator[StoreView]:
    async with open_channel(publisher.endpoint, ChannelOptions(max_attempts=1)) as channel:
        yield StoreView(channel, SPEC.digest)


async def test_a_reference_resolves_to_a_verified_manifest(publisher: Publisher, client: StoreView) -> None:
    digest = await publisher.publish("bot", 1)
    for text in ("bot", "bot:latest", f"bot@{digest}"):
        version = await client.resolve(DEFAULT_TENANT, parse_reference(text))
        assert (version.digest, version.manifest.digest) == (digest, digest)
        assert version.manifest.base_model_digest == SPEC.digest


async def test_the_blob_is_what_the_manifest_says(publisher: Publisher, client: StoreView) -> None:
    await publisher.publish("bot", 1)
    manifest = (await client.resolve(DEFAULT_TENANT, parse_reference("bot"))).manifest
    blob = await client.read_blob(DEFAULT_TENANT, manifest.weights_digest, manifest.weights_size_bytes)
    assert len(blob) == manifest.weights_size_bytes
    assert digest_of(blob) == manifest.weights_digest


async def test_what_does_not_exist_has_its_own_error(publisher: Publisher, client: StoreView) -> None:
    await publisher.publish("bot", 1)
    with pytest.raises(AdapterNotFoundError):
        await client.resolve(DEFAULT_TENANT, parse_reference("nobody"))
    with pytest.raises(TagNotFoundError):
        await client.resolve(DEFAULT_TENANT, parse_reference("bot:v9"))
    with pytest.raises(VersionNotFoundError):
        await client.resolve(DEFAULT_TENANT, parse_reference(f"bot@{digest_of(b'x')}"))
    with pytest.raises(BlobNotFoundError):
        await client.read_blob(DEFAULT_TENANT, digest_of(b"x"), 10)


async def test_another_tenants_adapters_and_blobs_do_not_exist(publisher: Publisher, client: StoreView) -> None:
    digest = await publisher.publish("bot", 1)
    manifest = (await client.resolve(DEFAULT_TENANT, parse_reference("bot"))).manifest
    for text in ("bot", f"bot@{digest}"):
        with pytest.raises(AdapterNotFoundError):
            await client.resolve(OTHER_TENANT, parse_reference(text))
    with pytest.raises(BlobNotFoundError):
        await client.read_blob(OTHER_TENANT, manifest.weights_digest, manifest.weights_size_bytes)


async def test_a_version_for_another_base_is_refused(publisher: Publisher) -> None:
    await publisher.publish("bot", 1)
    async with open_channel(publisher.endpoint) as channel:
        foreign = StoreView(channel, OTHER_BASE.digest)
        with pytest.raises(BaseModelMismatchError):
            await foreign.resolve(DEFAULT_TENANT, parse_reference("bot"))


async def test_a_store_that_is_not_there_is_unavailable() -> None:
    async with open_channel("127.0.0.1:1", ChannelOptions(max_attempts=1)) as channel:
        client = StoreView(channel, SPEC.digest)
        with pytest.raises(StoreUnavailableError):
            await client.resolve(DEFAULT_TENANT, parse_reference("bot"))
        with pytest.raises(StoreUnavailableError):
            await client.register_base_model(SPEC)


async def test_a_worker_serves_swaps_and_forgets_what_the_store_has(publisher: Publisher) -> None:
    model = replace(echo_model(), spec=SPEC)
    limits = ReferenceLimits(staleness_s=0.05)
    async with run_worker(model, publisher.endpoint, references=limits) as running:
        calls = await running.calls()
        first = await publisher.publish("bot", 1)
        assert (await calls.generate("bot")).text == voice(first)
        second = await publisher.publish("bot", 2)

        async def has_moved() -> bool:
            return (await calls.generate("bot")).text == voice(second)

        await until_async(has_moved)
        assert (await calls.generate(f"bot@{first}")).text == voice(first)
        other = await publisher.publish("bot", 3, OTHER_TENANT)
        theirs = await running.calls(OTHER_TENANT)
        both = await asyncio.gather(calls.generate("bot"), theirs.generate("bot"))
        assert [answer.text for answer in both] == [voice(second), voice(other)]
        await publisher.delete("bot")

        async def is_gone() -> bool:
            try:
                await calls.generate("bot")
            except grpc.RpcError as exc:
                return isinstance(from_rpc_error(exc), AdapterNotFoundError)
            return False

        await until_async(is_gone)
        running.assert_nothing_is_held()
