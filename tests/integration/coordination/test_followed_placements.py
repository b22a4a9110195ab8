"""`hotslot top` follows placements by a watch, and lists them only while it has none."""

from collections.abc import AsyncGenerator
from typing import Any

from hotslot import PlacementClient
from hotslot.cli.fleet_readings import FleetReader
from hotslot.contract.placement import Placement
from hotslot.local.embedded_valkey import EmbeddedValkey
from tests.integration.coordination.fleet import digest, joined, resident
from tests.integration.coordination.test_placement_service import running
from tests.support.waiting import until_async


class CountingClient(PlacementClient):
    """Counts the listings of placements."""

    listings = 0

    async def list_placements(self, **fields: Any) -> AsyncGenerator[Placement, None]:
        self.listings += 1
        async for placement in super().list_placements(**fields):
            yield placement


async def test_placements_are_followed_through_changes_and_a_flush(valkey_node: EmbeddedValkey) -> None:
    async with running(valkey_node) as rig:
        client = CountingClient(rig.endpoint)
        first = await joined(rig.redis, "w-1", resident(1), resident(2))
        second = await joined(rig.redis, "w-2", resident(2))
        reader = FleetReader(client, "")

        async def shows(*expected: tuple[str, int]) -> bool:
            found = {(p.worker_id, p.adapter_digest) for p in (await reader.read()).placements}
            return found == {(worker_id, digest(number)) for worker_id, number in expected}

        async def is_followed() -> bool:
            before = client.listings
            await reader.read()
            return client.listings == before

        assert await shows(("w-1", 1), ("w-1", 2), ("w-2", 2))
        await until_async(is_followed)
        listed = client.listings
        await first.report(resident(1), resident(3))
        await until_async(lambda: shows(("w-1", 1), ("w-1", 3), ("w-2", 2)))
        await second.release()
        await until_async(lambda: shows(("w-1", 1), ("w-1", 3)))
        assert client.listings == listed, "what changed was told, not listed"
        await rig.redis.run(lambda redis: redis.flushall())
        await first.announce()
        await first.touch_pool()
        await first.report(resident(4))
        await until_async(lambda: shows(("w-1", 4)))
        await until_async(is_followed)
        assert await shows(("w-1", 4))
        await reader.close()
        await client.close()
