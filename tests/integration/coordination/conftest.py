"""A real Valkey for every test here, as one node and as a cluster."""

from collections.abc import AsyncIterator, Iterator

import pytest

from hotslot.local.embedded_valkey import EmbeddedValkey, embedded_valkey
from shared.coordination.connection import RedisConnection
from tests.support.patient_redis import patient


@pytest.fixture(scope="session")
def valkey_node() -> Iterator[EmbeddedValkey]:
    with embedded_valkey() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_cluster() -> Iterator[EmbeddedValkey]:
    with embedded_valkey(cluster=True) as server:
        yield server


@pytest.fixture(params=["node", "cluster"])
def valkey(request: pytest.FixtureRequest) -> EmbeddedValkey:
    """A contract: what holds on one node holds on a cluster."""
    server: EmbeddedValkey = request.getfixturevalue(f"valkey_{request.param}")
    return server


@pytest.fixture
async def redis(valkey: EmbeddedValkey) -> AsyncIterator[RedisConnection]:
    async with RedisConnection(patient(valkey.url)) as connection:
        await connection.run(lambda client: client.flushall())
        yield connection
