"""GetStoreStatus over a real socket: a store that loses a part says which, and goes on answering."""

from pathlib import Path

import pytest

from hotslot import StoreClient
from hotslot.local.embedded_valkey import embedded_valkey
from shared.settings import RedisUrl
from store_service import health
from tests.support.store import open_store

pytestmark = pytest.mark.integration


async def test_a_store_says_which_of_its_parts_was_lost_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with embedded_valkey() as valkey:
        settings = {"redis_url": RedisUrl(valkey.url)}
        async with open_store(tmp_path / "data", **settings) as store, StoreClient(store.endpoint) as client:
            found = await client.status()
            assert (found.ready, found.failing) == (True, ())
            assert [part.name for part in found.parts] == ["catalog", "disk", "redis"]
            assert found.start_time is not None
            valkey.process.kill()
            (redis,) = (await client.status()).failing
            assert (redis.name, redis.required) == ("redis", False)
            assert "cannot be used" in redis.why
            assert (await client.status()).ready
            monkeypatch.setattr(health, "LEAST_FREE_BYTES", 2**60)
            lost = await client.status()
            assert not lost.ready
            assert {part.name for part in lost.failing} == {"disk", "redis"}
