"""Turns of stores at one import: of the same import through several stores, one fetches, and the others wait for it."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from hotslot.errors import HotslotError, NotFoundError, StoreUnavailableError
from hotslot.ids import TenantId
from store_service.catalog.catalog import Catalog
from store_service.catalog.leases import CatalogLeases
from store_service.catalog.records import VersionRecord
from store_service.execution.offload import Offload
from store_service.publication import Publication
from store_service.sources.source import FixedCheckpoint

LEASE_S = 30.0
RENEW_S = 10.0
POLL_S = 0.5


class StoreTurns:
    """Turns of one store. Lives on the event loop."""

    def __init__(self, leases: CatalogLeases, catalog: Catalog, offload: Offload) -> None:
        self._leases = leases
        self._catalog = catalog
        self._offload = offload

    @asynccontextmanager
    async def turn(
        self, tenant: TenantId, content: FixedCheckpoint, publication: Publication
    ) -> AsyncIterator[VersionRecord | None]:
        """Keep other stores from the same import until the block ends; with the version, where one has just made it.

        A turn saves a download; the import is right without. Raises StoreUnavailableError.
        """
        asked = f"{tenant} {content.key} {publication.key}"
        name = f"import {hashlib.sha256(asked.encode()).hexdigest()}"
        began_s, has_waited = time.time(), False
        while not await self._offload(self._leases.take, name, LEASE_S):
            has_waited = True
            await asyncio.sleep(POLL_S)
        renewing = asyncio.create_task(self._renew(name))
        try:
            yield await self._offload(self._made_since, tenant, content, publication, began_s) if has_waited else None
        finally:
            renewing.cancel()
            with suppress(StoreUnavailableError):  # it ends by itself
                await self._offload(self._leases.give_back, name)

    async def _renew(self, name: str) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            with suppress(HotslotError):
                await self._offload(self._leases.take, name, LEASE_S)

    def _made_since(
        self, tenant: TenantId, content: FixedCheckpoint, publication: Publication, began_s: float
    ) -> VersionRecord | None:
        try:
            found = self._catalog.resolve(tenant, publication.reference).version
        except NotFoundError:
            return None
        return found if found.source == content.origin and found.create_time_s >= began_s else None
