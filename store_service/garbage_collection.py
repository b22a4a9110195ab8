"""Collection at once, by an operator's call, and what it would remove: retention, purges, blobs, objects and uploads.

Both go by the same decisions as the passes that a store makes by itself. Everything here blocks: call it from a thread.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from hotslot.contract.garbage import GarbageReport, Removal
from hotslot.errors import AdapterNotFoundError
from hotslot.ids import AdapterName, TenantId
from store_service.catalog.policies import Policies
from store_service.catalog.pruning import MAX_RELEASED, PrunedVersions, VersionRetention
from store_service.catalog.references import Departed
from store_service.catalog.retention import Pruning
from store_service.content.collection import Collector
from store_service.content.garbage import of_versions
from store_service.content.hold import backup_is_taken, removing
from store_service.content.object_collection import ObjectCollection
from store_service.content.ownership import Ownership
from store_service.content.released import ReleasedBlobs


class GarbageCollection:
    """One store's. Raises StoreUnavailableError and CatalogDamagedError; then nothing more is removed."""

    def __init__(
        self,
        retention: VersionRetention,
        policies: Policies,
        released: ReleasedBlobs,
        collector: Collector,
        ownership: Ownership,
        objects: ObjectCollection | None,
    ) -> None:
        self._retention = retention
        self._policies = policies
        self._released = released
        self._collector = collector
        self._ownership = ownership
        self._objects = objects

    def plan(self) -> GarbageReport:
        """Everything that `run` would remove now, and what stays for now, with its reasons; nothing is changed."""
        pruned = list(self._decided(self._retention.look))
        released = self._released.plan(pruned)
        gone = {(removal.tenant, removal.digest) for removal in released}
        versions = frozenset((each.tenant, each.name, version.digest) for each in pruned for version in each.removed)
        rest = self._collector.plan(Departed(versions=versions), gone)  # type: ignore[arg-type]
        return self._report(of_versions(pruned, time.time()) + released + rest)

    def run(self) -> GarbageReport:
        """Remove it; also raises StoreUnavailableError while a backup is taken."""
        with removing(self._ownership.data_dir) as is_free:
            if not is_free:
                raise backup_is_taken()
        pruned = list(self._decided(self._retention.prune))
        released: list[Removal] = []
        for _ in range(1 + len(self._retention.released(limit=None)) // MAX_RELEASED):
            released += self._released.remove()
        return self._report(of_versions(pruned, time.time()) + released + self._collector.run(full=True))

    def _decided(self, decide: Callable[[TenantId, AdapterName], Pruning]) -> Iterator[PrunedVersions]:
        for tenant, name in self._policies.with_retention():
            with suppress(AdapterNotFoundError):  # deleted since it was listed
                yield PrunedVersions(tenant, name, decide(tenant, name).removed)

    def _report(self, removals: list[Removal]) -> GarbageReport:
        return GarbageReport(tuple(removals), self._objects is not None and self._objects.is_elsewhere())
