"""Lets PlacementService ask the catalog what references stand for."""

from hotslot.ids import TenantId
from hotslot.references import Reference
from shared.fleet.replica_policy import DEFAULT_REPLICA_POLICY
from shared.server.deadline import HasDeadline
from store_service.catalog.catalog import Catalog
from store_service.execution.call_queue import CallQueue
from store_service.placement.groups import Ranks
from store_service.placement.queries import Wanted


class CatalogResolver:
    """The catalog, as placement asks it: behind the queue of look-ups."""

    def __init__(self, catalog: Catalog, lookups: CallQueue) -> None:
        self._catalog = catalog
        self._lookups = lookups

    async def resolve(self, tenant: TenantId, reference: Reference, caller: HasDeadline) -> Wanted:
        """Raises as `Catalog.resolve`."""
        found = await self._lookups(caller, self._catalog.resolve, tenant, reference)
        policy = found.policy.policy if found.policy is not None else DEFAULT_REPLICA_POLICY
        manifest = found.version.manifest
        return Wanted(found.version.digest, manifest.base_model_digest, policy, Ranks.of(manifest))
