"""Workers that hold what a name stood for, so that its publisher can wait until they hold what it stands for now."""

import asyncio
from collections.abc import Iterable, Sequence

from hotslot.contract.catalog import VersionHolder
from hotslot.ids import Digest, TenantId
from shared.fleet.records import MEMORY_TIERS
from store_service.catalog.records import VersionSummary
from store_service.placement.fleets import FleetCache

PATIENCE_S = 1.0
"""Longest wait for Redis: it only has hints."""


class Holders:
    """Asks placement who holds versions. Lives on the event loop."""

    def __init__(self, fleets: FleetCache | None) -> None:
        """Without Redis no worker is known to hold anything."""
        self._fleets = fleets

    async def of(self, tenant: TenantId, versions: Iterable[VersionSummary]) -> Sequence[VersionHolder]:
        """Workers that have one of a tenant's versions in memory; raises StoreUnavailableError and TimeoutError."""
        if self._fleets is None:
            return ()
        pools: dict[Digest, list[Digest]] = {}
        for version in versions:
            pools.setdefault(version.base_model_digest, []).append(version.digest)
        async with asyncio.timeout(PATIENCE_S):
            return [holder for pool, digests in pools.items() for holder in await self._in(tenant, pool, digests)]

    async def _in(self, tenant: TenantId, pool: Digest, digests: Sequence[Digest]) -> list[VersionHolder]:
        assert self._fleets is not None, "asked only where there is placement"
        picture = await self._fleets.picture(pool)
        placements = await picture.placements(digests)
        holding = {
            placed.worker_id
            for found in placements.values()
            for placed in found
            if placed.resident.tier in MEMORY_TIERS and placed.resident.seen_by(tenant) is not None
        }
        return [
            VersionHolder(record.info.worker_id, record.info.endpoint)
            for record in picture.workers
            if record.info.worker_id in holding
        ]
