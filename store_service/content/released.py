"""Removes the blobs of versions that retention removed: the catalog itself says that they are not wanted.

Other blobs that nothing refers to wait for a day (`collection`), since absence alone may be the catalog's loss.
"""

from collections.abc import Collection, Iterable

from hotslot.contract.garbage import Removal
from store_service.catalog.pruning import PrunedVersions, VersionRetention
from store_service.catalog.references import Departed
from store_service.content.garbage import of_released
from store_service.content.hold import removing
from store_service.content.keys import BlobKey
from store_service.content.object_collection import ObjectCollection
from store_service.content.ownership import Ownership
from store_service.content.published import PublishedBlobs


class ReleasedBlobs:
    """Released blobs of one store. Everything here blocks: call it from a thread."""

    def __init__(
        self,
        published: PublishedBlobs,
        retention: VersionRetention,
        ownership: Ownership,
        objects: ObjectCollection | None = None,
    ) -> None:
        """`objects` says whether this store of several may remove any."""
        self._published = published
        self._retention = retention
        self._ownership = ownership
        self._objects = objects

    def remove(self) -> list[Removal]:
        """Remove those that retention left lately, MAX_RELEASED at most, and return what went; those that a version has
        again stay.

        Raises StoreUnavailableError and CatalogDamagedError. While a backup is taken, or another store of the
        catalog removes, nothing is removed here.
        """
        with removing(self._ownership.data_dir) as is_free:
            released = self._retention.released() if is_free else []
            if not released or (self._objects is not None and not self._objects.may_remove()):
                return []
            self._ownership.check(self._published.catalog.state())
            keys = [(each.tenant, each.digest) for each in released]
            found = self._look(keys)
            gone = {key for key in keys if self._published.remove_unreferenced(key)}
            self._retention.settle(released)
            return [removal for removal in found if (removal.tenant, removal.digest) in gone]

    def plan(self, pruned: Iterable[PrunedVersions]) -> list[Removal]:
        """Removals of the next calls of `remove`, if retention removed these versions before."""
        pruned = list(pruned)
        if self._objects is not None and self._objects.is_elsewhere():
            return []
        keys = {(each.tenant, each.digest) for each in self._retention.released(limit=None)}
        keys |= {(each.tenant, version.weights_digest) for each in pruned for version in each.removed}
        versions = frozenset((each.tenant, each.name, version.digest) for each in pruned for version in each.removed)
        keys -= self._published.catalog.references.among(keys, Departed(versions=versions))
        return self._look(keys - self._published.held(keys))

    def _look(self, keys: Collection[BlobKey]) -> list[Removal]:
        stored = self._objects.stored_among(keys) if self._objects is not None else {}
        return of_released(self._published.blobs.index.sizes_among(keys), stored)
