"""A real store with three adapters for the echo model, and a real Valkey, for workers that forward to each other."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hotslot.local.embedded_valkey import EmbeddedValkey, embedded_valkey
from shared.coordination.connection import RedisConnection
from shared.coordination.directory import Directory
from tests.support.checkpoints import adapter
from tests.support.echo_model import echo_model
from tests.support.fleet import Member, fleet_of
from tests.support.patient_redis import patient
from tests.support.store import StoreClient, open_store

SPEC = echo_model().spec


@dataclass
class Catalog:
    """A store's client, with the digests of what was pushed to it."""

    client: StoreClient
    digests: dict[str, str]

    @property
    def endpoint(self) -> str:
        return self.client.endpoint

    async def push(self, reference: str, seed: int) -> str:
        version = await self.client.push(adapter(spec=SPEC, seed=seed), reference, base_model=SPEC.digest)
        self.digests[reference] = version.digest
        return str(version.digest)


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[EmbeddedValkey]:
    with embedded_valkey() as server:
        yield server


@pytest.fixture
async def redis(shared_valkey: EmbeddedValkey) -> AsyncIterator[RedisConnection]:
    async with RedisConnection(patient(shared_valkey.url)) as connection:
        await connection.run(lambda client: client.flushall())
        yield connection


@pytest.fixture
def redis_url(shared_valkey: EmbeddedValkey, redis: RedisConnection) -> str:
    return shared_valkey.url


@pytest.fixture
def directory(redis: RedisConnection) -> Directory:
    return Directory(redis)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Catalog]:
    async with open_store(tmp_path / "data") as client:
        await client.register(SPEC)
        catalog = Catalog(client, {})
        for seed, name in enumerate(("one", "two", "three")):
            await catalog.push(name, seed)
        yield catalog


@pytest.fixture
async def pair(store: Catalog, redis_url: str) -> AsyncIterator[list[Member]]:
    """Two workers that know each other."""
    async with fleet_of(2, store.endpoint, redis_url) as members:
        yield members
